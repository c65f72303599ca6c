use aqlm_vocabulary::RopeScaling;
use half::f16;

use super::super::rope::llama3_factor;
use super::tokenizer::with_tokenizer;
use super::*;
use crate::huggingface::write::write_dense;
use crate::model::{StorageType, WriteOptions};

#[test]
fn a_converted_model_is_the_model() {
    let (writer, fixture) = converted();
    for version in [2, 3] {
        let model = Writer {
            version,
            ..converted().0
        }
        .open()
        .unwrap();
        let original = Model::open(fixture.write()).unwrap();
        assert_eq!(model.config(), original.config());
        assert_eq!(model.embedding().unwrap(), original.embedding().unwrap());
        assert_eq!(model.lm_head().unwrap(), original.lm_head().unwrap());
        assert_eq!(model.final_norm().unwrap(), original.final_norm().unwrap());
        for block in 0..2 {
            assert_eq!(model.block(block).unwrap(), original.block(block).unwrap());
        }
    }
    assert!(
        writer
            .open()
            .unwrap()
            .inventory()
            .layers
            .iter()
            .all(|layer| layer.bits_per_parameter == 32.0)
    );
}

#[test]
fn the_head_is_tied_when_there_is_none() {
    let (mut writer, _) = converted();
    writer.tensors.retain(|tensor| tensor.0 != "output.weight");
    let model = writer.open().unwrap();
    assert!(model.config().tied);
    assert_eq!(model.lm_head().unwrap(), model.embedding().unwrap());
}

#[test]
fn f32_metadata_become_the_decimals_that_were_meant() {
    let (mut writer, _) = converted();
    writer.set("llama.attention.layer_norm_rms_epsilon", Put::F32(1e-5));
    writer.set("llama.rope.freq_base", Put::F32(500_000.0));
    let model = writer.open().unwrap();
    assert_eq!(model.config().final_norm.epsilon, 1e-5);
    assert_eq!(model.config().attention().rotary.as_ref().unwrap().theta, 5e5);
}

#[test]
fn other_architectures_are_refused_by_name() {
    let (mut writer, _) = converted();
    writer.set("general.architecture", Put::text("gpt2"));
    assert!(
        matches!(writer.open(), Err(Error::Unsupported { field, expected, found, .. })
        if field == "general.architecture" && expected.starts_with("llama, qwen2") && found == "\"gpt2\"")
    );
    writer.remove("general.architecture");
    assert!(matches!(writer.open(), Err(Error::Field { field, .. }) if field == "general.architecture"));
}

#[test]
fn types_that_are_not_read_are_refused_by_name() {
    let (mut writer, _) = converted();
    writer.tensor("blk.1.ffn_up.weight").2 = 23;
    assert!(
        matches!(writer.open(), Err(Error::TensorType { tensor, found, .. })
        if tensor == "blk.1.ffn_up.weight" && found == "IQ4_XS")
    );
}

#[test]
fn tensors_that_a_llama_does_not_have_are_refused() {
    let (mut writer, _) = converted();
    writer.put_floats("blk.0.attn_q_norm.weight", &[4], &[1.0; 4]);
    assert!(
        matches!(writer.open(), Err(Error::UnexpectedTensor { tensor, .. }) if tensor == "blk.0.attn_q_norm.weight")
    );
}

#[test]
fn missing_tensors_and_metadata_are_named() {
    let (mut writer, _) = converted();
    writer.tensors.retain(|tensor| tensor.0 != "blk.1.ffn_up.weight");
    assert!(matches!(writer.open(), Err(Error::MissingTensor { tensor, .. })
        if tensor == "blk.1.ffn_up.weight"));
    let (mut writer, _) = converted();
    writer.remove("llama.block_count");
    assert!(matches!(writer.open(), Err(Error::Field { field, .. }) if field == "llama.block_count"));
    let (mut writer, _) = converted();
    writer.set("llama.block_count", Put::text("two"));
    assert!(matches!(writer.open(), Err(Error::Field { found, .. }) if found == "\"two\""));
}

