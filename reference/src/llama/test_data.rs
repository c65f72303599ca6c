//! Small random models for the tests in this folder.

use ndarray::{Array, Array1, Array2, Array3, Dimension, ShapeBuilder};
use rand::RngExt;
use rand_distr::StandardNormal;

use super::{Block, Model, ResidentLinear, ResidentWeight};
use aqlm_vocabulary::{
    Activation, ArchSpec, BlockNorm, BlockSpec, ExpertNames, Experts, GatedMlp, Input, LayerId, LinearSpec,
    LogitSpec, Mlp, NormPlace, NormSpec, Purpose, QuantizedMatrix, Rope, RopeScaling, Scheme, Stream,
    llama::LlamaBlock, stream,
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
    let norm = |norm: &BlockNorm| -> Array1<f64> {
        let one = if norm.norm.one_plus { 0.0 } else { 1.0 };
        let mut parameters: Array1<f64> = 0.2 * normal(rng, norm.parameters());
        parameters
            .iter_mut()
            .take(norm.width)
            .for_each(|weight| *weight += one);
        parameters
    };
    Block::new(spec, spec.norms.iter().map(norm).collect(), layers).unwrap()
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

/// Blocks that together have every part that a plain block lacks.
pub(super) fn every_part() -> Vec<BlockSpec> {
    use NormPlace::{AfterAttention, AfterMlp, BeforeAttention, BeforeMlp, Key, Query};
    let norms = |block: &mut BlockSpec, one_plus: bool, places: &[(NormPlace, usize)]| {
        let norm = NormSpec {
            one_plus,
            // As large as the mean square. Without it a head whose 4 numbers are all small would have slopes
            // that numerical gradients cannot follow.
            ..NormSpec::rms(0.3)
        };
        let of = |&(place, width): &(NormPlace, usize)| BlockNorm {
            place,
            name: format!("{place:?}"),
            width,
            norm,
        };
        block.norms = places.iter().map(of).collect();
    };
    let all = [
        (BeforeAttention, 12),
        (Query, 4),
        (Key, 4),
        (AfterAttention, 12),
        (BeforeMlp, 12),
        (AfterMlp, 12),
    ];

    // as Gemma: every norm by 1 + w, each head's queries and keys normed, capped scores, GeGLU
    let mut gemma = config(2, Some(3));
    norms(&mut gemma, true, &all);
    (gemma.attention.scale, gemma.attention.cap) = (0.3, Some(1.5));
    gemma.mlp.set_activation(Activation::GeluTanh);

    // as OLMo 2: no norm before, queries and keys normed over all heads
    let mut olmo2 = config(2, None);
    norms(
        &mut olmo2,
        false,
        &[(Query, 16), (Key, 8), (AfterAttention, 12), (AfterMlp, 12)],
    );

    // as Phi-3 and Granite: fused layers, partial rotation, a factor of what is added
    let mut fused = config(2, None);
    let linear = |name: &str, shape, reads| LinearSpec {
        name: name.into(),
        shape,
        reads,
        bias: false,
    };
    fused.linears = vec![
        linear("self_attn.qkv_proj", (32, 12), Input::Attention),
        linear("self_attn.o_proj", (12, 16), Input::Attended),
        linear("mlp.gate_up_proj", (20, 12), Input::Mlp),
        linear("mlp.down_proj", (12, 10), Input::Activated),
    ];
    let attention = &mut fused.attention;
    [attention.query, attention.key, attention.value, attention.output] = [0, 0, 0, 1].map(LayerId);
    fused.mlp = Mlp::Dense(GatedMlp {
        activation: Activation::Silu,
        gate: LayerId(2),
        up: LayerId(2),
        down: LayerId(3),
    });
    (attention.rotated, fused.residual_scale) = (2, 0.7);

    // as StableLM and as GLM: LayerNorms with biases, a part of each head rotated, neighbours together, one
    // layer for gate and up
    let mut centered = config(2, None);
    for norm in &mut centered.norms {
        norm.norm = NormSpec::layer(0.3);
    }
    (centered.attention.rotated, centered.attention.neighbours) = (2, true);
    centered.linears.truncate(4);
    centered.linears.extend([
        linear("mlp.gate_up_proj", (20, 12), Input::Mlp),
        linear("mlp.down_proj", (12, 10), Input::Activated),
    ]);
    centered.mlp = Mlp::Dense(GatedMlp {
        activation: Activation::Silu,
        gate: LayerId(4),
        up: LayerId(4),
        down: LayerId(5),
    });

    // as layers without rotation
    let mut still = config(4, None);
    still.attention.rotary = None;

    // as Mixtral and as Qwen 2's mixture
    vec![
        gemma,
        olmo2,
        fused,
        centered,
        still,
        routed(true, None),
        routed(false, Some(8)),
    ]
}

/// A block of four experts, of which a token uses two.
pub(super) fn routed(normalized: bool, shared: Option<usize>) -> BlockSpec {
    config(2, None).with_experts(&Experts {
        count: 4,
        used: 2,
        normalized,
        intermediate_size: 10,
        shared,
        names: ExpertNames::Qwen,
    })
}

/// A dense model of a plain block and this one, with scaled embeddings, a final norm by 1 + w, and scaled and
/// capped logits.
pub(super) fn with_blocks(rng: &mut Stream, block: BlockSpec) -> Model {
    let mut model = model(rng, 2, None);
    model.arch.blocks[1] = block.clone();
    model.blocks[1] = self::block(rng, &block, false);
    model.arch.embedding_scale = 1.5;
    model.arch.final_norm.one_plus = true;
    model.norm -= 1.0;
    model.arch.logits = LogitSpec {
        scale: 0.8,
        cap: Some(4.0),
    };
    model
}
