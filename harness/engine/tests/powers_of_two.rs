//! A model whose norms and weights differ by powers of two computes the same function, so it must quantize to
//! the same model, whatever f16 holds.

use std::path::Path;

use aqlm_engine::backends::{BackendKind, CpuBackend};
use aqlm_engine::evaluate::streamed;
use aqlm_engine::ranks::Alone;
use aqlm_engine::{Error, Preset, QuantizeReport, QuantizeSettings, Result, RunDescription, RunFolder};
use aqlm_engine::{publish, quantize};
use aqlm_formats::model::Model;
use aqlm_formats::safetensors::{NewTensor, write};
use aqlm_vocabulary::{LinearWeight, Purpose, Stream, stream};
use half::bf16;
use ndarray::Array3;
use rand::RngExt;
use rand_distr::StandardNormal;
use serde_json::{Value, json};

const HIDDEN: usize = 16;
const INNER: usize = 24;
const VOCABULARY: usize = 32;
const TOKENS: usize = 24;
const SEQUENCES: usize = 6;

/// Exponents of the factors of a block's pairs.
#[derive(Debug, Clone, Copy, Default)]
struct Powers {
    /// the norm before attention; queries, keys and values get the inverse
    attention: i32,
    /// the norm before the MLP; gate and up get the inverse
    mlp: i32,
    /// values; attention's output gets the inverse
    values: i32,
    /// up; down gets the inverse
    inner: i32,
    /// queries; keys get the inverse
    heads: i32,
}

/// Standard normal numbers.
fn normal(rng: &mut Stream, count: usize) -> impl Iterator<Item = f32> {
    rng.sample_iter(StandardNormal).take(count)
}

