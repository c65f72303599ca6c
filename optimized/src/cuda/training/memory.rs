//! Counts the device memory of tuning a whole model before anything is computed.

use std::fmt;

use aqlm_vocabulary::{
    ArchSpec, BlockSpec, ChangeBudget, LinearWeight, ModelTuning, ModelWeights, QuantizedMatrix, Scheme,
    Tuned,
};

use super::super::{CudaError, Result};
use super::forward::trace_width;
use super::machine::{LOGITS, Machine, ROWS};
use super::mlp::passing_width;

/// Bytes of a trained parameter: value, gradient and two moments in f64.
const TRAINED: usize = 4 * size_of::<f64>();
/// Bytes of a group that may change while codes are chosen: its place and key, two orders, its change.
const CHOSEN: usize = 32;

/// What training reads beside the model that is tuned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TeacherMemory {
    /// nothing, or lists of tokens
    Nothing,
    /// its output layer
    Head,
    /// all of it, in f32
    Whole,
}

/// Bytes of device memory that tuning takes. Activations are counted as if they are computed anew on the way
/// back, which is what happens where there is no room to keep them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TuningMemory {
    /// weights, codes, codebooks, and the places of each codeword
    pub model: usize,
    /// values, gradients and moments of trained parameters
    pub parameters: usize,
    /// gradients, buffers and moments of codes, and what is needed to choose codes
    pub codes: usize,
    /// the teacher
    pub teacher: usize,
    /// activations, decoded weights and logits
    pub activations: usize,
}

impl TuningMemory {
    /// For steps of `batch` sequences of `tokens` tokens.
    pub fn of(
        arch: &ArchSpec,
        weights: &ModelWeights,
        tuning: &ModelTuning,
        teacher: TeacherMemory,
        [batch, tokens]: [usize; 2],
    ) -> Self {
        let table = arch.vocab_size * arch.hidden_size;
        let tables = if arch.tied { 1 } else { 2 };
        let linears = || weights.blocks.iter().flat_map(|block| &block.layers);
        let matrices = || {
            linears().filter_map(|linear| match &linear.weight {
                LinearWeight::Quantized(matrix) => Some(matrix),
                LinearWeight::Dense(_) => None,
            })
        };
        let dense: usize = linears()
            .map(|linear| match &linear.weight {
                LinearWeight::Dense(weight) => weight.len(),
                LinearWeight::Quantized(_) => 0,
            })
            .sum();
        let codes: usize = matrices().map(|matrix| matrix.codes().len()).sum();
        let codebooks: usize = matrices().map(|matrix| matrix.codebooks().len()).sum();
        let scales: usize = matrices().map(|matrix| matrix.scales().len()).sum();
        let tuned = tuning.tuned;
        let places = if tuned.codebooks { size_of::<u32>() } else { 0 };
        let norms: usize = weights
            .blocks
            .iter()
            .flat_map(|block| &block.norms)
            .map(ndarray::ArrayBase::len)
            .sum();
        let trained = trained(tuned, arch.tied, table)
            + usize::from(tuned.codebooks) * codebooks
            + usize::from(tuned.scales) * scales
            + usize::from(tuned.norms) * (norms + arch.hidden_size);
        Self {
            model: (table * tables + dense + norms) * size_of::<f32>()
                + codes * (size_of::<u16>() + places)
                + (codebooks + scales) * size_of::<f64>(),
            parameters: trained * TRAINED,
            codes: of_codes(tuning, &matrices().collect::<Vec<_>>()),
            teacher: size_of::<f32>()
                * match teacher {
                    TeacherMemory::Nothing => 0,
                    TeacherMemory::Head => table,
                    TeacherMemory::Whole => {
                        let blocks: usize = arch.blocks.iter().map(BlockSpec::parameters).sum();
                        table * 3 + blocks
                    }
                },
            activations: activations(arch, tuned, table, [batch, tokens]),
        }
    }

    /// All of it.
    pub fn total(&self) -> usize {
        self.model + self.parameters + self.codes + self.teacher + self.activations
    }
}

