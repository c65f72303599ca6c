use ndarray::{Array1, Array2, ArrayView2};

use super::attention::attention_backward;
use super::fused::each_backward;
use super::linear::{LinearGradients, linear_backward};
use super::norm::normed_backward;
use super::{Block, BlockTrace, Rotary};
use aqlm_vocabulary::{LayerId, NormPlace};

/// The gradient of a loss with respect to everything in a block.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockGradients {
    /// with respect to the input, [tokens, hidden]
    pub x: Array2<f64>,
    /// with respect to the (decoded) weights, [out_features, in_features] each, in the order of the spec
    pub layers: Vec<Array2<f64>>,
    /// with respect to the biases, `[out_features]`, where the layer has one
    pub biases: Vec<Option<Array1<f64>>>,
    /// with respect to the norms' weights, in the order of the spec
    pub norms: Vec<Array1<f64>>,
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
    let attention = &spec.attention;
    let through = |layer: LayerId, grad_y: ArrayView2<f64>| {
        let x = trace.input(spec.linear(layer).reads);
        linear_backward(x, block.weight(layer).view(), grad_y)
    };
    let mut norms: Vec<_> = spec
        .norms
        .iter()
        .map(|norm| Array1::zeros(norm.parameters()))
        .collect();

    // y = middle + r b(Down gated(Gate n'(middle), Up n'(middle)))
    let grad_out = normed_backward(
        block,
        NormPlace::AfterMlp,
        trace.inside.out().view(),
        spec.residual_scale * &grad_y,
        &mut norms,
    );
    let (grad_normed, of_mlp) = trace
        .inside
        .backward(block, trace.middle_normed.view(), grad_out.view());
    let grad_middle = normed_backward(
        block,
        NormPlace::BeforeMlp,
        trace.middle.view(),
        grad_normed,
        &mut norms,
    ) + grad_y;

    // middle = x + r a(O attention(Q n(x), K n(x), V n(x)))
    let grad_mixed = normed_backward(
        block,
        NormPlace::AfterAttention,
        trace.mixed.view(),
        spec.residual_scale * &grad_middle,
        &mut norms,
    );
    let output = through(attention.output, grad_mixed.view());
    let projected = &trace.projected;
    let (mut grad_q, mut grad_k, grad_v) = attention_backward(
        attention,
        projected.q.view(),
        projected.k.view(),
        projected.v.view(),
        output.x.view(),
    );
    rotary.rotate_backward(attention, &mut grad_q, 0);
    rotary.rotate_backward(attention, &mut grad_k, 0);
    let [raw_q, raw_k] = &projected.raw;
    let grad_q = normed_backward(block, NormPlace::Query, raw_q.view(), grad_q, &mut norms);
    let grad_k = normed_backward(block, NormPlace::Key, raw_k.view(), grad_k, &mut norms);
    let (layers, _) = attention.projections();
    let grads = [grad_q.view(), grad_k.view(), grad_v.view()];
    let (grad_normed, projections) = each_backward(block, layers, trace.normed.view(), grads);
    let grad_x = normed_backward(
        block,
        NormPlace::BeforeAttention,
        trace.x.view(),
        grad_normed,
        &mut norms,
    );

    let mut gradients: Vec<_> = projections.into_iter().chain(of_mlp).collect();
    gradients.push((attention.output, output));
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
        norms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::finite_difference::assert_gradient;
    use crate::llama::test_data::{block, config, every_part, inner, normal, random};
    use crate::llama::{ResidentLinear, ResidentWeight, block_forward, block_forward_traced};

    #[test]
    fn every_gradient_matches_finite_differences() {
        let plain = [(4, None, false), (2, None, true), (1, Some(3), false)]
            .map(|(kv_heads, window, bias)| (config(kv_heads, window), bias));
        let others = every_part().into_iter().map(|block| (block, false));
        for (number, (config, bias)) in plain.into_iter().chain(others).enumerate() {
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
            let name = |part: &str| format!("{part}, block {number}");
            assert_gradient(&name("x"), &ours.x, &x, terms, |x| loss(&block, x));
            for (index, spec) in config.norms.iter().enumerate() {
                let (norm, gradient) = (&block.norms[index], &ours.norms[index]);
                assert_gradient(&name(&spec.name), gradient, norm, terms, |norm| {
                    let mut block = block.clone();
                    block.norms[index].assign(norm);
                    loss(&block, &x)
                });
            }
            for kind in config.layers() {
                let with = |changed: ResidentLinear| {
                    let mut layers: Vec<_> =
                        config.layers().map(|other| block.layer(other).clone()).collect();
                    layers[kind.index()] = changed;
                    Block::new(&config, block.norms.clone(), layers).unwrap()
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
