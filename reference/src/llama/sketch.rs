use ndarray::{Array1, Array2, ArrayView2};

use super::linear::linear_backward;
use super::model::finished;
use super::norm::{norm, norm_backward};
use super::soft_cap::soft_cap_slope;
use super::{
    Model, Rotary, block_backward, block_forward, block_forward_traced, cross_entropy, embed, linear,
};
use crate::linalg::product;
use aqlm_vocabulary::{ArchSpec, GradientSums, Result};

/// The gradient of the summed -ln p(label) with respect to hidden states before the final norm, [tokens,
/// hidden]; one label a token. `norm_weight` is that norm's, `lm_head` [vocab, hidden].
///
/// # Errors
/// `Shape` unless there is one label a token, `TokenOutOfRange` when a label has no logit.
pub fn label_gradient(
    arch: &ArchSpec,
    norm_weight: &Array1<f64>,
    lm_head: ArrayView2<f64>,
    x: ArrayView2<f64>,
    labels: &[u32],
) -> Result<Array2<f64>> {
    let normed = norm(arch.final_norm, x, norm_weight.view());
    let logits = finished(arch.logits, linear(normed.view(), lm_head, None));
    let (_, mut grad) = cross_entropy(logits.view(), labels)?;
    if let Some(cap) = arch.logits.cap {
        grad.zip_mut_with(&logits, |grad, &logit| *grad *= soft_cap_slope(logit, cap));
    }
    grad *= arch.logits.scale;
    let grad_normed = linear_backward(normed.view(), lm_head, grad.view()).x;
    Ok(norm_backward(arch.final_norm, x, norm_weight.view(), grad_normed.view()).0)
}

/// The sums of G G^T and G^T G over sequences, for every layer of every block (YAQA's sketch B,
/// arXiv:2505.22988). G is the gradient of -ln p(label), summed over one sequence's positions, with respect
/// to the layer's weight. Where labels are drawn from the model itself, the mean of vec(G) vec(G)^T is the
/// Fisher information, and the Kronecker product of the two means stands for it.
///
/// # Errors
/// As [`label_gradient`]; `TokenOutOfRange` when a token has no embedding.
pub fn sketch(model: &Model, sequences: &[&[u32]], labels: &[Vec<u32>]) -> Result<Vec<Vec<GradientSums>>> {
    let mut sums: Vec<Vec<GradientSums>> = model
        .arch
        .blocks
        .iter()
        .map(|spec| {
            spec.layers()
                .map(|layer| GradientSums::zeros(spec.shape(layer)))
                .collect()
        })
        .collect();
    for (&tokens, labels) in sequences.iter().zip(labels) {
        let rotary = Rotary::of_model(&model.arch, tokens.len());
        let mut inputs = vec![embed(model.embedding.view(), tokens, model.arch.embedding_scale)?];
        for block in &model.blocks {
            let next = block_forward(block, &rotary, inputs[inputs.len() - 1].view());
            inputs.push(next);
        }
        let last = inputs[model.blocks.len()].view();
        let mut grad = label_gradient(&model.arch, &model.norm, model.lm_head.view(), last, labels)?;
        for ((block, input), sums) in model.blocks.iter().zip(&inputs).zip(&mut sums).rev() {
            let (_, trace) = block_forward_traced(block, &rotary, input.view());
            let gradients = block_backward(block, &rotary, &trace, grad.view());
            for (sums, weight) in sums.iter_mut().zip(&gradients.layers) {
                sums.outer += &product(weight.view(), weight.t());
                sums.inner += &product(weight.t(), weight.view());
            }
            grad = gradients.x;
        }
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::test_data::{model, random};
    use crate::llama::{Block, ResidentWeight, logits, token_losses};
    use aqlm_vocabulary::LayerId;
    use aqlm_vocabulary::llama::{DOWN, QUERY};

    const TOKENS: [u32; 5] = [3, 1, 4, 1, 10];
    const LABELS: [u32; 5] = [2, 7, 0, 9, 7];

    fn loss(model: &Model) -> f64 {
        let rotary = Rotary::of_model(&model.arch, TOKENS.len());
        let mut x = embed(model.embedding.view(), &TOKENS, model.arch.embedding_scale).unwrap();
        for block in &model.blocks {
            x = block_forward(block, &rotary, x.view());
        }
        let logits = logits(&model.arch, &model.norm, model.lm_head.view(), x.view());
        token_losses(logits.view(), &LABELS).unwrap().sum()
    }

    /// The loss with one weight moved along a direction.
    fn moved(model: &Model, block: usize, layer: LayerId, direction: &Array2<f64>, step: f64) -> f64 {
        let mut model = model.clone();
        let old = &model.blocks[block];
        let mut layers: Vec<_> = old.spec().layers().map(|id| old.layer(id).clone()).collect();
        layers[layer.index()].weight = ResidentWeight::Dense(old.weight(layer) + &(direction * step));
        model.blocks[block] = Block::new(old.spec(), old.norms.clone(), layers).unwrap();
        loss(&model)
    }

    #[test]
    fn sums_are_those_of_finite_differences() {
        let mut model = model(&mut random(48), 2, Some(4));
        model.lm_head /= 12f64.sqrt();
        let sums = sketch(&model, &[&TOKENS], &[LABELS.to_vec()]).unwrap();
        for (block, layer) in [(0, QUERY), (1, DOWN)] {
            let (out, inputs) = model.blocks[block].weight(layer).dim();
            let step = 1e-5;
            let gradient = Array2::from_shape_fn((out, inputs), |place| {
                let mut direction = Array2::zeros((out, inputs));
                direction[place] = 1.0;
                let at = |step| moved(&model, block, layer, &direction, step);
                (at(step) - at(-step)) / (2.0 * step)
            });
            let found = &sums[block][layer.index()];
            for (found, expected) in [
                (&found.outer, gradient.dot(&gradient.t())),
                (&found.inner, gradient.t().dot(&gradient)),
            ] {
                // A central difference errs by the third derivative times step^2 / 6 and by the rounding of a
                // loss near 10 over the step: 1e-10 and 1e-9 beside gradients near 1.
                let size = expected.diag().sum();
                let largest = (found - &expected)
                    .iter()
                    .fold(0.0, |top: f64, x| top.max(x.abs()));
                assert!(largest <= 1e-7 * size, "{largest} beside {size}");
            }
        }
    }

    #[test]
    fn sequences_add_up() {
        let model = model(&mut random(49), 2, None);
        let (a, b): (&[u32], &[u32]) = (&TOKENS, &[5, 6]);
        let labels = [LABELS.to_vec(), vec![1, 2]];
        let both = sketch(&model, &[a, b], &labels).unwrap();
        let one = sketch(&model, &[a], &labels[..1]).unwrap();
        let other = sketch(&model, &[b], &labels[1..]).unwrap();
        for ((both, one), other) in both.concat().iter().zip(one.concat()).zip(other.concat()) {
            assert_eq!(both.outer, one.outer + other.outer);
            assert_eq!(both.inner, one.inner + other.inner);
        }
        assert!(
            sketch(&model, &[a], &labels[1..]).is_err(),
            "two labels for five tokens"
        );
    }
}
