//! Files of every architecture beside the Hugging Face folder with the same weights, both written here.

use aqlm_vocabulary::ArchSpec;
use serde_json::{Value, json};

use super::*;
use crate::model::ModelConfig;
use crate::safetensors::Dtype;

/// How a file stores experts.
#[derive(Clone, Copy)]
enum Experts {
    /// one tensor for each kind of layer
    Stacked,
    /// one tensor for each layer
    Apart,
}

/// A folder with this configuration, and the file of the same weights.
fn twins(architecture: &str, config: &Value, fields: &[(&str, Put)], experts: Experts) -> (Fixture, Writer) {
    let mut fixture = Fixture::dense();
    fixture.tensors.clear();
    fixture.config = json!({
        "vocab_size": 6, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 500.0,
    });
    for (key, value) in config.as_object().unwrap() {
        fixture.config[key] = value.clone();
    }
    let arch = ModelConfig::from_text("config.json".as_ref(), &fixture.config.to_string());
    let arch = arch.unwrap().arch;
    for (name, shape) in tensors_of(&arch) {
        fixture.put_halves(&name, &shape);
    }
    let mut writer = Writer {
        version: 3,
        metadata: Vec::new(),
        tensors: Vec::new(),
    };
    writer.set("general.architecture", Put::text(architecture));
    let own = |field: &str| format!("{architecture}.{field}");
    for (field, value) in [
        ("embedding_length", 8),
        ("feed_forward_length", 12),
        ("block_count", arch.blocks.len() as u32),
        ("context_length", 64),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("attention.key_length", 4),
        ("attention.value_length", 4),
    ] {
        writer.set(&own(field), Put::U32(value));
    }
    writer.set(&own("attention.layer_norm_rms_epsilon"), Put::F32(1e-5));
    writer.set(&own("rope.freq_base"), Put::F32(500.0));
    for (field, value) in fields {
        writer.set(&own(field), value.clone());
    }
    put_tensors(&mut writer, architecture, &fixture, experts);
    (fixture, writer)
}

/// Names and shapes of all tensors of a model.
fn tensors_of(arch: &ArchSpec) -> Vec<(String, Vec<usize>)> {
    let vocabulary = vec![arch.vocab_size, arch.hidden_size];
    let mut all = vec![
        ("model.embed_tokens.weight".to_string(), vocabulary.clone()),
        ("model.norm.weight".into(), vec![arch.hidden_size]),
    ];
    if arch.final_norm.biased {
        all.push(("model.norm.bias".into(), vec![arch.hidden_size]));
    }
    if !arch.tied {
        all.push(("lm_head.weight".into(), vocabulary));
    }
    for (block, spec) in arch.blocks.iter().enumerate() {
        let norms = arch.norm_names(block).into_iter().zip(&spec.norms);
        for (name, norm) in norms {
            if norm.norm.biased {
                all.push((name.replace(".weight", ".bias"), vec![norm.width]));
            }
            all.push((name, vec![norm.width]));
        }
        for layer in spec.layers() {
            let (name, (rows, columns)) = (arch.layer_name(block, layer), spec.shape(layer));
            all.push((format!("{name}.weight"), vec![rows, columns]));
            if spec.linear(layer).bias {
                all.push((format!("{name}.bias"), vec![rows]));
            }
        }
    }
    all
}

/// Writes the fixture's tensors as the converter does.
fn put_tensors(writer: &mut Writer, architecture: &str, fixture: &Fixture, experts: Experts) {
    let interleaved = ["llama", "granite", "smollm3"].contains(&architecture);
    let mut stacks: Vec<(String, Vec<u64>, Vec<f32>)> = Vec::new();
    for (name, (dtype, shape, bytes)) in &fixture.tensors {
        assert_eq!(*dtype, Dtype::F16);
        let halves = bytes.chunks_exact(2);
        let mut values: Vec<f32> = halves
            .map(|half| half::f16::from_le_bytes([half[0], half[1]]).to_f32())
            .collect();
        if architecture.starts_with("gemma") && name.ends_with("norm.weight") {
            for value in &mut values {
                *value += 1.0;
            }
        }
        if interleaved && (name.contains("q_proj") || name.contains("k_proj")) {
            let heads = if name.contains("q_proj") { 2 } else { 1 };
            values = interleave(&values, heads, shape[0]);
        }
        let mut dimensions: Vec<u64> = shape.iter().rev().map(|&side| side as u64).collect();
        if name.contains("shared_expert_gate.") {
            dimensions.truncate(1);
        }
        let stored = name_in_file(architecture, name);
        let Some((of_all, expert)) = stored.split_once('#') else {
            writer.put_floats(&stored, &dimensions, &values);
            continue;
        };
        // names are sorted, and there are fewer than ten experts: the first expert's layer comes first
        match experts {
            Experts::Apart => {
                let (part, suffix) = of_all.rsplit_once("_exps.").unwrap();
                writer.put_floats(&format!("{part}.{expert}.{suffix}"), &dimensions, &values);
            }
            Experts::Stacked => match stacks.iter_mut().find(|(name, ..)| name == of_all) {
                Some((_, _, all)) => all.extend(values),
                None => stacks.push((of_all.into(), dimensions, values)),
            },
        }
    }
    for (name, dimensions, values) in stacks {
        let count = values.len() as u64 / dimensions.iter().product::<u64>();
        writer.put_floats(&name, &[dimensions[0], dimensions[1], count], &values);
    }
}

