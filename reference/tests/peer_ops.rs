//! The quantizer against vectors that the official engine computed: `peer/ops` of the shared folder, which lies
//! beside the repository or where AQLM_SHARED says. Waived when it is absent.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aqlm_reference::vocabulary::{QuantizedMatrix, Scheme};
use aqlm_reference::{
    AdamSettings, Hessian, KMeansSettings, adam, beam_search, closed_form, decode, kmeans, layer_error,
    row_errors,
};
use ndarray::{Array1, Array2, Array3, ArrayD, Dimension, Ix1, Ix2, Ix3, Ix4};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// Limits relative to the norm (design.md 5, "how results are compared"): what the peer's own type leaves over.
mod limits {
    /// the peer decodes in f32: one rounding a codeword and one for the scale, each 6e-8
    pub(crate) const DECODE: f64 = 1e-6;
    /// f64 on both sides, sums of some hundred terms
    pub(crate) const HESSIAN: f64 = 1e-10;
    /// the peer decodes in f32 and then subtracts
    pub(crate) const OBJECTIVE: f64 = 1e-5;
    /// f32 distances; points between two centroids may go either way
    pub(crate) const KMEANS_INERTIA: f64 = 1e-5;
    /// a search that ends in another local minimum by a tie must not be worse
    pub(crate) const BEAM_SEARCH: f64 = 1e-6;
    /// f32 gradients, their rounding carried through the steps
    pub(crate) const ADAM_LOSSES: f64 = 1e-3;
    /// after one step
    pub(crate) const ADAM_PARAMETERS: f64 = 1e-5;
    /// f64 on both sides, normal equations against a minimum-norm solution
    pub(crate) const CLOSED_FORM: f64 = 1e-9;
    /// absolute: the peer rounds three quotients below 4 and two sums, we round one quotient of exact integers
    pub(crate) const BITS: f64 = 5.0 * 2.0 * f64::EPSILON;
}

fn shared() -> PathBuf {
    std::env::var_os("AQLM_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"),
        PathBuf::from,
    )
}

/// One entry of index.json with its arrays, everything as f64.
struct Case {
    entry: Value,
    arrays: BTreeMap<String, ArrayD<f64>>,
}

impl Case {
    fn load(folder: &Path, entry: &Value) -> Self {
        let name = entry["name"].as_str().expect("a name");
        let mut arrays = BTreeMap::new();
        if entry["kind"] != "bits" {
            let bytes = std::fs::read(folder.join(format!("{name}.safetensors"))).expect("the case's file");
            for (key, view) in SafeTensors::deserialize(&bytes).expect("safetensors").tensors() {
                let data = view.data();
                let values: Vec<f64> = match view.dtype() {
                    Dtype::F64 => chunks(data, f64::from_le_bytes),
                    Dtype::F32 => chunks(data, |b| f32::from_le_bytes(b).into()),
                    Dtype::I32 => chunks(data, |b| i32::from_le_bytes(b).into()),
                    Dtype::I64 => chunks(data, |b| i64::from_le_bytes(b) as f64),
                    other => panic!("{name}: {key} has type {other:?}"),
                };
                arrays.insert(
                    key,
                    ArrayD::from_shape_vec(view.shape(), values).expect("its shape"),
                );
            }
        }
        Self {
            entry: entry.clone(),
            arrays,
        }
    }

    fn number(&self, key: &str) -> f64 {
        self.entry[key]
            .as_f64()
            .unwrap_or_else(|| panic!("{key} of {}", self.entry["name"]))
    }

    fn get<D: Dimension>(&self, key: &str) -> ndarray::Array<f64, D> {
        self.arrays[key]
            .clone()
            .into_dimensionality()
            .expect("its number of dimensions")
    }

    fn two(&self, key: &str) -> Array2<f64> {
        self.get::<Ix2>(key)
    }

