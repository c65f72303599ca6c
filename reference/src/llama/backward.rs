use ndarray::{Array1, Array2, ArrayView2};

use super::attention::attention_backward;
use super::linear::{LinearGradients, linear_backward};
use super::rms_norm::rms_norm_backward;
use super::swiglu::swiglu_backward;
use super::{Block, BlockTrace, Rotary};
use aqlm_vocabulary::LayerId;

/// The gradient of a loss with respect to everything in a block.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockGradients {
    /// with respect to the input, [tokens, hidden]
    pub x: Array2<f64>,
    /// with respect to the (decoded) weights, [out_features, in_features] each, in the order of the spec
    pub layers: Vec<Array2<f64>>,
    /// with respect to the biases, `[out_features]`, where the layer has one
    pub biases: Vec<Option<Array1<f64>>>,
    /// with respect to the first norm's weight, `[hidden]`
    pub input_layernorm: Array1<f64>,
    /// with respect to the second norm's weight, `[hidden]`
    pub post_attention_layernorm: Array1<f64>,
}

/// Every gradient of [`block_forward`](super::block_forward) over one sequence, given the gradient with
/// respect to its result, [tokens, hidden], and the trace of the same forward pass.
///
/// # Panics
/// When the arguments do not come from one forward pass.
pub fn block_backward(
    block: &Block,
    rotary: &Rotary,
    trace: &BlockTrace,
    grad_y: ArrayView2<f64>,
) -> BlockGradients {
    let spec = block.spec();
    let (attention, mlp) = (&spec.attention, &spec.mlp);
    let through = |layer: LayerId, grad_y: ArrayView2<f64>| {
        let x = trace.input(spec.linear(layer).reads);
        linear_backward(x, block.weight(layer).view(), grad_y)
    };
    let eps = spec.norms.norm.epsilon;

    // y = middle + Down swiglu(Gate n'(middle), Up n'(middle))
    let down = through(mlp.down, grad_y);
    let (grad_gate, grad_up) = swiglu_backward(trace.gate.view(), trace.up.view(), down.x.view());
    let gate = through(mlp.gate, grad_gate.view());
    let up = through(mlp.up, grad_up.view());
    let grad_normed = &gate.x + &up.x;
    let norm = block.post_attention_layernorm.view();
    let (grad_middle, post_attention_layernorm) =
        rms_norm_backward(trace.middle.view(), norm, eps, grad_normed.view());
    let grad_middle = grad_middle + grad_y;

    // middle = x + O attention(Q n(x), K n(x), V n(x))
    let o = through(attention.output, grad_middle.view());
    let (mut grad_q, mut grad_k, grad_v) = attention_backward(
        attention,
        trace.q.view(),
        trace.k.view(),
        trace.v.view(),
        o.x.view(),
    );
    rotary.rotate_backward(&mut grad_q, 0);
    rotary.rotate_backward(&mut grad_k, 0);
    let q = through(attention.query, grad_q.view());
    let k = through(attention.key, grad_k.view());
    let v = through(attention.value, grad_v.view());
    let grad_normed = &q.x + &k.x + &v.x;
    let norm = block.input_layernorm.view();
    let (grad_x, input_layernorm) = rms_norm_backward(trace.x.view(), norm, eps, grad_normed.view());

    let mut gradients = [
        (attention.query, q),
        (attention.key, k),
        (attention.value, v),
        (attention.output, o),
        (mlp.gate, gate),
        (mlp.up, up),
        (mlp.down, down),
    ];
    gradients.sort_by_key(|&(layer, _)| layer);
    let (layers, biases) = gradients
        .into_iter()
        .map(|(layer, LinearGradients { weight, bias, .. })| {
            (weight, block.layer(layer).bias.as_ref().map(|_| bias))
        })
        .unzip();
    BlockGradients {
        x: grad_x + grad_middle,
        layers,
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
            let rotary = Rotary::new(&config.attention, 5);
            let x: Array2<f64> = normal(&mut rng, (5, 12));
            let direction = normal(&mut rng, (5, 12));
            let loss =
                |block: &Block, x: &Array2<f64>| inner(&block_forward(block, &rotary, x.view()), &direction);
            let (_, trace) = block_forward_traced(&block, &rotary, x.view());
            let ours = block_backward(&block, &rotary, &trace, direction.view());

            // each of the 60 outputs is a sum of up to 12 terms after two more such layers
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
            for kind in config.layers() {
                let with = |changed: ResidentLinear| {
                    let mut layers: Vec<_> =
                        config.layers().map(|other| block.layer(other).clone()).collect();
                    layers[kind.index()] = changed;
                    Block::new(
                        &config,
                        block.input_layernorm.clone(),
                        block.post_attention_layernorm.clone(),
                        layers,
                    )
                    .unwrap()
                };
                let layer = block.layer(kind);
                let gradient = &ours.layers[kind.index()];
                assert_gradient(
                    &name(&config.linear(kind).name),
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
                let Some(gradient) = &ours.biases[kind.index()] else {
                    assert!(!bias, "{kind:?} has a bias but no gradient for it");
                    continue;
                };
                // Adding the same vector to every key changes no probability without rotation, and little
                // with rotation. The change is still far above the limit, so this bias is checked like the
                // others.
                let bias = layer
                    .bias
                    .as_ref()
                    .expect("a gradient only where there is a bias");
                assert_gradient(&name(&format!("{kind:?} bias")), gradient, bias, terms, |bias| {
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