/// A tensor's name in GGUF; that of an expert's layer with the expert's number behind a `#`.
fn name_in_file(architecture: &str, name: &str) -> String {
    match name {
        "model.embed_tokens.weight" => return "token_embd.weight".into(),
        "model.norm.weight" => return "output_norm.weight".into(),
        "model.norm.bias" => return "output_norm.bias".into(),
        "lm_head.weight" => return "output.weight".into(),
        _ => {}
    }
    let parts: Vec<&str> = name.split('.').collect();
    let (block, suffix) = (parts[2], parts[parts.len() - 1]);
    let gemma = architecture == "gemma2" || architecture == "gemma3";
    let part = match parts[3..parts.len() - 1] {
        ["input_layernorm"] => "attn_norm",
        ["post_self_attn_layernorm"] => "post_attention_norm",
        ["post_attention_layernorm"] if gemma || architecture == "olmo2" => "post_attention_norm",
        ["post_attention_layernorm" | "pre_feedforward_layernorm"] => "ffn_norm",
        ["post_feedforward_layernorm" | "post_mlp_layernorm"] => "post_ffw_norm",
        ["self_attn", "q_norm"] => "attn_q_norm",
        ["self_attn", "k_norm"] => "attn_k_norm",
        ["self_attn", "q_proj"] => "attn_q",
        ["self_attn", "k_proj"] => "attn_k",
        ["self_attn", "v_proj"] => "attn_v",
        ["self_attn", "qkv_proj"] => "attn_qkv",
        ["self_attn", "o_proj"] => "attn_output",
        ["mlp", "gate_proj"] => "ffn_gate",
        ["mlp", "up_proj" | "gate_up_proj"] => "ffn_up",
        ["mlp", "down_proj"] => "ffn_down",
        ["mlp" | "block_sparse_moe", "gate"] => "ffn_gate_inp",
        ["mlp", "shared_expert_gate"] => "ffn_gate_inp_shexp",
        ["mlp", "shared_expert", "gate_proj"] => "ffn_gate_shexp",
        ["mlp", "shared_expert", "up_proj"] => "ffn_up_shexp",
        ["mlp", "shared_expert", "down_proj"] => "ffn_down_shexp",
        [_, "experts", expert, layer] => {
            let layer = match layer {
                "w1" | "gate_proj" => "ffn_gate",
                "w3" | "up_proj" => "ffn_up",
                _ => "ffn_down",
            };
            return format!("blk.{block}.{layer}_exps.{suffix}#{expert}");
        }
        _ => panic!("{name}"),
    };
    format!("blk.{block}.{part}.{suffix}")
}

/// Checks that file and folder are one model.
fn assert_same(fixture: &Fixture, writer: &Writer) {
    let (file, folder) = (writer.open().unwrap(), Model::open(fixture.write()).unwrap());
    assert_eq!(file.config(), folder.config());
    assert_eq!(file.warnings(), [""; 0]);
    assert_eq!(file.embedding().unwrap(), folder.embedding().unwrap());
    assert_eq!(file.lm_head().unwrap(), folder.lm_head().unwrap());
    assert_eq!(file.final_norm().unwrap(), folder.final_norm().unwrap());
    for block in 0..folder.config().blocks.len() {
        assert_eq!(file.block(block).unwrap(), folder.block(block).unwrap());
    }
}

#[expect(clippy::needless_pass_by_value, reason = "as `json!` makes it")]
fn same(architecture: &str, config: Value, fields: &[(&str, Put)]) {
    let (fixture, writer) = twins(architecture, &config, fields, Experts::Stacked);
    assert_same(&fixture, &writer);
}

