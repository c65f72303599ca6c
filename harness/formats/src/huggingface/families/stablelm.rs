use aqlm_vocabulary::{ArchSpec, Input, NormSpec};

use super::super::fields::Fields;
use super::super::llama_block::{Defaults, plain};
use super::super::rope::Rotation;
use super::family::Family;
use crate::Result;

/// StableLM: Llama with LayerNorms, of each head only a part rotated. The variants with attention and MLP
/// side by side and with norms of their own for each head are refused by these keys.
pub(super) const FAMILY: Family = Family {
    name: "stablelm",
    architecture: "StableLmForCausalLM",
    reads: &["layer_norm_eps", "use_qkv_bias"],
    arch,
};

fn arch(fields: &Fields<'_>) -> Result<ArchSpec> {
    let defaults = Defaults {
        kv_heads: Some(32),
        max_position_embeddings: 4096,
        epsilon_key: "layer_norm_eps",
        epsilon: 1e-5,
        attention_bias: false,
        mlp_bias: false,
        rotation: Rotation {
            part: Some(0.25),
            ..Rotation::PLAIN
        },
        ..Defaults::LLAMA
    };
    let mut arch = plain(fields, &defaults)?;
    if arch.attention().query_width() != arch.hidden_size {
        return Err(fields.wrong("head_dim", "hidden_size / num_attention_heads, or nothing"));
    }
    if fields.flag("use_qkv_bias")?.unwrap_or(false) {
        for block in &mut arch.blocks {
            *block = block.clone().with_biases(&[Input::Attention]);
        }
    }
    arch.final_norm = NormSpec::layer(arch.final_norm.epsilon);
    for norm in arch.blocks.iter_mut().flat_map(|block| &mut block.norms) {
        norm.norm = arch.final_norm;
    }
    Ok(arch)
}
