use std::path::{Path, PathBuf};
use std::sync::Arc;

use aqlm_engine::backends::BackendKind;
use aqlm_optimized::cuda::training::Machine;
use aqlm_reference::llama::{
    Block, ResidentLinear, ResidentWeight, Rotary, block_backward, block_forward_traced,
};
use aqlm_reference::{Hessian, KMeansSettings, adam, beam_search, closed_form, decode, kmeans, layer_error};
use aqlm_vocabulary::{
    AdamSettings, BlockSpec, Position, QuantizedMatrix, Rates, Rope, RopeScaling, Scheme, llama::LlamaBlock,
};
use ndarray::{Array1, Array2, Array3, Array4, Ix1, Ix2, Ix3, Ix4, s};
use serde_json::Value;

use super::peer_pv::{PvSettings, first_gpu, pv_case};
use super::vector_file::VectorFile;
use super::vector_options::VectorOptions;
use super::{CaseRow, Comparison, Outcome, largest, relative_difference};
use aqlm_formats::{Error, Result};

/// The backend on which operations are checked. Peers' vectors validate the reference, and the reference
/// validates the other backends.
const BACKEND: &str = "reference";

/// transformers casts to f32 inside RMSNorm and the eager softmax even if the model is f64. Each number of a
/// block therefore passes through 10 to 20 roundings of 6e-8; those of scores are multiplied by the scores'
/// size of up to about 10. harness/tools/interop/llama_block_f64.py shows both: unmodified transformers
/// reproduces such vectors to 1e-16, and without the two casts it agrees with this project to [`BLOCK_F64`].
const BLOCK_F32_INSIDE: f64 = 1e-5;
/// For vectors whose entry says `"arithmetic": "f64"`: they were computed without those casts.
const BLOCK_F64: f64 = 1e-9;

/// The GPU that a backend needs, if it needs one; else why there is none.
fn gpu_for(backend: BackendKind) -> std::result::Result<Option<Arc<Machine>>, String> {
    let gpu = (backend == BackendKind::Cuda).then(first_gpu);
    gpu.transpose().map_err(|error| error.to_string())
}

/// Checks every case of an `index.json`: single operations, computed by the official engine and transformers.
pub(super) fn check(
    folder: &Path,
    options: &VectorOptions,
    progress: &mut dyn FnMut(&CaseRow),
) -> Result<Vec<CaseRow>> {
    let path = folder.join("index.json");
    let text = std::fs::read(&path).map_err(Error::io(&path, "read"))?;
    let index: Vec<Value> = serde_json::from_slice(&text).map_err(Error::json(&path, 1))?;
    let mut rows = Vec::new();
    // opened by the first case that needs it
    let mut gpu = None;
    for (number, entry) in index.iter().enumerate() {
        let entry = Entry {
            path: &path,
            number,
            fields: entry,
        };
        let (name, kind) = (entry.text("name")?, entry.text("kind")?);
        if !options.wants(&kind, &name) {
            continue;
        }
        let open = || VectorFile::open(&folder.join(format!("{name}.safetensors")));
        if kind == "pv_step" {
            let backend = options.backend.name();
            let changed = entry.counts("groups_changed")?;
            let settings = entry.pv_settings()?;
            let row = match gpu.get_or_insert_with(|| gpu_for(options.backend)) {
                Ok(gpu) => {
                    let comparisons = pv_case(&settings, &changed, &open()?, options.backend, gpu.as_ref())?;
                    CaseRow::compared(&kind, &name, backend, comparisons)
                }
                Err(reason) => CaseRow::without(&kind, &name, backend, Outcome::Waived, reason.as_str()),
            };
            progress(&row);
            rows.push(row);
            continue;
        }
        let comparisons = match kind.as_str() {
            "decode" => Some(decode_case(&open()?)?),
            "hessian" => Some(hessian_case(&entry, &open()?)?),
            "objective" => Some(objective_case(&entry, &open()?)?),
            "kmeans" => Some(kmeans_case(&entry, &open()?)?),
            "beam_search" => Some(beam_search_case(&entry, &open()?)?),
            "adam_update" => Some(adam_case(&entry, &open()?)?),
            "closed_form" => Some(closed_form_case(&entry, &open()?)?),
            "bits" => Some(bits_case(&entry)?),
            "llama_block" => Some(llama_block_case(&entry, &open()?)?),
            _ => None,
        };
        let row = match comparisons {
            Some(comparisons) => CaseRow::compared(&kind, &name, BACKEND, comparisons),
            None => CaseRow::without(
                &kind,
                &name,
                BACKEND,
                Outcome::Unsupported,
                "no operation of this kind is known",
            ),
        };
        progress(&row);
        rows.push(row);
    }
    Ok(rows)
}

/// One entry of the index; its errors include its name.
struct Entry<'a> {
    path: &'a PathBuf,
    number: usize,
    fields: &'a Value,
}

