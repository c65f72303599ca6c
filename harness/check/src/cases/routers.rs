//! Routers whose choice of experts does not hang on rounding errors.
//!
//! The output of a mixture of experts jumps where two experts have the same score. Two machines whose scores
//! differ by rounding may then choose differently, and both are right. Cases are drawn so that no token is
//! near such a place.

use aqlm_reference::llama::{Block, Rotary, block_forward_traced, linear};
use aqlm_vocabulary::{ArchSpec, BlockSpec, BlockWeights, Input, LinearWeight, Purpose, stream};
use ndarray::{Array2, Array3, ArrayView2};

use super::values::normal;

/// The least difference between the scores of the last expert that is chosen and of the first that is not.
/// Scores have a standard deviation of about 1. Their rounding errors in f32, and the steps of numerical
/// gradients, are a hundred times smaller.
const MARGIN: f64 = 1e-3;

/// Most draws. A token is near a jump with a probability of about [`MARGIN`], so each draw of the routers for
/// a few hundred tokens has a good chance.
const DRAWS: usize = 1000;

/// Draws the routers of blocks until every token has the margin: in the first block with the hidden states x,
/// [sequences, tokens, hidden], and in all blocks with the embedded texts of the same shape.
///
/// # Panics
/// When no draw has it: the case has too many tokens.
pub(super) fn draw(
    arch: &ArchSpec,
    blocks: &mut [BlockWeights],
    x: &Array3<f32>,
    embedded: &Array3<f64>,
    seed: u64,
) {
    let mut rng = stream(seed, 3, None, Purpose::TestData);
    for _ in 0..DRAWS {
        if least_margin(arch, blocks, x, embedded) >= MARGIN {
            return;
        }
        for (spec, weights) in arch.blocks.iter().zip(&mut *blocks) {
            if let Some(mlp) = spec.mlp.routed() {
                let (experts, hidden) = spec.shape(mlp.router);
                let root = (hidden as f64).sqrt();
                let router =
                    Array2::from_shape_simple_fn((experts, hidden), || (normal(&mut rng) / root) as f32);
                weights.layer_mut(mlp.router).weight = LinearWeight::Dense(router);
            }
        }
    }
    panic!("no router with a margin of {MARGIN} for every token in {DRAWS} draws");
}

/// The least margin of a token.
fn least_margin(arch: &ArchSpec, blocks: &[BlockWeights], x: &Array3<f32>, embedded: &Array3<f64>) -> f64 {
    let resident = |(spec, weights): (&BlockSpec, &BlockWeights)| {
        Block::from_weights(spec, weights).expect("weights drawn in the block's shapes")
    };
    let blocks: Vec<Block> = arch.blocks.iter().zip(blocks).map(resident).collect();
    let rotary = Rotary::of_model(arch, x.dim().1);
    let mut least = f64::INFINITY;
    let mut pass = |block: &Block, x: ArrayView2<'_, f64>| -> Array2<f64> {
        let (y, trace) = block_forward_traced(block, &rotary, x);
        if let Some(mlp) = block.spec().mlp.routed() {
            let router = block.weight(mlp.router).view();
            let scores = linear(trace.input(Input::Mlp), router, None);
            for scores in scores.outer_iter() {
                let mut scores = scores.to_vec();
                scores.sort_by(|a, b| b.total_cmp(a));
                if let Some(next) = scores.get(mlp.used) {
                    least = least.min(scores[mlp.used - 1] - next);
                }
            }
        }
        y
    };
    for (x, embedded) in x.outer_iter().zip(embedded.outer_iter()) {
        pass(&blocks[0], x.mapv(f64::from).view());
        let mut x = embedded.to_owned();
        for block in &blocks {
            x = pass(block, x.view());
        }
    }
    least
}
