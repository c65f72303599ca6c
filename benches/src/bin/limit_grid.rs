//! How far initialisations and the alternation end from the rate-distortion limit of a synthetic layer, and
//! how long they take: W normal, H of 4 n activations whose spectrum falls as 1/i, rotated at random.
//!
//! `cargo run --release -p aqlm-benches --bin limit_grid -- [SCHEME] [N] [OUT] [only INIT...]`, with N a
//! power of two. An INIT is `residual`, `em`, or `feedback:K:PASSES:ORDER`. Behind it, `:b4` adds the
//! alternation with a beam of 4, `:p` beside it chooses codes in pairs, `:r2` stops it after two rounds,
//! `:k20` stops k-means after 20 iterations. `:f16` and `:e4m3` round the codebooks at the end to that type
//! and print a second row: after the rounding, and after one more search for the rounded codebooks. With
//! `cuda:` before it the first GPU computes the row, three times: the first includes the compilation of
//! kernels. `--kernels DIR` takes the kernels from a folder.

use std::env::args;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use aqlm_engine::Result;
use aqlm_engine::alternate::alternate;
use aqlm_engine::backends::{CpuLayers, CudaLayers};
use aqlm_engine::ops::LayerOps;
use aqlm_optimized::cuda::Device;
use aqlm_reference::linalg::eigenvalues;
use aqlm_reference::{decode, limit_db, rate_distortion_limit, relative_layer_error};
use aqlm_vocabulary::{
    AqlmError, FeedbackSettings, GroupOrder, Initialization, LayerEvent, LayerSettings, Purpose,
    QuantizedMatrix, Scheme, Stream, StreamKey, Update, shuffle, stream, sweep_order,
};
use ndarray::{Array2, Axis};
use rand::RngExt;

const KEY: StreamKey = StreamKey {
    seed: 0,
    block: 0,
    layer: None,
};

/// Rows of the table, in the order in which they are measured.
const GRID: [&str; 14] = [
    "em",
    "em:b4",
    "feedback:1:1:natural",
    "feedback:4:1:natural",
    "feedback:1:3:natural",
    "feedback:4:3:natural",
    "feedback:1:1:variance",
    "feedback:1:1:diagonal",
    "feedback:1:1:natural:b1",
    "feedback:1:1:natural:b4",
    "feedback:4:1:natural:b4",
    "feedback:4:3:natural:b4",
    "feedback:1:1:natural:b1:p",
    "feedback:4:1:natural:b1:p",
];

fn main() -> Result<()> {
    let mut arguments: Vec<String> = args().skip(1).collect();
    let mut kernels = None;
    if let Some(at) = arguments.iter().position(|argument| argument == "--kernels") {
        kernels = arguments
            .drain(at..arguments.len().min(at + 2))
            .nth(1)
            .map(PathBuf::from);
    }
    let argument = |i: usize, default: &str| arguments.get(i).map_or(default, String::as_str).to_owned();
    let number = |i: usize, default: &str| {
        let text = argument(i, default);
        text.parse::<usize>()
            .map_err(|_| AqlmError::argument(format!("argument {}", i + 1), "a number", &text))
    };
    let scheme: Scheme = argument(0, "2x8g8").parse()?;
    let inputs = number(1, "1024")?;
    if !inputs.is_power_of_two() {
        return Err(AqlmError::argument("argument 2", "a power of two", inputs).into());
    }
    let out = number(2, &inputs.to_string())?;
    let mut rows: Vec<&str> = arguments.iter().skip(3).map(String::as_str).collect();
    if rows.is_empty() {
        rows = GRID.to_vec();
    }

    let (weight, hessian) = layer(out, inputs);
    let exact_weight = weight.mapv(f64::from);
    let code_bits = f64::from(scheme.nbits) * scheme.num_codebooks as f64 / scheme.group_len() as f64;
    let spectrum = eigenvalues(hessian.view(), "hessian")?;
    let limit = rate_distortion_limit(&spectrum, code_bits);
    println!(
        "{scheme} on {out}x{inputs}, {} threads; {code_bits} bits of codes a weight, limit {limit:.6}",
        rayon::current_num_threads()
    );
    println!(
        "| start | error after it | dB | s | error at the end | dB | rounds | s |\n|---|---|---|---|---|---|---|---|"
    );
    let layer = Layer {
        scheme,
        weight,
        exact_weight,
        hessian,
        spectrum,
        limit,
    };
    let mut gpu = None;
    for row in rows {
        let Some(on_gpu) = row.strip_prefix("cuda:") else {
            layer.measure(&CpuLayers, row, row)?;
            continue;
        };
        let layers = if let Some(ref layers) = gpu {
            layers
        } else {
            let device = Device::open(0, kernels.as_deref()).map_err(AqlmError::from)?;
            gpu.insert(CudaLayers::new(Arc::new(device))?)
        };
        for _ in 0..3 {
            layer.measure(layers, row, on_gpu)?;
        }
    }
    Ok(())
}

