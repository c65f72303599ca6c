//! A simple model of what a cell costs. It counts the multiply-adds of the phases that dominate and the
//! arrays that must be in memory together. The section "The paper's tables" of docs/formats.md states the
//! formulas. Expect a factor of two.

use aqlm_vocabulary::{Initialization, Scheme, Update};

use super::models::PaperModel;
use super::paper::QuantizeRecipe;
use crate::{EndToEndSettings, Preset, QuantizeSettings};

/// Assumed rounds of codebook update and beam search of a layer. The official code took 6 (1x16g8) and 8
/// (2x8g8) on a layer of 4096 to 4096 at a tolerance of 1 %.
pub const ROUNDS: f64 = 8.0;

/// Bytes of an f32.
const F32: f64 = 4.0;

/// The work of one phase.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// the phase
    pub phase: &'static str,
    /// multiply-adds
    pub multiply_adds: f64,
}

/// What a cell needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Cost {
    /// every phase with work
    pub phases: Vec<Work>,
    /// peak memory in bytes
    pub memory_bytes: f64,
    /// bytes of the cell's folder
    pub disk_bytes: f64,
}

/// What one cell needs: quantization at a scheme if there is one, then evaluations of `evaluated` tokens in
/// windows, each (tokens, ctx).
pub(super) fn cost(
    model: &PaperModel,
    quantize: Option<(Scheme, &QuantizeRecipe)>,
    preset: Preset,
    seqlen: usize,
    evaluated: &[(usize, usize)],
) -> Cost {
    let shape = Shape::of(model);
    let evaluation: f64 = evaluated
        .iter()
        .map(|&(tokens, ctx)| tokens as f64 * shape.forward_with_head(ctx))
        .sum();
    let largest = |ctx: fn(&(usize, usize)) -> usize| evaluated.iter().map(ctx).max().unwrap_or(0) as f64;
    // The streamed evaluation holds one block and the hidden states of all windows.
    let states = largest(|&(tokens, _)| tokens) * shape.hidden * F32;
    let mut cost = Cost {
        phases: Vec::new(),
        memory_bytes: states + shape.block * F32 + shape.batch(1.0, largest(|&(_, ctx)| ctx)),
        disk_bytes: 0.0,
    };
    if let Some((scheme, recipe)) = quantize {
        quantization(&mut cost, model, &shape, scheme, recipe, preset, seqlen);
    }
    cost.phases.push(Work {
        phase: "evaluation",
        multiply_adds: evaluation,
    });
    cost.phases.retain(|work| work.multiply_adds > 0.0);
    cost
}

