//! Blocks and models of all families on CUDA, run without a GPU: `kernels/shim/driver.cpp` stands in for the
//! driver, NVRTC and cuBLAS, and runs the kernels on the CPU, with guard bytes around all buffers. The check
//! compares them with the reference. Without a C++ compiler the tests say so and are waived.

#[path = "shim/stand_in.rs"]
mod stand_in;

use std::sync::Arc;

use aqlm_check::cases;
use aqlm_check::{CrossOptions, Cuda, Machines, Outcome, cross_check};
use aqlm_optimized::cpu::llama as cpu;
use aqlm_optimized::cuda::Device;
use aqlm_optimized::cuda::training::{Block, Hessian, Machine, ModelTuner, Precision};
use aqlm_vocabulary::{
    AdamDecay, ArchSpec, Input, LinearWeight, ModelTraining as _, ModelTuning, ModelWeights, Tuned,
};

/// Small models with the parts of each family: more heads than keys, windows, biases. Tokens of several tiles
/// are in the corners of the check.
const FAMILIES: [&str; 10] = [
    "16x12-k2-q2-d4-n2-t9-w5-bias-linear-qwen3-2x3g4-s1",
    "16x12-k1-q2-d4-n2-t9-w0-nobias-plain-olmo2-2x3g4o2-s2",
    "16x12-k1-q2-d4-n2-t9-w0-bias-plain-granite-2x3g4-s3",
    "16x12-k1-q2-d4-n2-t9-w0-nobias-plain-smollm3-2x3g4-s4",
    "16x12-k1-q2-d4-n2-t9-w5-bias-plain-phi3-2x3g4o2-s5",
    "16x12-k1-q2-d4-n2-t9-w5-nobias-plain-gemma2-2x3g4-s6",
    "16x12-k1-q2-d4-n2-t9-w5-nobias-plain-gemma3-2x3g4-s7",
    "16x12-k1-q2-d4-n2-t9-w0-nobias-plain-mixtral-2x3g4o2-s8",
    "16x12-k1-q2-d4-n2-t9-w5-bias-llama3-qwen2moe-2x3g4-s9",
    // experts without tokens
    "16x12-k1-q2-d4-n1-t2-w0-nobias-plain-mixtral-2x3g4-s10",
];

fn machine(arch: &ArchSpec, positions: usize) -> Arc<Machine> {
    let device = Arc::new(Device::open_guarded(0, None).unwrap());
    Arc::new(Machine::new(device, arch, positions, Precision::Single).unwrap())
}

/// The operations that only pass blocks forward and back, in f32 and TF32. block_forward and perplexity also
/// run whole models token by token, whose products in f16 the stand-in does not have.
fn check(operations: &[&str]) {
    for operation in operations {
        for family in FAMILIES {
            let machines = vec![Machines {
                backend: "cuda",
                subjects: Cuda::first().map(|cuda| vec![cuda]),
            }];
            let case = format!("{operation}-{family}");
            let options = CrossOptions::of_case(case.parse().unwrap(), machines);
            let report = cross_check(&options, &mut |_| ()).unwrap();
            for row in &report.report.rows {
                assert!(matches!(row.outcome, Outcome::Pass), "{row:?}");
            }
        }
    }
}

#[test]
#[ignore = "takes minutes: every kernel is compiled and run thread by thread; .ci/run has a step for it"]
fn blocks_of_all_families_pass_the_check() {
    stand_in::on_stand_in("blocks_of_all_families_pass_the_check", || {
        check(&["block_backward", "block_finetune"]);
    });
}

#[test]
#[ignore = "takes minutes: every kernel is compiled and run thread by thread; .ci/run has a step for it"]
fn models_of_all_families_pass_the_check() {
    stand_in::on_stand_in("models_of_all_families_pass_the_check", || {
        check(&["model_tune", "gradient_sums"]);
    });
}