/// The layer that every row quantizes.
struct Layer {
    scheme: Scheme,
    weight: Array2<f32>,
    exact_weight: Array2<f64>,
    hessian: Array2<f64>,
    /// eigenvalues of H
    spectrum: Vec<f64>,
    limit: f64,
}

impl Layer {
    /// Quantizes the layer with a row's settings and prints the row under its name.
    fn measure<O: LayerOps>(&self, ops: &O, row: &str, of: &str) -> Result<()> {
        let (of, stored) = match (of.strip_suffix(":f16"), of.strip_suffix(":e4m3")) {
            (Some(of), _) => (of, Some(Stored::F16)),
            (_, Some(of)) => (of, Some(Stored::E4m3)),
            _ => (of, None),
        };
        let settings = &settings(self.scheme, of)?;
        let started = Instant::now();
        let problem = ops.problem(&self.weight, &self.hessian, settings)?;
        let mut initial = (0.0, 0.0);
        let (matrix, report) = alternate(ops, &problem, settings, KEY, &mut |event| {
            let seconds = started.elapsed().as_secs_f64();
            if let LayerEvent::Initialized { loss } = event {
                initial = (loss, seconds);
            }
            eprintln!("{row}: {seconds:.3} s, {event:?}");
        })?;
        let seconds = started.elapsed().as_secs_f64();
        let bits = matrix.bits_per_parameter();
        let error = relative_layer_error(&self.exact_weight, &decode(&matrix), &self.hessian);
        println!(
            "| {row} | {:.6} | {:.2} | {:.2} | {error:.6} | {:.2} ({:.2} at {bits:.3} bits) | {} | {seconds:.2} |",
            initial.0,
            limit_db(initial.0, self.limit),
            initial.1,
            limit_db(error, self.limit),
            limit_db(error, rate_distortion_limit(&self.spectrum, bits)),
            report.trace.len(),
        );
        stored.map_or(Ok(()), |stored| {
            self.round(ops, &problem, &matrix, settings, stored)
        })
    }

    /// Rounds the codebooks, searches once more, and prints the errors of both.
    fn round<O: LayerOps>(
        &self,
        ops: &O,
        problem: &O::Problem,
        matrix: &QuantizedMatrix,
        settings: &LayerSettings,
        stored: Stored,
    ) -> Result<()> {
        let rounded = match stored {
            Stored::F16 => matrix.rounded_to_f16()?,
            Stored::E4m3 => matrix
                .clone()
                .with_codebooks(matrix.codebooks().mapv(rounded_to_e4m3))?,
        };
        let error = |matrix: &QuantizedMatrix| {
            relative_layer_error(&self.exact_weight, &decode(matrix), &self.hessian)
        };
        let order = sweep_order(
            &mut KEY.stream(Purpose::Sweep),
            matrix.groups().1,
            self.scheme.num_codebooks,
            settings.searches_pairs(),
        );
        let trial = ops.trial(problem, rounded.clone())?;
        let searched = ops.search(problem, trial, &order, settings.beam)?;
        let [before, after] = [error(&rounded), error(&ops.matrix(problem, &searched)?)];
        println!(
            "| {stored:?} | {before:.6} | {:.2} | | {after:.6} | {:.2} | | |",
            limit_db(before, self.limit),
            limit_db(after, self.limit),
        );
        Ok(())
    }
}

/// A type to which codebooks are rounded.
#[derive(Debug, Clone, Copy)]
enum Stored {
    F16,
    E4m3,
}