fn quantization(
    cost: &mut Cost,
    model: &PaperModel,
    shape: &Shape,
    scheme: Scheme,
    recipe: &QuantizeRecipe,
    preset: Preset,
    seqlen: usize,
) {
    let settings = QuantizeSettings::preset(preset, scheme);
    let layer = &settings.layer;
    let sequences = recipe.sequences as f64;
    let tokens = sequences * seqlen as f64;
    let squares: f64 = model
        .hessians()
        .iter()
        .map(|&inputs| (inputs as f64).powi(2))
        .sum();
    let (codebooks, codewords) = (scheme.num_codebooks as f64, scheme.codebook_size() as f64);
    let beam = layer.beam as f64;
    // A weight's share of the scores of all sums of two codewords, once for all codebooks.
    let sums = codebooks / 2.0 * codewords * codewords / scheme.group_len() as f64;
    let mut initialization = 0.0;
    let mut search = 0.0;
    let mut update = 0.0;
    for (rows, columns) in model.linears() {
        let (weights, columns) = (rows as f64 * columns as f64, columns as f64);
        // Every weight is compared with its place in every codeword.
        initialization += layer.kmeans_iterations as f64 * codebooks * weights * codewords;
        match layer.init {
            Initialization::Residual => {}
            Initialization::Em { rounds } => {
                initialization += rounds as f64 * codebooks * weights * codewords * scheme.group_len() as f64;
            }
            Initialization::Feedback(feedback) => {
                // Sums of two codewords are scored where they are searched jointly, and an error reaches half
                // of the other columns.
                let scored = if scheme.has_pairs() {
                    sums
                } else {
                    codebooks * codewords
                };
                let searches = (feedback.passes * feedback.hypotheses) as f64;
                initialization += searches * weights * (scored + columns / 2.0);
            }
        }
        // All codewords or sums are scored, and (W - Q) H is updated after each change.
        search += ROUNDS
            * beam
            * weights
            * if layer.searches_pairs() {
                sums + columns
            } else {
                codebooks * (codewords + columns)
            };
        update += ROUNDS
            * match layer.update {
                // A step's gradient is (W - Q) H.
                Update::Adam { steps, .. } => steps as f64 * weights * columns,
                Update::ClosedForm {
                    max_unknowns,
                    cg_steps,
                    ..
                } => {
                    let unknowns = codebooks * codewords * scheme.group_len() as f64;
                    if unknowns <= max_unknowns as f64 {
                        unknowns.powi(3) / 3.0 + weights * columns
                    } else {
                        cg_steps as f64 * weights * columns
                    }
                }
            };
    }
    let blocks = model.blocks as f64;
    // The dense block's targets and the quantized block's outputs.
    let propagation = 2.0 * tokens * shape.forward(seqlen);
    let tuned = if recipe.tuned.is_empty() {
        0.0
    } else {
        // Forward, gradients of inputs, gradients of weights.
        settings.finetune.epochs as f64 * 3.0 * tokens * shape.forward(seqlen)
    };
    let whole = EndToEndSettings::preset(preset, seqlen, recipe.sequences);
    let end_to_end = if recipe.end_to_end {
        // The teacher once; then forward, forward again for the activations, and both gradients.
        tokens * shape.forward_with_head(seqlen) * (1.0 + 4.0 * whole.epochs as f64)
    } else {
        0.0
    };
    for (phase, multiply_adds) in [
        ("initialisation", blocks * initialization),
        ("beam search", blocks * search),
        ("codebook update", blocks * update),
        ("Hessians", blocks * tokens * squares),
        ("propagation", blocks * propagation),
        ("block fine-tuning", blocks * tuned),
        ("end-to-end fine-tuning", end_to_end),
    ] {
        cost.phases.push(Work { phase, multiply_adds });
    }
    let states = 2.0 * tokens * shape.hidden * F32;
    let largest = model
        .linears()
        .iter()
        .map(|(rows, columns)| rows * columns)
        .max()
        .unwrap_or(0) as f64;
    // Block weights: dense, decoded, gradients. Hessians in f64. The search holds (W - Q) H of every
    // hypothesis.
    let quantizing = states
        + 3.0 * shape.block * F32
        + 8.0 * squares
        + (beam + 2.0) * largest * F32
        + shape.batch(settings.finetune.batch as f64, seqlen as f64);
    let groups = shape.block * blocks / scheme.group_len() as f64;
    let tables = model.linears().len() as f64 * blocks * codebooks * codewords * scheme.group_len() as f64;
    let stored = shape.stored(model, scheme);
    cost.memory_bytes = cost.memory_bytes.max(quantizing);
    cost.disk_bytes = stored;
    if recipe.end_to_end {
        // docs/finetuning.md: places of codewords, trained parameters, and the model itself.
        let training = 4.0 * groups * codebooks
            + 40.0 * tables
            + stored
            + 3.0 * shape.block * F32
            + shape.batch(whole.batch as f64, seqlen as f64)
            + whole.batch as f64 * seqlen as f64 * shape.hidden * F32 * (blocks + 1.0);
        cost.memory_bytes = cost.memory_bytes.max(training);
        // The model before it, and the teacher's hidden states.
        cost.disk_bytes += stored + tokens * shape.hidden * F32;
    }
}

/// Sizes of a model as numbers.
struct Shape {
    hidden: f64,
    inner: f64,
    attended: f64,
    /// weights of a block
    block: f64,
    /// weights of a block that one token meets: of two experts at most
    active: f64,
    blocks: f64,
    head: f64,
}

impl Shape {
    fn of(model: &PaperModel) -> Self {
        let (hidden, inner) = (model.hidden_size as f64, model.intermediate_size as f64);
        let block = model.block_parameters() as f64;
        let idle = model.experts.saturating_sub(2) as f64;
        Self {
            hidden,
            inner,
            attended: (model.heads * model.head_dim) as f64,
            block,
            active: block - idle * 3.0 * hidden * inner,
            blocks: model.blocks as f64,
            head: (model.vocab_size * model.hidden_size) as f64,
        }
    }

