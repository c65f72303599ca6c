//! A user-defined codebook update in the alternation. Each codeword becomes the mean of the groups that use
//! it; H is ignored.
//!
//! `cargo run --release -p aqlm-engine --example own_update`

use aqlm_engine::alternate::{alternate, alternate_with};
use aqlm_engine::backends::CpuLayers;
use aqlm_engine::ops::LayerOps;
use aqlm_engine::{Preset, QuantizeSettings, Result};
use aqlm_vocabulary::{Purpose, QuantizedMatrix, StreamKey, stream};
use ndarray::{Array2, Array4};
use rand::RngExt;

/// For one codebook and output groups of one row: c = mean over its groups of w / s.
fn means(weight: &Array2<f32>, mut matrix: QuantizedMatrix) -> QuantizedMatrix {
    let width = matrix.scheme().in_group_size;
    let mut sums = Array4::<f64>::zeros(matrix.codebooks().dim());
    let mut counts = vec![0.0; matrix.scheme().codebook_size()];
    for ((row, group, _), &code) in matrix.codes().indexed_iter() {
        counts[usize::from(code)] += 1.0;
        for i in 0..width {
            let normalised = f64::from(weight[[row, group * width + i]]) / matrix.scales()[row];
            sums[[0, usize::from(code), 0, i]] += normalised;
        }
    }
    matrix.tune(|mut codebooks, _| {
        for ((_, code, _, i), codeword) in codebooks.indexed_iter_mut() {
            if counts[code] > 0.0 {
                *codeword = sums[[0, code, 0, i]] / counts[code];
            }
        }
    });
    matrix
}

fn main() -> Result<()> {
    let key = StreamKey {
        seed: 1,
        block: 0,
        layer: None,
    };
    let mut rng = stream(1, 0, None, Purpose::TestData);
    let weight = Array2::from_shape_simple_fn((64, 64), || rng.random::<f32>() - 0.5);
    let x = Array2::from_shape_fn((256, 64), |(_, i)| rng.random::<f64>() * 0.95f64.powi(i as i32));
    let hessian = x.t().dot(&x) / 256.0;
    let settings = QuantizeSettings::preset(Preset::Project, "1x6g4".parse()?).layer;

    let problem = CpuLayers.problem(&weight, &hessian, &settings)?;
    let mut update = |trial| {
        let matrix = CpuLayers.matrix(&problem, &trial)?;
        CpuLayers.trial(&problem, means(&weight, matrix))
    };
    let (_, own) = alternate_with(&CpuLayers, &problem, &settings, key, &mut update, &mut |_| ())?;
    let (_, exact) = alternate(&CpuLayers, &problem, &settings, key, &mut |_| ())?;
    println!("relative layer error: {:.5} with means", own.relative_error);
    println!(
        "                      {:.5} with the update under H",
        exact.relative_error
    );
    Ok(())
}
