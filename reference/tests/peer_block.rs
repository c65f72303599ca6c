//! The Llama block and its gradients compared with PyTorch's autograd.
//!
//! `tests/vectors` holds cases computed in f64 throughout (by generate.py). The `llama_block` cases of the
//! peer's vectors beside the repository come from unmodified transformers.

use std::path::{Path, PathBuf};

use aqlm_reference::llama::{
    Block, BlockGradients, ResidentLinear, ResidentWeight, Rotary, block_backward, block_forward_traced,
};
use aqlm_vocabulary::{BlockSpec, Rope, RopeScaling, llama::LlamaBlock};
use ndarray::{Array, Array2, Array3, ArrayD, Axis, Dimension, Ix1, Ix2, Ix3, IxDyn};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// Allowed distances, relative to the norm of the peer's array.
#[derive(Clone, Copy)]
struct Limits {
    /// with the peer's rotary tables
    same_tables: f64,
    /// with this project's tables
    own_tables: f64,
}

/// For a peer that computes in f64. Sums of tens of terms, in about ten layers forward and backward, stay far
/// below these limits (a reserve of a million). The peer's rotary tables are in f32.
const F64_THROUGHOUT: Limits = Limits {
    same_tables: 1e-9,
    own_tables: F32_INSIDE,
};

/// For unmodified transformers. Its arrays may be f64, but LlamaRMSNorm, the eager softmax and the rotary
/// tables cast to f32 inside, forward and backward. Every number passes through 10 to 20 roundings of f32's
/// epsilon (1.2e-7). Those of scores and angles are multiplied by their size, up to about 10.
const F32_INSIDE: f64 = 1e-5;

/// `shared/peer/ops` beside the repository, or in AQLM_SHARED.
fn peer_ops() -> PathBuf {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    std::env::var_os("AQLM_SHARED")
        .map_or_else(beside, PathBuf::from)
        .join("peer/ops")
}

struct Case<'a> {
    name: &'a str,
    tensors: SafeTensors<'a>,
}

impl Case<'_> {
    fn find<D: Dimension>(&self, tensor: &str) -> Option<Array<f64, D>> {
        let view = self.tensors.tensor(tensor).ok()?;
        assert_eq!(view.dtype(), Dtype::F64, "{}: {tensor}", self.name);
        let values = view
            .data()
            .chunks_exact(8)
            .map(|b| f64::from_le_bytes(b.try_into().unwrap()));
        let array = ArrayD::from_shape_vec(IxDyn(view.shape()), values.collect()).unwrap();
        Some(
            array
                .into_dimensionality()
                .unwrap_or_else(|e| panic!("{}: {tensor}: {e}", self.name)),
        )
    }

    fn get<D: Dimension>(&self, tensor: &str) -> Array<f64, D> {
        self.find(tensor)
            .unwrap_or_else(|| panic!("{} lacks {tensor}", self.name))
    }

    /// Asserts that our array is within `limit` of the peer's, relative to the norm of the peer's.
    fn compare<D: Dimension>(&self, tensor: &str, ours: &Array<f64, D>, limit: f64) {
        let theirs: Array<f64, D> = self.get(tensor);
        assert_eq!(ours.shape(), theirs.shape(), "{}: {tensor}", self.name);
        let norm = |array: &Array<f64, D>| array.iter().map(|x| x * x).sum::<f64>().sqrt();
        assert!(norm(&theirs) > 0.0, "{}: {tensor} of the peer is zero", self.name);
        let distance = norm(&(ours - &theirs)) / norm(&theirs);
        assert!(
            distance <= limit,
            "{}: {tensor} is {distance:e} off, limit {limit:e}",
            self.name
        );
    }
}

fn spec(case: &Case, entry: &Value) -> BlockSpec {
    let count = |field: &str| {
        entry[field]
            .as_u64()
            .unwrap_or_else(|| panic!("{field} in index.json")) as usize
    };
    let number = |field: &str| {
        entry[field]
            .as_f64()
            .unwrap_or_else(|| panic!("{field} in index.json"))
    };
    let gate: Array2<f64> = case.get("param.mlp.gate_proj.weight");
    let cos: Array3<f64> = case.get("cos");
    BlockSpec::llama(LlamaBlock {
        hidden_size: gate.ncols(),
        intermediate_size: gate.nrows(),
        heads: count("heads"),
        kv_heads: count("kv_heads"),
        head_dim: cos.dim().2,
        epsilon: number("rms_norm_eps"),
        rotary: Rope {
            theta: number("rope_theta"),
            scaling: scaling(&entry["rope_scaling"]),
        },
        window: entry["sliding_window"].as_u64().map(|window| window as usize),
    })
}