#[test]
fn arithmetic_that_is_not_implemented_is_refused() {
    for (name, value) in [
        ("llama.rope.scaling.type", Put::text("longrope")),
        ("llama.rope.scaling.yarn_ext_factor", Put::F32(1.0)),
        ("llama.attention.causal", Put::Flag(false)),
        ("llama.logit_scale", Put::F32(8.0)),
        ("llama.rope.dimension_count", Put::U32(2)),
        ("llama.expert_weights_scale", Put::F32(2.5)),
        ("llama.attention.value_length", Put::U32(8)),
    ] {
        let (mut writer, _) = converted();
        writer.set(name, value);
        assert!(
            matches!(writer.open(), Err(Error::Unsupported { field, .. }) if field == name),
            "{name}"
        );
    }
}

#[test]
fn yarn_and_the_factor_of_cosines_are_read() {
    let scaling = |keys: Vec<(&str, Put)>| {
        let (mut writer, _) = converted();
        for (name, value) in keys {
            writer.set(name, value);
        }
        let model = writer.open().unwrap();
        assert!(model.warnings().is_empty());
        model.config().attention().rotary.clone().unwrap().scaling
    };
    let expected = |factor: f64, original: usize, attention_factor: f64| RopeScaling::Yarn {
        factor,
        original_max_position_embeddings: original,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
        attention_factor,
    };
    // llama.cpp multiplies cosines and sines by 1 + ln(factor) / 10 under YaRN, and by the file's factor.
    let yarn = || {
        vec![
            ("llama.rope.scaling.type", Put::text("yarn")),
            ("llama.rope.scaling.factor", Put::F32(4.0)),
            ("llama.rope.scaling.original_context_length", Put::U32(16)),
            ("llama.rope.scaling.yarn_ext_factor", Put::F32(-1.0)),
        ]
    };
    assert_eq!(scaling(yarn()), expected(4.0, 16, 1.0 + 0.1 * 4.0_f64.ln()));
    let mut both = yarn();
    both.push(("llama.rope.scaling.yarn_attn_factor", Put::F32(0.5)));
    assert_eq!(scaling(both), expected(4.0, 16, 0.5 * (1.0 + 0.1 * 4.0_f64.ln())));
    // The factor alone leaves the frequencies as they are.
    let alone = vec![
        ("llama.rope.scaling.attn_factor", Put::F32(0.75)),
        ("llama.rope.scaling.original_context_length", Put::U32(16)),
    ];
    assert_eq!(scaling(alone), expected(1.0, 16, 0.75));
    for bad in [
        vec![("llama.rope.scaling.type", Put::text("yarn"))],
        vec![
            ("llama.rope.scaling.factor", Put::F32(2.0)),
            ("llama.rope.scaling.attn_factor", Put::F32(0.75)),
        ],
        vec![("llama.rope.scaling.attn_factor", Put::F32(-1.0))],
    ] {
        let (mut writer, _) = converted();
        for (name, value) in bad {
            writer.set(name, value);
        }
        assert!(writer.open().is_err());
    }
}

#[test]
fn neutral_values_change_nothing() {
    let (mut writer, _) = converted();
    let plain = writer.open().unwrap();
    for (name, value) in [
        ("llama.rope.scaling.type", Put::text("linear")),
        ("llama.rope.scaling.factor", Put::F32(0.0)),
        ("llama.rope.scaling.attn_factor", Put::F32(1.0)),
        ("llama.rope.scaling.original_context_length", Put::U32(64)),
        ("llama.attention.causal", Put::Flag(true)),
        ("llama.logit_scale", Put::F32(0.0)),
        ("llama.vocab_size", Put::U32(6)),
    ] {
        writer.set(name, value);
    }
    let model = writer.open().unwrap();
    assert_eq!(model.config(), plain.config());
    assert!(model.warnings().is_empty());
}

#[test]
fn unknown_keys_of_the_architecture_give_a_warning() {
    let (mut writer, _) = converted();
    writer.set("llama.attention.twist", Put::F32(0.5));
    writer.set("general.twist", Put::F32(0.5));
    let model = writer.open().unwrap();
    assert_eq!(model.warnings().len(), 1);
    assert!(model.warnings()[0].contains("`llama.attention.twist`") && model.warnings()[0].contains("0.5"));
}

