//! Fields of config.json shared by all families whose block is Llama's or made of its parts.

use aqlm_vocabulary::llama::LlamaBlock;
use aqlm_vocabulary::{Activation, ArchSpec, BlockSpec, Input};

use super::fields::Fields;
use super::rope::{Rotation, rope};
use crate::{Error, Result};

/// What transformers does for a family with fields absent from config.json, and which fields its code reads.
pub(super) struct Defaults {
    /// number of key and value heads; `None` means as many as query heads
    pub(super) kv_heads: Option<usize>,
    /// width of a head; `None` means hidden_size / num_attention_heads
    pub(super) head_dim: Option<usize>,
    /// longest context
    pub(super) max_position_embeddings: usize,
    /// the key of the norms' epsilon
    pub(super) epsilon_key: &'static str,
    /// of the norms
    pub(super) epsilon: f64,
    /// of the gate
    pub(super) activation: Activation,
    /// whether the head is the embedding
    pub(super) tied: bool,
    /// the rotary embedding
    pub(super) rotation: Rotation,
    /// whether the family reads `attention_bias`
    pub(super) attention_bias: bool,
    /// whether the family reads `mlp_bias`
    pub(super) mlp_bias: bool,
}

impl Defaults {
    /// Those of Llama.
    pub(super) const LLAMA: Self = Self {
        kv_heads: None,
        head_dim: None,
        max_position_embeddings: 2048,
        epsilon_key: "rms_norm_eps",
        epsilon: 1e-6,
        activation: Activation::Silu,
        tied: false,
        rotation: Rotation::PLAIN,
        attention_bias: true,
        mlp_bias: true,
    };
}

/// A model of plain blocks, except for the activation of their gates. A family changes what is different.
///
/// # Errors
/// `Field` for values that are missing, of the wrong type or contradictory; `Unsupported` for values that
/// require other arithmetic.
pub(super) fn plain(fields: &Fields<'_>, defaults: &Defaults) -> Result<ArchSpec> {
    let hidden_size = fields.size("hidden_size")?;
    let heads = fields.size("num_attention_heads")?;
    // only an absent key has the family's default; null means as many as query heads
    let kv_heads = if fields.map.contains_key("num_key_value_heads") {
        fields.optional_size("num_key_value_heads")?
    } else {
        defaults.kv_heads
    };
    let kv_heads = kv_heads.unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        return Err(fields.wrong(
            "num_key_value_heads",
            format!("a divisor of num_attention_heads = {heads}"),
        ));
    }
    let head_dim = head_dim(fields, defaults, hidden_size, heads)?;
    let longest = fields.optional_size("max_position_embeddings")?;
    let longest = longest.unwrap_or(defaults.max_position_embeddings);
    let (rotary, rotated) = rope(fields, &defaults.rotation, head_dim, longest)?;
    let mut block = BlockSpec::llama(LlamaBlock {
        hidden_size,
        intermediate_size: fields.size("intermediate_size")?,
        heads,
        kv_heads,
        head_dim,
        epsilon: fields.positive(defaults.epsilon_key)?.unwrap_or(defaults.epsilon),
        rotary,
        window: None,
    });
    block.attention.rotated = rotated;
    block.mlp.set_activation(activation(fields, defaults)?);
    if defaults.attention_bias && fields.flag("attention_bias")?.unwrap_or(false) {
        block = block.with_biases(&[Input::Attention, Input::Attended]);
    }
    if defaults.mlp_bias && fields.flag("mlp_bias")?.unwrap_or(false) {
        block = block.with_biases(&[Input::Mlp, Input::Activated]);
    }
    let vocab_size = fields.size("vocab_size")?;
    let blocks = fields.size("num_hidden_layers")?;
    Ok(ArchSpec {
        tied: fields.flag("tie_word_embeddings")?.unwrap_or(defaults.tied),
        ..ArchSpec::llama(vocab_size, longest, blocks, block)
    })
}

fn head_dim(fields: &Fields<'_>, defaults: &Defaults, hidden_size: usize, heads: usize) -> Result<usize> {
    let head_dim = match fields.optional_size("head_dim")?.or(defaults.head_dim) {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            return Err(fields.wrong(
                "hidden_size",
                format!("a multiple of num_attention_heads = {heads}, as head_dim is not given"),
            ));
        }
    };
    if !head_dim.is_multiple_of(2) {
        return Err(Error::Field {
            path: fields.path.into(),
            field: "head_dim".into(),
            expected: "an even number (RoPE rotates pairs)".into(),
            found: head_dim.to_string(),
        });
    }
    Ok(head_dim)
}

/// The gate's activation. Both of its keys must name one function where both are given.
fn activation(fields: &Fields<'_>, defaults: &Defaults) -> Result<Activation> {
    let mut found = None;
    for key in ["hidden_act", "hidden_activation"] {
        let activation = match fields.optional_str(key)? {
            None => continue,
            // two names of one function
            Some("silu" | "swish") => Activation::Silu,
            Some("gelu_pytorch_tanh" | "gelu_new") => Activation::GeluTanh,
            // what the first releases of Gemma wrote, though they meant the approximation
            Some("gelu") if defaults.activation == Activation::GeluTanh => Activation::GeluTanh,
            Some(other) => {
                return Err(fields.unsupported(key, "silu or gelu_pytorch_tanh", format!("{other:?}")));
            }
        };
        if found.is_some_and(|found| found != activation) {
            return Err(fields.wrong(key, "the function that hidden_act names"));
        }
        found = Some(activation);
    }
    Ok(found.unwrap_or(defaults.activation))
}
