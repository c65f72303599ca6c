use std::sync::Arc;

use aqlm_optimized::cpu::quantizer;
use aqlm_optimized::cuda::CudaError;
use aqlm_optimized::cuda::training::{self as cuda, Machine, Precision};
use aqlm_reference::Hessian as Exact;
use aqlm_vocabulary::llama::LlamaBlock;
use aqlm_vocabulary::{AqlmError, ArchSpec, BlockSpec, Rope, RopeScaling};
use half::bf16;
use ndarray::{Array2, ArrayView2, Axis, s};
use proptest::strategy::BoxedStrategy;

use super::{CaseData, Cost, Op};
use crate::Comparison;
use crate::breakage::{self, Breakage};
use crate::cases::{Case, Kind, Problem, SamplesCase, strategy};
use crate::compare::{Against, Findings};
use crate::keep::{Operands, Tensors};
use crate::limits::{Measure, Number};
use crate::subject::Subject;
use aqlm_formats::Result;

/// The mean of x xT over samples.
pub(crate) struct Hessian;

/// Samples, and the parts in which they arrive.
#[derive(Debug, Clone)]
pub(crate) struct Samples {
    problem: SamplesCase,
    x: Array2<f32>,
}

impl Operands for Samples {
    fn add_to(&self, tensors: &mut Tensors) {
        tensors.array("x", &self.x);
    }
}

impl CaseData for Samples {
    fn new(case: &Case) -> Result<Self> {
        let problem = case.samples()?;
        Ok(Self {
            problem,
            x: problem.data(case.seed),
        })
    }

    fn cost(&self) -> Cost {
        let (rows, columns) = self.x.dim();
        Cost {
            bytes: self.x.len() * size_of::<f32>(),
            products: vec![[columns, rows, columns]],
        }
    }
}

impl Op for Hessian {
    type Data = Samples;
    type Answer = Array2<f64>;
    type Expected = Array2<f64>;

