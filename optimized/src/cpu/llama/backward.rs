use aqlm_vocabulary::{BlockSpec, LayerId, NormPlace};
use ndarray::{Array1, Array2, Array3, ArrayView3};

use super::attention::attention_backward;
use super::forward::rows_of;
use super::fused::gradients_of_each;
use super::linear_backward::{ParameterSums, back, back_all};
use super::norm::norm_backward;
use super::rotary::Turn;
use super::{Block, BlockTrace, Rotary};

/// Which gradients to compute. Unused gradients can cost up to two thirds of a backward pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// with respect to the block's input
    pub x: bool,
    /// with respect to the weights, in the order of the spec
    pub weights: Vec<bool>,
    /// with respect to the biases, where there are any
    pub biases: bool,
    /// with respect to the weights of the norms
    pub norms: bool,
}

impl Wanted {
    /// All gradients of a block.
    pub fn all(spec: &BlockSpec) -> Self {
        Self {
            x: true,
            weights: vec![true; spec.linears.len()],
            biases: true,
            norms: true,
        }
    }
}

/// The gradients of a loss with respect to the parameters of a block, summed over the sequences added.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockGradients {
    /// with respect to the (decoded) weights, [out_features, in_features], in the order of the spec; `None`
    /// if not wanted
    pub weights: Vec<Option<Array2<f32>>>,
    /// with respect to the biases, `[out_features]`, if wanted and the layer has one
    pub biases: Vec<Option<Array1<f64>>>,
    /// with respect to the norms' weights, in the order of the spec; zero if not wanted
    pub norms: Vec<Array1<f64>>,
}

impl BlockGradients {
    /// Zero gradients, before the first sequence.
    pub fn zeros(block: &Block, wanted: &Wanted) -> Self {
        let weight =
            |layer: LayerId| wanted.weights[layer.index()].then(|| Array2::zeros(block.weight(layer).dim()));
        let bias = |layer: LayerId| {
            let bias = block.layer(layer).bias.as_ref().filter(|_| wanted.biases);
            bias.map(|bias| Array1::zeros(bias.len()))
        };
        Self {
            weights: block.spec().layers().map(weight).collect(),
            biases: block.spec().layers().map(bias).collect(),
            norms: block.norms.iter().map(|norm| Array1::zeros(norm.len())).collect(),
        }
    }
}

/// Adds the gradients of [`block_forward`](super::block_forward) to `sum`, given the gradient of its result,
/// [sequences, tokens, hidden], and the trace of the same pass. Returns the gradient of its input if wanted.
///
/// # Panics
/// When the arguments come from different passes.
pub fn block_backward(
    block: &Block,
    rotary: &Rotary,
    trace: &BlockTrace,
    grad_y: ArrayView3<'_, f32>,
    wanted: &Wanted,
    sum: &mut BlockGradients,
) -> Option<Array3<f32>> {
    let shape = grad_y.dim();
    let grad_y = rows_of(grad_y);
    let spec = block.spec();
    let attention = &spec.attention;
    let BlockGradients {
        weights,
        biases,
        norms,
    } = sum;
    let mut sums = ParameterSums { weights, biases };
    // of the output of attention or of the MLP, before the block's factor and the norm behind it
    let of_branch = |grad: &Array2<f32>, place, raw: Option<&Array2<f32>>, norms: &mut [Array1<f64>]| {
        if spec.residual_scale == 1.0 && raw.is_none() {
            return None;
        }
        let scaled = grad * spec.residual_scale as f32;
        Some(block.norm_backward(place, raw, scaled, wanted.norms, norms))
    };

    // y = middle + r b(Down gated(Gate n'(middle), Up n'(middle)))
    let of_mlp = of_branch(&grad_y, NormPlace::AfterMlp, trace.out.as_ref(), norms);
    let grad_out = of_mlp.as_ref().unwrap_or(&grad_y);
    let grad_normed = trace.mlp.backward(block, grad_out, &mut sums);
    drop(of_mlp);
    let mut grad_middle = grad_y;
    add_normed(
        block,
        NormPlace::BeforeMlp,
        &trace.middle,
        &grad_normed,
        Some(&mut grad_middle),
        wanted,
        norms,
    );

    // middle = x + r a(O attention(Q n(x), K n(x), V n(x)))
    let of_attention = of_branch(
        &grad_middle,
        NormPlace::AfterAttention,
        trace.mixed.as_ref(),
        norms,
    );
    let grad_mixed = of_attention.as_ref().unwrap_or(&grad_middle);
    sums.add(attention.output, trace.attended.view(), grad_mixed);
    let grad_attended = back(block, attention.output, grad_mixed);
    drop(of_attention);
    let projected = &trace.projected;
    let [mut grad_q, mut grad_k, grad_v] = attention_backward(
        attention,
        projected.q.view(),
        projected.k.view(),
        projected.v.view(),
        trace.tokens,
        grad_attended.view(),
    );
    drop(grad_attended);
    rotary.rotate(attention, grad_q.view_mut(), trace.tokens, Turn::Back);
    rotary.rotate(attention, grad_k.view_mut(), trace.tokens, Turn::Back);
    let [raw_q, raw_k] = &projected.raw;
    let grad_q = block.norm_backward(NormPlace::Query, raw_q.as_ref(), grad_q, wanted.norms, norms);
    let grad_k = block.norm_backward(NormPlace::Key, raw_k.as_ref(), grad_k, wanted.norms, norms);
    let gradients = gradients_of_each(attention.projections().0, [grad_q, grad_k, grad_v]);
    for (layer, grad) in &gradients {
        sums.add(*layer, trace.normed.view(), grad);
    }
    if !wanted.norms && !wanted.x {
        return None;
    }
    let grad_normed = back_all(block, &gradients);
    let mut grad_x = grad_middle;
    let to = wanted.x.then_some(&mut grad_x);
    add_normed(
        block,
        NormPlace::BeforeAttention,
        &trace.x,
        &grad_normed,
        to,
        wanted,
        norms,
    );
    wanted.x.then(|| {
        grad_x
            .into_shape_with_order(shape)
            .expect("as many elements as grad_y had")
    })
}

/// Adds the gradient through the norm at this place to that of its input x, if wanted, and the one with
/// respect to the norm's weights to `norms`, if wanted.
fn add_normed(
    block: &Block,
    place: NormPlace,
    x: &Array2<f32>,
    grad_normed: &Array2<f32>,
    grad_x: Option<&mut Array2<f32>>,
    wanted: &Wanted,
    norms: &mut [Array1<f64>],
) {
    let Some((index, spec)) = block.spec().norm(place) else {
        if let Some(grad_x) = grad_x {
            *grad_x += grad_normed;
        }
        return;
    };
    let grad_x = grad_x.map(|grad| grad.view_mut());
    let of_weights = norm_backward(
        spec.norm,
        x.view(),
        &block.norms[index],
        grad_normed.view(),
        grad_x,
    );
    if wanted.norms {
        norms[index] += &of_weights;
    }
}
