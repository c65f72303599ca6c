//! What each key of config.json means here: a key is read, or refused unless its value is neutral, or known
//! to change no logit, or named in a warning.
//!
//! The lists were compared with everything that transformers 5.23.0 and 4.57.6 read from the configuration of
//! a Llama, Mistral or Qwen2 model: the classes of the families, `PreTrainedConfig`, and the code that loads,
//! masks, caches and generates for all families.

use serde_json::Value;

use super::families::Family;
use super::fields::{Fields, brief};
use crate::Result;

/// Keys that are read for every family.
const READ: [&str; 25] = [
    "aqlm",
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_activation",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "quantization_config",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "torch_dtype",
    "vocab_size",
];

/// The value of a key with which it changes nothing.
enum Neutral {
    /// this number
    Number(f64),
    /// this flag
    Flag(bool),
    /// false, 0, or an empty list or object
    Empty,
}

/// Keys that change the arithmetic, in transformers for some family or in another program, each with the
/// value that changes nothing. Null changes nothing either.
const REFUSED: [(&str, Neutral); 48] = {
    use Neutral::{Empty, Flag, Number};
    [
        // read by code of transformers that all families share
        ("is_causal", Flag(true)),
        ("transformers_weights", Empty),
        ("per_layer_config", Empty),
        ("pruned_heads", Empty),
        ("fusion_config", Empty),
        ("is_encoder_decoder", Flag(false)),
        ("add_cross_attention", Flag(false)),
        ("kv_sharing_modes", Empty),
        ("num_kv_shared_layers", Empty),
        ("attention_chunk_size", Empty),
        ("alibi", Flag(false)),
        ("use_alibi", Flag(false)),
        // a model inside the model
        ("text_config", Empty),
        ("vision_config", Empty),
        ("audio_config", Empty),
        ("decoder", Empty),
        ("generator", Empty),
        ("encoder", Empty),
        ("text_encoder", Empty),
        // arithmetic of other families
        ("embedding_multiplier", Number(1.0)),
        ("attention_multiplier", Number(1.0)),
        ("residual_multiplier", Number(1.0)),
        ("logits_scaling", Number(1.0)),
        ("logit_scale", Number(1.0)),
        ("rope_ratio", Number(1.0)),
        ("scale_emb", Number(1.0)),
        ("scale_depth", Empty),
        ("dim_model_base", Empty),
        ("attn_logit_softcapping", Empty),
        ("final_logit_softcapping", Empty),
        ("query_pre_attn_scalar", Empty),
        ("clip_qkv", Empty),
        ("qk_layernorm", Empty),
        ("use_qk_norm", Empty),
        ("qk_norm", Empty),
        ("no_rope_layers", Empty),
        ("no_rope_layer_interval", Empty),
        ("num_experts", Empty),
        ("num_local_experts", Empty),
        ("n_routed_experts", Empty),
        ("use_mrope", Flag(false)),
        ("use_bidirectional_attention", Flag(false)),
        ("parallel_attn", Flag(false)),
        ("use_parallel_residual", Flag(false)),
        ("rope_interleaved", Flag(false)),
        // weights that another program stored in a format of its own
        ("quantization", Empty),
        ("compression_config", Empty),
        ("sparsity_config", Empty),
    ]
};

const TRAINING: &str = "used in training only";
const RESULTS: &str = "says which results the model's class returns";
const LABELS: &str = "of heads for classification, which a causal model lacks";
const ORIGIN: &str = "says where the file comes from";
const KERNEL: &str = "chooses among kernels that compute the same";
const PADDING: &str = "of sequences filled up or joined, which are never formed here";
const GENERATION: &str = "of generation, whose settings come from the command line here";
const TOKENIZER: &str = "of the tokenizer, which is read from its own files";
const CROSS: &str = "of models with an encoder";
const EXPORT: &str = "of exports to other formats";