    /// Multiply-adds of a token in a block: every weight once, scores and averages over half the window.
    fn forward(&self, ctx: usize) -> f64 {
        self.active + ctx as f64 * self.attended
    }

    fn forward_with_head(&self, ctx: usize) -> f64 {
        self.blocks * self.forward(ctx) + self.head
    }

    /// Bytes of a block's activations for a batch of sequences.
    fn batch(&self, sequences: f64, tokens: f64) -> f64 {
        sequences * tokens * (4.0 * self.hidden + 2.0 * self.attended + 3.0 * self.inner) * F32
    }

    /// Bytes of a checkpoint: quantized layers; embedding, head and norms in 16 bits.
    fn stored(&self, model: &PaperModel, scheme: Scheme) -> f64 {
        let bits = model.bits_per_parameter(scheme);
        let outer = model.outer_parameters() as f64 + (2.0 * self.blocks + 1.0) * self.hidden;
        self.blocks * self.block * bits / 8.0 + 2.0 * outer
    }
}

#[cfg(test)]
mod tests {
    use super::super::models::model;
    use super::super::paper::TunedPart;
    use super::*;

    fn recipe(end_to_end: bool) -> QuantizeRecipe {
        QuantizeRecipe {
            sequences: 128,
            tuned: TunedPart::ALL.to_vec(),
            end_to_end,
            arguments: Vec::new(),
        }
    }

    fn phase(cost: &Cost, name: &str) -> f64 {
        let found = cost.phases.iter().find(|work| work.phase == name);
        found.map_or(0.0, |work| work.multiply_adds)
    }

    #[test]
    fn work_by_hand_for_the_embedded_model() {
        let tiny = model("tiny-stories-4m").unwrap();
        let scheme: Scheme = "2x6g8".parse().unwrap();
        let (recipe, ctx) = (recipe(false), 512.0);
        let cost = cost(
            &tiny,
            Some((scheme, &recipe)),
            Preset::Official,
            256,
            &[(1024, 512)],
        );
        // Four square layers of 256, three of 256 x 704.
        let (square, wide) = (256.0 * 256.0, 256.0 * 704.0);
        let weights: f64 = 4.0 * square + 3.0 * wide;
        assert_eq!(phase(&cost, "initialisation"), 4.0 * 100.0 * 2.0 * 64.0 * weights);
        let sweep = 4.0 * square * (64.0 + 256.0) + 2.0 * wide * (64.0 + 256.0) + wide * (64.0 + 704.0);
        assert_eq!(phase(&cost, "beam search"), 4.0 * ROUNDS * 2.0 * sweep);
        assert_eq!(
            phase(&cost, "evaluation"),
            1024.0 * (4.0 * (weights + ctx * 256.0) + 2048.0 * 256.0)
        );
        assert_eq!(phase(&cost, "end-to-end fine-tuning"), 0.0);
        let bits = tiny.bits_per_parameter(scheme);
        assert_eq!(
            cost.disk_bytes,
            4.0 * weights * bits / 8.0 + 2.0 * (2.0 * 2048.0 * 256.0 + 9.0 * 256.0)
        );
    }

    #[test]
    fn more_work_never_costs_less() {
        let seven = model("llama-2-7b").unwrap();
        let cost_of = |scheme: &str, recipe: &QuantizeRecipe| {
            let scheme = scheme.parse().unwrap();
            cost(
                &seven,
                Some((scheme, recipe)),
                Preset::Paper,
                4096,
                &[(4096, 4096)],
            )
        };
        let total = |cost: &Cost| cost.phases.iter().map(|work| work.multiply_adds).sum::<f64>();
        let blocks = cost_of("1x15g8", &recipe(false));
        let whole = cost_of("1x15g8", &recipe(true));
        let wide = cost_of("1x16g8", &recipe(false));
        let dense = cost(&seven, None, Preset::Paper, 4096, &[(4096, 4096)]);
        assert!(total(&dense) < total(&blocks));
        assert!(total(&blocks) < total(&whole) && blocks.memory_bytes <= whole.memory_bytes);
        assert!(total(&blocks) < total(&wide) && blocks.disk_bytes < wide.disk_bytes);
        // The released 1x16 checkpoint of 7B has 2.4 GB.
        assert!(
            (wide.disk_bytes / 2.4e9 - 1.0).abs() < 0.02,
            "{}",
            wide.disk_bytes
        );
    }
}