impl Entry<'_> {
    fn field<T>(&self, name: &str, expected: &str, read: impl FnOnce(&Value) -> Option<T>) -> Result<T> {
        let value = &self.fields[name];
        read(value).ok_or_else(|| Error::Field {
            path: self.path.clone(),
            field: format!("[{}].{name}", self.number),
            expected: expected.into(),
            found: value.to_string(),
        })
    }

    fn text(&self, name: &str) -> Result<String> {
        self.field(name, "a string", |value| value.as_str().map(str::to_owned))
    }

    fn number(&self, name: &str) -> Result<f64> {
        self.field(name, "a number", Value::as_f64)
    }

    fn count(&self, name: &str) -> Result<usize> {
        self.field(name, "a whole number", |value| {
            value.as_u64().map(|value| value as usize)
        })
    }

    fn flag(&self, name: &str) -> Result<bool> {
        self.field(name, "true or false", Value::as_bool)
    }

    fn pair(&self, name: &str) -> Result<[f64; 2]> {
        self.field(name, "two numbers", |value| {
            let numbers: Vec<f64> = value.as_array()?.iter().filter_map(Value::as_f64).collect();
            numbers.try_into().ok()
        })
    }

    fn counts(&self, name: &str) -> Result<Vec<Vec<usize>>> {
        self.field(name, "lists of whole numbers", |value| {
            let counts = |value: &Value| -> Option<Vec<usize>> {
                let counts = value.as_array()?.iter();
                counts
                    .map(|count| count.as_u64().map(|count| count as usize))
                    .collect()
            };
            value.as_array()?.iter().map(counts).collect()
        })
    }

    fn pv_settings(&self) -> Result<PvSettings> {
        let trust_ratio = self.field("code_trust_ratio", "a number or null", |value| {
            if value.is_null() {
                Some(None)
            } else {
                value.as_f64().map(Some)
            }
        })?;
        let rates = Rates {
            lr: self.number("lr")?,
            code_lr: self.number("code_lr")?,
        };
        Ok(PvSettings::new(
            [self.flag("lamb")?, self.flag("debias")?],
            self.pair("betas")?,
            self.pair("code_betas")?,
            self.number("eps")?,
            rates,
            self.number("max_code_change")?,
            trust_ratio,
            self.count("beam")?,
            self.number("delta_decay")?,
            self.count("steps")?,
        ))
    }
}

/// Codes, codebooks and scales of a case; the scheme follows from the shapes.
fn matrix(file: &VectorFile, codes: &str) -> Result<QuantizedMatrix> {
    quantized(file, &file.array_n(codes)?, file.array_n::<Ix4>("codebooks")?)
}

fn quantized(file: &VectorFile, codes: &Array3<f64>, codebooks: Array4<f64>) -> Result<QuantizedMatrix> {
    let (num_codebooks, size, out_group, in_group) = codebooks.dim();
    let scheme = Scheme::with_out_group(num_codebooks, size.ilog2(), in_group, out_group)?;
    let scales = Array1::from_iter(file.array("scales")?.iter().copied());
    Ok(QuantizedMatrix::new(
        scheme,
        codes.mapv(|code| code as u16),
        codebooks,
        scales,
    )?)
}

fn decode_case(file: &VectorFile) -> Result<Vec<Comparison>> {
    let found = decode(&matrix(file, "codes")?);
    // The peer computes in f32: one rounding per codebook and one for the scale.
    Ok(vec![Comparison::new(
        "weight, relative",
        relative_difference(&found, &file.array("weight")?),
        1e-6,
    )])
}

fn hessian_case(entry: &Entry<'_>, file: &VectorFile) -> Result<Vec<Comparison>> {
    let activations = file.array_n::<Ix2>("activations")?;
    let mut hessian = Hessian::new(activations.ncols());
    for batch in activations.axis_chunks_iter(ndarray::Axis(0), entry.count("batches")?.max(1)) {
        hessian.add(batch)?;
    }
    Ok(vec![Comparison::new(
        "H, relative",
        relative_difference(&hessian.mean(), &file.array("xtx")?),
        1e-10,
    )])
}

fn objective_case(entry: &Entry<'_>, file: &VectorFile) -> Result<Vec<Comparison>> {
    let weight = file.array_n::<Ix2>("weight")?;
    let loss =
        layer_error(&weight, &decode(&matrix(file, "codes")?), &file.array_n("xtx")?) / weight.nrows() as f64;
    let expected = entry.number("loss")?;
    Ok(vec![Comparison::new(
        "loss, relative",
        (loss - expected).abs() / expected,
        1e-5,
    )])
}

