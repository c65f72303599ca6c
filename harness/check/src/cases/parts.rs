//! The parts of a block and a model that a plain Llama lacks, in the mixtures of model families.

use aqlm_vocabulary::{
    Activation, ArchSpec, AttentionSpec, BlockNorm, BlockSpec, ExpertNames, Experts, Input, LayerId,
    LinearSpec, LogitSpec, Mlp, NormPlace, NormSpec, Rope, RopeScaling,
};

use super::words;

words! {
    /// Which parts a small model has.
    Parts, "parts" {
        /// those of a Llama
        Llama = "llama",
        /// norms of each head's queries and keys
        Qwen3 = "qwen3",
        /// a norm behind attention and MLP and none before, norms of all queries and of all keys
        Olmo2 = "olmo2",
        /// factors of embeddings, scores, additions and logits
        Granite = "granite",
        /// a block without rotation
        Smollm3 = "smollm3",
        /// fused layers, LongRoPE of a part of each head
        Phi3 = "phi3",
        /// norms of 1 + w around attention and MLP, GeGLU, capped scores and logits, a window in every other
        /// block
        Gemma2 = "gemma2",
        /// as before without caps; norms of each head's queries and keys, rotations that differ between
        /// blocks
        Gemma3 = "gemma3",
        /// experts whose weights add up to 1 instead of an MLP
        Mixtral = "mixtral",
        /// experts and one that every token passes, in one of the blocks
        Qwen2Moe = "qwen2moe",
        /// LayerNorms with biases, a part of each head rotated
        Stablelm = "stablelm",
        /// one layer for gate and up, neighbours rotated together
        Glm = "glm",
    }
}

impl Parts {
    /// Gives a plain model these parts; sequences have `tokens` tokens.
    pub(super) fn put_into(self, arch: &mut ArchSpec, tokens: usize) {
        let plain = arch.blocks[0].clone();
        let hidden = arch.hidden_size;
        let around = [
            (NormPlace::BeforeAttention, hidden),
            (NormPlace::AfterAttention, hidden),
            (NormPlace::BeforeMlp, hidden),
            (NormPlace::AfterMlp, hidden),
        ];
        let before = [
            (NormPlace::BeforeAttention, hidden),
            (NormPlace::BeforeMlp, hidden),
        ];
        let heads = |width| [(NormPlace::Query, width), (NormPlace::Key, width)];
        let attention = &plain.attention;
        match self {
            Self::Llama => {}
            Self::Qwen3 => {
                let own = heads(attention.head_dim);
                each(arch, |block| {
                    norms(block, false, &[&before[..], &own[..]].concat());
                });
            }
            Self::Olmo2 => {
                let own = [
                    (NormPlace::Query, attention.query_width()),
                    (NormPlace::Key, attention.key_width()),
                    around[1],
                    around[3],
                ];
                each(arch, |block| norms(block, false, &own));
            }
            Self::Granite => {
                arch.embedding_scale = 1.7;
                arch.logits.scale = 0.6;
                each(arch, |block| {
                    block.residual_scale = 0.7;
                    block.attention.scale *= 0.8;
                });
            }
            Self::Mixtral => each(arch, |block| {
                let experts = experts(block, ExpertNames::Mixtral);
                *block = block.clone().with_experts(&experts);
            }),
            Self::Qwen2Moe => {
                let experts = Experts {
                    normalized: false,
                    shared: Some(2 * plain.intermediate_size()),
                    ..experts(&plain, ExpertNames::Qwen)
                };
                arch.blocks[0] = plain.with_experts(&experts);
            }
            Self::Stablelm => {
                let layer_norm = NormSpec::layer(EPSILON);
                arch.final_norm = layer_norm;
                each(arch, |block| {
                    for norm in &mut block.norms {
                        norm.norm = layer_norm;
                    }
                    block.attention.rotated = 2 * attention.head_dim.div_ceil(8);
                });
            }
            Self::Glm => each(arch, |block| {
                fuse_gate_and_up(block);
                block.attention.neighbours = true;
                block.attention.rotated = 2 * attention.head_dim.div_ceil(4);
            }),
            Self::Smollm3 => arch.blocks[0].attention.rotary = None,
            Self::Phi3 => each(arch, |block| {
                fuse(block);
                let half = attention.head_dim.div_ceil(4);
                block.attention.rotated = 2 * half;
                let factors = |by: f64| (0..half).map(|i| 1.0 + by * i as f64).collect();
                if let Some(rotary) = &mut block.attention.rotary {
                    rotary.scaling = RopeScaling::Long {
                        short: factors(0.1),
                        long: factors(0.7),
                        // single tokens are within the original context
                        original_max_position_embeddings: tokens.div_ceil(2),
                        attention_factor: 1.1,
                    };
                }
            }),
            Self::Gemma2 | Self::Gemma3 => {
                gemma(arch);
                let own = if self == Self::Gemma3 {
                    heads(attention.head_dim).to_vec()
                } else {
                    Vec::new()
                };
                let mut all = [&around[..], &own[..]].concat();
                all.sort_unstable();
                each(arch, |block| norms(block, true, &all));
                if self == Self::Gemma3 {
                    arch.blocks[1].attention.rotary = Some(Rope {
                        theta: 77.0,
                        scaling: RopeScaling::Linear { factor: 8.0 },
                    });
                } else {
                    each(arch, |block| block.attention.cap = Some(3.0));
                    arch.logits = LogitSpec {
                        scale: 1.0,
                        cap: Some(4.0),
                    };
                }
                arch.blocks[1].attention.window = None;
            }
        }
    }