#[test]
fn qwen2_has_biases() {
    same("qwen2", json!({"model_type": "qwen2"}), &[]);
}

#[test]
fn qwen3_norms_heads_and_takes_biases_where_there_are_some() {
    same("qwen3", json!({"model_type": "qwen3"}), &[]);
    same(
        "qwen3",
        json!({"model_type": "qwen3", "attention_bias": true, "tie_word_embeddings": true}),
        &[],
    );
}

#[test]
fn gemmas_norms_lose_the_one_that_was_added() {
    same("gemma", json!({"model_type": "gemma"}), &[]);
}

#[test]
fn gemma2_has_the_published_models_caps_and_windows_unless_the_file_says_otherwise() {
    let scalar = json!({"model_type": "gemma2", "query_pre_attn_scalar": 4, "num_hidden_layers": 3});
    same("gemma2", scalar, &[]);
    same(
        "gemma2",
        json!({"model_type": "gemma2", "query_pre_attn_scalar": 4, "sliding_window": 5, "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0, "layer_types": ["full_attention", "sliding_attention"]}),
        &[
            ("attention.sliding_window", Put::U32(5)),
            ("attn_logit_softcapping", Put::F32(2.0)),
            ("final_logit_softcapping", Put::F32(3.0)),
            ("attention.sliding_window_pattern", Put::Flags(vec![false, true])),
        ],
    );
    // the 27B model, known by its 46 blocks: hidden_size / heads instead of head_dim
    let (_, mut writer) = twins(
        "gemma2",
        &json!({"model_type": "gemma2", "num_hidden_layers": 46, "head_dim": 2}),
        &[
            ("attention.key_length", Put::U32(2)),
            ("attention.value_length", Put::U32(2)),
        ],
        Experts::Stacked,
    );
    assert_eq!(writer.open().unwrap().config().attention().scale, 0.5);
    writer.set("gemma2.final_logit_softcapping", Put::F32(0.0));
    assert!(
        matches!(writer.open(), Err(Error::Field { field, .. }) if field == "gemma2.final_logit_softcapping")
    );
}

#[test]
fn gemma3_rotates_differently_within_windows() {
    let config = |more: Value| {
        let mut config =
            json!({"model_type": "gemma3_text", "query_pre_attn_scalar": 4, "num_hidden_layers": 7});
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    };
    let full = vec!["full_attention"; 7];
    same("gemma3", config(json!({"layer_types": full})), &[]);
    same(
        "gemma3",
        config(
            json!({"sliding_window": 5, "rope_local_base_freq": 300.0, "final_logit_softcapping": 3.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
        ),
        &[
            ("attention.sliding_window", Put::U32(5)),
            ("rope.freq_base_swa", Put::F32(300.0)),
            ("final_logit_softcapping", Put::F32(3.0)),
            ("rope.scaling.type", Put::text("linear")),
            ("rope.scaling.factor", Put::F32(8.0)),
        ],
    );
    same(
        "gemma3",
        config(json!({"sliding_window": 5, "sliding_window_pattern": 3})),
        &[
            ("attention.sliding_window", Put::U32(5)),
            ("attention.sliding_window_pattern", Put::U32(3)),
        ],
    );
}

#[test]
fn phi3_has_fused_layers_and_longrope() {
    same(
        "phi3",
        json!({"model_type": "phi3"}),
        &[("attention.sliding_window", Put::U32(0))],
    );
    same(
        "phi3",
        json!({"model_type": "phi3", "partial_rotary_factor": 0.5, "sliding_window": 7}),
        &[
            ("attention.sliding_window", Put::U32(7)),
            ("rope.dimension_count", Put::U32(2)),
        ],
    );
    let scaling = json!({"type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0],
        "attention_factor": 1.25});
    let (fixture, mut writer) = twins(
        "phi3",
        &json!({"model_type": "phi3", "rope_scaling": scaling, "original_max_position_embeddings": 16}),
        &[
            ("rope.scaling.original_context_length", Put::U32(16)),
            ("rope.scaling.attn_factor", Put::F32(1.25)),
        ],
        Experts::Stacked,
    );
    writer.put_floats("rope_factors_short.weight", &[2], &[1.0, 1.5]);
    assert!(matches!(writer.open(), Err(Error::MissingTensor { tensor, .. })
        if tensor == "rope_factors_long.weight"));
    writer.put_floats("rope_factors_long.weight", &[2], &[2.0, 3.0]);
    assert_same(&fixture, &writer);
    // a factor that follows from the contexts, 64 and 16, is derived again, not taken from its rounding
    let mut derived = fixture;
    derived.config["rope_scaling"]["attention_factor"] = Value::Null;
    writer.set("phi3.rope.scaling.attn_factor", Put::F32(1.5_f64.sqrt() as f32));
    assert_same(&derived, &writer);
}

#[test]
fn olmo2_norms_behind_and_its_successor_is_refused() {
    same("olmo2", json!({"model_type": "olmo2"}), &[]);
    let window = [("attention.sliding_window", Put::U32(8))];
    let (_, writer) = twins(
        "olmo2",
        &json!({"model_type": "olmo2"}),
        &window,
        Experts::Stacked,
    );
    assert!(matches!(writer.open(), Err(Error::Unsupported { field, .. })
        if field == "olmo2.attention.sliding_window"));
}

#[test]
fn granite_has_factors_and_always_rotates() {
    same(
        "granite",
        json!({"model_type": "granite", "attention_multiplier": 0.5}),
        &[],
    );
    let fields = [
        ("attention.scale", Put::F32(0.125)),
        ("embedding_scale", Put::F32(3.0)),
        ("logit_scale", Put::F32(2.0)),
        ("residual_scale", Put::F32(0.25)),
    ];
    let config = json!({"model_type": "granite", "attention_multiplier": 0.125, "embedding_multiplier": 3.0,
        "logits_scaling": 2.0, "residual_multiplier": 0.25, "attention_bias": true, "mlp_bias": true});
    let (fixture, mut writer) = twins("granite", &config, &fields, Experts::Stacked);
    assert_same(&fixture, &writer);
    writer.set("granite.rope.scaling.finetuned", Put::Flag(false));
    assert!(matches!(writer.open(), Err(Error::Unsupported { field, .. })
        if field == "granite.rope.scaling.finetuned"));
}

#[test]
fn smollm3_has_blocks_that_rotate_nothing() {
    let config = json!({"model_type": "smollm3", "num_hidden_layers": 5, "tie_word_embeddings": false});
    same("smollm3", config, &[]);
}

#[test]
fn stablelm_has_layer_norms_with_biases() {
    let epsilon = ("attention.layer_norm_epsilon", Put::F32(1e-5));
    let rotated = |count| ("rope.dimension_count", Put::U32(count));
    let config = json!({"model_type": "stablelm", "partial_rotary_factor": 0.5, "use_qkv_bias": true});
    // the converter's flag is true for files whose config.json did not have it
    let flag = ("use_parallel_residual", Put::Flag(true));
    let (fixture, mut writer) = twins(
        "stablelm",
        &config,
        &[epsilon, rotated(2), flag],
        Experts::Stacked,
    );
    writer.remove("stablelm.attention.layer_norm_rms_epsilon");
    assert_same(&fixture, &writer);
    let without = |writer: &mut Writer, part: &str| writer.tensors.retain(|tensor| !tensor.0.contains(part));
    without(&mut writer, "blk.1.attn_norm.bias");
    assert!(
        matches!(writer.open(), Err(Error::MissingTensor { tensor, .. }) if tensor == "blk.1.attn_norm.bias")
    );
    without(&mut writer, "ffn_norm");
    assert!(matches!(writer.open(), Err(Error::Unsupported { field, .. })
        if field == "stablelm.use_parallel_residual"));
}

#[test]
fn glm4_rotates_neighbours_as_they_are() {
    let fields = [("rope.dimension_count", Put::U32(2))];
    same("glm4", json!({"model_type": "glm4"}), &fields);
    let whole = json!({"model_type": "glm4", "attention_bias": false, "partial_rotary_factor": 1.0});
    same("glm4", whole, &[]);
}

const OF_MIXTRAL: [(&str, Put); 2] = [("expert_count", Put::U32(3)), ("expert_used_count", Put::U32(2))];

#[test]
fn a_llama_with_experts_is_a_mixtral_however_they_are_stored() {
    let config = json!({"model_type": "mixtral", "num_local_experts": 3, "num_experts_per_tok": 2});
    for experts in [Experts::Stacked, Experts::Apart] {
        let (fixture, writer) = twins("llama", &config, &OF_MIXTRAL, experts);
        assert_same(&fixture, &writer);
    }
    let (_, mut writer) = twins("llama", &config, &OF_MIXTRAL, Experts::Stacked);
    writer.put_floats("blk.1.ffn_up.2.weight", &[8, 12], &[0.0; 96]);
    assert!(
        matches!(writer.open(), Err(Error::UnexpectedTensor { reason, .. }) if reason.contains("another tensor"))
    );
    writer.tensors.pop();
    writer.set("llama.expert_count", Put::U32(2));
    assert!(
        matches!(writer.open(), Err(Error::TensorShape { tensor, expected, .. })
        if tensor == "blk.0.ffn_down_exps.weight" && expected == [2, 8, 12])
    );
    writer.set("llama.expert_count", Put::U32(3));
    writer
        .tensors
        .retain(|tensor| tensor.0 != "blk.1.ffn_up_exps.weight");
    assert!(matches!(writer.open(), Err(Error::MissingTensor { tensor, .. })
        if tensor == "blk.1.ffn_up_exps.weight"));
    writer.remove("llama.expert_count");
    assert!(
        matches!(writer.open(), Err(Error::UnexpectedTensor { tensor, .. })
        if tensor.contains("ffn_down_exps"))
    );
}

#[test]
fn a_slice_of_a_quantized_stack_is_one_experts_layer() {
    // Q8_0 has blocks of 32 numbers, so a row is one block here
    let config = json!({"model_type": "mixtral", "num_local_experts": 3, "num_experts_per_tok": 2,
        "intermediate_size": 32});
    let fields = [OF_MIXTRAL.as_slice(), &[("feed_forward_length", Put::U32(32))]].concat();
    let (_, mut writer) = twins("llama", &config, &fields, Experts::Stacked);
    let stored = writer.tensor("blk.1.ffn_down_exps.weight");
    // type 8; each block has its expert's number + 1 as its scale, and counts from 0
    stored.2 = 8;
    let block = |expert: usize| {
        let scale = half::f16::from_f32(expert as f32 + 1.0).to_le_bytes();
        scale.into_iter().chain(0..32).collect::<Vec<u8>>()
    };
    stored.3 = (0..3 * 8).flat_map(|row| block(row / 8)).collect();
    let model = writer.open().unwrap();
    let mlp = model.config().blocks[1].mlp.routed().unwrap().clone();
    for (expert, layers) in mlp.experts.iter().enumerate() {
        let down = model.linear(1, layers.down).unwrap();
        let aqlm_vocabulary::LinearWeight::Dense(weight) = &down.weight else {
            panic!("a quantized layer")
        };
        assert!(
            weight
                .indexed_iter()
                .all(|((_, column), &value)| value == ((expert + 1) * column) as f32)
        );
    }
}

#[test]
fn qwens_experts_come_with_and_without_a_shared_one() {
    let experts = json!({"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 6});
    let with = |more: Value| {
        let mut config = experts.clone();
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    };
    let fields = [
        OF_MIXTRAL.as_slice(),
        &[("expert_feed_forward_length", Put::U32(6))],
    ]
    .concat();
    let qwen3 = with(json!({"model_type": "qwen3_moe", "norm_topk_prob": true}));
    same("qwen3moe", qwen3, &fields);
    let shared = [
        fields.as_slice(),
        &[("expert_shared_feed_forward_length", Put::U32(10))],
    ]
    .concat();
    let qwen2 = with(json!({"model_type": "qwen2_moe", "shared_expert_intermediate_size": 10}));
    same("qwen2moe", qwen2, &shared);
    // without widths of their own: feed_forward_length, divided by the experts of a token
    let plain =
        with(json!({"model_type": "qwen2_moe", "shared_expert_intermediate_size": 12, "qkv_bias": false}));
    same("qwen2moe", plain, &OF_MIXTRAL);
}

#[test]
fn fields_of_other_architectures_are_not_neutral_everywhere() {
    for (architecture, field, value) in [
        ("qwen3", "attention.sliding_window", Put::U32(8)),
        ("qwen3", "expert_count", Put::U32(8)),
        ("gemma", "final_logit_softcapping", Put::F32(30.0)),
        ("gemma3", "attn_logit_softcapping", Put::F32(50.0)),
        ("qwen2", "embedding_scale", Put::F32(3.0)),
    ] {
        let family = if architecture == "gemma3" {
            "gemma3_text"
        } else {
            architecture
        };
        let more = [(field, value)];
        let (_, writer) = twins(
            architecture,
            &json!({"model_type": family}),
            &more,
            Experts::Stacked,
        );
        let name = format!("{architecture}.{field}");
        assert!(
            matches!(writer.open(), Err(Error::Unsupported { field, .. }) if field == name),
            "{name}"
        );
    }
}
