//! Metadata keys of the file's architecture that are not turned into configuration: keys that change nothing,
//! keys that change the arithmetic unless their value is neutral, and unknown ones.

use super::architectures::Architecture;
use super::fields::Fields;
use super::metadata::Metadata;
use crate::Result;

/// Read for all architectures, by `config` and `rope_scaling`.
const READ: [&str; 20] = [
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
];

/// Keys that change nothing, with the reason.
const WITHOUT_EFFECT: [(&str, &str); 7] = [
    ("attention.layer_norm_epsilon", "of architectures with LayerNorm"),
    ("expert_used_count", "there are no experts"),
    ("pooling_type", "of embedding models, after the last block"),
    ("rope.scaling.finetuned", "a remark on the training"),
    ("rope.scaling.yarn_log_multiplier", "of DeepSeek's architecture"),
    (
        "tensor_data_layout",
        "the order of q and k rows that this architecture always has",
    ),
    ("vocab_size", "the rows of the embedding count"),
];

/// Keys that change the arithmetic unless they have one of these values.
const NEUTRAL: [(&str, &[f64]); 16] = [
    ("attention.clamp_kqv", &[0.0]),
    ("attention.max_alibi_bias", &[0.0]),
    ("attention.scale", &[0.0]),
    ("attention.sliding_window", &[0.0]),
    ("attention.temperature_scale", &[0.0]),
    ("attn_logit_softcapping", &[0.0]),
    ("embedding_scale", &[0.0, 1.0]),
    ("expert_count", &[0.0]),
    // 1 is a softmax
    ("expert_gating_func", &[0.0, 1.0]),
    ("expert_group_count", &[0.0, 1.0]),
    ("expert_shared_count", &[0.0, 1.0]),
    ("expert_weights_scale", &[0.0, 1.0]),
    ("final_logit_softcapping", &[0.0]),
    ("logit_scale", &[0.0, 1.0]),
    ("nextn_predict_layers", &[0.0]),
    ("residual_scale", &[0.0, 1.0]),
];

/// Flags that change the arithmetic unless they have this value.
const NEUTRAL_FLAGS: [(&str, bool); 3] = [
    ("attention.causal", true),
    ("swin_norm", false),
    ("use_parallel_residual", false),
];

/// Checks the keys of the architecture. Returns one warning for each that is not known.
///
/// # Errors
/// `Unsupported` for a value that changes the arithmetic; `Field` for a value of another type.
pub(super) fn check(fields: &Fields<'_>, architecture: &Architecture) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    let prefix = fields.name("");
    for (name, value) in fields.metadata {
        let Some(key) = name.strip_prefix(&prefix) else {
            continue;
        };
        if READ.contains(&key) || architecture.reads.contains(&key) {
            continue;
        }
        if let Some((_, neutral)) = NEUTRAL.iter().find(|(other, _)| *other == key) {
            let number = fields.number(key)?.expect("the key is among the metadata");
            if !neutral.contains(&number) {
                let values: Vec<String> = neutral.iter().map(ToString::to_string).collect();
                return Err(fields.unsupported(key, &values.join(" or "), number.to_string()));
            }
        } else if let Some((_, neutral)) = NEUTRAL_FLAGS.iter().find(|(other, _)| *other == key) {
            if *value != Metadata::Flag(*neutral) {
                return Err(fields.unsupported(key, &neutral.to_string(), value.describe()));
            }
        } else if !WITHOUT_EFFECT.iter().any(|(other, _)| *other == key) {
            warnings.push(format!(
                "{}: field `{name}`: not known here and not read, found {}",
                fields.path.display(),
                value.describe()
            ));
        }
    }
    Ok(warnings)
}