/// Keys that change no logit, each with the reason.
const WITHOUT_EFFECT: [(&str, &str); 106] = [
    ("attention_dropout", TRAINING),
    ("attn_pdrop", TRAINING),
    ("embd_pdrop", TRAINING),
    ("hidden_dropout", TRAINING),
    ("hidden_dropout_prob", TRAINING),
    ("mlp_dropout", TRAINING),
    ("resid_pdrop", TRAINING),
    ("classifier_dropout", TRAINING),
    ("initializer_range", TRAINING),
    ("initializer_factor", TRAINING),
    ("init_std", TRAINING),
    ("gradient_checkpointing", TRAINING),
    ("router_aux_loss_coef", TRAINING),
    ("router_jitter_noise", TRAINING),
    ("output_router_logits", TRAINING),
    ("loss_type", TRAINING),
    ("output_attentions", RESULTS),
    ("output_hidden_states", RESULTS),
    ("return_dict", RESULTS),
    ("use_return_dict", RESULTS),
    ("tie_last_hidden_states", RESULTS),
    ("id2label", LABELS),
    ("label2id", LABELS),
    ("num_labels", LABELS),
    ("problem_type", LABELS),
    ("finetuning_task", LABELS),
    ("task_specific_params", LABELS),
    ("_name_or_path", ORIGIN),
    ("name_or_path", ORIGIN),
    ("_commit_hash", ORIGIN),
    ("transformers_version", ORIGIN),
    ("unsloth_version", ORIGIN),
    ("unsloth_fixed", ORIGIN),
    ("is_llama_config", ORIGIN),
    ("transformers.js_config", EXPORT),
    ("torchscript", EXPORT),
    ("tf_legacy_loss", EXPORT),
    ("use_bfloat16", EXPORT),
    ("_attn_implementation", KERNEL),
    ("_attn_implementation_autoset", KERNEL),
    ("_attn_implementation_internal", KERNEL),
    ("_experts_implementation", KERNEL),
    ("_experts_implementation_internal", KERNEL),
    ("_flash_attn_2_enabled", KERNEL),
    ("attn_implementation", KERNEL),
    ("experts_implementation", KERNEL),
    ("use_flash_attn", KERNEL),
    ("use_cache", KERNEL),
    ("cache_implementation", KERNEL),
    ("chunk_size_feed_forward", KERNEL),
    // slices of the same product, and no longer read by transformers from 4.45 on
    ("pretraining_tp", KERNEL),
    ("base_model_tp_plan", KERNEL),
    ("base_model_pp_plan", KERNEL),
    ("distributed_config", KERNEL),
    ("pad_token_id", PADDING),
    ("sep_token_id", PADDING),
    ("unk_token_id", PADDING),
    ("tokenizer_class", TOKENIZER),
    ("prefix", TOKENIZER),
    ("model_max_length", TOKENIZER),
    ("is_decoder", CROSS),
    ("cross_attention_hidden_size", CROSS),
    ("decoder_start_token_id", CROSS),
    ("tie_encoder_decoder", CROSS),
    ("assistant_confidence_threshold", GENERATION),
    ("assistant_early_exit", GENERATION),
    ("assistant_lookbehind", GENERATION),
    ("bad_words_ids", GENERATION),
    ("begin_suppress_tokens", GENERATION),
    ("constraints", GENERATION),
    ("diversity_penalty", GENERATION),
    ("do_sample", GENERATION),
    ("early_stopping", GENERATION),
    ("encoder_no_repeat_ngram_size", GENERATION),
    ("encoder_repetition_penalty", GENERATION),
    ("epsilon_cutoff", GENERATION),
    ("eta_cutoff", GENERATION),
    ("exponential_decay_length_penalty", GENERATION),
    ("forced_bos_token_id", GENERATION),
    ("forced_eos_token_id", GENERATION),
    ("guidance_scale", GENERATION),
    ("length_penalty", GENERATION),
    ("max_length", GENERATION),
    ("max_new_tokens", GENERATION),
    ("min_length", GENERATION),
    ("min_new_tokens", GENERATION),
    ("min_p", GENERATION),
    ("no_repeat_ngram_size", GENERATION),
    ("num_assistant_tokens", GENERATION),
    ("num_assistant_tokens_schedule", GENERATION),
    ("num_beam_groups", GENERATION),
    ("num_beams", GENERATION),
    ("num_return_sequences", GENERATION),
    ("output_logits", GENERATION),
    ("output_scores", GENERATION),
    ("penalty_alpha", GENERATION),
    ("prefill_chunk_size", GENERATION),
    ("remove_invalid_values", GENERATION),
    ("repetition_penalty", GENERATION),
    ("return_dict_in_generate", GENERATION),
    ("suppress_tokens", GENERATION),
    ("target_lookbehind", GENERATION),
    ("temperature", GENERATION),
    ("top_k", GENERATION),
    ("top_p", GENERATION),
    ("typical_p", GENERATION),
];

