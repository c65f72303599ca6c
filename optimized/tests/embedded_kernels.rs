//! kernels/embedded.json, the list of kernels that a build with `embed-kernels` compiles, must equal what the
//! packers request: every kernel that the table of measurements prefers, for every scheme with a fast path;
//! for matmul the configurations expected to be fastest at each batch; and what whole models of some shapes
//! also need. `INSTA_UPDATE=always` rewrites it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use aqlm_kernels::{MEASURED_SHAPE, constants};
use aqlm_optimized::cuda::dispatch::{dispatched, resident};
use aqlm_optimized::cuda::llama::plan;
use aqlm_optimized::cuda::memory_rate;
use aqlm_optimized::cuda::pack::{
    Op, Slots, Target, launch_configs, pack, pack_experts, pack_joined, with_config,
};
use aqlm_vocabulary::{BlockSpec, QuantizedMatrix, Rope, RopeScaling, Scheme, llama::LlamaBlock};
use ndarray::{Array1, Array3, Array4};

const SCHEMES: &[&str] = &[
    "1x8g8", "2x8g8", "3x8g8", "4x8g8", "1x12g8", "2x12g8", "1x15g8", "1x16g8", "1x16g16",
];

/// Models whose other kernels are included, by width, width inside SwiGLU, query heads, key heads and width
/// of a head: Llama 2 of 7, 13 and 70 billion, Llama 3 of 8 and Mistral of 7, SmolLM2 of 135 million,
/// tiny-stories-4m.
const MODELS: &[[usize; 5]] = &[
    [4096, 11008, 32, 32, 128],
    [5120, 13824, 40, 40, 128],
    [8192, 28672, 64, 8, 128],
    [4096, 14336, 32, 8, 128],
    [576, 1536, 9, 3, 64],
    [256, 704, 8, 8, 32],
];

/// Mixtures of experts: width, experts, experts of a token, whether their weights add up to 1. Mixtral 8x7B,
/// and the small model that `aqlm bench` checks before it times that.
const MIXTURES: &[(usize, usize, usize, bool)] = &[(4096, 8, 2, true), (256, 4, 2, true)];

/// Number of rows where the constants do not depend on it.
const FEW_ROWS: usize = 64;

/// A matrix of zeros: constants follow from the scheme, and for some kernels from whether x fits beside the
/// codebooks.
fn empty(scheme: Scheme, out_features: usize, in_features: usize) -> QuantizedMatrix {
    let (out_groups, in_groups) = scheme.groups(out_features, in_features).unwrap();
    let shape = (
        scheme.num_codebooks,
        scheme.codebook_size(),
        1,
        scheme.in_group_size,
    );
    QuantizedMatrix::new(
        scheme,
        Array3::zeros((out_groups, in_groups, scheme.num_codebooks)),
        Array4::zeros(shape),
        Array1::ones(out_groups),
    )
    .unwrap()
}

