use aqlm_engine::backends::ReferenceBackend;
use aqlm_engine::ops::{TrainOps, Weights as _};
use aqlm_reference::llama::sketch;
use aqlm_vocabulary::GradientSums as Sums;
use ndarray::Array2;
use proptest::strategy::BoxedStrategy;

use super::block_backward::zero_or;
use super::llama::Llama;
use super::{CaseData as _, Op};
use crate::Comparison;
use crate::breakage::{self, Breakage};
use crate::cases::{Case, Kind, Problem, llama as cases, strategy};
use crate::compare::{Against, Findings};
use crate::subject::Subject;
use aqlm_formats::Result;
use aqlm_optimized::cuda::training::Precision;

/// Sums of G G^T and G^T G over the gradients G of sequences, for every layer of a model.
pub(crate) struct GradientSums;

impl Op for GradientSums {
    type Data = Llama;
    /// of each block's layers
    type Answer = Vec<Vec<Sums>>;
    type Expected = Vec<Vec<Sums>>;

    const KIND: Kind = Kind::Llama;
    const CORNERS: &'static [&'static str] = cases::CORNERS;

    fn strategy() -> BoxedStrategy<Problem> {
        strategy::llama(24)
    }

    fn ways(machine: &Subject, _data: &Llama) -> Vec<Subject> {
        vec![machine.with(Precision::Single)]
    }

    fn run(subject: &Subject, case: &Llama) -> Result<Vec<Vec<Sums>>> {
        match subject {
            Subject::Reference => Ok(sketch(&case.data.model(), &case.sequences(), &labels(case))?),
            Subject::Cpu(_) => on(&case.on_cpu()?, case),
            Subject::Cuda(cuda) => on(&case.on_machine(cuda)?, case),
        }
    }

    /// Block by block the reference finds the same; both sums have the gradients' squares on their diagonals.
    fn properties(check: Against, case: &Case) -> Result<Vec<Comparison>> {
        let case = Llama::new(case)?;
        let expected = Self::expected(&case)?;
        let machine = ReferenceBackend::new(&case.data.config, case.problem.tokens)?;
        let mut comparisons = compared(check, &case, &expected, &on(&machine, &case)?)?;
        let traces = |side: fn(&Sums) -> &Array2<f64>| -> Vec<f64> {
            let sums = expected.iter().flatten();
            sums.map(|sums| side(sums).diag().sum()).collect()
        };
        let (outer, inner) = (traces(|sums| &sums.outer), traces(|sums| &sums.inner));
        comparisons.push(zero_or(check, "squares on either side", &outer, &inner)?);
        Ok(comparisons)
    }

    fn expected(case: &Llama) -> Result<Vec<Vec<Sums>>> {
        Self::run(&Subject::Reference, case)
    }

    fn compare(
        check: Against,
        _subject: &Subject,
        case: &Llama,
        expected: &Vec<Vec<Sums>>,
        found: &Vec<Vec<Sums>>,
    ) -> Result<Findings> {
        Ok(compared(check, case, expected, found)?.into())
    }

    fn breakages() -> Vec<Breakage<Llama, Vec<Vec<Sums>>>> {
        vec![
            Breakage::of_answer("a NaN", |found, _, _| {
                found[0][0].outer[[0, 0]] = f64::NAN;
            }),
            Breakage::of_answer("a sum off by a thousandth", |found, _, _| {
                if let Some(sums) = found.last_mut().and_then(|block| block.last_mut()) {
                    breakage::inaccurate(&mut sums.inner);
                }
            }),
            Breakage::of_answer("a stale accumulator", |found, _, before| {
                let last = found.len() - 1;
                let before = before.and_then(|before| before.get(last)?.first());
                breakage::stale(&mut found[last][0].inner, before.map(|sums| &sums.inner));
            }),
        ]
    }
}

/// A label for every token: the one before it in its sequence, the last one for the first.
fn labels(case: &Llama) -> Vec<Vec<u32>> {
    let turned = |tokens: &&[u32]| {
        let mut labels = tokens.to_vec();
        labels.rotate_right(1);
        labels
    };
    case.sequences().iter().map(turned).collect()
}

/// Forward through all blocks of a machine, and back.
fn on<M: TrainOps>(machine: &M, case: &Llama) -> Result<Vec<Vec<Sums>>> {
    let data = &case.data;
    let mut inputs = Vec::new();
    let mut hidden = machine.embed(&data.embedding()?, &case.sequences())?;
    for index in 0..data.blocks.len() {
        let block = machine.load_block(index, &data.blocks[index])?;
        let next = machine.block_forward(&block, &hidden)?;
        inputs.push(std::mem::replace(&mut hidden, next));
    }
    let head = machine.load_head(&data.final_norm()?, &data.lm_head()?)?;
    let mut gradients = vec![machine.label_gradients(&head, &hidden, &labels(case))?];
    let mut all = Vec::new();
    for (index, inputs) in inputs.iter().enumerate().rev() {
        let block = machine.load_block(index, &data.blocks[index])?;
        let (next, sums) = machine.block_sketch(&block, inputs, &gradients)?;
        gradients = next;
        all.push(sums);
    }
    all.reverse();
    Ok(all)
}

fn compared(
    check: Against,
    case: &Llama,
    expected: &[Vec<Sums>],
    found: &[Vec<Sums>],
) -> Result<Vec<Comparison>> {
    let mut comparisons = Vec::new();
    for (index, spec) in case.data.config.blocks.iter().enumerate() {
        for layer in spec.layers() {
            let name = case.data.config.layer_name(index, layer);
            // Missing sums become empty ones; an empty comparison never holds.
            let found = found.get(index).and_then(|block| block.get(layer.index()));
            let expected = &expected[index][layer.index()];
            for (side, of) in [
                ("G G^T", (|sums| &sums.outer) as fn(&Sums) -> &Array2<f64>),
                ("G^T G", |sums| &sums.inner),
            ] {
                let found: Vec<f64> = found.map_or_else(Vec::new, |sums| of(sums).iter().copied().collect());
                comparisons.push(zero_or(
                    check,
                    &format!("{side} of {name}"),
                    &found,
                    of(expected),
                )?);
            }
        }
    }
    Ok(comparisons)
}