/// Every expert's Hessian is that of its own rows, and one with few rows takes the rest from another's mean.
#[test]
fn experts_have_hessians_of_their_own_rows() {
    stand_in::on_stand_in("experts_have_hessians_of_their_own_rows", || {
        let case = format!("block_forward-{}", FAMILIES[8]);
        let (problem, data) = cases::llama(&case).unwrap();
        let (arch, weights) = (&data.config, &data.blocks[0]);
        let machine = machine(arch, problem.tokens);
        let block = Block::new(&machine, &arch.blocks[0], weights).unwrap();
        let x: Vec<f32> = data.x.iter().copied().collect();
        let (_, trace) = machine
            .forward(
                Precision::Single,
                &block,
                &block.decoded(&machine).unwrap(),
                machine.hidden(&x).unwrap(),
                problem.tokens,
            )
            .unwrap();
        let rotary = cpu::Rotary::of_model(arch, problem.tokens);
        let on_cpu = cpu::Block::from_weights(&arch.blocks[0], weights).unwrap();
        let (_, exact) = cpu::block_forward_traced(&on_cpu, &rotary, data.x.view());
        let experts = arch.blocks[0].mlp.routed().unwrap().experts.len() as u16;
        let of_experts = (0..experts).flat_map(|index| [Input::Expert(index), Input::ExpertActivated(index)]);
        let mut pool = Hessian::new(&machine, problem.hidden);
        let mut few = Hessian::new(&machine, problem.hidden);
        let mut exact_pool = ndarray::Array2::<f64>::zeros((problem.hidden, problem.hidden));
        for read in of_experts {
            let own = exact.input(read).mapv(f64::from);
            let (rows, width) = own.dim();
            let mut hessian = Hessian::new(&machine, width);
            hessian.add_rows(&trace.input(read)).unwrap();
            assert_eq!(hessian.samples(), rows, "{read:?}");
            let sum = own.t().dot(&own);
            let found = hessian.mean().unwrap() * rows as f64;
            let off = (&found - &sum).mapv(|e| e * e).sum().sqrt();
            // rows of f32 behind a few hundred terms, and their products
            let limit = 1e-4 * sum.mapv(|h| h * h).sum().sqrt();
            assert!(rows > 0 && off <= limit, "{read:?}: {off}, {limit}");
            if let Input::Expert(_) = read {
                pool.add_rows(&trace.input(read)).unwrap();
                exact_pool += &sum;
            }
        }
        // an expert without rows of its own takes the pool's mean as it is
        few.add_mean_of(&pool, 5).unwrap();
        assert_eq!(few.samples(), 5);
        let expected = exact_pool / pool.samples() as f64;
        let off = (few.mean().unwrap() - &expected).mapv(|e| e * e).sum().sqrt();
        assert!(off <= 1e-4 * expected.mapv(|h| h * h).sum().sqrt(), "{off}");
        let narrow = Hessian::new(&machine, problem.hidden - 1);
        assert!(few.add_mean_of(&narrow, 1).is_err());
    });
}

/// A layer with a NaN is found by the same name as on the CPU.
#[test]
fn broken_layers_are_named_as_on_the_cpu() {
    stand_in::on_stand_in("broken_layers_are_named_as_on_the_cpu", || {
        for family in [FAMILIES[1], FAMILIES[4], FAMILIES[5], FAMILIES[8]] {
            let (problem, data) = cases::llama(&format!("block_forward-{family}")).unwrap();
            let machine = machine(&data.config, problem.tokens);
            let tuned = Tuned {
                norms: true,
                ..Tuned::NONE
            };
            let tuning = ModelTuning::of_parameters(tuned, AdamDecay::PAPER);
            let sequences: Vec<&[u32]> = data.tokens.iter().map(Vec::as_slice).collect();
            let mut found = 0;
            for layer in data.config.blocks[0].layers() {
                let mut blocks = data.blocks.clone();
                let LinearWeight::Dense(weight) = &mut blocks[0].layers[layer.index()].weight else {
                    continue;
                };
                weight[[0, 0]] = f32::NAN;
                let weights = ModelWeights {
                    embedding: data.embedding.clone(),
                    blocks,
                    norm: data.norm.clone(),
                    lm_head: Some(data.lm_head.clone()),
                };
                let mut ours = ModelTuner::new(&machine, &weights, &tuning).unwrap();
                let (arch, keep) = (&data.config, cpu::Activations::Keep);
                let mut theirs = cpu::ModelTuner::new(arch, problem.tokens, &weights, &tuning, keep).unwrap();
                let name = ours.first_not_finite(&sequences).unwrap();
                assert_eq!(name, theirs.first_not_finite(&sequences).unwrap(), "{family}");
                found += usize::from(name.is_some());
            }
            assert!(found > 1, "{family}: {found}");
        }
    });
}