fn wanted() -> BTreeMap<String, BTreeSet<String>> {
    // On the measured device 15 clusters of 8 fit.
    let hopper = Target {
        clusters: [132, 66, 32, 15, 0],
        ..Target::h100()
    };
    let ampere = Target {
        multiprocessors: 108,
        shared_bytes: 166_912,
        clusters: [108, 0, 0, 0, 0],
        ..Target::h100()
    };
    let mut wanted: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut add = |id: &str, defines: &[(&str, usize)]| {
        wanted
            .entry(id.to_owned())
            .or_default()
            .insert(constants(defines));
    };
    for &[hidden_size, intermediate_size, heads, kv_heads, head_dim] in MODELS {
        let block = BlockSpec::llama(LlamaBlock {
            hidden_size,
            intermediate_size,
            heads,
            kv_heads,
            head_dim,
            epsilon: 1e-5,
            rotary: Rope {
                theta: 10_000.0,
                scaling: RopeScaling::None,
            },
            window: None,
        });
        let attention = &block.attention;
        let step = |target: &Target, clusters| {
            plan::attention_step(attention, 4096, false, target.multiprocessors as usize, clusters)
        };
        for plan in [
            plan::embed(hidden_size, 1),
            plan::rms_norm(hidden_size, 1, 1e-5, false, false),
            plan::rms_norm(hidden_size, 1, 1e-5, true, false),
            plan::rope(attention, 1, 0, 4096, false),
            plan::attention(attention, 1, 0, 4096),
            step(&hopper, true),
            step(&ampere, false),
            plan::swiglu(intermediate_size, 1, [intermediate_size; 2], false),
            plan::dense(hidden_size, hidden_size, 1, false),
            plan::dense(hidden_size, hidden_size, 1, true),
            plan::argmax(32_000),
        ] {
            add(plan.kernel, &plan.defines);
        }
    }
    for &(hidden, experts, used, normalized) in MIXTURES {
        let added = plan::Addition {
            slots: used,
            shares: true,
            bias: false,
            after: None,
            factor: 1.0,
        };
        for plan in [
            plan::route(experts, used, normalized, false),
            plan::residual_norm(hidden, 1, Some(added), Some(1e-5)),
            plan::dense_experts(hidden, hidden, used, [0, hidden]),
        ] {
            add(plan.kernel, &plan.defines);
        }
    }
    for block in memory_rate::BLOCKS {
        for loads in memory_rate::LOADS {
            for plan in [
                memory_rate::read_plan(block, loads, 1, 1),
                memory_rate::copy_plan(block, loads, 1, 1),
            ] {
                add(plan.kernel, &plan.defines);
            }
        }
    }
    let [out_features, in_features] = MEASURED_SHAPE;
    for scheme in SCHEMES {
        let scheme: Scheme = scheme.parse().unwrap();
        for (target, compute) in [(&hopper, (9, 0)), (&ampere, (8, 0))] {
            for width in [in_features, out_features] {
                let matrix = empty(scheme, FEW_ROWS, width);
                for op in [Op::Matvec, Op::Decode] {
                    let found = dispatched(op, scheme, [out_features, width], 1, compute, target).unwrap();
                    let naive = format!("{}/k1_naive", op.name());
                    // Fallbacks of whole models for matrices that need more blocks than run at once.
                    let others = resident(op, scheme, [out_features, width], 1, compute, target);
                    let others = others
                        .into_iter()
                        .map(|(id, _)| id)
                        .filter(|id| op == Op::Matvec && *id != naive);
                    for id in [found.kernel, naive.as_str()] {
                        let packed = pack(id, &matrix, target, 1).unwrap();
                        add(id, &packed.defines);
                    }
                    for id in others {
                        if let Ok(packed) = pack(id, &matrix, target, 1) {
                            add(id, &packed.defines);
                        }
                    }
                }
            }
            let matrix = empty(scheme, FEW_ROWS, in_features);
            // Chosen experts, by one matrix each or by gate and up joined.
            for kernel in aqlm_kernels::kernels().iter().filter(|kernel| kernel.experts) {
                for parts in [1, 2] {
                    let experts = vec![vec![&matrix; parts]; 2];
                    let slots = Slots {
                        count: 2,
                        same_x: true,
                        y_stride: None,
                    };
                    let preferred = kernel.id.ends_with("k1_naive")
                        || resident(Op::Matvec, scheme, MEASURED_SHAPE, 1, compute, target)
                            .iter()
                            .any(|(id, _)| *id == kernel.id);
                    if preferred
                        && kernel.runs_on((compute.0 * 10 + compute.1) as u32)
                        && let Ok(packed) = pack_experts(&kernel.id, &experts, slots, target)
                    {
                        add(&kernel.id, &packed.packed.defines);
                    }
                }
            }
            // Queries, keys and values share a launch; gate and up share another.
            for parts in [2, 3] {
                for kernel in aqlm_kernels::kernels()
                    .iter()
                    .filter(|kernel| kernel.joins.is_some())
                {
                    if kernel.runs_on((compute.0 * 10 + compute.1) as u32)
                        && let Ok(joined) = pack_joined(&kernel.id, &vec![&matrix; parts], target)
                    {
                        add(&kernel.id, &joined.packed.defines);
                    }
                }
            }
            add(
                "matmul/k1_naive",
                &pack("matmul/k1_naive", &matrix, target, 1).unwrap().defines,
            );
            // The blocks of this kernel adapt to the matrix, so its constants follow from the rows.
            let id = "matmul/k4_hot_codewords";
            for batch in [16, 32] {
                let found = dispatched(Op::Matmul, scheme, MEASURED_SHAPE, batch, compute, target).unwrap();
                if found.kernel == id {
                    let matrix = empty(scheme, out_features, in_features);
                    add(id, &pack(id, &matrix, target, batch).unwrap().defines);
                }
            }
            for batch in [16, 32, 64, 128, 256] {
                for id in ["matmul/k2_fused_tensor", "matmul/k3_warpgroup"] {
                    if !aqlm_kernels::kernel(id)
                        .unwrap()
                        .runs_on((compute.0 * 10 + compute.1) as u32)
                    {
                        continue;
                    }
                    let configs = launch_configs(id, scheme, out_features, in_features, batch, target);
                    let found =
                        dispatched(Op::Matmul, scheme, MEASURED_SHAPE, batch, compute, target).unwrap();
                    let packed = pack(id, &matrix, target, batch).unwrap();
                    let chosen = found.config.filter(|_| found.kernel == id);
                    for config in configs.first().copied().into_iter().chain(chosen) {
                        add(id, &with_config(&packed, scheme, target, config).defines);
                    }
                }
            }
        }
    }
    wanted
}

#[test]
fn the_list_of_embedded_kernels_is_what_packers_ask_for() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/embedded.json");
    let wanted = serde_json::to_string_pretty(&wanted()).unwrap() + "\n";
    if std::env::var("INSTA_UPDATE").is_ok_and(|update| update == "always") {
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap();
    assert_eq!(found, wanted, "run with INSTA_UPDATE=always");
}