/// Keys that are settings of some families. The code of the others does not read them, and they change
/// nothing there with these values.
const OF_FAMILIES: [(&str, Neutral); 6] = [
    ("attention_bias", Neutral::Flag(false)),
    ("mlp_bias", Neutral::Flag(false)),
    ("sliding_window", Neutral::Empty),
    ("use_sliding_window", Neutral::Flag(false)),
    // counts layers for a window that the key above switches off
    ("max_window_layers", Neutral::Empty),
    ("layer_types", Neutral::Empty),
];

impl Neutral {
    fn is(&self, value: &Value) -> bool {
        match (self, value) {
            (_, Value::Null) => true,
            (Self::Number(neutral), value) => value.as_f64() == Some(*neutral),
            (Self::Flag(neutral), value) => value.as_bool() == Some(*neutral),
            (Self::Empty, Value::Array(list)) => list.is_empty(),
            (Self::Empty, Value::Object(map)) => map.is_empty(),
            (Self::Empty, value) => value == &Value::Bool(false) || value.as_f64() == Some(0.0),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Number(neutral) => format!("{neutral} or nothing"),
            Self::Flag(neutral) => format!("{neutral} or nothing"),
            Self::Empty => "nothing".into(),
        }
    }
}

/// Refuses keys that change the arithmetic and are not implemented. Returns a warning for keys whose meaning
/// is not known, and one for each key that this family does not read although it changes other families.
///
/// # Errors
/// `Unsupported` naming the key.
pub(super) fn check(fields: &Fields<'_>, family: &Family) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    let mut unknown = Vec::new();
    for (key, value) in fields.map {
        if READ.contains(&key.as_str()) || family.reads.contains(&key.as_str()) {
            continue;
        }
        if let Some((_, neutral)) = REFUSED.iter().find(|(name, _)| name == key) {
            if !neutral.is(value) {
                return Err(fields.unsupported(key, &neutral.name(), brief(value)));
            }
        } else if let Some((_, neutral)) = OF_FAMILIES.iter().find(|(name, _)| name == key) {
            if !neutral.is(value) {
                warnings.push(format!(
                    "{}: field `{key}` is {}, but a {} model has no such setting in transformers: not read",
                    fields.path.display(),
                    brief(value),
                    family.name
                ));
            }
        } else if key == "auto_map" {
            if !fields.map.contains_key("aqlm") {
                warnings.push(format!(
                    "{}: field `auto_map` names code that came with the model: not run, the model is read as {}",
                    fields.path.display(),
                    family.name
                ));
            }
        } else if !WITHOUT_EFFECT.iter().any(|(name, _)| name == key) && !value.is_null() {
            unknown.push(format!("`{key}`"));
        }
    }
    if !unknown.is_empty() {
        warnings.push(format!(
            "{}: fields that are not known here, and not read: {}",
            fields.path.display(),
            unknown.join(", ")
        ));
    }
    Ok(warnings)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_key_stands_in_one_list() {
        let refused = REFUSED.iter().map(|(key, _)| *key);
        let of_families = OF_FAMILIES.iter().map(|(key, _)| *key);
        let without = WITHOUT_EFFECT.iter().map(|(key, _)| *key);
        let all: Vec<&str> = READ
            .into_iter()
            .chain(refused)
            .chain(of_families)
            .chain(without)
            .collect();
        let different: BTreeSet<&str> = all.iter().copied().collect();
        assert_eq!(different.len(), all.len());
    }

    #[test]
    fn neutral_values_are_told_from_others() {
        use serde_json::json;
        for value in [
            json!(null),
            json!(false),
            json!(0),
            json!(0.0),
            json!([]),
            json!({}),
        ] {
            assert!(Neutral::Empty.is(&value), "{value}");
        }
        for value in [
            json!(true),
            json!(1),
            json!([0]),
            json!({"a": null}),
            json!("none"),
        ] {
            assert!(!Neutral::Empty.is(&value), "{value}");
        }
        assert!(Neutral::Flag(true).is(&json!(true)) && !Neutral::Flag(true).is(&json!(false)));
        assert!(!Neutral::Flag(true).is(&json!(1)));
        assert!(Neutral::Number(1.0).is(&json!(1)) && !Neutral::Number(1.0).is(&json!({"__float__": "NaN"})));
    }
}