    fn codes(&self, key: &str) -> Array3<u16> {
        self.get::<Ix3>(key).mapv(|code| code as u16)
    }

    fn scales(&self, key: &str) -> Array1<f64> {
        self.arrays[key].iter().copied().collect()
    }

    /// The matrix of the arrays named, its scheme read off the codebooks' shape.
    fn matrix(&self, codes: &str, codebooks: &str, scales: &str) -> QuantizedMatrix {
        let codebooks = self.get::<Ix4>(codebooks);
        let (num, size, go, gi) = codebooks.dim();
        let scheme = Scheme::with_out_group(num, size.ilog2(), gi, go).expect("a scheme");
        QuantizedMatrix::new(scheme, self.codes(codes), codebooks, self.scales(scales)).expect("a matrix")
    }
}

fn chunks<const N: usize>(data: &[u8], read: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    data.chunks_exact(N)
        .map(|chunk| read(chunk.try_into().expect("N bytes")))
        .collect()
}

/// |found - expected| / |expected|, in the L2 norm. A reference of zeros proves nothing and fails.
fn relative<D: Dimension>(found: &ndarray::Array<f64, D>, expected: &ndarray::Array<f64, D>) -> f64 {
    assert_eq!(found.shape(), expected.shape());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
    let size = norm(&mut expected.iter().copied());
    assert!(size > 0.0, "an expected result of norm zero");
    norm(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / size
}

/// (what was compared, its distance, its limit) of one case; `None` for kinds of other parts of the crate.
fn compare(case: &Case) -> Option<Vec<(&'static str, f64, f64)>> {
    let kind = case.entry["kind"].as_str().expect("a kind");
    Some(match kind {
        "decode" => {
            let found = decode(&case.matrix("codes", "codebooks", "scales"));
            vec![("weight", relative(&found, &case.two("weight")), limits::DECODE)]
        }
        "hessian" => {
            let activations = case.two("activations");
            let mut hessian = Hessian::new(activations.ncols());
            for batch in activations.axis_chunks_iter(ndarray::Axis(0), case.number("batches") as usize) {
                hessian.add(batch).expect("inputs");
            }
            vec![(
                "hessian",
                relative(&hessian.mean(), &case.two("xtx")),
                limits::HESSIAN,
            )]
        }
        "objective" => {
            let (weight, hessian) = (case.two("weight"), case.two("xtx"));
            let quantized = decode(&case.matrix("codes", "codebooks", "scales"));
            let loss = layer_error(&weight, &quantized, &hessian) / weight.nrows() as f64;
            let expected = case.number("loss");
            let rows = relative(
                &row_errors(&weight, &quantized, &hessian),
                &case.get::<Ix1>("row_sq_error"),
            );
            vec![
                ("loss", (loss - expected).abs() / expected, limits::OBJECTIVE),
                ("row errors", rows, limits::OBJECTIVE),
            ]
        }
        "kmeans" => {
            let settings = KMeansSettings::new(case.number("max_iter") as usize);
            let found = kmeans(case.two("data").view(), case.two("init"), &settings);
            let expected = case.number("inertia");
            vec![(
                "inertia",
                (found.inertia - expected).abs() / expected,
                limits::KMEANS_INERTIA,
            )]
        }
        "beam_search" => {
            let (weight, hessian) = (case.two("weight"), case.two("xtx"));
            let mut matrix = case.matrix("prev_codes", "codebooks", "scales");
            let (_, in_groups, num_codebooks) = matrix.codes.dim();
            let order: Vec<_> = (0..in_groups)
                .flat_map(|j| (0..num_codebooks).map(move |m| (j, m)))
                .collect();
            let beam = case.number("beam") as usize;
            let before = layer_error(&weight, &decode(&matrix), &hessian);
            matrix.codes = beam_search(&weight, &hessian, &matrix, &order, beam).expect("a search");
            let after = layer_error(&weight, &decode(&matrix), &hessian);
            let expected = case.number("loss_before");
            vec![
                (
                    "loss before",
                    (before - expected).abs() / expected,
                    limits::OBJECTIVE,
                ),
                (
                    "loss after over the peer's, less 1",
                    after / case.number("loss_after") - 1.0,
                    limits::BEAM_SEARCH,
                ),
            ]
        }
        "adam_update" => {
            let (weight, hessian) = (case.two("weight"), case.two("xtx"));
            let matrix = case.matrix("codes", "codebooks", "scales");
            let expected: Array1<f64> = case.get::<Ix1>("losses");
            let run = |steps| {
                let settings = AdamSettings {
                    lr: case.number("lr"),
                    beta1: case.number("beta1"),
                    beta2: case.number("beta2"),
                    eps: case.number("eps"),
                    amsgrad: case.entry["amsgrad"].as_bool().expect("amsgrad"),
                    steps,
                };
                adam(&weight, &hessian, &matrix, &settings).expect("Adam")
            };
            let (one, _) = run(1);
            let (_, losses) = run(expected.len());
            let worst = losses
                .iter()
                .zip(&expected)
                .map(|(a, b)| (a - b).abs() / b)
                .fold(0.0, f64::max);
            let codebooks = relative(&one.codebooks, &case.get::<Ix4>("codebooks_1"));
            let scales = relative(&one.scales, &case.scales("scales_1"));
            vec![
                ("losses", worst, limits::ADAM_LOSSES),
                ("codebooks after a step", codebooks, limits::ADAM_PARAMETERS),
                ("scales after a step", scales, limits::ADAM_PARAMETERS),
            ]
        }
        "closed_form" => {
            let (weight, hessian) = (case.two("weight"), case.two("xtx"));
            let mut matrix = case.matrix("codes", "codebooks", "scales");
            let expected = case.number("loss");
            // Not from the peer's solution: from codebooks of zeros.
            matrix.codebooks.fill(0.0);
            matrix.codebooks = closed_form(&weight, &hessian, &matrix).expect("a solution");
            let loss = layer_error(&weight, &decode(&matrix), &hessian);
            vec![("loss", (loss - expected).abs() / expected, limits::CLOSED_FORM)]
        }
        "bits" => {
            let [num, nbits, gi] =
                ["num_codebooks", "nbits", "in_group_size"].map(|key| case.number(key) as usize);
            let scheme = Scheme::new(num, nbits as u32, gi).expect("a scheme");
            let [out, inputs] = ["out_features", "in_features"].map(|key| case.number(key) as usize);
            let found = scheme.bits_per_parameter(out, inputs);
            vec![(
                "bits",
                (found - case.number("bits_per_parameter")).abs(),
                limits::BITS,
            )]
        }
        _ => return None,
    })
}

#[test]
fn every_case_of_the_official_engine_agrees() {
    let folder = shared().join("peer/ops");
    let Ok(text) = std::fs::read_to_string(folder.join("index.json")) else {
        println!("waived: no {}", folder.display());
        return;
    };
    let index: Vec<Value> = serde_json::from_str(&text).expect("index.json");
    let mut cases: BTreeMap<String, usize> = BTreeMap::new();
    let mut failures = Vec::new();
    for entry in &index {
        let Some(results) = compare(&Case::load(&folder, entry)) else {
            continue;
        };
        *cases.entry(entry["kind"].to_string()).or_default() += 1;
        for (what, distance, limit) in results {
            println!("{} {what}: {distance:.1e}, limit {limit:.0e}", entry["name"]);
            // Also a failure for NaN.
            if !matches!(
                distance.partial_cmp(&limit),
                Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal)
            ) {
                failures.push(format!("{} {what}: {distance:e} above {limit:e}", entry["name"]));
            }
        }
    }
    println!("cases: {cases:?}");
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(!cases.is_empty(), "no case of a kind that is tested here");
}
