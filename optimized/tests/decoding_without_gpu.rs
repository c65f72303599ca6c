//! Decoding of whole models on CUDA, run without a GPU: `kernels/shim/driver.cpp` stands in for the driver,
//! NVRTC and cuBLAS, and runs the kernels on the CPU, with guard bytes around all buffers. Without a C++
//! compiler the tests say so and are waived.

#[path = "shim/stand_in.rs"]
mod stand_in;

use aqlm_check::cases::{self, LlamaCase, LlamaData};
use aqlm_check::limits::{Number, Rule};
use aqlm_check::{CrossOptions, Cuda, Machines, Outcome, cross_check};
use aqlm_optimized::cuda::Device;
use aqlm_optimized::cuda::llama::{Builder, Model, Options, Rung, narrowed};
use aqlm_reference::llama::model_forward;
use aqlm_vocabulary::{LinearWeight, Mlp, QuantizedMatrix, Scheme};
use half::f16;
use ndarray::{Array1, Array2, Array3, Array4};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A small case of each family: all tokens at once, and token by token.
#[test]
fn families_decode_as_the_reference() {
    stand_in::on_stand_in("families_decode_as_the_reference", || {
        for model in [
            "36x22-k2-q1-d8-n1-t4-w0-nobias-plain-2x3g2-s1",
            "40x72-k2-q2-d12-n1-t5-w0-bias-llama3-qwen3-2x3g4-s9",
            "40x72-k2-q2-d12-n1-t4-w0-nobias-plain-olmo2-2x3g4o2-s10",
            "40x72-k2-q2-d12-n1-t4-w0-bias-plain-granite-2x3g4-s11",
            "40x72-k2-q2-d12-n1-t4-w0-nobias-plain-smollm3-2x3g4-s12",
            "40x72-k2-q2-d12-n1-t5-w3-nobias-plain-phi3-2x3g4o2-s13",
            "40x72-k2-q2-d12-n1-t5-w3-nobias-plain-gemma2-2x3g4-s14",
            "40x72-k2-q2-d12-n1-t5-w3-nobias-plain-gemma3-2x3g4-s15",
            "40x72-k2-q2-d12-n1-t4-w0-nobias-plain-mixtral-2x3g4o2-s17",
            "40x72-k2-q2-d12-n1-t4-w2-bias-llama3-qwen2moe-2x3g4-s18",
        ] {
            let (problem, data) = cases::llama(&format!("model_forward-{model}")).unwrap();
            let device = Device::open_guarded(0, None).unwrap();
            decodes(&device, model, &problem, &data, Rung::Joined);
        }
    });
}

/// Compares the logits of a model with the reference's, and returns the model.
fn decodes<'d>(
    device: &'d Device,
    name: &str,
    problem: &LlamaCase,
    data: &LlamaData,
    rung: Rung,
) -> Model<'d> {
    let tokens = &data.tokens[0];
    let exact = model_forward(&data.model(), tokens).unwrap();
    let options = Options {
        positions: problem.tokens.max(24),
        prompts: true,
        rung,
    };
    let mut builder = Builder::new(device, &data.config, options).unwrap();
    for block in &data.blocks {
        builder.push(block).unwrap();
    }
    let table = |table: &Array2<f32>| -> Vec<f16> {
        narrowed(&table.iter().copied().collect::<Vec<_>>(), "a table").unwrap()
    };
    let (embedding, head) = (table(&data.embedding), table(&data.lm_head));
    let mut model = builder
        .finish(&embedding, &data.norm.to_vec(), Some(&head))
        .unwrap();
    let whole = model.forward(tokens).unwrap();
    model.reset();
    let steps: Vec<f32> = tokens
        .iter()
        .flat_map(|&token| model.step(token).unwrap())
        .collect();
    for (how, found) in [("whole", whole), ("steps", steps)] {
        let error: f64 = found
            .iter()
            .zip(&exact)
            .map(|(a, b)| (f64::from(*a) - b).powi(2))
            .sum();
        let nmse = error / exact.iter().map(|b| b * b).sum::<f64>();
        // as many roundings to f16 as the check counts, in each block
        let limit = Rule::Independent.limit(Number::F16, problem.roundings() * data.blocks.len());
        println!("{name} {rung:?} {how}: nmse {nmse:e}, limit {limit:e}");
        assert_eq!(found.len(), exact.len());
        assert!(
            nmse <= limit,
            "{name} {rung:?} {how}: nmse {nmse:e}, limit {limit:e}"
        );
    }
    model
}

/// The check's own corners, whose sequences are longer than a window and than a chunk's rows of one block.
#[test]
#[ignore = "takes minutes: every kernel is run thread by thread; .ci/run has a step for it"]
fn the_check_of_decoding_passes_in_part() {
    stand_in::on_stand_in("the_check_of_decoding_passes_in_part", || {
        check(&[
            "40x72-k2-q2-d12-n2-t70-w0-nobias-plain-qwen3-2x3g4-s8",
            "40x72-k2-q2-d12-n2-t37-w0-nobias-plain-olmo2-2x3g4o2-s10",
            "40x72-k2-q2-d12-n2-t37-w0-bias-plain-granite-2x3g4-s11",
            "40x72-k2-q2-d12-n2-t37-w0-nobias-plain-smollm3-2x3g4-s12",
            "40x72-k2-q2-d12-n2-t37-w9-nobias-plain-phi3-2x3g4o2-s13",
            "40x72-k2-q2-d12-n2-t70-w9-nobias-plain-gemma2-2x3g4-s14",
        ]);
    });
}

