//! Problems and comparisons that the tests of the policies share.

#![allow(dead_code, reason = "every test binary uses its own part")]

use aqlm_vocabulary::{
    ArchSpec, BlockSpec, BlockWeights, Linear, LinearWeight, Purpose, QuantizedMatrix, Rope, RopeScaling,
    Scheme, Stream, llama::LlamaBlock, stream,
};
use ndarray::{Array, Array1, Array3, Dimension, ShapeBuilder};
use rand::RngExt;
use rand_distr::StandardNormal;

/// A test's random stream.
pub(crate) fn random(seed: u64) -> Stream {
    stream(seed, 0, None, Purpose::TestData)
}

/// Standard normal numbers in f32.
pub(crate) fn normal<D: Dimension>(rng: &mut Stream, shape: impl ShapeBuilder<Dim = D>) -> Array<f32, D> {
    Array::from_shape_simple_fn(shape, || {
        let x: f64 = rng.sample(StandardNormal);
        x as f32
    })
}

/// [`normal`] with about one value in a hundred ten times as large.
pub(crate) fn with_outliers<D: Dimension>(
    rng: &mut Stream,
    shape: impl ShapeBuilder<Dim = D>,
) -> Array<f32, D> {
    let mut x = normal(rng, shape);
    x.mapv_inplace(|x| {
        if rng.random_range(0..100u32) == 0 {
            10.0 * x
        } else {
            x
        }
    });
    x
}

/// The limit of NMSE for f32 sums whose lengths along the longest chain add up to `terms`. In the worst case
/// every term is rounded twice (product and addition) by half a unit and all errors have one sign: a relative
/// error of terms x epsilon. Products in this crate do better, because they fuse the two roundings or keep
/// several partial sums. The remaining margin is for the amplification by nonlinear functions.
pub(crate) fn limit(terms: usize) -> f64 {
    (terms as f64 * f64::from(f32::EPSILON)).powi(2)
}

/// Asserts that `ours` is within NMSE `limit` of `expected`, which must not be zero.
#[track_caller]
pub(crate) fn assert_close<'a>(
    what: &str,
    ours: impl IntoIterator<Item = f64>,
    expected: impl IntoIterator<Item = &'a f64>,
    limit: f64,
) {
    let ours: Vec<f64> = ours.into_iter().collect();
    let expected: Vec<f64> = expected.into_iter().copied().collect();
    assert_eq!(ours.len(), expected.len(), "{what}: number of elements");
    let norm: f64 = expected.iter().map(|x| x * x).sum();
    assert!(norm > 0.0, "{what}: a reference of zeros shows nothing");
    let error: f64 = ours.iter().zip(&expected).map(|(a, b)| (a - b) * (a - b)).sum();
    // written so that NaN fails
    assert!(
        error / norm <= limit,
        "{what}: NMSE {:e}, limit {limit:e}",
        error / norm
    );
}

/// f32 values as f64.
pub(crate) fn widened<'a>(values: impl IntoIterator<Item = &'a f32>) -> impl Iterator<Item = f64> {
    values.into_iter().map(|&x| f64::from(x))
}

/// Runs `f` on its own thread pool.
pub(crate) fn with_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap()
        .install(f)
}

/// A small block whose sizes are no multiples of typical tile sizes.
pub(crate) fn config(
    heads: usize,
    kv_heads: usize,
    window: Option<usize>,
    scaling: RopeScaling,
) -> BlockSpec {
    BlockSpec::llama(LlamaBlock {
        hidden_size: 40,
        intermediate_size: 72,
        heads,
        kv_heads,
        head_dim: 12,
        epsilon: 1e-5,
        rotary: Rope {
            theta: 1000.0,
            scaling,
        },
        window,
    })
}

/// A dense block whose weights keep activations near unit size.
pub(crate) fn block_weights(rng: &mut Stream, spec: &BlockSpec, bias: bool) -> BlockWeights {
    let norm = |rng: &mut Stream| -> Array1<f32> { 1.0 + 0.2 * normal(rng, spec.hidden_size()) };
    BlockWeights {
        input_layernorm: norm(rng),
        post_attention_layernorm: norm(rng),
        layers: spec
            .layers()
            .map(|layer| {
                let (out, inputs) = spec.shape(layer);
                Linear {
                    weight: LinearWeight::Dense(normal(rng, (out, inputs)) / (inputs as f32).sqrt()),
                    bias: bias.then(|| normal(rng, out)),
                }
            })
            .collect(),
    }
}

/// A random matrix of [out, inputs], about as large as the dense weights of [`block_weights`].
pub(crate) fn quantized(rng: &mut Stream, scheme: &str, out: usize, inputs: usize) -> QuantizedMatrix {
    let scheme: Scheme = scheme.parse().unwrap();
    let (out_groups, in_groups) = scheme.groups(out, inputs).unwrap();
    let codes = Array3::from_shape_simple_fn((out_groups, in_groups, scheme.num_codebooks), || {
        rng.random_range(0..scheme.codebook_size() as u64) as u16
    });
    let shape = (
        scheme.num_codebooks,
        scheme.codebook_size(),
        scheme.out_group_size,
        scheme.in_group_size,
    );
    let codebooks = normal(rng, shape).mapv(f64::from) / (scheme.num_codebooks as f64).sqrt();
    let scales =
        Array1::from_shape_simple_fn(out_groups, || rng.random_range(0.5..1.5) / (inputs as f64).sqrt());
    QuantizedMatrix::new(scheme, codes, codebooks, scales).unwrap()
}

/// A model of two such blocks.
pub(crate) fn arch(spec: &BlockSpec) -> ArchSpec {
    ArchSpec {
        vocab_size: 50,
        hidden_size: spec.hidden_size(),
        max_position_embeddings: 128,
        blocks: vec![spec.clone(); 2],
        embedding_scale: 1.0,
        final_norm: spec.norms.norm,
        logit_cap: None,
        tied: false,
    }
}
