//! The plain Llama block: its construction, and the check that a model has only such blocks.

use crate::{
    Activation, AqlmError, ArchSpec, AttentionSpec, BlockNorm, BlockSpec, GatedMlp, Input, LayerId,
    LinearSpec, LogitSpec, Mlp, NormPlace, NormSpec, Result, Rope, RopeScaling,
};

/// Queries of the plain Llama block.
pub const QUERY: LayerId = LayerId(0);
/// Its keys.
pub const KEY: LayerId = LayerId(1);
/// Its values.
pub const VALUE: LayerId = LayerId(2);
/// The output of its attention.
pub const OUTPUT: LayerId = LayerId(3);
/// The gate of its SwiGLU.
pub const GATE: LayerId = LayerId(4);
/// The other input of its SwiGLU.
pub const UP: LayerId = LayerId(5);
/// The output of its MLP.
pub const DOWN: LayerId = LayerId(6);

/// Inputs of the plain Llama block's linear layers, in layer order.
const READS: [Input; 7] = [
    Input::Attention,
    Input::Attention,
    Input::Attention,
    Input::Attended,
    Input::Mlp,
    Input::Mlp,
    Input::Activated,
];

/// The parameters by which plain Llama blocks differ.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaBlock {
    /// width of the residual stream
    pub hidden_size: usize,
    /// width inside SwiGLU
    pub intermediate_size: usize,
    /// query heads
    pub heads: usize,
    /// key and value heads
    pub kv_heads: usize,
    /// width of one head
    pub head_dim: usize,
    /// epsilon inside the root of RMSNorm
    pub epsilon: f64,
    /// rotary position embedding
    pub rotary: Rope,
    /// number of positions that a position attends to, itself included; `None` for all earlier ones
    pub window: Option<usize>,
}

impl BlockSpec {
    /// The plain Llama block (Touvron et al. 2023, section 2.2), without biases.
    pub fn llama(block: LlamaBlock) -> Self {
        let (hidden, inner) = (block.hidden_size, block.intermediate_size);
        let (queries, keys) = (block.heads * block.head_dim, block.kv_heads * block.head_dim);
        let linears = [
            ("self_attn.q_proj", (queries, hidden)),
            ("self_attn.k_proj", (keys, hidden)),
            ("self_attn.v_proj", (keys, hidden)),
            ("self_attn.o_proj", (hidden, queries)),
            ("mlp.gate_proj", (inner, hidden)),
            ("mlp.up_proj", (inner, hidden)),
            ("mlp.down_proj", (hidden, inner)),
        ];
        Self {
            linears: linears
                .into_iter()
                .zip(READS)
                .map(|((name, shape), reads)| LinearSpec {
                    name: name.into(),
                    shape,
                    reads,
                    bias: false,
                })
                .collect(),
            norms: [
                (NormPlace::BeforeAttention, "input_layernorm"),
                (NormPlace::BeforeMlp, "post_attention_layernorm"),
            ]
            .map(|(place, name)| BlockNorm {
                place,
                name: name.into(),
                width: hidden,
                norm: NormSpec::rms(block.epsilon),
            })
            .into(),
            attention: AttentionSpec {
                heads: block.heads,
                kv_heads: block.kv_heads,
                head_dim: block.head_dim,
                rotary: Some(block.rotary),
                rotated: block.head_dim,
                neighbours: false,
                window: block.window,
                scale: AttentionSpec::usual_scale(block.head_dim),
                cap: None,
                query: QUERY,
                key: KEY,
                value: VALUE,
                output: OUTPUT,
            },
            mlp: Mlp::Dense(GatedMlp {
                activation: Activation::Silu,
                gate: GATE,
                up: UP,
                down: DOWN,
            }),
            residual_scale: 1.0,
        }
    }
}

impl ArchSpec {
    /// A model of `count` copies of one plain block, with an untied head.
    pub fn llama(vocab_size: usize, max_position_embeddings: usize, count: usize, block: BlockSpec) -> Self {
        Self {
            vocab_size,
            hidden_size: block.hidden_size(),
            max_position_embeddings,
            embedding_scale: 1.0,
            final_norm: block.norms.first().map_or(NormSpec::rms(1e-6), |norm| norm.norm),
            logits: LogitSpec::PLAIN,
            tied: false,
            blocks: vec![block; count],
        }
    }