/// The other corners. In two tests, so that two cores have work.
#[test]
#[ignore = "takes minutes: every kernel is run thread by thread; .ci/run has a step for it"]
fn the_check_of_decoding_passes_for_the_rest() {
    stand_in::on_stand_in("the_check_of_decoding_passes_for_the_rest", || {
        check(&[
            "40x72-k2-q2-d12-n2-t70-w9-nobias-plain-gemma3-2x3g4-s15",
            "36x22-k2-q1-d8-n4-t5-w1-nobias-plain-gemma3-3x2g4-s16",
            "40x72-k2-q2-d12-n2-t70-w0-nobias-plain-mixtral-2x3g4o2-s17",
            "40x72-k2-q2-d12-n2-t37-w9-bias-llama3-qwen2moe-2x3g4-s18",
            "36x22-k2-q1-d8-n1-t2-w0-nobias-plain-mixtral-3x2g4-s19",
        ]);
    });
}

fn check(models: &[&str]) {
    let machines = vec![Machines {
        backend: "cuda",
        subjects: Cuda::first().map(|cuda| vec![cuda]),
    }];
    for model in models {
        let case = format!("model_forward-{model}").parse().unwrap();
        let report = cross_check(&CrossOptions::of_case(case, machines.clone()), &mut |_| ()).unwrap();
        assert!(!report.report.rows.is_empty());
        for row in &report.report.rows {
            assert!(matches!(row.outcome, Outcome::Pass), "{row:?}");
        }
    }
}

/// Experts that are all quantized, in schemes of several kernels, with a shared one and without: logits are
/// the reference's, and a generated text is the one whose tokens are the likeliest of the full forward.
#[test]
fn quantized_experts_are_those_that_the_router_chose() {
    stand_in::on_stand_in("quantized_experts_are_those_that_the_router_chose", || {
        for (case, rung) in [
            (MIXTRAL, Rung::Plain),
            (MIXTRAL, Rung::Joined),
            (SHARED, Rung::Joined),
        ] {
            decodes_quantized_experts(case, rung);
        }
    });
}

/// The same where gate and up of all chosen experts share a launch of k3, whose blocks form clusters.
#[test]
fn joined_experts_are_those_that_the_router_chose() {
    stand_in::on_stand_in_of("90", "joined_experts_are_those_that_the_router_chose", || {
        decodes_quantized_experts(MIXTRAL, Rung::Joined);
    });
}

const MIXTRAL: &str = "model_forward-64x48-k2-q2-d16-n1-t5-w0-nobias-plain-mixtral-2x8g8-s3";
/// With an expert that every token passes.
const SHARED: &str = "model_forward-64x48-k2-q2-d16-n1-t5-w0-bias-plain-qwen2moe-2x3g4-s5";

fn decodes_quantized_experts(case: &str, rung: Rung) {
    let (problem, mut data) = cases::llama(case).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(problem.hidden as u64);
    for (spec, weights) in data.config.blocks.iter().zip(&mut data.blocks) {
        let Mlp::Routed(mlp) = &spec.mlp else { continue };
        for expert in &mlp.experts {
            for layer in [expert.gate, expert.up, expert.down] {
                let matrix = random_matrix(&mut rng, problem.scheme, spec.shape(layer));
                weights.layer_mut(layer).weight = LinearWeight::Quantized(matrix);
            }
        }
    }
    let device = Device::open_guarded(0, None).unwrap();
    let mut model = decodes(&device, case, &problem, &data, rung);
    generated_is_the_full_forwards(&mut model, &data.tokens[0]);
}

/// A greedy text of the graph's own choices; then its tokens by a forward of the whole text.
fn generated_is_the_full_forwards(model: &mut Model<'_>, tokens: &[u32]) {
    model.reset();
    let (last, before) = tokens.split_last().unwrap();
    model.prompt(before).unwrap();
    let mut text = tokens.to_vec();
    model
        .greedy(*last, 3, &mut |token| {
            text.push(token);
            true
        })
        .unwrap();
    assert_eq!(text.len(), tokens.len() + 3);
    model.reset();
    let vocab = model.arch().vocab_size;
    let logits = model.forward(&text[..text.len() - 1]).unwrap();
    for (position, &next) in text.iter().enumerate().skip(tokens.len()) {
        let row = &logits[(position - 1) * vocab..position * vocab];
        let likeliest = (0..vocab)
            .rev()
            .max_by(|&a, &b| row[a].total_cmp(&row[b]))
            .unwrap();
        assert_eq!(next as usize, likeliest, "position {position}");
    }
}

fn random_matrix(rng: &mut ChaCha8Rng, scheme: Scheme, (out, inputs): (usize, usize)) -> QuantizedMatrix {
    let (out_groups, in_groups) = scheme.groups(out, inputs).unwrap();
    let (books, states) = (scheme.num_codebooks, scheme.codebook_size());
    let codes = Array3::from_shape_simple_fn((out_groups, in_groups, books), || {
        rng.random_range(0..states) as u16
    });
    let shape = (books, states, scheme.out_group_size, scheme.in_group_size);
    let side = (3.0 / books as f64).sqrt();
    let codebooks =
        Array4::from_shape_simple_fn(shape, || f16::from_f64(rng.random_range(-side..side)).to_f64());
    let scale = f16::from_f64(1.0 / (inputs as f64).sqrt()).to_f64();
    QuantizedMatrix::new(scheme, codes, codebooks, Array1::from_elem(out_groups, scale)).unwrap()
}