fn kmeans_case(entry: &Entry<'_>, file: &VectorFile) -> Result<Vec<Comparison>> {
    let points = file.array_n::<Ix2>("data")?;
    let settings = KMeansSettings::new(entry.count("max_iter")?);
    let inertia = kmeans(points.view(), file.array_n("init")?, &settings).inertia;
    let expected = entry.number("inertia")?;
    Ok(vec![Comparison::new(
        "inertia, relative",
        (inertia - expected).abs() / expected,
        1e-5,
    )])
}

fn beam_search_case(entry: &Entry<'_>, file: &VectorFile) -> Result<Vec<Comparison>> {
    let weight = file.array_n::<Ix2>("weight")?;
    let hessian = file.array_n::<Ix2>("xtx")?;
    let start = matrix(file, "prev_codes")?;
    let loss = |matrix: &QuantizedMatrix| layer_error(&weight, &decode(matrix), &hessian);
    let (_, in_groups) = start.groups();
    let order: Vec<Position> = (0..in_groups)
        .flat_map(|group| (0..start.scheme().num_codebooks).map(move |m| Position::single(group, m)))
        .collect();
    let codes = beam_search(&weight, &hessian, &start, &order, entry.count("beam")?)?;
    let found = start.clone().with_codes(codes)?;
    let (before, after) = (entry.number("loss_before")?, entry.number("loss_after")?);
    Ok(vec![
        Comparison::new(
            "loss before, relative",
            (loss(&start) - before).abs() / before,
            1e-5,
        ),
        Comparison::new(
            "loss after, above the peer's, relative",
            loss(&found) / after - 1.0,
            1e-6,
        ),
    ])
}

fn adam_case(entry: &Entry<'_>, file: &VectorFile) -> Result<Vec<Comparison>> {
    let weight = file.array_n::<Ix2>("weight")?;
    let hessian = file.array_n::<Ix2>("xtx")?;
    let start = matrix(file, "codes")?;
    let run = |steps: usize| -> Result<(QuantizedMatrix, Vec<f64>)> {
        let settings = AdamSettings {
            lr: entry.number("lr")?,
            beta1: entry.number("beta1")?,
            beta2: entry.number("beta2")?,
            eps: entry.number("eps")?,
            amsgrad: entry.flag("amsgrad")?,
        };
        Ok(adam(&weight, &hessian, &start, &settings, steps)?)
    };
    let expected_losses = file.array("losses")?;
    let (_, losses) = run(expected_losses.len())?;
    let worst = if losses.len() == expected_losses.len() {
        largest(
            losses
                .iter()
                .zip(&expected_losses)
                .map(|(a, b)| (a - b).abs() / b),
        )
    } else {
        f64::NAN
    };
    let (one, _) = run(1)?;
    Ok(vec![
        Comparison::new("losses, largest relative difference", worst, 1e-3),
        Comparison::new(
            "codebooks after one step, relative",
            relative_difference(one.codebooks(), &file.array("codebooks_1")?),
            1e-5,
        ),
        Comparison::new(
            "scales after one step, relative",
            relative_difference(one.scales(), &file.array("scales_1")?),
            1e-5,
        ),
    ])
}

fn closed_form_case(entry: &Entry<'_>, file: &VectorFile) -> Result<Vec<Comparison>> {
    let weight = file.array_n::<Ix2>("weight")?;
    let hessian = file.array_n::<Ix2>("xtx")?;
    // The peer's answer only gives the shape; the update starts from zeros.
    let zeros = Array4::zeros(file.array_n::<Ix4>("codebooks")?.raw_dim());
    let start = quantized(file, &file.array_n("codes")?, zeros)?;
    let codebooks = closed_form(&weight, &hessian, &start)?;
    let loss = layer_error(&weight, &decode(&start.with_codebooks(codebooks)?), &hessian);
    let expected = entry.number("loss")?;
    Ok(vec![Comparison::new(
        "loss over the peer's, less one",
        (loss - expected).abs() / expected,
        1e-9,
    )])
}

fn bits_case(entry: &Entry<'_>) -> Result<Vec<Comparison>> {
    let scheme = Scheme::new(
        entry.count("num_codebooks")?,
        entry.count("nbits")? as u32,
        entry.count("in_group_size")?,
    )?;
    let found = scheme.bits_per_parameter(entry.count("out_features")?, entry.count("in_features")?);
    Ok(vec![Comparison::new(
        "difference",
        (found - entry.number("bits_per_parameter")?).abs(),
        0.0,
    )])
}