/// A block's parts by name, with their shapes, and the exponent of each under `powers`.
fn parts(powers: Powers) -> [(&'static str, Vec<usize>, i32); 9] {
    let Powers {
        attention,
        mlp,
        values,
        inner,
        heads,
    } = powers;
    [
        ("input_layernorm", vec![HIDDEN], attention),
        ("post_attention_layernorm", vec![HIDDEN], mlp),
        ("self_attn.q_proj", vec![HIDDEN, HIDDEN], heads - attention),
        ("self_attn.k_proj", vec![HIDDEN / 2, HIDDEN], -heads - attention),
        ("self_attn.v_proj", vec![HIDDEN / 2, HIDDEN], values - attention),
        ("self_attn.o_proj", vec![HIDDEN, HIDDEN], -values),
        ("mlp.gate_proj", vec![INNER, HIDDEN], -mlp),
        ("mlp.up_proj", vec![INNER, HIDDEN], inner - mlp),
        ("mlp.down_proj", vec![HIDDEN, INNER], -inner),
    ]
}

/// Writes a model of two blocks whose tensors `change` may change. With `narrow` everything is bf16, else
/// f32.
fn model(folder: &Path, powers: Powers, narrow: bool, change: impl Fn(&str, &mut Vec<f32>)) -> Model {
    let mut rng = stream(3, 0, None, Purpose::TestData);
    let mut tensors = Vec::new();
    let mut push = |name: String, shape: &[usize], mut values: Vec<f32>| {
        change(&name, &mut values);
        tensors.push(if narrow {
            NewTensor::new(name, shape, values.into_iter().map(bf16::from_f32))
        } else {
            NewTensor::new(name, shape, values)
        });
    };
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        let values = normal(&mut rng, VOCABULARY * HIDDEN).collect();
        push(name.into(), &[VOCABULARY, HIDDEN], values);
    }
    push("model.norm.weight".into(), &[HIDDEN], vec![1.0; HIDDEN]);
    for block in 0..2 {
        for (part, shape, exponent) in parts(powers) {
            let count: usize = shape.iter().product();
            let random = normal(&mut rng, count);
            let power = f32::powi(2.0, exponent);
            let values: Vec<f32> = if shape.len() == 1 {
                random.map(|x| power * (1.0 + 0.2 * x)).collect()
            } else {
                random.map(|x| power * x / (shape[1] as f32).sqrt()).collect()
            };
            push(format!("model.layers.{block}.{part}.weight"), &shape, values);
        }
    }
    std::fs::create_dir_all(folder).unwrap();
    write(&folder.join("model.safetensors"), tensors).unwrap();
    let config = json!({
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64, "torch_dtype": if narrow { "bfloat16" } else { "float32" },
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    Model::open(folder).unwrap()
}

fn sequences() -> Vec<Vec<u32>> {
    let token = |at: usize| ((at * at + 7 * at) % VOCABULARY) as u32;
    (0..SEQUENCES)
        .map(|sequence| (0..TOKENS).map(|at| token(at + 11 * sequence)).collect())
        .collect()
}

fn quantized(model: &Model, out: &Path) -> Result<QuantizeReport> {
    let mut settings = QuantizeSettings::preset(Preset::Project, "1x4g4".parse().unwrap());
    settings.sequences = SEQUENCES;
    settings.seqlen = TOKENS;
    settings.validation = 2;
    settings.layer.max_rounds = 2;
    settings.finetune.epochs = 2;
    let sequences = sequences();
    let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    let machine = CpuBackend::new(model.config(), TOKENS)?;
    let description = RunDescription::new(
        model,
        Path::new("none"),
        &sequences,
        &settings,
        BackendKind::Cpu,
        "a test".into(),
    )?;
    let folder = RunFolder::open(out, &description, false)?;
    let report = quantize(
        &machine,
        model,
        &sequences,
        &settings,
        None,
        &folder,
        &Alone,
        &mut |_| (),
    )?;
    publish(model, &folder, out, report.largest_hidden_state)?;
    Ok(report)
}

/// Codes of every layer, and the mean loss on the sequences.
fn outcome(out: &Path) -> (Vec<Array3<u16>>, f64) {
    let model = Model::open(out).unwrap();
    let mut codes = Vec::new();
    for block in 0..2 {
        for layer in model.block(block).unwrap().layers {
            let LinearWeight::Quantized(matrix) = layer.weight else {
                panic!("every layer is quantized")
            };
            codes.push(matrix.codes().clone());
        }
    }
    let machine = CpuBackend::new(model.config(), TOKENS).unwrap();
    let sequences = sequences();
    let windows: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    let evaluation = streamed(&machine, &model, &windows, false, &mut |_| ()).unwrap();
    (codes, evaluation.perplexity().mean_nll)
}

#[test]
fn the_same_function_quantizes_to_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let same = |_: &str, _: &mut Vec<f32>| ();
    let report = quantized(
        &model(&path("plain"), Powers::default(), false, same),
        &path("out"),
    )
    .unwrap();
    let (codes, loss) = outcome(&path("out"));
    let cases = [
        (1, 0, 0, 0, 0),
        (30, 30, 0, 0, 0),
        (-30, -30, 0, 0, 0),
        (24, -9, 3, -5, 2),
        (-12, 17, 30, -30, -4),
        (7, -7, -30, 30, 30),
        (0, 0, 1, 2, -30),
    ];
    for (index, (attention, mlp, values, inner, heads)) in cases.into_iter().enumerate() {
        let powers = Powers {
            attention,
            mlp,
            values,
            inner,
            heads,
        };
        let out = path(&format!("out{index}"));
        let found = quantized(&model(&path(&format!("in{index}")), powers, false, same), &out).unwrap();
        let (found_codes, found_loss) = outcome(&out);
        assert!(codes == found_codes, "{powers:?}: other codes");
        // powers of two change no bit, and so nothing grows from block to block
        assert!(
            (found_loss - loss).abs() < 1e-9,
            "{powers:?}: {found_loss} instead of {loss}"
        );
        for (a, b) in report.blocks.iter().zip(&found.blocks) {
            for (a, b) in a.layers.iter().zip(&b.layers) {
                let (expected, error) = (a.relative_layer_error, b.relative_layer_error);
                assert!(
                    (error / expected - 1.0).abs() < 1e-9,
                    "{powers:?}: {}: {error} {expected}",
                    a.name
                );
            }
        }
    }
}

#[test]
fn a_row_that_f16_cannot_hold_is_refused_before_the_first_block() {
    let folder = tempfile::tempdir().unwrap();
    for (value, found) in [(1e-20_f32, "e-20"), (1e30, "e30")] {
        let path = folder.path().join(format!("model{value}"));
        let changed = move |name: &str, values: &mut Vec<f32>| {
            if name == "model.layers.1.mlp.down_proj.weight" {
                values[3 * INNER..4 * INNER].fill(value);
            }
        };
        let source = model(&path, Powers::default(), false, changed);
        let out = folder.path().join(format!("out{value}"));
        let error = quantized(&source, &out).unwrap_err();
        let message = error.to_string();
        assert!(matches!(error, Error::Layer { .. }), "{message}");
        // the large row makes the first of the others the one that is not held
        let row = if value < 1.0 { "row 3" } else { "row 0" };
        for word in ["model.layers.1.mlp.down_proj", row, "f16"] {
            assert!(message.contains(word), "{word}: {message}");
        }
        assert!(value > 1.0 || message.contains(found), "{message}");
        assert_eq!(std::fs::read_dir(out.join("blocks")).unwrap().count(), 0);
    }
    // a row of zeros has no scale to lose
    let zeros = |_: &str, values: &mut Vec<f32>| {
        if values.len() == INNER * HIDDEN {
            values[..HIDDEN].fill(0.0);
        }
    };
    quantized(
        &model(&folder.path().join("zeros"), Powers::default(), false, zeros),
        &folder.path().join("out"),
    )
    .unwrap();
}

#[test]
fn bf16_is_kept_where_hidden_states_leave_f16() {
    let folder = tempfile::tempdir().unwrap();
    for (factor, expected) in [(1.0_f32, "float16"), (1e5, "bfloat16")] {
        let path = folder.path().join(expected);
        let larger = move |name: &str, values: &mut Vec<f32>| {
            if name == "model.embed_tokens.weight" {
                for value in values {
                    *value *= factor;
                }
            }
        };
        let source = model(&path.join("in"), Powers::default(), true, larger);
        quantized(&source, &path.join("out")).unwrap();
        let config = std::fs::read(path.join("out/config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["torch_dtype"], expected);
    }
}