/// FP8 with 4 bits of exponent and 3 of mantissa: the largest number is 448, the step below 2^-6 is 2^-9.
fn rounded_to_e4m3(value: f64) -> f64 {
    let exponent = value.abs().log2().floor().max(-6.0);
    let step = (exponent - 3.0).exp2();
    ((value / step).round_ties_even() * step).clamp(-448.0, 448.0)
}

/// Today's default settings with the start and the beam of a row.
fn settings(scheme: Scheme, row: &str) -> Result<LayerSettings> {
    let refused = || {
        AqlmError::argument(
            "a row",
            "residual, em or feedback:K:PASSES:ORDER, perhaps with :bN, :p, :rN, :kN, :f16 or :e4m3 at the end",
            row,
        )
    };
    let mut parts = row.split(':').peekable();
    let init = match parts.next() {
        Some("residual") => Initialization::Residual,
        Some("em") => Initialization::Em { rounds: 3 },
        Some("feedback") => {
            let mut number = || {
                parts
                    .next()
                    .and_then(|text| text.parse().ok())
                    .ok_or_else(refused)
            };
            let (hypotheses, passes) = (number()?, number()?);
            let order = match parts.next() {
                Some("natural") => GroupOrder::Natural,
                Some("variance") => GroupOrder::Variance,
                Some("diagonal") => GroupOrder::Diagonal,
                _ => return Err(refused().into()),
            };
            Initialization::Feedback(FeedbackSettings {
                hypotheses,
                passes,
                order,
            })
        }
        _ => return Err(refused().into()),
    };
    let (mut beam, mut pairs, mut rounds, mut kmeans_iterations) = (None, false, 100, 100);
    for part in parts {
        let number = |text: &str| text.parse::<usize>().map_err(|_| refused());
        match part.split_at_checked(1) {
            Some(("p", "")) => pairs = true,
            Some(("b", text)) => beam = Some(number(text)?),
            Some(("r", text)) => rounds = number(text)?,
            Some(("k", text)) => kmeans_iterations = number(text)?,
            _ => return Err(refused().into()),
        }
    }
    Ok(LayerSettings {
        scheme,
        init,
        kmeans_iterations,
        update: Update::ClosedForm {
            max_unknowns: 8192,
            cg_steps: 30,
            scale_rounds: 2,
        },
        beam: beam.unwrap_or(1),
        pairs,
        relative_tolerance: 0.003,
        max_rounds: if beam.is_some() { rounds } else { 0 },
        damping: 1e-6,
        allow_degenerate: true,
    })
}

/// W of normal numbers and H of 4 n activations.
fn layer(out: usize, inputs: usize) -> (Array2<f32>, Array2<f64>) {
    let mut rng = stream(0, 0, None, Purpose::TestData);
    let weight = Array2::from_shape_simple_fn((out, inputs), || 0.02 * normal(&mut rng));
    let mut x = Array2::from_shape_simple_fn((4 * inputs, inputs), || normal(&mut rng));
    for (i, mut column) in x.axis_iter_mut(Axis(1)).enumerate() {
        column /= ((i + 1) as f32).sqrt();
    }
    for _ in 0..3 {
        rotate(&mut x, &mut rng);
    }
    let mut hessian = aqlm_optimized::cpu::quantizer::Hessian::new(inputs);
    if hessian.add(x.view()).is_err() {
        eprintln!("the made-up inputs are not finite");
    }
    (weight, hessian.mean())
}

/// A normal number (Box and Muller).
fn normal(rng: &mut Stream) -> f32 {
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    ((-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
}

/// Rotates rows: inputs in random order with random signs, then the Walsh-Hadamard transform.
fn rotate(x: &mut Array2<f32>, rng: &mut Stream) {
    let n = x.ncols();
    let mut order: Vec<usize> = (0..n).collect();
    shuffle(rng, &mut order);
    let signs: Vec<f32> = order
        .iter()
        .map(|_| if rng.random_bool(0.5) { 1.0 } else { -1.0 } / (n as f32).sqrt())
        .collect();
    for mut row in x.outer_iter_mut() {
        let mut values: Vec<f32> = order.iter().zip(&signs).map(|(&i, sign)| row[i] * sign).collect();
        let mut half = 1;
        while half < n {
            for pair in values.chunks_exact_mut(2 * half) {
                let (a, b) = pair.split_at_mut(half);
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
        row.iter_mut().zip(values).for_each(|(to, value)| *to = value);
    }
}