    const KIND: Kind = Kind::Samples;
    const CORNERS: &'static [&'static str] = &[
        "1x3-k1-dyadic-s1",
        // more samples than one f32 sum takes, more inputs than a tile of 192
        "2500x33-k2-outliers-s2",
        "300x400-k3-dyadic-s3",
        "70x40-k4-denormal-s4",
        "60x1-k1-equalrows-s5",
    ];

    fn strategy() -> BoxedStrategy<Problem> {
        strategy::samples(200, 90, 4)
    }

    fn ways(machine: &Subject, _data: &Samples) -> Vec<Subject> {
        match machine {
            Subject::Cuda(_) => [Precision::Single, Precision::Bf16]
                .map(|precision| machine.with(precision))
                .to_vec(),
            other => vec![other.clone()],
        }
    }

    fn run(subject: &Subject, data: &Samples) -> Result<Array2<f64>> {
        let parts = parts(&data.x, data.problem.count);
        match subject {
            Subject::Reference => Ok(exact(&parts)?.mean()),
            Subject::Cpu(_) => {
                let mut hessian = quantizer::Hessian::new(data.x.ncols());
                parts.iter().try_for_each(|part| hessian.add(*part))?;
                Ok(hessian.mean())
            }
            Subject::Cuda(cuda) => {
                let device = Arc::clone(&cuda.device);
                let on_gpu = || -> std::result::Result<_, CudaError> {
                    // A Hessian needs nothing of the model.
                    let machine = Machine::new(device, &one_block(), 1, Precision::Single)?;
                    let calibration = cuda.training.unwrap_or(Precision::Single);
                    let machine = Arc::new(machine.calibrating(calibration));
                    let mut hessian = cuda::Hessian::new(&machine, data.x.ncols());
                    for part in &parts {
                        let rows: Vec<f32> = part.iter().copied().collect();
                        hessian.add(&machine.hidden(&rows)?)?;
                    }
                    hessian.mean()
                };
                Ok(on_gpu().map_err(AqlmError::from)?)
            }
        }
    }

    /// Checks the definition, symmetry, and merging of accumulators.
    fn properties(check: Against, case: &Case) -> Result<Vec<Comparison>> {
        let data = Samples::new(case)?;
        let (problem, x) = (data.problem, &data.x);
        let mean = Self::run(&Subject::Reference, &data)?;
        let n = problem.columns;
        let mut definition = Array2::<f64>::zeros((n, n));
        for sample in x.outer_iter() {
            for (i, &a) in sample.iter().enumerate() {
                for (j, &b) in sample.iter().enumerate() {
                    definition[[i, j]] += f64::from(a) * f64::from(b) / problem.rows as f64;
                }
            }
        }
        let mut merged = Exact::new(n);
        for part in parts(x, problem.count) {
            merged.merge(&exact(&[part])?)?;
        }
        let uncounted = problem.rows.abs_diff(merged.samples());
        Ok(vec![
            check.nmse("definition", &definition, &mean)?,
            check.nmse("merged", &merged.mean(), &mean)?,
            check.nmse("transpose", mean.t(), &mean)?,
            check.value(Measure::Exact, "samples that were not counted", uncounted as f64)?,
        ])
    }

    fn expected(data: &Samples) -> Result<Array2<f64>> {
        Self::run(&Subject::Reference, data)
    }

    fn compare(
        check: Against,
        subject: &Subject,
        data: &Samples,
        expected: &Array2<f64>,
        found: &Array2<f64>,
    ) -> Result<Findings> {
        if let Subject::Cuda(cuda) = subject
            && cuda.training == Some(Precision::Bf16)
        {
            return of_rounded(check, data, found);
        }
        let flat = |h: &Array2<f64>| -> Vec<f64> { h.iter().copied().collect() };
        let asymmetric = found.iter().zip(found.t()).filter(|(a, b)| a != b).count();
        let what = "elements unlike their transpose";
        let transpose = check.value(Measure::Exact, what, asymmetric as f64)?;
        // The mean divides by the number of samples, which rounds. Only the sums are exact.
        let values = if data.problem.values.is_exact() && data.problem.rows.is_power_of_two() {
            check.exact("elements of H", &flat(found), &flat(expected))?
        } else {
            check.nmse("H", found, expected)?
        };
        Ok(vec![transpose, values.shaped(expected.shape())].into())
    }

    /// The samples, read once, and their product with themselves.
    fn breakages() -> Vec<Breakage<Samples, Array2<f64>>> {
        vec![
            Breakage::of_data("the last half of the samples left out", |broken| {
                let half = broken.x.nrows().div_ceil(2);
                broken.x = broken.x.slice(s![..half, ..]).to_owned();
            }),
            Breakage::of_answer("a stale accumulator", |h, _, before| breakage::stale(h, before)),
            Breakage::of_answer("a NaN", |h, _, _| {
                let middle = h.nrows() / 2;
                h[[middle, middle]] = f64::NAN;
            }),
            Breakage::of_answer("a result off by a thousandth", |h, _, _| breakage::inaccurate(h)),
        ]
    }
}

/// H of samples that were rounded to bf16 is exactly that of the rounded samples, up to the sums.
fn of_rounded(check: Against, data: &Samples, found: &Array2<f64>) -> Result<Findings> {
    let rounded = data.x.mapv(|x| bf16::from_f32(x).to_f32());
    let expected = exact(&parts(&rounded, data.problem.count))?.mean();
    let asymmetric = found.iter().zip(found.t()).filter(|(a, b)| a != b).count();
    let what = "elements unlike their transpose";
    let transpose = check.value(Measure::Exact, what, asymmetric as f64)?;
    // products of rounded samples are exact in f32
    let sums = Against {
        number: Number::F32,
        ..check
    };
    let values = sums.nmse("H of rounded samples", found, &expected)?;
    Ok(vec![transpose, values.shaped(expected.shape())].into())
}

/// The samples in the parts in which they arrive.
fn parts(x: &Array2<f32>, count: usize) -> Vec<ArrayView2<'_, f32>> {
    x.axis_chunks_iter(Axis(0), x.nrows().div_ceil(count)).collect()
}

/// The smallest model: a machine is made for one.
fn one_block() -> ArchSpec {
    let block = BlockSpec::llama(LlamaBlock {
        hidden_size: 2,
        intermediate_size: 2,
        heads: 1,
        kv_heads: 1,
        head_dim: 2,
        epsilon: 1e-5,
        rotary: Rope {
            theta: 1000.0,
            scaling: RopeScaling::None,
        },
        window: None,
    });
    ArchSpec::llama(2, 1, 1, block)
}

fn exact(parts: &[ArrayView2<'_, f32>]) -> Result<Exact> {
    let mut hessian = Exact::new(parts.first().map_or(0, ArrayView2::ncols));
    for part in parts {
        hessian.add(part.mapv(f64::from).view())?;
    }
    Ok(hessian)
}
