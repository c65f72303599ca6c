//! Names of tensors and layers in a checkpoint.

use aqlm_vocabulary::LayerKind;

pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(crate) const FINAL_NORM: &str = "model.norm.weight";
pub(crate) const LM_HEAD: &str = "lm_head.weight";

/// Path of a linear layer in a checkpoint, without `.weight`.
pub fn layer_name(block: usize, kind: LayerKind) -> String {
    format!("model.layers.{block}.{}", kind.path())
}

/// Names of the two RMSNorm weights of a block: before attention, before the MLP.
pub(crate) fn norm_names(block: usize) -> [String; 2] {
    ["input_layernorm", "post_attention_layernorm"].map(|norm| format!("model.layers.{block}.{norm}.weight"))
}