/// Checks the block both with the peer's rotation tables (computed in f32) and with this project's.
fn llama_block_case(entry: &Entry<'_>, file: &VectorFile) -> Result<Vec<Comparison>> {
    let x = file.array_n::<Ix3>("x")?;
    let (sequences, tokens, hidden_size) = x.dim();
    let parameter = |name: &str| file.array_n::<Ix2>(&format!("param.{name}.weight"));
    let norm = |name: &str| file.array_n::<Ix1>(&format!("param.{name}.weight"));
    let heads = entry.count("heads")?;
    let spec = BlockSpec::llama(LlamaBlock {
        hidden_size,
        intermediate_size: parameter("mlp.gate_proj")?.nrows(),
        heads,
        kv_heads: entry.count("kv_heads")?,
        head_dim: parameter("self_attn.q_proj")?.nrows() / heads.max(1),
        epsilon: entry.number("rms_norm_eps")?,
        rotary: Rope {
            theta: entry.number("rope_theta")?,
            scaling: RopeScaling::None,
        },
        window: None,
    });
    let mut layers = Vec::new();
    for linear in &spec.linears {
        layers.push(ResidentLinear {
            weight: ResidentWeight::Dense(parameter(&linear.name)?),
            bias: None,
        });
    }
    let block = Block::new(
        &spec,
        vec![norm("input_layernorm")?, norm("post_attention_layernorm")?],
        layers,
    )?;
    let (cos, sin) = (file.array_n::<Ix3>("cos")?, file.array_n::<Ix3>("sin")?);
    let own = Rotary::new(&spec.attention, tokens);

    let with_peers_tables = if entry.fields["arithmetic"] == "f64" {
        BLOCK_F64
    } else {
        BLOCK_F32_INSIDE
    };
    let mut comparisons = Vec::new();
    for (tables, limit) in [
        ("the peer's cos and sin", with_peers_tables),
        ("our own cos and sin", BLOCK_F32_INSIDE),
    ] {
        let target = file.array_n("target")?;
        let mut found = BlockResult::zeros(&block, x.raw_dim());
        for sequence in 0..sequences {
            let slice = |table: &Array3<f64>| table.slice(s![sequence, .., ..]).to_owned();
            let peers = Rotary::from_tables(slice(&cos), slice(&sin))?;
            let rotary = if tables.starts_with("the peer's") {
                &peers
            } else {
                &own
            };
            found.add(&block, rotary, sequence, &x, &target);
        }
        let mut compare = |what: &str, found: &[f64], expected: &str| -> Result<()> {
            let difference = relative_difference(found, &file.array(expected)?);
            comparisons.push(Comparison::new(
                format!("{what} with {tables}, relative"),
                difference,
                limit,
            ));
            Ok(())
        };
        compare("output", &flat(&found.y), "y")?;
        compare("gradient of the input", &flat(&found.grad_x), "grad_x")?;
        for (linear, gradient) in spec.linears.iter().zip(&found.layers) {
            compare(
                &format!("gradient of {}", linear.short_name()),
                &flat(gradient),
                &format!("grad.{}.weight", linear.name),
            )?;
        }
        compare(
            "gradient of input_layernorm",
            &flat(&found.norms[0]),
            "grad.input_layernorm.weight",
        )?;
        compare(
            "gradient of post_attention_layernorm",
            &flat(&found.norms[1]),
            "grad.post_attention_layernorm.weight",
        )?;
    }
    Ok(comparisons)
}

fn flat<D: ndarray::Dimension>(array: &ndarray::Array<f64, D>) -> Vec<f64> {
    array.iter().copied().collect()
}

/// Output and gradients of all sequences of a case.
struct BlockResult {
    y: Array3<f64>,
    grad_x: Array3<f64>,
    layers: Vec<Array2<f64>>,
    norms: Vec<Array1<f64>>,
}

impl BlockResult {
    fn zeros(block: &Block, shape: ndarray::Dim<[usize; 3]>) -> Self {
        Self {
            y: Array3::zeros(shape),
            grad_x: Array3::zeros(shape),
            layers: block
                .spec()
                .layers()
                .map(|layer| Array2::zeros(block.weight(layer).raw_dim()))
                .collect(),
            norms: block.norms.iter().map(|norm| Array1::zeros(norm.len())).collect(),
        }
    }

    /// The loss is the mean squared error over all elements of all sequences.
    fn add(
        &mut self,
        block: &Block,
        rotary: &Rotary,
        sequence: usize,
        x: &Array3<f64>,
        target: &Array3<f64>,
    ) {
        let x = x.slice(s![sequence, .., ..]);
        let (y, trace) = block_forward_traced(block, rotary, x);
        let grad_y = (&y - &target.slice(s![sequence, .., ..])) * (2.0 / target.len() as f64);
        let gradients = block_backward(block, rotary, &trace, grad_y.view());
        self.y.slice_mut(s![sequence, .., ..]).assign(&y);
        self.grad_x.slice_mut(s![sequence, .., ..]).assign(&gradients.x);
        for (sum, gradient) in self.layers.iter_mut().zip(&gradients.layers) {
            *sum += gradient;
        }
        for (sum, gradient) in self.norms.iter_mut().zip(&gradients.norms) {
            *sum += gradient;
        }
    }
}
