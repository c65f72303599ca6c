//! Changes of plain blocks that several families share.

use aqlm_vocabulary::{ArchSpec, BlockNorm, BlockSpec, Input, LayerId, LinearSpec, Mlp, NormPlace};

/// Norms of queries and keys.
pub(super) const OF_HEADS: [(NormPlace, &str); 2] = [
    (NormPlace::Query, "self_attn.q_norm"),
    (NormPlace::Key, "self_attn.k_norm"),
];

/// Norms before and behind both attention and MLP.
pub(super) const AROUND: [(NormPlace, &str); 4] = [
    (NormPlace::BeforeAttention, "input_layernorm"),
    (NormPlace::AfterAttention, "post_attention_layernorm"),
    (NormPlace::BeforeMlp, "pre_feedforward_layernorm"),
    (NormPlace::AfterMlp, "post_feedforward_layernorm"),
];

/// Replaces the norms of all blocks. Norms of queries and keys have as many weights as a head or, with
/// `whole_rows`, as all heads together.
pub(super) fn set_norms(arch: &mut ArchSpec, norms: &[(NormPlace, &str)], whole_rows: bool) {
    let spec = arch.final_norm;
    for block in &mut arch.blocks {
        let attention = &block.attention;
        let width = |place| match place {
            NormPlace::Query if whole_rows => attention.query_width(),
            NormPlace::Key if whole_rows => attention.key_width(),
            NormPlace::Query | NormPlace::Key => attention.head_dim,
            _ => arch.hidden_size,
        };
        let of = |&(place, name): &(NormPlace, &str)| BlockNorm {
            place,
            name: name.into(),
            width: width(place),
            norm: spec,
        };
        let mut all: Vec<BlockNorm> = norms.iter().map(of).collect();
        all.sort_by_key(|norm| norm.place);
        block.norms = all;
    }
}

/// Adds norms of each head's queries and keys.
pub(super) fn add_head_norms(arch: &mut ArchSpec) {
    for block in &mut arch.blocks {
        for (place, name) in OF_HEADS {
            block.norms.push(BlockNorm {
                place,
                name: name.into(),
                width: block.attention.head_dim,
                norm: arch.final_norm,
            });
        }
        block.norms.sort_by_key(|norm| norm.place);
    }
}

/// One layer for gate and up, behind the four of attention, without biases.
pub(super) fn fuse_gate_and_up(block: &mut BlockSpec) {
    let (hidden, inner) = (block.hidden_size(), block.intermediate_size());
    block.linears.truncate(4);
    let layers = [
        ("mlp.gate_up_proj", (2 * inner, hidden), Input::Mlp),
        ("mlp.down_proj", (hidden, inner), Input::Activated),
    ];
    block
        .linears
        .extend(layers.map(|(name, shape, reads)| LinearSpec {
            name: name.into(),
            shape,
            reads,
            bias: false,
        }));
    if let Mlp::Dense(mlp) = &mut block.mlp {
        [mlp.gate, mlp.up, mlp.down] = [4, 4, 5].map(LayerId);
    }
}

/// One layer for queries, keys and values, and one for gate and up, without biases.
pub(super) fn fuse(block: &mut BlockSpec) {
    let (hidden, inner) = (block.hidden_size(), block.intermediate_size());
    let (queries, keys) = (block.attention.query_width(), block.attention.key_width());
    let layers = [
        (
            "self_attn.qkv_proj",
            (queries + 2 * keys, hidden),
            Input::Attention,
        ),
        ("self_attn.o_proj", (hidden, queries), Input::Attended),
        ("mlp.gate_up_proj", (2 * inner, hidden), Input::Mlp),
        ("mlp.down_proj", (hidden, inner), Input::Activated),
    ];
    block.linears = layers
        .into_iter()
        .map(|(name, shape, reads)| LinearSpec {
            name: name.into(),
            shape,
            reads,
            bias: false,
        })
        .collect();
    let attention = &mut block.attention;
    [attention.query, attention.key, attention.value, attention.output] = [0, 0, 0, 1].map(LayerId);
    if let Mlp::Dense(mlp) = &mut block.mlp {
        [mlp.gate, mlp.up, mlp.down] = [2, 2, 3].map(LayerId);
    }
}
