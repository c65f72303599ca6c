//! Small problems for this crate's own tests.

use ndarray::{Array1, Array2, Array3, Array4};
use proptest::test_runner::{Config, RngSeed};
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, StandardNormal};

use aqlm_vocabulary::{Initialization, LayerSettings, QuantizedMatrix, Scheme, Stream, Update};

/// proptest with `cases` cases, identical in every run.
pub(crate) fn config(cases: u32) -> Config {
    Config {
        cases,
        rng_seed: RngSeed::Fixed(240_106_118),
        failure_persistence: None,
        ..Config::default()
    }
}

/// An array [rows, cols] of standard normal numbers.
pub(crate) fn gaussian(seed: u64, rows: usize, cols: usize) -> Array2<f64> {
    let mut rng = Stream::seed_from_u64(seed);
    Array2::from_shape_simple_fn((rows, cols), || StandardNormal.sample(&mut rng))
}

/// A Hessian of n correlated inputs whose variances span three orders of magnitude, with full rank.
pub(crate) fn spd(seed: u64, n: usize) -> Array2<f64> {
    let mixing = gaussian(seed, n, n);
    let mut x = gaussian(seed.wrapping_add(7), 4 * n + 8, n).dot(&mixing);
    for (i, mut input) in x.columns_mut().into_iter().enumerate() {
        input *= 30f64.powf(-(i as f64) / n as f64) / (n as f64).sqrt();
    }
    x.t().dot(&x) / x.nrows() as f64
}

/// A weight with an outlier, a Hessian, and a random quantized matrix that fits the weight badly.
pub(crate) struct Problem {
    pub(crate) weight: Array2<f64>,
    pub(crate) hessian: Array2<f64>,
    pub(crate) matrix: QuantizedMatrix,
}

pub(crate) fn problem(seed: u64, scheme: &str, out_groups: usize, in_groups: usize) -> Problem {
    let scheme: Scheme = scheme.parse().unwrap();
    let (out, inputs) = (
        out_groups * scheme.out_group_size,
        in_groups * scheme.in_group_size,
    );
    let mut weight = gaussian(seed, out, inputs) * 0.3;
    weight[[out / 2, inputs / 3]] = 4.0;
    let mut rng = Stream::seed_from_u64(seed.wrapping_add(1));
    let shape = (
        scheme.num_codebooks,
        scheme.codebook_size(),
        scheme.out_group_size,
        scheme.in_group_size,
    );
    let codebooks = Array4::from_shape_simple_fn(shape, || -> f64 {
        let x: f64 = StandardNormal.sample(&mut rng);
        0.3 * x
    });
    let codes = Array3::from_shape_simple_fn((out_groups, in_groups, scheme.num_codebooks), || {
        rng.random_range(0..scheme.codebook_size() as u64) as u16
    });
    let scales = Array1::from_shape_simple_fn(out_groups, || rng.random_range(0.5..2.0));
    Problem {
        weight,
        hessian: spd(seed.wrapping_add(2), inputs),
        matrix: QuantizedMatrix::new(scheme, codes, codebooks, scales).unwrap(),
    }
}

impl Problem {
    /// tr(R |H| RT) with R = |W| + |Q|: the sum of the magnitudes of a loss's terms.
    fn magnitude(&self) -> f64 {
        let rows = self.weight.mapv(f64::abs) + crate::decode(&self.absolute()).mapv(f64::abs);
        (rows.dot(&self.hessian.mapv(f64::abs)) * &rows).sum()
    }

    fn absolute(&self) -> QuantizedMatrix {
        let codebooks = self.matrix.codebooks().mapv(f64::abs);
        self.matrix.clone().with_codebooks(codebooks).unwrap()
    }
}

/// Rounding error of a loss of this problem in any order of summation: epsilon x the number of terms along a
/// sum (inputs twice, codebooks) x the sum of their absolute values.
pub(crate) fn rounding(p: &Problem) -> f64 {
    let terms = 2 * p.weight.ncols() + p.matrix.scheme().num_codebooks + 4;
    terms as f64 * f64::EPSILON * p.magnitude()
}

/// Default settings for a scheme.
pub(crate) fn settings(scheme: &str) -> LayerSettings {
    LayerSettings {
        scheme: scheme.parse().unwrap(),
        init: Initialization::Residual,
        kmeans_iterations: 50,
        update: Update::ClosedForm {
            max_unknowns: 4096,
            cg_steps: 100,
            scale_rounds: 1,
        },
        beam: 2,
        pairs: true,
        relative_tolerance: 1e-3,
        max_rounds: 10,
        damping: 1e-6,
        allow_degenerate: false,
    }
}