/// Numbers of trained tables of the vocabulary.
fn trained(tuned: Tuned, tied: bool, table: usize) -> usize {
    let tables = match (tuned.embedding, tuned.head) {
        (true, true) if !tied => 2,
        (false, false) => 0,
        _ => 1,
    };
    tables * table
}

/// Gradient, buffer and moments of every quantized weight; and for the matrix that needs most, or with one
/// budget for the model for all, the differences of groups and the groups that may change.
fn of_codes(tuning: &ModelTuning, matrices: &[&QuantizedMatrix]) -> usize {
    let Some(settings) = tuning.codes else {
        return 0;
    };
    let arrays = if settings.optimizer.decay.beta1 == 0.0 {
        3
    } else {
        4
    };
    let weights: usize = matrices
        .iter()
        .map(|matrix| matrix.out_features() * matrix.in_features())
        .sum();
    let chosen = |matrix: &&QuantizedMatrix| {
        let (out_groups, in_groups) = matrix.groups();
        let groups = out_groups * in_groups;
        let share = (settings.max_change * groups as f64).ceil() as usize;
        let books = matrix.scheme().num_codebooks;
        // A change of one budget may be all of one matrix's.
        groups * size_of::<f64>() + share * (CHOSEN + books * size_of::<u16>()) + narrow(matrix.scheme())
    };
    let steps = match settings.budget {
        ChangeBudget::Matrix => matrices.iter().map(chosen).max().unwrap_or(0),
        ChangeBudget::Model => matrices.iter().map(chosen).sum(),
    };
    weights * arrays * size_of::<f32>() + steps
}

/// Codebooks in f32, and the lengths of codewords.
fn narrow(scheme: Scheme) -> usize {
    scheme.num_codebooks * scheme.codebook_size() * (scheme.group_len() + 1) * size_of::<f32>()
}

/// Activations of one pass, the inputs of all blocks, a block's decoded weights and one's gradient, logits.
fn activations(arch: &ArchSpec, tuned: Tuned, table: usize, [batch, tokens]: [usize; 2]) -> usize {
    let rows = batch.min((ROWS / tokens.max(1)).max(1)) * tokens;
    let of_block = |spec: &BlockSpec| {
        let widths = trace_width(spec) + passing_width(spec);
        let largest = spec
            .layers()
            .map(|layer| spec.shape(layer))
            .map(|(out, inputs)| out * inputs)
            .max();
        rows * widths + spec.parameters() + largest.unwrap_or(0)
    };
    let widest = arch.blocks.iter().map(of_block).max().unwrap_or(0);
    let inputs = rows * arch.hidden_size * arch.blocks.len();
    // the student's and the teacher's, and capped ones once more beside their gradients
    let kept = if arch.logits.cap.is_some() { 3 } else { 2 };
    let logits = kept * LOGITS.max(arch.vocab_size).min(tokens * arch.vocab_size);
    let head = if tuned.head { table } else { 0 };
    (widest + inputs + logits + head) * size_of::<f32>()
}

impl fmt::Display for TuningMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
        write!(
            f,
            "{:.2} GiB (model {:.2}, trained parameters {:.2}, codes {:.2}, teacher {:.2}, activations {:.2})",
            gib(self.total()),
            gib(self.model),
            gib(self.parameters),
            gib(self.codes),
            gib(self.teacher),
            gib(self.activations)
        )
    }
}

impl Machine {
    /// Rejects a plan of tuning that is larger than the free memory.
    ///
    /// # Errors
    /// `Memory` with advice; `Driver`.
    pub fn check_memory(&self, memory: &TuningMemory) -> Result<usize> {
        let free = self.device().free_bytes()?;
        if memory.total() <= free {
            return Ok(free);
        }
        let advice = if memory.codes > memory.activations {
            "tune without --codes, or with a first of --code-betas that is 0, or use a larger GPU"
        } else {
            "use shorter sequences or smaller batches"
        };
        Err(CudaError::Memory {
            what: format!("tuning, {memory} ({advice}, or train less with --tune),"),
            free,
        })
    }
}
