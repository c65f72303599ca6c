use std::path::Path;

use aqlm_vocabulary::NormPlace::{AfterAttention, AfterMlp, BeforeAttention, BeforeMlp, Key, Query};
use aqlm_vocabulary::{Activation, ArchSpec, NormPlace, NormSpec, RopeScaling};
use serde_json::{Value, json};

use crate::model::ModelConfig;
use crate::{Error, Result};

/// A configuration of four blocks with these fields besides the sizes.
#[expect(clippy::needless_pass_by_value, reason = "as `json!` makes it")]
fn read(family: &str, changes: Value) -> Result<ArchSpec> {
    let mut config = json!({
        "model_type": family, "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    });
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    let config = ModelConfig::from_text(Path::new("config.json"), &config.to_string())?;
    assert_eq!(config.warnings, [""; 0]);
    config.arch.check().unwrap();
    Ok(config.arch)
}

fn places(arch: &ArchSpec) -> Vec<(NormPlace, usize)> {
    let norms = arch.blocks[1].norms.iter();
    norms.map(|norm| (norm.place, norm.width)).collect()
}

fn windows(arch: &ArchSpec) -> Vec<Option<usize>> {
    arch.blocks.iter().map(|block| block.attention.window).collect()
}

fn refused(family: &str, changes: Value, named: &str) {
    let result = read(family, changes);
    assert!(
        matches!(&result, Err(Error::Field { field, .. } | Error::Unsupported { field, .. }) if field == named),
        "{named}: {result:?}"
    );
}

const AROUND: [(NormPlace, usize); 4] = [
    (BeforeAttention, 64),
    (AfterAttention, 64),
    (BeforeMlp, 64),
    (AfterMlp, 64),
];

#[test]
fn qwen3_norms_each_head() {
    let arch = read("qwen3", json!({})).unwrap();
    assert_eq!(
        places(&arch),
        [(BeforeAttention, 64), (Query, 16), (Key, 16), (BeforeMlp, 64)]
    );
    assert_eq!(arch.norm_name(1, Key), "model.layers.1.self_attn.k_norm.weight");
    assert_eq!(
        read("qwen3", json!({"head_dim": null}))
            .unwrap()
            .attention()
            .head_dim,
        128
    );
}

#[test]
fn olmo2_norms_whole_rows_and_only_behind() {
    let arch = read("olmo2", json!({})).unwrap();
    assert_eq!(
        places(&arch),
        [(Query, 64), (Key, 32), (AfterAttention, 64), (AfterMlp, 64)]
    );
    assert_eq!(arch.final_norm.epsilon, 1e-5);
}

#[test]
fn gemmas_add_one_to_every_norm_and_scale_embeddings() {
    for family in ["gemma", "gemma2", "gemma3_text"] {
        let arch = read(family, json!({})).unwrap();
        assert!(arch.final_norm.one_plus && arch.tied);
        assert!(
            arch.blocks
                .iter()
                .flat_map(|block| &block.norms)
                .all(|norm| norm.norm.one_plus)
        );
        assert_eq!(arch.embedding_scale, 8.0);
        assert_eq!(
            arch.blocks[0].mlp.dense().unwrap().activation,
            Activation::GeluTanh
        );
    }
    let old = read("gemma", json!({"hidden_act": "gelu", "hidden_activation": null})).unwrap();
    assert_eq!(
        old.blocks[0].mlp.dense().unwrap().activation,
        Activation::GeluTanh
    );
    refused("gemma", json!({"hidden_act": "relu"}), "hidden_act");
    refused(
        "gemma",
        json!({"hidden_act": "silu", "hidden_activation": "gelu_new"}),
        "hidden_activation",
    );
    refused(
        "gemma",
        json!({"use_bidirectional_attention": true}),
        "use_bidirectional_attention",
    );
}

#[test]
fn gemma2_caps_and_alternates() {
    let arch = read("gemma2", json!({"sliding_window": 9})).unwrap();
    assert_eq!(places(&arch), AROUND);
    assert_eq!((arch.logits.cap, arch.attention().cap), (Some(30.0), Some(50.0)));
    assert_eq!(arch.attention().scale, 1.0 / 16.0);
    assert_eq!(windows(&arch), [Some(9), None, Some(9), None]);
    let nulls =
        json!({"final_logit_softcapping": null, "attn_logit_softcapping": null, "query_pre_attn_scalar": 4});
    let arch = read("gemma2", nulls).unwrap();
    assert_eq!(
        (arch.logits.cap, arch.attention().cap, arch.attention().scale),
        (None, None, 0.5)
    );
}

#[test]
fn gemma3_rotates_locally_and_globally() {
    let old = json!({"sliding_window_pattern": 2, "rope_theta": 5e5, "rope_local_base_freq": 700.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}});
    let new = json!({"layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5}}});
    let (old, new) = (
        read("gemma3_text", old).unwrap(),
        read("gemma3_text", new).unwrap(),
    );
    assert_eq!(old, new);
    let rotary = |block: usize| old.blocks[block].attention.rotary.clone().unwrap();
    assert_eq!((rotary(0).theta, rotary(0).scaling), (700.0, RopeScaling::None));
    assert_eq!(
        (rotary(1).theta, rotary(1).scaling),
        (5e5, RopeScaling::Linear { factor: 8.0 })
    );
    assert_eq!(windows(&old), [Some(4096), None, Some(4096), None]);
    assert_eq!((places(&old).len(), old.attention().cap), (6, None));
    let plain = read("gemma3_text", json!({})).unwrap();
    assert!(
        plain
            .blocks
            .iter()
            .all(|block| block.attention.rotary.as_ref().unwrap().theta == 1e4)
    );
    let flat = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}});
    refused("gemma3_text", flat, "rope_parameters.rope_theta");
    refused(
        "gemma3_text",
        json!({"attn_logit_softcapping": 50.0}),
        "attn_logit_softcapping",
    );
}

