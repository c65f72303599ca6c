use aqlm_vocabulary::{ArchSpec, NormPlace};

use super::super::fields::Fields;
use super::super::parts::set_norms;
use super::family::Family;
use super::glm;
use crate::Result;

/// GLM-4 of 2025: GLM with norms behind attention and MLP, too.
pub(super) const FAMILY: Family = Family {
    name: "glm4",
    architecture: "Glm4ForCausalLM",
    reads: &["attention_bias"],
    arch,
};

fn arch(fields: &Fields<'_>) -> Result<ArchSpec> {
    let mut arch = glm::arch(fields)?;
    let around = [
        (NormPlace::BeforeAttention, "input_layernorm"),
        (NormPlace::AfterAttention, "post_self_attn_layernorm"),
        (NormPlace::BeforeMlp, "post_attention_layernorm"),
        (NormPlace::AfterMlp, "post_mlp_layernorm"),
    ];
    set_norms(&mut arch, &around, false);
    Ok(arch)
}