    /// Rejects, before anything is computed, a model with LayerNorms or with a rotation of neighbouring
    /// numbers, for a backend that lacks both: the cuda backend calls it first.
    ///
    /// # Errors
    /// `Unsupported` naming the feature.
    pub fn require_rms_norms_and_halves(&self) -> Result<()> {
        refuse(is_layer_norm(self.final_norm), "a LayerNorm before the head")?;
        for block in &self.blocks {
            refuse(
                block.norms.iter().any(|norm| is_layer_norm(norm.norm)),
                "LayerNorms",
            )?;
            refuse(
                block.attention.neighbours,
                "rotary embedding of neighbouring numbers",
            )?;
        }
        Ok(())
    }
}

impl BlockSpec {
    /// Rejects a block with anything that a Llama's does not have.
    ///
    /// # Errors
    /// `Unsupported` naming the feature.
    pub fn require_plain(&self) -> Result<()> {
        let attention = &self.attention;
        let Mlp::Dense(mlp) = &self.mlp else {
            return Err(AqlmError::Unsupported("experts and their router".into()));
        };
        let normed = |place| self.norm(place).is_some();
        refuse(self.norms.iter().any(|norm| norm.norm.one_plus), "norms by 1 + w")?;
        refuse(
            self.norms.iter().any(|norm| is_layer_norm(norm.norm)),
            "LayerNorms",
        )?;
        refuse(
            normed(NormPlace::Query) || normed(NormPlace::Key),
            "norms of queries and keys",
        )?;
        refuse(
            normed(NormPlace::AfterAttention) || normed(NormPlace::AfterMlp),
            "norms behind attention and MLP",
        )?;
        refuse(
            self.norm_places() != [NormPlace::BeforeAttention, NormPlace::BeforeMlp],
            "attention or an MLP without a norm before it",
        )?;
        refuse(
            self.norms.iter().any(|norm| norm.norm != self.norms[0].norm),
            "norms that differ in their epsilon",
        )?;
        refuse(
            self.residual_scale != 1.0,
            "additions to the residual stream that are scaled",
        )?;
        refuse(attention.rotary.is_none(), "attention without rotary embedding")?;
        refuse(
            attention.rotated != attention.head_dim,
            "rotary embedding of a part of each head",
        )?;
        refuse(attention.neighbours, "rotary embedding of neighbouring numbers")?;
        let long = |rope: &Rope| matches!(rope.scaling, RopeScaling::Long { .. });
        refuse(
            attention.rotary.as_ref().is_some_and(long),
            "rotary scaling of type longrope",
        )?;
        refuse(
            attention.scale != AttentionSpec::usual_scale(attention.head_dim),
            "attention scores with another factor than 1 / sqrt(head_dim)",
        )?;
        refuse(attention.cap.is_some(), "attention scores that are capped")?;
        refuse(mlp.activation != Activation::Silu, "gates by GELU")?;
        refuse(
            attention.query == attention.key || mlp.gate == mlp.up,
            "one layer for queries, keys and values, or for gate and up",
        )?;
        let layers = [
            attention.query,
            attention.key,
            attention.value,
            attention.output,
            mlp.gate,
            mlp.up,
            mlp.down,
        ];
        refuse(
            layers != [QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN]
                || !self.linears.iter().map(|linear| linear.reads).eq(READS),
            "linear layers other than q, k, v, o, gate, up and down, in this order",
        )
    }
}

fn is_layer_norm(norm: NormSpec) -> bool {
    norm.centered || norm.biased
}