    /// How many more numbers than in a plain block the sums behind one output have: the norms' mean squares,
    /// and what the factors of experts are made of.
    pub(super) fn terms(self, hidden: usize, inner: usize, attention: &AttentionSpec) -> usize {
        let heads = attention.query_width() + attention.key_width();
        match self {
            Self::Llama | Self::Granite | Self::Smollm3 | Self::Phi3 | Self::Glm => 0,
            // the means of both norms
            Self::Stablelm => 2 * hidden,
            Self::Qwen3 | Self::Olmo2 => heads,
            Self::Gemma2 | Self::Gemma3 => heads + 2 * hidden,
            // scores, softmax, and the sum of the chosen probabilities and of outputs
            Self::Mixtral => hidden + EXPERTS + 2 * USED,
            // the same, and the shared expert with its gate
            Self::Qwen2Moe => 3 * hidden + 2 * inner + EXPERTS + 2 * USED,
        }
    }
}

/// Of norms that a plain block does not have. Without it, a row of a few small numbers would multiply its
/// rounding errors by any factor: a head has 4 numbers in some cases, and what attention adds may be small.
const EPSILON: f64 = 0.1;

/// Experts of a block, and of a token.
const EXPERTS: usize = 4;
const USED: usize = 2;

/// Experts as wide as the block's MLP.
fn experts(block: &BlockSpec, names: ExpertNames) -> Experts {
    Experts {
        count: EXPERTS,
        used: USED,
        normalized: true,
        intermediate_size: block.intermediate_size(),
        shared: None,
        names,
    }
}

fn each(arch: &mut ArchSpec, change: impl Fn(&mut BlockSpec)) {
    arch.blocks.iter_mut().for_each(change);
}

/// What both Gemmas share.
fn gemma(arch: &mut ArchSpec) {
    arch.embedding_scale = (arch.hidden_size as f64).sqrt();
    arch.final_norm.one_plus = true;
    each(arch, |block| {
        block.mlp.set_activation(Activation::GeluTanh);
        block.attention.scale *= 0.9;
    });
}

/// Replaces the block's norms.
fn norms(block: &mut BlockSpec, one_plus: bool, places: &[(NormPlace, usize)]) {
    let mut places = places.to_vec();
    places.sort_unstable();
    let of = |(place, width): (NormPlace, usize)| BlockNorm {
        place,
        name: match place {
            NormPlace::BeforeAttention => "input_layernorm",
            NormPlace::Query => "self_attn.q_norm",
            NormPlace::Key => "self_attn.k_norm",
            NormPlace::AfterAttention => "post_attention_layernorm",
            NormPlace::BeforeMlp => "pre_feedforward_layernorm",
            NormPlace::AfterMlp => "post_feedforward_layernorm",
        }
        .into(),
        width,
        norm: NormSpec {
            one_plus,
            ..NormSpec::rms(EPSILON)
        },
    };
    block.norms = places.into_iter().map(of).collect();
}

/// One layer for gate and up behind the four of attention.
fn fuse_gate_and_up(block: &mut BlockSpec) {
    let mut fused = block.clone();
    fuse(&mut fused);
    block.linears.truncate(4);
    block.linears.extend(fused.linears.split_off(2));
    if let Mlp::Dense(mlp) = &mut block.mlp {
        [mlp.gate, mlp.up, mlp.down] = [4, 4, 5].map(LayerId);
    }
}

/// One layer for queries, keys and values, and one for gate and up.
fn fuse(block: &mut BlockSpec) {
    let (hidden, inner) = (block.hidden_size(), block.intermediate_size());
    let (queries, keys) = (block.attention.query_width(), block.attention.key_width());
    let linear = |name: &str, shape, reads| LinearSpec {
        name: name.into(),
        shape,
        reads,
        bias: false,
    };
    block.linears = vec![
        linear(
            "self_attn.qkv_proj",
            (queries + 2 * keys, hidden),
            Input::Attention,
        ),
        linear("self_attn.o_proj", (hidden, queries), Input::Attended),
        linear("mlp.gate_up_proj", (2 * inner, hidden), Input::Mlp),
        linear("mlp.down_proj", (hidden, inner), Input::Activated),
    ];
    let attention = &mut block.attention;
    [attention.query, attention.key, attention.value, attention.output] = [0, 0, 0, 1].map(LayerId);
    if let Mlp::Dense(mlp) = &mut block.mlp {
        [mlp.gate, mlp.up, mlp.down] = [2, 2, 3].map(LayerId);
    }
}
