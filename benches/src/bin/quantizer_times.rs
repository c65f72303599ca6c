//! Quantizes one layer with the CPU backend and, unless disabled, with the reference from the same seed.
//! Prints the time of each stage and the loss reached.
//!
//! `cargo run --release -p aqlm-benches --bin quantizer_times -- [SCHEME] [OUT] [IN] [BEAM] [cpu-only]`

use std::env::args;
use std::time::Instant;

use aqlm_engine::Result;
use aqlm_engine::alternate::alternate;
use aqlm_engine::backends::CpuLayers;
use aqlm_engine::ops::LayerOps;
use aqlm_reference as reference;
use aqlm_vocabulary::{
    AqlmError, Initialization, LayerEvent, LayerSettings, Purpose, StreamKey, Update, stream,
};
use ndarray::{Array2, Axis};
use rand::RngExt;

const KEY: StreamKey = StreamKey {
    seed: 0,
    block: 0,
    layer: None,
};

fn main() -> Result<()> {
    let arguments: Vec<String> = args().skip(1).collect();
    let argument = |i: usize, default: &str| arguments.get(i).map_or(default, String::as_str).to_owned();
    let number = |i: usize, default: &str| {
        let text = argument(i, default);
        text.parse::<usize>()
            .map_err(|_| AqlmError::argument(format!("argument {}", i + 1), "a number", &text))
    };
    let (out, inputs) = (number(1, "1024")?, number(2, "1024")?);
    let settings = LayerSettings {
        scheme: argument(0, "2x8g8").parse()?,
        init: Initialization::Em { rounds: 3 },
        kmeans_iterations: 100,
        update: Update::ClosedForm {
            max_unknowns: 8192,
            cg_steps: 30,
            scale_rounds: 2,
        },
        beam: number(3, "1")?,
        pairs: false,
        relative_tolerance: 0.003,
        max_rounds: 100,
        damping: 1e-6,
        allow_degenerate: true,
    };
    let cpu_only = arguments.iter().any(|argument| argument == "cpu-only");
    let (weight, hessian) = layer(out, inputs);
    println!(
        "{} on {out}x{inputs}, beam {}, {} threads",
        settings.scheme,
        settings.beam,
        rayon::current_num_threads()
    );

    // Warm-up for caches, clock and pages.
    let warm = LayerSettings {
        max_rounds: 1,
        kmeans_iterations: 2,
        ..settings.clone()
    };
    let problem = CpuLayers.problem(&weight, &hessian, &warm)?;
    alternate(&CpuLayers, &problem, &warm, KEY, &mut |_| ())?;
    drop(problem);
    let started = Instant::now();
    let mut stages = Stages::new();
    let problem = CpuLayers.problem(&weight, &hessian, &settings)?;
    let (matrix, report) = alternate(&CpuLayers, &problem, &settings, KEY, &mut |event| {
        stages.note(event);
    })?;
    let seconds = started.elapsed().as_secs_f64();
    stages.print("cpu", seconds, report.trace.len());
    let exact_weight = weight.mapv(f64::from);
    let reached = reference::relative_layer_error(&exact_weight, &reference::decode(&matrix), &hessian);
    println!(
        "cpu: relative layer error {reached:.6}, initial {:.6}",
        report.initial_error
    );
    if cpu_only {
        return Ok(());
    }
    let started = Instant::now();
    let mut stages = Stages::new();
    let (_, expected) = reference::layer_quantize(&exact_weight, &hessian, &settings, KEY, &mut |event| {
        stages.note(event);
    })?;
    let reference_seconds = started.elapsed().as_secs_f64();
    stages.print("reference", reference_seconds, expected.trace.len());
    println!(
        "reference: relative layer error {:.6}, initial {:.6}",
        expected.relative_error, expected.initial_error
    );
    println!(
        "cpu is {:.1} times as fast; its loss is {:+.3} % of the reference's",
        reference_seconds / seconds,
        100.0 * (reached / expected.relative_error - 1.0)
    );
    Ok(())
}

/// A weight of normal numbers, one in a thousand ten times as large, and the Hessian of correlated inputs
/// whose sizes span a factor of a hundred.
fn layer(out: usize, inputs: usize) -> (Array2<f32>, Array2<f64>) {
    let mut rng = stream(0, 0, None, Purpose::TestData);
    // the sum of four uniform numbers is normal enough here
    let mut normal = move || (0..4).map(|_| rng.random::<f32>() - 0.5).sum::<f32>() * 3f32.sqrt();
    let mut weight = Array2::from_shape_simple_fn((out, inputs), || normal() / 32.0);
    for (i, value) in weight.iter_mut().enumerate() {
        if i % 1009 == 0 {
            *value *= 10.0;
        }
    }
    let factors = Array2::from_shape_simple_fn((inputs / 8 + 1, inputs), &mut normal);
    let mut x = Array2::from_shape_simple_fn((3 * inputs, inputs / 8 + 1), &mut normal).dot(&factors)
        / (inputs as f32 / 8.0).sqrt();
    x += &Array2::from_shape_simple_fn(x.dim(), &mut normal);
    for (i, mut column) in x.axis_iter_mut(Axis(1)).enumerate() {
        column *= 100f32.powf(-((i * 31 % inputs) as f32) / inputs as f32);
    }
    let mut hessian = aqlm_optimized::cpu::quantizer::Hessian::new(inputs);
    if hessian.add(x.view()).is_err() {
        eprintln!("the made-up inputs are not finite");
    }
    (weight, hessian.mean())
}

/// Seconds spent between events.
struct Stages {
    last: Instant,
    initial: f64,
    updates: f64,
    searches: f64,
}

impl Stages {
    fn new() -> Self {
        Self {
            last: Instant::now(),
            initial: 0.0,
            updates: 0.0,
            searches: 0.0,
        }
    }

    fn note(&mut self, event: LayerEvent) {
        let seconds = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        match event {
            LayerEvent::Initialized { .. } => self.initial += seconds,
            LayerEvent::Updated { .. } => self.updates += seconds,
            LayerEvent::Searched { .. } => self.searches += seconds,
        }
    }

    fn print(&self, who: &str, seconds: f64, rounds: usize) {
        println!(
            "{who}: {seconds:.3} s: initialisation {:.3}, updates {:.3}, searches {:.3}; {rounds} rounds kept",
            self.initial, self.updates, self.searches
        );
    }
}