fn refuse(found: bool, feature: &str) -> Result<()> {
    if found {
        return Err(AqlmError::Unsupported(feature.into()));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A small block, for the tests of this crate.
    pub(crate) fn block() -> BlockSpec {
        BlockSpec::llama(LlamaBlock {
            hidden_size: 8,
            intermediate_size: 12,
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
            epsilon: 1e-5,
            rotary: Rope {
                theta: 1e4,
                scaling: RopeScaling::None,
            },
            window: None,
        })
    }

    #[test]
    fn layers_that_read_the_same_are_a_group() {
        let groups = block().groups();
        assert_eq!(
            groups,
            [vec![QUERY, KEY, VALUE], vec![OUTPUT], vec![GATE, UP], vec![DOWN]]
        );
    }

    #[test]
    fn names_are_those_of_hugging_face() {
        let arch = ArchSpec::llama(10, 64, 2, block());
        assert_eq!(arch.layer_name(1, KEY), "model.layers.1.self_attn.k_proj");
        assert_eq!(
            arch.norm_names(0),
            [
                "model.layers.0.input_layernorm.weight",
                "model.layers.0.post_attention_layernorm.weight"
            ]
        );
        let down = arch.blocks[0].linear(DOWN);
        assert_eq!((down.module(), down.short_name()), ("mlp", "down_proj"));
    }

    #[test]
    fn biases_go_by_what_a_layer_reads() {
        let block = block().with_biases(&[Input::Attention]);
        let with: Vec<LayerId> = block.layers().filter(|&layer| block.linear(layer).bias).collect();
        assert_eq!(with, [QUERY, KEY, VALUE]);
    }

    type Change = fn(&mut BlockSpec);

    #[test]
    fn the_plain_block_passes_and_every_other_feature_is_named() {
        let plain = block();
        assert_eq!(plain.require_plain(), Ok(()));
        let changes: [(Change, &str); 16] = [
            (|block| block.norms[1].norm.one_plus = true, "1 + w"),
            (|block| block.norms[1].norm.centered = true, "LayerNorms"),
            (|block| block.norms[0].norm.biased = true, "LayerNorms"),
            (|block| block.attention.neighbours = true, "neighbouring"),
            (
                |block| block.norms[0].place = NormPlace::AfterAttention,
                "behind attention",
            ),
            (|block| block.norms[0].place = NormPlace::Key, "queries and keys"),
            (|block| drop(block.norms.pop()), "without a norm"),
            (|block| block.norms[1].norm.epsilon = 1e-3, "epsilon"),
            (|block| block.residual_scale = 0.5, "residual stream"),
            (|block| block.attention.rotary = None, "without rotary"),
            (|block| block.attention.rotated = 2, "part of each head"),
            (|block| block.attention.scale = 1.0, "factor"),
            (|block| block.attention.cap = Some(50.0), "scores"),
            (|block| block.mlp.set_activation(Activation::GeluTanh), "GELU"),
            (|block| block.linears.swap(2, 3), "linear layers"),
            (|block| block.attention.query = KEY, "one layer for"),
        ];
        for (change, named) in changes {
            let mut block = plain.clone();
            change(&mut block);
            let refused = block.require_plain();
            assert!(
                matches!(&refused, Err(AqlmError::Unsupported(feature)) if feature.contains(named)),
                "{named}: {refused:?}"
            );
        }
    }

    #[test]
    fn layer_norms_and_neighbours_are_refused_and_all_else_is_not() {
        type Change = fn(&mut ArchSpec);
        let plain = ArchSpec::llama(10, 64, 2, block());
        let changes: [(Change, Option<&str>); 6] = [
            (|_| (), None),
            (
                |arch| arch.final_norm.centered = true,
                Some("LayerNorm before the head"),
            ),
            (
                |arch| arch.blocks[1].norms[1].norm.centered = true,
                Some("LayerNorms"),
            ),
            (
                |arch| arch.blocks[1].norms[0].norm.biased = true,
                Some("LayerNorms"),
            ),
            (
                |arch| arch.blocks[1].attention.neighbours = true,
                Some("neighbouring"),
            ),
            (|arch| arch.blocks[1].attention.cap = Some(50.0), None),
        ];
        for (change, named) in changes {
            let mut arch = plain.clone();
            change(&mut arch);
            let refused = match arch.require_rms_norms_and_halves() {
                Ok(()) => None,
                Err(AqlmError::Unsupported(feature)) => Some(feature),
                Err(other) => panic!("{other:?}"),
            };
            assert_eq!(refused.is_some(), named.is_some(), "{refused:?}");
            assert!(named.is_none_or(|named| refused.unwrap().contains(named)));
        }
    }

    #[test]
    fn weights_of_another_shape_are_named() {
        let block = block();
        let shapes: Vec<_> = block.layers().map(|layer| block.shape(layer)).collect();
        assert_eq!(block.check_shapes(&[8, 8], &shapes), Ok(()));
        let refused = |norms: &[usize], shapes: &[(usize, usize)]| match block.check_shapes(norms, shapes) {
            Err(AqlmError::Shape { what, .. }) => what,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(&[8, 9], &shapes), "post_attention_layernorm");
        assert_eq!(refused(&[8], &shapes), "norms of a block");
        assert_eq!(refused(&[8, 8], &shapes[1..]), "layers of a block");
        let mut turned = shapes.clone();
        turned[6] = (12, 8);
        assert_eq!(refused(&[8, 8], &turned), "mlp.down_proj");
    }
}
