use ndarray::{Array1, Array2, ArrayView2, s};

use super::linear::linear_backward;
use super::model::finished;
use super::norm::{norm, norm_backward};
use super::soft_cap::soft_cap_slope;
use super::{
    BlockGradients, Model, Rotary, block_backward, block_forward, block_forward_traced, cross_entropy, embed,
    kl_divergence, linear, logits, top_kl_divergence,
};
use aqlm_vocabulary::{ArchSpec, LogitSpec, Result, Target};

/// The gradient of a loss with respect to every parameter of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelGradients {
    /// with respect to the embeddings, [vocab, hidden]; without the contribution of a tied head
    pub embedding: Array2<f64>,
    /// for every block, first to last, with respect to its decoded weights, biases, norms and input
    pub blocks: Vec<BlockGradients>,
    /// with respect to the RMSNorm before the head, `[hidden]`
    pub norm: Array1<f64>,
    /// with respect to the output layer, [vocab, hidden]; without the contribution of tied embeddings
    pub lm_head: Array2<f64>,
}

/// The loss of a model on one sequence, summed over its positions (paper appendix A).
///
/// # Errors
/// `TokenOutOfRange` when a token has no embedding or no logit, `Shape` when the target does not fit the
/// sequence.
pub fn model_loss(model: &Model, tokens: &[u32], target: Target<'_>) -> Result<f64> {
    let rotary = Rotary::of_model(&model.arch, tokens.len());
    let mut x = embed(model.embedding.view(), tokens, model.arch.embedding_scale)?;
    for block in &model.blocks {
        x = block_forward(block, &rotary, x.view());
    }
    let predicting = x.slice(s![..target.positions(tokens.len()), ..]);
    let logits = logits(&model.arch, &model.norm, model.lm_head.view(), predicting);
    Ok(losses(model.arch.logits, logits.view(), tokens, target)?.0.sum())
}

/// [`model_loss`] and `scale` times its gradients.
///
/// The forward pass keeps only the inputs of the blocks. The backward pass recomputes each block with the
/// values that its gradients need (Chen et al. 2016), so that the inner activations of only one block exist
/// at a time.
///
/// # Errors
/// As [`model_loss`].
pub fn model_backward(
    model: &Model,
    tokens: &[u32],
    target: Target<'_>,
    scale: f64,
) -> Result<(f64, ModelGradients)> {
    let ArchSpec {
        embedding_scale,
        final_norm,
        logits: spec,
        ..
    } = model.arch;
    let rotary = Rotary::of_model(&model.arch, tokens.len());
    let mut inputs = vec![embed(model.embedding.view(), tokens, embedding_scale)?];
    for block in &model.blocks {
        let next = block_forward(block, &rotary, inputs[inputs.len() - 1].view());
        inputs.push(next);
    }
    let last = &inputs[model.blocks.len()];

    let positions = target.positions(tokens.len());
    let predicting = last.slice(s![..positions, ..]);
    let normed = norm(final_norm, predicting, model.norm.view());
    let logits = finished(spec, linear(normed.view(), model.lm_head.view(), None));
    let (losses, mut grad_logits) = losses(spec, logits.view(), tokens, target)?;
    if let Some(cap) = spec.cap {
        grad_logits.zip_mut_with(&logits, |grad, &logit| *grad *= soft_cap_slope(logit, cap));
    }
    let grad_products = scale * spec.scale * grad_logits;
    let head = linear_backward(normed.view(), model.lm_head.view(), grad_products.view());
    let (grad_predicting, grad_norm) =
        norm_backward(final_norm, predicting, model.norm.view(), head.x.view());
    let mut grad = Array2::zeros(last.dim());
    grad.slice_mut(s![..positions, ..]).assign(&grad_predicting);

    let mut blocks = Vec::with_capacity(model.blocks.len());
    for (block, input) in model.blocks.iter().zip(&inputs).rev() {
        let (_, trace) = block_forward_traced(block, &rotary, input.view());
        let gradients = block_backward(block, &rotary, &trace, grad.view());
        grad.assign(&gradients.x);
        blocks.push(gradients);
    }
    blocks.reverse();

    let mut grad_embedding = Array2::zeros(model.embedding.dim());
    for (row, &token) in grad.rows().into_iter().zip(tokens) {
        let mut sum = grad_embedding.row_mut(token as usize);
        sum.scaled_add(embedding_scale, &row);
    }
    let gradients = ModelGradients {
        embedding: grad_embedding,
        blocks,
        norm: grad_norm,
        lm_head: head.weight,
    };
    Ok((losses.sum(), gradients))
}