fn scaling(entry: &Value) -> RopeScaling {
    let number = |field: &str| {
        entry[field]
            .as_f64()
            .unwrap_or_else(|| panic!("{field} in index.json"))
    };
    if entry.is_null() {
        return RopeScaling::None;
    }
    RopeScaling::Llama3 {
        factor: number("factor"),
        low_freq_factor: number("low_freq_factor"),
        high_freq_factor: number("high_freq_factor"),
        original_max_position_embeddings: number("original_max_position_embeddings") as usize,
    }
}

fn block(case: &Case, spec: &BlockSpec) -> Block {
    let layers = spec.linears.iter().map(|linear| ResidentLinear {
        weight: ResidentWeight::Dense(case.get(&format!("param.{}.weight", linear.name))),
        bias: case.find::<Ix1>(&format!("param.{}.bias", linear.name)),
    });
    let norms = ["input_layernorm", "post_attention_layernorm"]
        .map(|norm| case.get::<Ix1>(&format!("param.{norm}.weight")));
    Block::new(spec, norms.into(), layers.collect()).unwrap()
}

fn run(case: &Case, block: &Block, own_tables: bool, limits: Limits) {
    let limit = if own_tables {
        limits.own_tables
    } else {
        limits.same_tables
    };
    let (x, target): (Array3<f64>, Array3<f64>) = (case.get("x"), case.get("target"));
    let (cos, sin): (Array3<f64>, Array3<f64>) = (case.get("cos"), case.get("sin"));
    let (mut y, mut grad_x) = (Array3::zeros(x.dim()), Array3::zeros(x.dim()));
    let mut total: Option<BlockGradients> = None;
    for n in 0..x.dim().0 {
        let part = |array: &Array3<f64>| array.index_axis(Axis(0), n).to_owned();
        let rotary = if own_tables {
            Rotary::new(&block.spec().attention, x.dim().1)
        } else {
            Rotary::from_tables(part(&cos), part(&sin)).unwrap()
        };
        let (part_y, trace) = block_forward_traced(block, &rotary, part(&x).view());
        let grad_y = 2.0 / x.len() as f64 * (&part_y - &part(&target));
        let gradients = block_backward(block, &rotary, &trace, grad_y.view());
        y.index_axis_mut(Axis(0), n).assign(&part_y);
        grad_x.index_axis_mut(Axis(0), n).assign(&gradients.x);
        match &mut total {
            None => total = Some(gradients),
            Some(total) => {
                for (total, part) in total.layers.iter_mut().zip(&gradients.layers) {
                    *total += part;
                }
                for (total, part) in total.biases.iter_mut().zip(&gradients.biases) {
                    if let Some((total, part)) = total.as_mut().zip(part.as_ref()) {
                        *total += part;
                    }
                }
                for (total, part) in total.norms.iter_mut().zip(&gradients.norms) {
                    *total += part;
                }
            }
        }
    }
    let total = total.expect("a case of at least one sequence");
    case.compare::<Ix3>("y", &y, limit);
    case.compare::<Ix3>("grad_x", &grad_x, limit);
    for layer in block.spec().layers() {
        let name = &block.spec().linear(layer).name;
        case.compare::<Ix2>(
            &format!("grad.{name}.weight"),
            &total.layers[layer.index()],
            limit,
        );
        if let Some(bias) = &total.biases[layer.index()] {
            case.compare::<Ix1>(&format!("grad.{name}.bias"), bias, limit);
        }
    }
    for (norm, gradient) in block.spec().norms.iter().zip(&total.norms) {
        let name = &norm.name;
        case.compare::<Ix1>(&format!("grad.{name}.weight"), gradient, limit);
    }
}

/// Runs every `llama_block` case of a folder and returns their number; `None` without an index.json.
fn run_all(folder: &Path, limits: Limits) -> Option<usize> {
    let index = std::fs::read_to_string(folder.join("index.json")).ok()?;
    let index: Vec<Value> = serde_json::from_str(&index).unwrap();
    let mut cases = 0;
    for entry in index.iter().filter(|entry| entry["kind"] == "llama_block") {
        let name = entry["name"].as_str().unwrap();
        let bytes = std::fs::read(folder.join(name).with_extension("safetensors")).unwrap();
        let case = Case {
            name,
            tensors: SafeTensors::deserialize(&bytes).unwrap(),
        };
        let block = block(&case, &spec(&case, entry));
        run(&case, &block, false, limits);
        run(&case, &block, true, limits);
        cases += 1;
    }
    Some(cases)
}

#[test]
fn blocks_and_gradients_match_autograd_in_f64() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    assert_eq!(run_all(&folder, F64_THROUGHOUT), Some(2));
}

#[test]
fn blocks_and_gradients_match_transformers() {
    let folder = peer_ops();
    let limits = Limits {
        same_tables: F32_INSIDE,
        own_tables: F32_INSIDE,
    };
    match run_all(&folder, limits) {
        None => println!("waived: no {}", folder.join("index.json").display()),
        Some(cases) => assert!(cases > 0, "index.json has no llama_block case"),
    }
}
