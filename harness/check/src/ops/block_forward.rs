use aqlm_engine::backends::CudaHidden;
use aqlm_engine::ops::BlockOps as _;
use aqlm_optimized::cuda::training::Precision;
use aqlm_reference::llama::{KvCacheLayer, block_decode_step, block_forward};
use aqlm_vocabulary::AqlmError;
use ndarray::{Array2, Array3, Axis, s};
use proptest::strategy::BoxedStrategy;

use super::llama::{self, Llama};
use super::{CaseData as _, Op};
use crate::Comparison;
use crate::breakage::{self, Breakage};
use crate::cases::{Case, Kind, Problem, llama as cases, strategy};
use crate::compare::{Against, Findings};
use crate::subject::Subject;
use aqlm_formats::Result;

/// The first block's output, [sequences, tokens, hidden].
pub(crate) struct BlockForward;

impl Op for BlockForward {
    type Data = Llama;
    type Answer = Array3<f64>;
    type Expected = Array3<f64>;

    const KIND: Kind = Kind::Llama;
    const CORNERS: &'static [&'static str] = cases::CORNERS;

    fn strategy() -> BoxedStrategy<Problem> {
        strategy::llama(70)
    }

    fn ways(machine: &Subject, _data: &Llama) -> Vec<Subject> {
        let mut ways = llama::rungs_and_single(machine);
        if let Subject::Cuda(_) = machine {
            ways.push(machine.with(Precision::Bf16));
        }
        ways
    }

    fn run(subject: &Subject, case: &Llama) -> Result<Array3<f64>> {
        let data = &case.data;
        match subject {
            Subject::Reference => {
                let (block, rotary) = case.exact();
                let mut y = Array3::zeros(data.x.dim());
                for (x, mut y) in data.x.outer_iter().zip(y.outer_iter_mut()) {
                    let x = x.mapv(f64::from);
                    y.assign(&block_forward(&block, &rotary, x.view()));
                }
                Ok(y)
            }
            Subject::Cpu(_) => {
                let backend = case.on_cpu()?;
                let block = backend.load_block(0, &data.blocks[0])?;
                let y = backend.block_forward(&block, &data.x.clone().into())?;
                Ok(y.to_array()?.mapv(f64::from))
            }
            Subject::Cuda(cuda) if cuda.training.is_some() => {
                let backend = case.on_machine(cuda)?;
                let machine = backend.machine();
                let block = backend.load_block(0, &data.blocks[0])?;
                let y = backend.block_forward(&block, &CudaHidden::of(machine, &data.x.view())?)?;
                Ok(y.to_array(machine)?.mapv(f64::from))
            }
            Subject::Cuda(cuda) => {
                let mut model = case.on_gpu(cuda).map_err(AqlmError::from)?;
                let mut y = Array3::from_elem(data.x.dim(), f64::NAN);
                for (x, mut y) in data.x.outer_iter().zip(y.outer_iter_mut()) {
                    let rows: Vec<f32> = x.iter().copied().collect();
                    let found = model.block_forward(0, &rows).map_err(AqlmError::from)?;
                    for (y, found) in y.iter_mut().zip(found) {
                        *y = f64::from(found);
                    }
                }
                Ok(y)
            }
        }
    }

    /// A position does not depend on later ones. Processing token by token with a cache gives the same result
    /// as all tokens at once.
    fn properties(check: Against, case: &Case) -> Result<Vec<Comparison>> {
        let case = Llama::new(case)?;
        let (data, tokens) = (&case.data, case.problem.tokens);
        let (block, rotary) = case.exact();
        let whole = Self::run(&Subject::Reference, &case)?;
        let whole = whole.index_axis(Axis(0), 0);
        let x = data.x.index_axis(Axis(0), 0).mapv(f64::from);
        let half = tokens.div_ceil(2);
        let part = block_forward(&block, &rotary, x.slice(s![..half, ..]));
        let mut cache = KvCacheLayer::new(&block.spec().attention, tokens);
        let mut steps = Array2::zeros(x.dim());
        for (position, (x, mut y)) in x.outer_iter().zip(steps.outer_iter_mut()).enumerate() {
            let step = block_decode_step(&block, &rotary, &mut cache, x, position);
            y.assign(&step);
        }
        Ok(vec![
            check.nmse("first half alone", &part, whole.slice(s![..half, ..]))?,
            check.nmse("token by token", &steps, whole)?,
        ])
    }

    fn expected(case: &Llama) -> Result<Array3<f64>> {
        Self::run(&Subject::Reference, case)
    }

    fn compare(
        check: Against,
        _subject: &Subject,
        _case: &Llama,
        expected: &Array3<f64>,
        y: &Array3<f64>,
    ) -> Result<Findings> {
        Ok(vec![check.nmse("y", y, expected)?.shaped(expected.shape())].into())
    }

    fn breakages() -> Vec<Breakage<Llama, Array3<f64>>> {
        vec![
            Breakage::of_answer("a stale accumulator", |y, _, before| breakage::stale(y, before)),
            Breakage::of_answer("a NaN", |y, _, _| y[[0, 0, 0]] = f64::NAN),
            Breakage::of_answer("a result off by a thousandth", |y, _, _| breakage::inaccurate(y)),
        ]
    }
}
