use aqlm_engine::backends::cuda::losses;
use aqlm_engine::evaluate::streamed;
use aqlm_reference::llama::token_losses;
use aqlm_vocabulary::AqlmError;
use ndarray::{Array1, Array2, s};
use proptest::strategy::BoxedStrategy;

use super::llama::{self, Llama};
use super::model_forward::whole;
use super::{CaseData as _, Op};
use crate::Comparison;
use crate::breakage::{self, Breakage};
use crate::cases::{Case, Kind, Problem, VOCABULARY, llama as cases, strategy};
use crate::compare::{Against, Findings};
use crate::subject::Subject;
use aqlm_formats::Result;

/// Tokens to the loss of each next token, [tokens - 1] per sequence.
pub(crate) struct Perplexity;

impl Op for Perplexity {
    type Data = Llama;
    type Answer = Vec<Array1<f64>>;
    type Expected = Vec<Array1<f64>>;

    const KIND: Kind = Kind::Llama;
    const CORNERS: &'static [&'static str] = cases::CORNERS;

    fn strategy() -> BoxedStrategy<Problem> {
        strategy::llama(70)
    }

    fn ways(machine: &Subject, _data: &Llama) -> Vec<Subject> {
        llama::rungs_and_single(machine)
    }

    fn run(subject: &Subject, case: &Llama) -> Result<Vec<Array1<f64>>> {
        let data = &case.data;
        match subject {
            Subject::Reference => whole(data)?
                .iter()
                .zip(&data.tokens)
                .map(|(logits, tokens)| {
                    let predicting = logits.slice(s![..tokens.len() - 1, ..]);
                    Ok(token_losses(predicting, &tokens[1..])?)
                })
                .collect(),
            Subject::Cpu(_) => {
                let sequences = case.sequences();
                Ok(streamed(&case.on_cpu()?, data, &sequences, false, &mut |_| ())?.losses)
            }
            Subject::Cuda(cuda) if cuda.training.is_some() => {
                let (machine, sequences) = (case.on_machine(cuda)?, case.sequences());
                Ok(streamed(&machine, data, &sequences, false, &mut |_| ())?.losses)
            }
            Subject::Cuda(cuda) => {
                let mut model = case.on_gpu(cuda).map_err(AqlmError::from)?;
                let of = |tokens: &Vec<u32>| {
                    model.reset();
                    let logits = model.forward(tokens).map_err(AqlmError::from)?;
                    losses(&logits, data.config.vocab_size, tokens)
                };
                data.tokens.iter().map(of).collect()
            }
        }
    }

    /// A loss is -ln of the softmax. Equal logits give ln(vocabulary size). A constant added to all logits
    /// changes nothing.
    fn properties(check: Against, case: &Case) -> Result<Vec<Comparison>> {
        let Llama { problem, data, .. } = Llama::new(case)?;
        let logits = whole(&data)?.swap_remove(0);
        let last = problem.tokens - 1;
        let (logits, targets) = (logits.slice(s![..last, ..]), &data.tokens[0][1..]);
        let found = token_losses(logits, targets)?;
        let definition: Array1<f64> = logits
            .outer_iter()
            .zip(targets)
            .map(|(row, &target)| {
                let sum: f64 = row.iter().rev().map(|l| l.exp()).sum();
                -(row[target as usize].exp() / sum).ln()
            })
            .collect();
        let shifted = token_losses((&logits + 100.0).view(), targets)?;
        let equal = token_losses(Array2::from_elem((last, VOCABULARY), 3.0).view(), targets)?;
        let uniform = Array1::from_elem(last, (VOCABULARY as f64).ln());
        Ok(vec![
            check.nmse("definition", &found, &definition)?,
            check.nmse("a constant added to all logits", &shifted, &found)?,
            check.nmse("equal logits", &equal, &uniform)?,
        ])
    }

    fn expected(case: &Llama) -> Result<Vec<Array1<f64>>> {
        Self::run(&Subject::Reference, case)
    }

    fn compare(
        check: Against,
        _subject: &Subject,
        case: &Llama,
        expected: &Vec<Array1<f64>>,
        found: &Vec<Array1<f64>>,
    ) -> Result<Findings> {
        let losses = check.nmse("losses", found.iter().flatten(), expected.iter().flatten())?;
        let shape = [case.problem.sequences, case.problem.tokens - 1];
        Ok(vec![losses.shaped(&shape)].into())
    }

    fn breakages() -> Vec<Breakage<Llama, Vec<Array1<f64>>>> {
        vec![
            Breakage::of_answer("a NaN", |found, _, _| found[0][0] = f64::NAN),
            Breakage::of_answer("a loss off by a thousandth", |found, _, _| {
                breakage::inaccurate(found.iter_mut().flatten());
            }),
            Breakage::of_answer("losses of another sequence", |found, _, before| {
                breakage::stale(
                    found.iter_mut().flatten(),
                    before.map(|before| before.iter().flatten()),
                );
            }),
        ]
    }
}
