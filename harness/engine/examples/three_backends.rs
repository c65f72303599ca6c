//! Quantizes one matrix with the reference, the CPU and (if present) a GPU, and compares the results.
//!
//! `cargo run --release -p aqlm-engine --example three_backends`

use std::time::Instant;

use aqlm_engine::alternate::alternate;
use aqlm_engine::backends::{BackendKind, CpuLayers, ReferenceLayers};
use aqlm_engine::ops::LayerOps;
use aqlm_engine::{Preset, QuantizeSettings, Result};
use aqlm_reference::{decode, relative_layer_error};
use aqlm_vocabulary::{LayerSettings, Purpose, QuantizedMatrix, StreamKey, stream};
use ndarray::Array2;
use rand::RngExt;

const KEY: StreamKey = StreamKey {
    seed: 1,
    block: 0,
    layer: None,
};

struct Layer {
    weight: Array2<f32>,
    hessian: Array2<f64>,
    settings: LayerSettings,
}

impl Layer {
    /// Quantizes the layer with one machine's steps.
    fn quantize<O: LayerOps>(&self, steps: &O) -> Result<QuantizedMatrix> {
        let problem = steps.problem(&self.weight, &self.hessian, &self.settings)?;
        Ok(alternate(steps, &problem, &self.settings, KEY, &mut |_| ())?.0)
    }
}

fn main() -> Result<()> {
    let mut rng = stream(1, 0, None, Purpose::TestData);
    let weight = Array2::from_shape_simple_fn((64, 64), || rng.random::<f32>() - 0.5);
    let x = Array2::from_shape_fn((256, 64), |(_, i)| rng.random::<f64>() * 0.95f64.powi(i as i32));
    let layer = Layer {
        hessian: x.t().dot(&x) / 256.0,
        settings: QuantizeSettings::preset(Preset::Project, "2x4g4".parse()?).layer,
        weight,
    };
    for kind in BackendKind::ALL {
        let started = Instant::now();
        let matrix = match kind {
            BackendKind::Reference => layer.quantize(&ReferenceLayers)?,
            BackendKind::Cpu => layer.quantize(&CpuLayers)?,
            BackendKind::Cuda => {
                println!("{kind:>9}: has no steps of the alternation yet");
                continue;
            }
        };
        let seconds = started.elapsed().as_secs_f64();
        // In f64 for every backend.
        let error = relative_layer_error(&layer.weight.mapv(f64::from), &decode(&matrix), &layer.hessian);
        println!("{kind:>9}: relative layer error {error:.6} in {seconds:.2} s");
    }
    Ok(())
}
