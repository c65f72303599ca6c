//! Small random models for the tests in this folder.

use ndarray::{Array, Array1, Array2, Array3, Dimension, ShapeBuilder};
use rand::RngExt;
use rand_distr::StandardNormal;

use super::{Block, Model, ResidentLinear, ResidentWeight};
use aqlm_vocabulary::{
    ArchSpec, BlockSpec, Purpose, QuantizedMatrix, Rope, RopeScaling, Scheme, Stream, llama::LlamaBlock,
    stream,
};

pub(super) fn random(seed: u64) -> Stream {
    stream(seed, 0, None, Purpose::TestData)
}

pub(super) fn normal<D: Dimension>(rng: &mut Stream, shape: impl ShapeBuilder<Dim = D>) -> Array<f64, D> {
    Array::from_shape_simple_fn(shape, || rng.sample(StandardNormal))
}

/// Hidden size 12, heads of width 4.
pub(super) fn config(kv_heads: usize, window: Option<usize>) -> BlockSpec {
    BlockSpec::llama(LlamaBlock {
        hidden_size: 12,
        intermediate_size: 10,
        heads: 4,
        kv_heads,
        head_dim: 4,
        epsilon: 1e-5,
        rotary: Rope {
            theta: 100.0,
            scaling: RopeScaling::None,
        },
        window,
    })
}

/// A dense block whose weights keep activations near unit size.
pub(super) fn block(rng: &mut Stream, spec: &BlockSpec, bias: bool) -> Block {
    let layers = spec.layers().map(|layer| {
        let (out, inputs) = spec.shape(layer);
        ResidentLinear {
            weight: ResidentWeight::Dense(normal(rng, (out, inputs)) / (inputs as f64).sqrt()),
            bias: bias.then(|| normal(rng, out)),
        }
    });
    let layers = layers.collect();
    let norm = |rng: &mut Stream| -> Array1<f64> { 1.0 + 0.2 * normal(rng, spec.hidden_size()) };
    Block::new(spec, norm(rng), norm(rng), layers).unwrap()
}

/// Sum of the elementwise products of two arrays: a linear loss whose gradient with respect to the first is
/// the second.
pub(super) fn inner(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
    (a * b).sum()
}

/// A random matrix of scheme 2x2g2, with scales of two very different sizes.
pub(super) fn quantized(rng: &mut Stream, out_features: usize, in_features: usize) -> QuantizedMatrix {
    let scheme = Scheme::new(2, 2, 2).unwrap();
    let codes = Array3::from_shape_simple_fn((out_features, in_features / 2, 2), || rng.random_range(0..4));
    let codebooks = normal(rng, (2, 4, 1, 2));
    let scales = Array1::from_shape_fn(out_features, |o| if o % 2 == 0 { 0.2 } else { 0.5 });
    QuantizedMatrix::new(scheme, codes, codebooks, scales).unwrap()
}

/// A dense model of two blocks.
pub(super) fn model(rng: &mut Stream, kv_heads: usize, window: Option<usize>) -> Model {
    let arch = ArchSpec::llama(11, 64, 2, config(kv_heads, window));
    let shape = (arch.vocab_size, arch.hidden_size);
    Model {
        embedding: normal(rng, shape),
        blocks: arch.blocks.iter().map(|spec| block(rng, spec, false)).collect(),
        norm: 1.0 + 0.2 * normal(rng, arch.hidden_size),
        lm_head: normal(rng, shape),
        arch,
    }
}
