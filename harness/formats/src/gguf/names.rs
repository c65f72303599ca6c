/// Names of tensors outside the blocks: in GGUF, and in a Hugging Face folder.
const OUTER: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// Names of a block's parts.
const PARTS: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The Hugging Face name of a tensor.
pub(super) fn hugging_face_name(name: &str) -> Option<String> {
    if let Some((_, name)) = OUTER.iter().find(|(gguf, _)| *gguf == name) {
        return Some((*name).into());
    }
    let (block, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let block: usize = block.parse().ok()?;
    let (part, suffix) = part.rsplit_once('.')?;
    let (_, theirs) = PARTS.iter().find(|(gguf, _)| *gguf == part)?;
    let known = suffix == "weight" || suffix == "bias" && !part.ends_with("norm");
    known.then(|| format!("model.layers.{block}.{theirs}.{suffix}"))
}

/// The GGUF name of a tensor of a Llama, the inverse of [`hugging_face_name`].
pub(super) fn gguf_name(name: &str) -> Option<String> {
    if let Some((gguf, _)) = OUTER.iter().find(|(_, theirs)| *theirs == name) {
        return Some((*gguf).into());
    }
    let (block, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, suffix) = part.rsplit_once('.')?;
    let (gguf, _) = PARTS.iter().find(|(_, theirs)| *theirs == part)?;
    Some(format!("blk.{block}.{gguf}.{suffix}"))
}