#[test]
fn numbers_that_are_not_finite_are_refused() {
    for name in ["llama.rope.freq_base", "llama.attention.layer_norm_rms_epsilon"] {
        for value in [f32::NAN, f32::INFINITY] {
            let (mut writer, _) = converted();
            writer.set(name, Put::F32(value));
            assert!(
                matches!(writer.open(), Err(Error::Field { field, .. }) if field == name),
                "{name}"
            );
        }
    }
}

#[test]
fn ids_of_all_ones_are_no_tokens() {
    let (mut writer, _) = converted();
    with_tokenizer(&mut writer);
    writer.set("tokenizer.ggml.bos_token_id", Put::U32(u32::MAX));
    writer.set("tokenizer.ggml.eot_token_id", Put::U32(u32::MAX));
    writer.set("tokenizer.ggml.unknown_token_id", Put::U32(u32::MAX));
    let tokenizer = writer.open().unwrap().tokenizer().unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.stops()), (None, &[2][..]));
    assert_eq!(tokenizer.encode("a", true).unwrap(), [3, 4]);
}

#[test]
fn linear_scaling_and_windows_are_honoured() {
    let (mut writer, _) = converted();
    writer.set("llama.rope.scaling.type", Put::text("linear"));
    writer.set("llama.rope.scaling.factor", Put::F32(4.0));
    writer.set("llama.attention.sliding_window", Put::U32(16));
    let model = writer.open().unwrap();
    assert_eq!(
        model.config().attention().rotary.as_ref().unwrap().scaling,
        aqlm_vocabulary::RopeScaling::Linear { factor: 4.0 }
    );
    assert_eq!(model.config().attention().window, Some(16));
}

/// The divisors computed in f32, as by the converter.
fn llama3_divisors(factor: f32, theta: f32, head_dim: usize) -> Vec<f32> {
    (0..head_dim / 2)
        .map(|pair| {
            let frequency = 1.0 / theta.powf(2.0 * pair as f32 / head_dim as f32);
            let wavelength = std::f32::consts::TAU / frequency;
            if wavelength < 8192.0 / 4.0 {
                1.0
            } else if wavelength > 8192.0 {
                factor
            } else {
                let smooth = (8192.0 / wavelength - 1.0) / 3.0;
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        })
        .collect()
}

#[test]
fn llama3s_frequencies_are_recognised_and_others_refused() {
    for (factor, head_dim) in [(8.0, 128), (32.0, 64), (32.0, 128)] {
        let divisors = llama3_divisors(factor, 500_000.0, head_dim);
        assert_eq!(llama3_factor(&divisors, 5e5, head_dim), Some(f64::from(factor)));
        assert_eq!(llama3_factor(&divisors, 1e4, head_dim), None);
        let mut off = divisors.clone();
        off[head_dim / 4] *= 1.01;
        assert_eq!(llama3_factor(&off, 5e5, head_dim), None);
        assert_eq!(llama3_factor(&divisors[1..], 5e5, head_dim), None);
    }
    let (mut writer, _) = converted();
    writer.put_floats(ROPE_FACTORS, &[2], &[1.0, 3.0]);
    assert!(matches!(writer.open(), Err(Error::UnexpectedTensor { tensor, .. }) if tensor == ROPE_FACTORS));
}

#[test]
fn a_quantized_file_becomes_a_folder() {
    let (mut writer, _) = converted();
    let up = writer.tensor("blk.0.ffn_up.weight");
    // stored as F16 (type 1): 96 values of two bytes
    up.2 = 1;
    up.3 = (0..96)
        .flat_map(|index| f16::from_f32(index as f32 / 8.0).to_le_bytes())
        .collect();
    with_tokenizer(&mut writer);
    let (_folder, path) = writer.write();
    let source = Model::open(path).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    write_dense(&out, &source, &WriteOptions::default()).unwrap();
    let written = Model::open(&out).unwrap();
    assert_eq!(written.config(), source.config());
    assert_eq!(written.storage(), StorageType::F32);
    for block in 0..2 {
        assert_eq!(written.block(block).unwrap(), source.block(block).unwrap());
    }
    let (ours, theirs) = (written.tokenizer().unwrap(), source.tokenizer().unwrap());
    assert_eq!(
        ours.encode("ab ba", true).unwrap(),
        theirs.encode("ab ba", true).unwrap()
    );
    assert_eq!((ours.bos(), ours.stops()), (theirs.bos(), theirs.stops()));
}
