use ndarray::{Array1, Array2, ArrayView2};

use super::attention::attention_backward;
use super::linear::{LinearGradients, linear_backward};
use super::rms_norm::rms_norm_backward;
use super::swiglu::swiglu_backward;
use super::{Block, BlockTrace, Rotary};
use aqlm_vocabulary::{LayerKind, LlamaConfig};

/// The gradient of a loss with respect to everything in a block.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockGradients {
    /// with respect to the input, [tokens, hidden]
    pub x: Array2<f64>,
    /// with respect to the (decoded) weights, [out_features, in_features] each, in the order of
    /// [`LayerKind::ALL`]
    pub layers: [Array2<f64>; 7],
    /// with respect to the biases, `[out_features]`, where the layer has one
    pub biases: [Option<Array1<f64>>; 7],
    /// with respect to the first norm's weight, `[hidden]`
    pub input_layernorm: Array1<f64>,
    /// with respect to the second norm's weight, `[hidden]`
    pub post_attention_layernorm: Array1<f64>,
}

/// Every gradient of [`block_forward`](super::block_forward) over one sequence, given the one with respect to
/// its result, [tokens, hidden], and the trace of the same pass.
///
/// # Panics
/// When the arguments do not belong to one pass.
pub fn block_backward(
    config: &LlamaConfig,
    block: &Block,
    rotary: &Rotary,
    trace: &BlockTrace,
    grad_y: ArrayView2<f64>,
) -> BlockGradients {
    let through = |kind: LayerKind, grad_y: ArrayView2<f64>| {
        linear_backward(trace.layer_input(kind), block.weight(kind).view(), grad_y)
    };
    let eps = config.rms_norm_eps;

    // y = middle + Down swiglu(Gate n'(middle), Up n'(middle))
    let down = through(LayerKind::DownProj, grad_y);
    let (grad_gate, grad_up) = swiglu_backward(trace.gate.view(), trace.up.view(), down.x.view());
    let gate = through(LayerKind::GateProj, grad_gate.view());
    let up = through(LayerKind::UpProj, grad_up.view());
    let grad_normed = &gate.x + &up.x;
    let norm = block.post_attention_layernorm.view();
    let (grad_middle, post_attention_layernorm) =
        rms_norm_backward(trace.middle.view(), norm, eps, grad_normed.view());
    let grad_middle = grad_middle + grad_y;

    // middle = x + O attention(Q n(x), K n(x), V n(x))
    let o = through(LayerKind::OProj, grad_middle.view());
    let (mut grad_q, mut grad_k, grad_v) =
        attention_backward(config, trace.q.view(), trace.k.view(), trace.v.view(), o.x.view());
    rotary.rotate_backward(&mut grad_q, 0);
    rotary.rotate_backward(&mut grad_k, 0);
    let q = through(LayerKind::QProj, grad_q.view());
    let k = through(LayerKind::KProj, grad_k.view());
    let v = through(LayerKind::VProj, grad_v.view());
    let grad_normed = &q.x + &k.x + &v.x;
    let norm = block.input_layernorm.view();
    let (grad_x, input_layernorm) = rms_norm_backward(trace.x.view(), norm, eps, grad_normed.view());

    let gradients = [q, k, v, o, gate, up, down];
    let biases = std::array::from_fn(|i| {
        let has_bias = block.layer(LayerKind::ALL[i]).bias.is_some();
        has_bias.then(|| gradients[i].bias.clone())
    });
    BlockGradients {
        x: grad_x + grad_middle,
        layers: gradients.map(|LinearGradients { weight, .. }| weight),
        biases,
        input_layernorm,
        post_attention_layernorm,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::finite_difference::assert_gradient;
    use crate::llama::test_data::{block, config, inner, normal, random};
    use crate::llama::{ResidentLinear, ResidentWeight, block_forward, block_forward_traced};

    #[test]
    fn every_gradient_matches_finite_differences() {
        for (kv_heads, window, bias) in [(4, None, false), (2, None, true), (1, Some(3), false)] {
            let config = config(kv_heads, window);
            let mut rng = random(11);
            let block = block(&mut rng, &config, bias);
            let rotary = Rotary::new(&config, 5);
            let x: Array2<f64> = normal(&mut rng, (5, 12));
            let direction = normal(&mut rng, (5, 12));
            let loss = |block: &Block, x: &Array2<f64>| {
                inner(&block_forward(&config, block, &rotary, x.view()), &direction)
            };
            let (_, trace) = block_forward_traced(&config, &block, &rotary, x.view());
            let ours = block_backward(&config, &block, &rotary, &trace, direction.view());

            // each of the 60 outputs is itself a sum of up to 12 terms behind two more such layers
            let terms = 60 * 12;
            let name = |part: &str| format!("{part}, {kv_heads} kv heads, window {window:?}");
            assert_gradient(&name("x"), &ours.x, &x, terms, |x| loss(&block, x));
            let (norm, gradient) = (&block.input_layernorm, &ours.input_layernorm);
            assert_gradient(&name("norm 1"), gradient, norm, terms, |norm| {
                let mut block = block.clone();
                block.input_layernorm.assign(norm);
                loss(&block, &x)
            });
            let (norm, gradient) = (&block.post_attention_layernorm, &ours.post_attention_layernorm);
            assert_gradient(&name("norm 2"), gradient, norm, terms, |norm| {
                let mut block = block.clone();
                block.post_attention_layernorm.assign(norm);
                loss(&block, &x)
            });
            for kind in LayerKind::ALL {
                let with = |changed: ResidentLinear| {
                    let layers = LayerKind::ALL.map(|other| {
                        if other == kind {
                            changed.clone()
                        } else {
                            block.layer(other).clone()
                        }
                    });
                    Block::new(
                        block.input_layernorm.clone(),
                        block.post_attention_layernorm.clone(),
                        layers,
                    )
                };
                let layer = block.layer(kind);
                let gradient = &ours.layers[kind as usize];
                assert_gradient(
                    &name(kind.name()),
                    gradient,
                    block.weight(kind),
                    terms,
                    |weight| {
                        let weight = ResidentWeight::Dense(weight.clone());
                        loss(
                            &with(ResidentLinear {
                                weight,
                                bias: layer.bias.clone(),
                            }),
                            &x,
                        )
                    },
                );
                let Some(gradient) = &ours.biases[kind as usize] else {
                    assert!(!bias, "{kind} has a bias but no gradient for it");
                    continue;
                };
                // Adding the same vector to every key changes no probability without rotation, and little
                // with it: still far above the limit, so it is checked like the others.
                let bias = layer
                    .bias
                    .as_ref()
                    .expect("a gradient only where there is a bias");
                assert_gradient(&name(&format!("{kind} bias")), gradient, bias, terms, |bias| {
                    loss(
                        &with(ResidentLinear {
                            weight: layer.weight.clone(),
                            bias: Some(bias.clone()),
                        }),
                        &x,
                    )
                });
            }
        }
    }
}
