//! Names of tensors: in GGUF, and in a Hugging Face folder.

use super::architectures::Architecture;

/// Tensors outside the blocks.
const OUTER: [(&str, &str); 4] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output_norm.bias", "model.norm.bias"),
    ("output.weight", "lm_head.weight"),
];

/// A block's parts, where the architecture has no other name for them.
const PARTS: [(&str, &str); 16] = [
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
    ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
    ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
];

/// An expert's layers, in the order of [`super::architectures::Architecture::experts`].
const OF_EXPERT: [&str; 3] = ["ffn_gate", "ffn_up", "ffn_down"];

/// What stands behind a layer's name where one tensor has the layers of all experts.
const STACKED: &str = "_exps";

/// The layer that chooses among experts.
const ROUTER: &str = "ffn_gate_inp";

/// What a tensor holds, under the names of a Hugging Face folder.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// one tensor
    One(String),
    /// one layer of each expert, one behind the other
    Stacked(Vec<String>),
}

impl Architecture {
    /// What a tensor holds, in a model with `experts` experts in a block. `None` for an unknown name.
    pub(super) fn holds(&self, name: &str, experts: usize) -> Option<Holds> {
        if let Some((_, name)) = OUTER.iter().find(|(gguf, _)| *gguf == name) {
            return Some(Holds::One((*name).into()));
        }
        let (block, part) = name.strip_prefix("blk.")?.split_once('.')?;
        let block: usize = block.parse().ok()?;
        let (part, suffix) = part.rsplit_once('.')?;
        if suffix != "weight" && suffix != "bias" {
            return None;
        }
        let whole = |theirs: &str| format!("model.layers.{block}.{theirs}.{suffix}");
        if let Some(theirs) = self.part(part) {
            return Some(Holds::One(whole(theirs)));
        }
        // each expert's layer alone, as files of early 2024 have it
        if let Some((part, expert)) = part.split_once('.') {
            let layer = OF_EXPERT.iter().position(|gguf| *gguf == part)?;
            let expert: usize = expert.parse().ok()?;
            return Some(Holds::One(whole(&self.layer_of_expert(expert, layer))));
        }
        let part = part.strip_suffix(STACKED)?;
        let layer = OF_EXPERT.iter().position(|gguf| *gguf == part)?;
        let all = (0..experts).map(|expert| whole(&self.layer_of_expert(expert, layer)));
        Some(Holds::Stacked(all.collect()))
    }

    /// A tensor's name in GGUF, the inverse of [`Architecture::holds`].
    pub(super) fn gguf_name(&self, name: &str) -> Option<String> {
        if let Some((gguf, _)) = OUTER.iter().find(|(_, theirs)| *theirs == name) {
            return Some((*gguf).into());
        }
        let (block, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
        let (part, suffix) = part.rsplit_once('.')?;
        if let Some(expert) = part
            .strip_prefix(self.experts.module)
            .and_then(|rest| rest.strip_prefix('.'))
        {
            let (_, layer) = expert.split_once('.')?;
            let layer = self.experts.layers.iter().position(|theirs| *theirs == layer)?;
            return Some(format!("blk.{block}.{}{STACKED}.{suffix}", OF_EXPERT[layer]));
        }
        let router = (ROUTER, self.experts.router);
        let mut known = self.parts.iter().chain([&router]).chain(&PARTS);
        let (gguf, _) = known.find(|(_, theirs)| *theirs == part)?;
        Some(format!("blk.{block}.{gguf}.{suffix}"))
    }

    /// A part's name in a Hugging Face folder.
    fn part(&self, gguf: &str) -> Option<&'static str> {
        if gguf == ROUTER {
            return Some(self.experts.router);
        }
        let mut known = self.parts.iter().chain(&PARTS);
        known.find(|(name, _)| *name == gguf).map(|(_, theirs)| *theirs)
    }

    fn layer_of_expert(&self, expert: usize, layer: usize) -> String {
        format!("{}.{expert}.{}", self.experts.module, self.experts.layers[layer])
    }
}