#[test]
fn phi3_fuses_and_rotates_a_part() {
    let lists = json!({"type": "su", "short_factor": [1, 1.5, 2, 2.5], "long_factor": [2, 3, 4, 5]});
    let changes = json!({"partial_rotary_factor": 0.5, "rope_scaling": lists, "sliding_window": 7,
        "max_position_embeddings": 128, "original_max_position_embeddings": 32});
    let arch = read("phi3", changes.clone()).unwrap();
    let block = &arch.blocks[1];
    let shapes: Vec<_> = block.linears.iter().map(|linear| linear.shape).collect();
    assert_eq!(shapes, [(128, 64), (64, 64), (192, 64), (64, 96)]);
    assert_eq!((block.attention.rotated, block.attention.window), (8, Some(7)));
    let expected = RopeScaling::Long {
        short: vec![1.0, 1.5, 2.0, 2.5],
        long: vec![2.0, 3.0, 4.0, 5.0],
        original_max_position_embeddings: 32,
        attention_factor: (1.0 + 4.0_f64.ln() / 32.0_f64.ln()).sqrt(),
    };
    assert_eq!(block.attention.rotary.as_ref().unwrap().scaling, expected);
    for (key, value, named) in [
        ("short_factor", json!([1, 2, 3]), "rope_scaling.short_factor"),
        ("long_factor", json!([1, 2, 3, -1]), "rope_scaling.long_factor"),
        ("factor", json!(3.0), "rope_scaling.factor"),
        ("type", json!("linear"), "rope_scaling.type"),
        (
            "original_max_position_embeddings",
            json!(64),
            "rope_scaling.original_max_position_embeddings",
        ),
    ] {
        let mut changes = changes.clone();
        changes["rope_scaling"][key] = value;
        refused("phi3", changes, named);
    }
    refused(
        "phi3",
        json!({"partial_rotary_factor": 0.3, "head_dim": 10}),
        "partial_rotary_factor",
    );
}

#[test]
fn granite_multiplies() {
    let changes = json!({"embedding_multiplier": 12, "logits_scaling": 8.0, "residual_multiplier": 0.22,
        "attention_multiplier": 0.0078125});
    let arch = read("granite", changes).unwrap();
    assert_eq!((arch.embedding_scale, arch.logits.scale), (12.0, 0.125));
    assert_eq!(
        (arch.blocks[1].residual_scale, arch.attention().scale),
        (0.22, 0.0078125)
    );
    assert_eq!(read("granite", json!({})).unwrap().attention().scale, 1.0);
}

#[test]
fn smollm3_does_not_rotate_in_some_blocks() {
    let rotates = |changes: Value| -> Vec<bool> {
        let blocks = read("smollm3", changes).unwrap().blocks;
        blocks
            .iter()
            .map(|block| block.attention.rotary.is_some())
            .collect()
    };
    assert_eq!(rotates(json!({})), [true, true, true, false]);
    assert_eq!(
        rotates(json!({"no_rope_layer_interval": 2})),
        [true, false, true, false]
    );
    assert_eq!(
        rotates(json!({"no_rope_layers": [0, 1, 1, 0, 1]})),
        [false, true, true, false]
    );
    let sliding = json!({"use_sliding_window": true, "sliding_window": 5});
    assert_eq!(
        windows(&read("smollm3", sliding).unwrap()),
        [None, None, None, Some(5)]
    );
    refused(
        "smollm3",
        json!({"no_rope_layers": [0, 2, 1, 0]}),
        "no_rope_layers",
    );
    refused(
        "smollm3",
        json!({"layer_types": ["sliding_attention", "full_attention", "full_attention",
        "full_attention"]}),
        "layer_types",
    );
}