/// Loss and gradient of each position's logits. A teacher's logits are made of its states as the model's own.
fn losses(
    spec: LogitSpec,
    logits: ArrayView2<f64>,
    tokens: &[u32],
    target: Target<'_>,
) -> Result<(Array1<f64>, Array2<f64>)> {
    match target {
        Target::NextTokens => cross_entropy(logits, &tokens[tokens.len() - target.positions(tokens.len())..]),
        Target::Teacher { states, head } => {
            let teacher = linear(states.mapv(f64::from).view(), head.mapv(f64::from).view(), None);
            kl_divergence(logits, finished(spec, teacher).view())
        }
        Target::Top(top) => top_kl_divergence(logits, top),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::finite_difference::assert_gradient;
    use crate::llama::test_data::{model, normal, random};
    use crate::llama::{Block, ResidentWeight, token_losses};
    use aqlm_vocabulary::llama::{GATE, KEY, OUTPUT};
    use aqlm_vocabulary::{LayerId, TopTokens};

    const TOKENS: [u32; 5] = [3, 1, 4, 1, 10];

    /// The model with one layer's weight replaced.
    fn with_weight(model: &Model, block: usize, layer: LayerId, weight: &Array2<f64>) -> Model {
        let mut model = model.clone();
        let old = &model.blocks[block];
        let mut layers: Vec<_> = old
            .spec()
            .layers()
            .map(|other| old.layer(other).clone())
            .collect();
        layers[layer.index()].weight = ResidentWeight::Dense(weight.clone());
        model.blocks[block] = Block::new(old.spec(), old.norms.clone(), layers).unwrap();
        model
    }

    #[test]
    fn every_gradient_of_every_objective_matches_finite_differences() {
        let mut rng = random(46);
        let mut model = model(&mut rng, 2, Some(4));
        // logits near unit size, as the limit of the numerical gradients assumes
        model.lm_head /= 12f64.sqrt();
        // a teacher of another width, because only its logits matter
        let states: Array2<f32> = normal(&mut rng, (5, 3)).mapv(|x| x as f32);
        let head: Array2<f32> = normal(&mut rng, (11, 3)).mapv(|x| x as f32);
        let top = TopTokens {
            tokens: Array2::from_shape_fn((5, 2), |(t, i)| (2 * t + i) as u32),
            log_probabilities: Array2::from_elem((5, 2), 0.25f32.ln()),
            rest: Array1::from_elem(5, 0.5),
        };
        let targets = [
            ("next tokens", Target::NextTokens),
            (
                "teacher",
                Target::Teacher {
                    states: states.view(),
                    head: head.view(),
                },
            ),
            ("top tokens", Target::Top(&top)),
        ];
        let scale = 0.5;
        for (name, target) in targets {
            let loss = |model: &Model| scale * model_loss(model, &TOKENS, target).unwrap();
            let (sum, ours) = model_backward(&model, &TOKENS, target, scale).unwrap();
            assert_eq!(scale * sum, loss(&model), "{name}");
            // 5 losses over 11 logits, each logit a sum of 12 products after two blocks
            let terms = 5 * 11 * 12;
            let name = |part: &str| format!("{name}: {part}");
            assert_gradient(
                &name("embedding"),
                &ours.embedding,
                &model.embedding,
                terms,
                |at| {
                    loss(&Model {
                        embedding: at.clone(),
                        ..model.clone()
                    })
                },
            );
            assert_gradient(&name("lm_head"), &ours.lm_head, &model.lm_head, terms, |at| {
                loss(&Model {
                    lm_head: at.clone(),
                    ..model.clone()
                })
            });
            assert_gradient(&name("norm"), &ours.norm, &model.norm, terms, |at| {
                loss(&Model {
                    norm: at.clone(),
                    ..model.clone()
                })
            });
            for (index, gradients) in ours.blocks.iter().enumerate() {
                let block = &model.blocks[index];
                assert_gradient(
                    &name("norm 1"),
                    &gradients.norms[0],
                    &block.norms[0],
                    terms,
                    |at| {
                        let mut model = model.clone();
                        model.blocks[index].norms[0].assign(at);
                        loss(&model)
                    },
                );
                for kind in [KEY, OUTPUT, GATE] {
                    let at = block.weight(kind);
                    assert_gradient(
                        &name(&format!("block {index} {kind:?}")),
                        &gradients.layers[kind.index()],
                        at,
                        terms,
                        |at| loss(&with_weight(&model, index, kind, at)),
                    );
                }
            }
        }
    }

    #[test]
    fn next_token_losses_are_those_of_the_evaluation() {
        let model = model(&mut random(47), 4, None);
        let logits = super::super::model_forward(&model, &TOKENS).unwrap();
        let expected = token_losses(logits.slice(s![..4, ..]), &TOKENS[1..])
            .unwrap()
            .sum();
        let ours = model_loss(&model, &TOKENS, Target::NextTokens).unwrap();
        // sums of 4 losses below 16, in another order
        assert!((ours - expected).abs() <= 4.0 * 16.0 * f64::EPSILON);
    }
}
