//! Small random models for the tests of this folder.

use ndarray::{Array, Array1, Array2, Array3, Dimension, ShapeBuilder};
use rand::RngExt;
use rand_distr::StandardNormal;

use super::{Block, Model, ResidentLinear, ResidentWeight};
use aqlm_vocabulary::{
    LayerKind, LlamaConfig, Purpose, QuantizedMatrix, Rope, RopeScaling, Scheme, Stream, stream,
};

pub(super) fn random(seed: u64) -> Stream {
    stream(seed, 0, None, Purpose::TestData)
}

pub(super) fn normal<D: Dimension>(rng: &mut Stream, shape: impl ShapeBuilder<Dim = D>) -> Array<f64, D> {
    Array::from_shape_simple_fn(shape, || rng.sample(StandardNormal))
}

/// Two blocks of hidden size 12, heads of width 4.
pub(super) fn config(kv_heads: usize, sliding_window: Option<usize>) -> LlamaConfig {
    LlamaConfig {
        vocab_size: 11,
        hidden_size: 12,
        intermediate_size: 10,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: kv_heads,
        head_dim: 4,
        rms_norm_eps: 1e-5,
        rope: Rope {
            theta: 100.0,
            scaling: RopeScaling::None,
        },
        sliding_window,
        tie_word_embeddings: false,
        max_position_embeddings: 64,
    }
}

/// A dense block whose weights keep activations near unit size.
pub(super) fn block(rng: &mut Stream, config: &LlamaConfig, bias: bool) -> Block {
    let layers = LayerKind::ALL.map(|kind| {
        let (out, inputs) = config.layer_shape(kind);
        ResidentLinear {
            weight: ResidentWeight::Dense(normal(rng, (out, inputs)) / (inputs as f64).sqrt()),
            bias: bias.then(|| normal(rng, out)),
        }
    });
    let norm = |rng: &mut Stream| -> Array1<f64> { 1.0 + 0.2 * normal(rng, config.hidden_size) };
    Block::new(norm(rng), norm(rng), layers)
}

/// Sum of the products of two arrays: a linear loss whose gradient with respect to the first is the second.
pub(super) fn inner(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
    (a * b).sum()
}

/// A random matrix of scheme 2x2g2, in two scales that differ much.
pub(super) fn quantized(rng: &mut Stream, out_features: usize, in_features: usize) -> QuantizedMatrix {
    let scheme = Scheme::new(2, 2, 2).unwrap();
    let codes = Array3::from_shape_simple_fn((out_features, in_features / 2, 2), || rng.random_range(0..4));
    let codebooks = normal(rng, (2, 4, 1, 2));
    let scales = Array1::from_shape_fn(out_features, |o| if o % 2 == 0 { 0.2 } else { 0.5 });
    QuantizedMatrix::new(scheme, codes, codebooks, scales).unwrap()
}

/// A dense model of two blocks.
pub(super) fn model(rng: &mut Stream, kv_heads: usize, sliding_window: Option<usize>) -> Model {
    let config = config(kv_heads, sliding_window);
    let shape = (config.vocab_size, config.hidden_size);
    Model {
        embedding: normal(rng, shape),
        blocks: (0..config.num_hidden_layers)
            .map(|_| block(rng, &config, false))
            .collect(),
        norm: 1.0 + 0.2 * normal(rng, config.hidden_size),
        lm_head: normal(rng, shape),
        config,
    }
}