#[test]
fn stablelm_centers_and_rotates_a_quarter() {
    let arch = read("stablelm", json!({"layer_norm_eps": 0.5, "head_dim": null})).unwrap();
    assert_eq!(arch.final_norm, NormSpec::layer(0.5));
    assert_eq!(arch.final_norm_parameters(), 128);
    let norms = arch.blocks.iter().flat_map(|block| &block.norms);
    assert!(norms.clone().all(|norm| norm.norm == NormSpec::layer(0.5)));
    assert_eq!((norms.count(), arch.attention().rotated), (8, 4));
    let biased = |arch: &ArchSpec| arch.blocks[0].linears.iter().filter(|linear| linear.bias).count();
    assert_eq!(biased(&arch), 0);
    let changes = json!({"use_qkv_bias": true, "rope_parameters": {"partial_rotary_factor": 0.5}});
    let arch = read("stablelm", changes).unwrap();
    assert_eq!((biased(&arch), arch.attention().rotated), (3, 8));
    refused("stablelm", json!({"head_dim": 8}), "head_dim");
    refused(
        "stablelm",
        json!({"use_parallel_residual": true}),
        "use_parallel_residual",
    );
    refused("stablelm", json!({"qk_layernorm": true}), "qk_layernorm");
}

#[test]
fn glm_rotates_neighbours_in_half_of_each_head() {
    let arch = read("glm", json!({})).unwrap();
    let block = &arch.blocks[1];
    assert!(block.attention.neighbours && arch.final_norm.epsilon == 1.5625e-7);
    assert_eq!(block.attention.rotated, 8);
    let layers: Vec<_> = block
        .linears
        .iter()
        .map(|linear| (linear.short_name(), linear.shape, linear.bias))
        .collect();
    assert_eq!(
        layers,
        [
            ("q_proj", (64, 64), true),
            ("k_proj", (32, 64), true),
            ("v_proj", (32, 64), true),
            ("o_proj", (64, 64), false),
            ("gate_up_proj", (192, 64), false),
            ("down_proj", (64, 96), false)
        ]
    );
    let plain = read(
        "glm",
        json!({"attention_bias": false, "partial_rotary_factor": 1.0}),
    )
    .unwrap();
    assert!(plain.blocks[0].linears.iter().all(|linear| !linear.bias));
    assert_eq!(plain.attention().rotated, 16);
}

#[test]
fn glm4_norms_behind_too() {
    let (arch, glm) = (read("glm4", json!({})).unwrap(), read("glm", json!({})).unwrap());
    assert_eq!(places(&arch), AROUND);
    assert_eq!(
        arch.norm_name(0, BeforeMlp),
        "model.layers.0.post_attention_layernorm.weight"
    );
    assert_eq!(arch.blocks[0].linears, glm.blocks[0].linears);
    assert_eq!(arch.blocks[0].attention, glm.blocks[0].attention);
}

/// Names and shapes of the layers of a block's MLP, without the experts after the first.
fn of_mlp(arch: &ArchSpec, block: usize) -> Vec<(String, (usize, usize))> {
    let block = &arch.blocks[block];
    let later = |name: &str| name.contains(".experts.") && !name.contains(".experts.0.");
    let linears = block.linears[4..].iter().filter(|linear| !later(&linear.name));
    linears
        .map(|linear| (linear.name.clone(), linear.shape))
        .collect()
}

