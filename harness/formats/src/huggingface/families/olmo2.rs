use aqlm_vocabulary::{ArchSpec, NormPlace};

use super::super::fields::Fields;
use super::super::llama_block::{Defaults, plain};
use super::super::parts::{OF_HEADS, set_norms};
use super::family::Family;
use crate::Result;

/// OLMo 2: norms behind attention and MLP instead of before them, and norms over all queries and over all
/// keys.
pub(super) const FAMILY: Family = Family {
    name: "olmo2",
    architecture: "Olmo2ForCausalLM",
    reads: &["attention_bias"],
    arch,
};

fn arch(fields: &Fields<'_>) -> Result<ArchSpec> {
    let defaults = Defaults {
        epsilon: 1e-5,
        mlp_bias: false,
        ..Defaults::LLAMA
    };
    let mut arch = plain(fields, &defaults)?;
    let behind = [
        (NormPlace::AfterAttention, "post_attention_layernorm"),
        (NormPlace::AfterMlp, "post_feedforward_layernorm"),
    ];
    set_norms(&mut arch, &[OF_HEADS, behind].concat(), true);
    Ok(arch)
}
