//! A bench of one operation on the harness's own cases (docs/checking.md): every SIMD level of the CPU
//! backend is checked against the reference first, then both are timed, beside dense products in f32 of the
//! same shapes through the library.

mod reference;

use aqlm_benches::print_roofline;
use aqlm_check::cases::{Case, LlamaCase, LlamaData, Operation, Problem};
use aqlm_check::{CheckedBackend, CpuSubject, CrossOptions, Subject, cross_check};
use aqlm_formats::{Error, Result};
use aqlm_optimized::cpu::product::linear;
use aqlm_vocabulary::{Purpose, sweep_order};
use criterion::Criterion;
use faer::Par;
use ndarray::{Array2, Array3, Axis};
use std::hint::black_box;
use std::time::Duration;

use reference::ReferenceSubject;

/// Iterations of k-means.
const ITERATIONS: usize = 25;

/// Refuses cases that do not pass, then times them.
pub(crate) fn bench(criterion: &mut Criterion, ids: &[&str]) {
    for id in ids {
        if let Err(error) = bench_case(criterion, id) {
            eprintln!("{id}: {error}");
            std::process::exit(1);
        }
    }
}

fn bench_case(criterion: &mut Criterion, id: &str) -> Result<()> {
    let case: Case = id.parse()?;
    let checked = cross_check(
        &CrossOptions {
            backend: Some(CheckedBackend::Cpu),
            operation: None,
            case: Some(case),
            cases: 0,
            seed: 0,
        },
        &mut |_| (),
    )?;
    if !checked.holds() {
        let reason = checked.summary.into_iter().find_map(|row| row.reason);
        return Err(Error::argument(
            &format!("case `{id}`"),
            "results that the reference has, too",
            reason.unwrap_or_default(),
        ));
    }
    let work = Work::new(&case)?;
    print_roofline(id, work.bytes());
    let mut group = criterion.benchmark_group(id);
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2));
    work.run(&ReferenceSubject)?;
    group.bench_function("reference", |b| b.iter(|| work.run(&ReferenceSubject)));
    for subject in CpuSubject::all(&case) {
        work.run(&*subject)?;
        group.bench_function(format!("cpu {}", subject.variant()), |b| {
            b.iter(|| work.run(&*subject));
        });
    }
    let products: Vec<(Array2<f32>, Array2<f32>)> = work
        .products()
        .into_iter()
        .map(|[rows, inputs, out]| (Array2::ones((rows, inputs)), Array2::ones((out, inputs))))
        .collect();
    group.bench_function("dense f32 products, faer", |b| {
        b.iter(|| {
            for (x, weight) in &products {
                black_box(linear(x.view(), weight.view(), Par::rayon(0)));
            }
        });
    });
    group.finish();
    Ok(())
}

/// A case with its data.
struct Work {
    case: Case,
    data: Data,
}

enum Data {
    Samples(Array2<f32>),
    Layer(Box<aqlm_check::cases::LayerData>),
    Llama(LlamaCase, Box<LlamaData>, Array3<f32>),
}

impl Work {
    fn new(case: &Case) -> Result<Self> {
        let data = match case.problem {
            Problem::Samples(problem) => Data::Samples(problem.data(case.seed)),
            Problem::Layer(problem) => Data::Layer(Box::new(problem.data(case.seed))),
            Problem::Llama(problem) => {
                let data = problem.data(case.seed);
                // outputs that differ from the block's
                let targets = &data.x + &data.grad_y;
                Data::Llama(problem, Box::new(data), targets)
            }
            Problem::Product(_) => {
                return Err(Error::argument(
                    "case",
                    "another operation than a product, which has a bench of its own",
                    case.to_string(),
                ));
            }
        };
        Ok(Self { case: *case, data })
    }

    /// Does the operation once.
    fn run(&self, subject: &dyn Subject) -> Result<()> {
        let (case, seed) = (&self.case, self.case.seed);
        match (&self.data, case.operation) {
            (Data::Samples(x), Operation::Hessian) => {
                let parts: Vec<_> = x
                    .axis_chunks_iter(Axis(0), x.nrows().div_ceil(case.samples()?.count))
                    .collect();
                black_box(subject.hessian(&parts)?);
            }
            (Data::Samples(x), _) => {
                let count = case.samples()?.count;
                let start = x.slice(ndarray::s![..count, ..]).to_owned();
                black_box(subject.kmeans(x, &start, ITERATIONS)?);
            }
            (Data::Layer(data), operation) => {
                let problem = case.layer()?;
                let (weight, hessian, key) = (&data.weight, &data.hessian, problem.key(seed));
                let settings = problem.settings();
                match operation {
                    Operation::ResidualInit => {
                        black_box(subject.residual_init(weight, &settings, key)?);
                    }
                    Operation::EmInit => {
                        black_box(subject.em_init(weight, hessian, &settings, 3, key)?);
                    }
                    Operation::BeamSearch => {
                        let matrix = &data.matrix;
                        let mut rng = key.stream(Purpose::Sweep);
                        let order = sweep_order(&mut rng, matrix.groups().1, matrix.scheme.num_codebooks);
                        black_box(subject.beam_search(weight, hessian, matrix, &order, problem.beam)?);
                    }
                    Operation::CodebookUpdate => {
                        let update = problem.update_settings();
                        black_box(subject.codebook_update(weight, hessian, &data.matrix, &update)?);
                    }
                    _ => {
                        black_box(subject.layer_quantize(weight, hessian, &settings, key)?);
                    }
                }
            }
            (Data::Llama(problem, data, targets), operation) => match operation {
                Operation::BlockForward => {
                    black_box(subject.block_forward(data)?);
                }
                Operation::BlockBackward => {
                    black_box(subject.block_backward(data)?);
                }
                Operation::BlockFinetune => {
                    black_box(subject.block_finetune(problem, data, targets, problem.key(seed))?);
                }
                Operation::ModelForward => {
                    black_box(subject.model_forward(data)?);
                }
                _ => {
                    black_box(subject.perplexity(data)?);
                }
            },
        }
        Ok(())
    }

    /// Bytes that have to move at least: inputs read once, in f32 or codes of a byte, and results written
    /// once.
    fn bytes(&self) -> usize {
        let numbers = match &self.data {
            Data::Samples(x) => x.len(),
            // the weight and H
            Data::Layer(data) => data.weight.len() + data.hessian.len(),
            Data::Llama(_, data, _) => 2 * data.x.len() + data.config.blocks[0].parameters(),
        };
        numbers * size_of::<f32>()
    }

    /// The dense products of an operation's shapes, [rows, inputs, outputs]: samples with themselves, points
    /// with centroids, a weight with H, the linear layers of a block.
    fn products(&self) -> Vec<[usize; 3]> {
        match (&self.data, self.case.problem) {
            (Data::Samples(x), Problem::Samples(problem)) => {
                if self.case.operation == Operation::Hessian {
                    vec![[x.ncols(), x.nrows(), x.ncols()]]
                } else {
                    vec![[x.nrows(), x.ncols(), problem.count]]
                }
            }
            (Data::Layer(data), _) => {
                let (out, inputs) = data.weight.dim();
                vec![[out, inputs, inputs]]
            }
            (Data::Llama(_, data, _), _) => {
                let (sequences, tokens, _) = data.x.dim();
                let linears = data.config.blocks[0].linears.iter();
                linears
                    .map(|linear| [sequences * tokens, linear.shape.1, linear.shape.0])
                    .collect()
            }
            _ => Vec::new(),
        }
    }
}