#[test]
fn mixtral_has_experts_in_every_block() {
    let arch = read("mixtral", json!({"sliding_window": 9})).unwrap();
    let expected = [
        ("block_sparse_moe.gate", (8, 64)),
        ("block_sparse_moe.experts.0.w1", (96, 64)),
        ("block_sparse_moe.experts.0.w3", (96, 64)),
        ("block_sparse_moe.experts.0.w2", (64, 96)),
    ];
    assert_eq!(
        of_mlp(&arch, 3),
        expected.map(|(name, shape)| (name.to_owned(), shape))
    );
    let mlp = arch.blocks[0].mlp.routed().unwrap();
    assert_eq!((mlp.used, mlp.normalized, mlp.shared.is_some()), (2, true, false));
    assert_eq!(windows(&arch), [Some(9); 4]);
    assert_eq!(arch.blocks[0].attention.rotary.as_ref().unwrap().theta, 1e6);
    let gelu = read(
        "mixtral",
        json!({"hidden_act": "gelu_pytorch_tanh", "num_experts": 3}),
    )
    .unwrap();
    let mlp = gelu.blocks[0].mlp.routed().unwrap();
    assert_eq!(
        (mlp.experts.len(), mlp.experts[2].activation),
        (3, Activation::GeluTanh)
    );
    refused(
        "mixtral",
        json!({"num_experts_per_tok": 9}),
        "num_experts_per_tok",
    );
    refused(
        "mixtral",
        json!({"num_experts": 4, "num_local_experts": 5}),
        "num_local_experts",
    );
    refused("mixtral", json!({"num_local_experts": 0}), "num_local_experts");
    refused("mixtral", json!({"num_local_experts": 4097}), "num_local_experts");
    refused(
        "mixtral",
        json!({"num_local_experts": 4096, "num_hidden_layers": 65}),
        "num_hidden_layers",
    );
}

#[test]
fn qwen2_moe_shares_an_expert_and_mixes_blocks() {
    let sizes = json!({"num_experts": 6, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40,
        "decoder_sparse_step": 2, "sliding_window": 0});
    let arch = read("qwen2_moe", sizes.clone()).unwrap();
    let expected = [
        ("mlp.gate", (6, 64)),
        ("mlp.shared_expert_gate", (1, 64)),
        ("mlp.shared_expert.gate_proj", (40, 64)),
        ("mlp.shared_expert.up_proj", (40, 64)),
        ("mlp.experts.0.gate_proj", (24, 64)),
        ("mlp.experts.0.up_proj", (24, 64)),
        ("mlp.shared_expert.down_proj", (64, 40)),
        ("mlp.experts.0.down_proj", (64, 24)),
    ];
    assert_eq!(
        of_mlp(&arch, 1),
        expected.map(|(name, shape)| (name.to_owned(), shape))
    );
    let sparse = |arch: &ArchSpec| -> Vec<bool> {
        arch.blocks
            .iter()
            .map(|block| block.mlp.routed().is_some())
            .collect()
    };
    assert_eq!(sparse(&arch), [false, true, false, true]);
    let mlp = arch.blocks[1].mlp.routed().unwrap();
    assert_eq!((mlp.used, mlp.normalized), (4, false));
    let biased = |arch: &ArchSpec| arch.blocks[0].linears.iter().filter(|linear| linear.bias).count();
    assert_eq!(biased(&arch), 3);
    let mut changed = sizes.clone();
    changed["mlp_only_layers"] = json!([3, 9]);
    changed["norm_topk_prob"] = json!(true);
    changed["qkv_bias"] = json!(false);
    let arch = read("qwen2_moe", changed).unwrap();
    assert_eq!(
        (sparse(&arch), biased(&arch)),
        (vec![false, true, false, false], 0)
    );
    assert!(arch.blocks[1].mlp.routed().unwrap().normalized);
    let sliding = json!({"use_sliding_window": true, "sliding_window": 7, "max_window_layers": 2});
    assert_eq!(
        windows(&read("qwen2_moe", sliding).unwrap()),
        [Some(7), None, None, None]
    );
    for (key, value) in [
        ("mlp_only_layers", json!([-1])),
        ("mlp_only_layers", json!(3)),
        ("decoder_sparse_step", json!(0)),
        ("shared_expert_intermediate_size", json!(0)),
        ("norm_topk_prob", json!(1)),
    ] {
        let mut changed = sizes.clone();
        changed[key] = value;
        refused("qwen2_moe", changed, key);
    }
}

#[test]
fn qwen3_moe_norms_each_head() {
    let sizes = json!({"num_local_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 24,
        "mlp_only_layers": [0], "norm_topk_prob": true});
    let arch = read("qwen3_moe", sizes).unwrap();
    assert_eq!(
        places(&arch),
        [(BeforeAttention, 64), (Query, 16), (Key, 16), (BeforeMlp, 64)]
    );
    assert!(arch.blocks[0].mlp.dense().is_some());
    let mlp = arch.blocks[1].mlp.routed().unwrap();
    assert_eq!((mlp.experts.len(), mlp.used, mlp.normalized), (5, 3, true));
    assert_eq!(
        of_mlp(&arch, 2)[1],
        ("mlp.experts.0.gate_proj".to_owned(), (24, 64))
    );
    let sliding = json!({"use_sliding_window": true, "sliding_window": 7});
    assert_eq!(windows(&read("qwen3_moe", sliding).unwrap()), [Some(7); 4]);
}
