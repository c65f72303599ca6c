use aqlm_vocabulary::{Purpose, QuantizedMatrix, Stream, stream};
use half::bf16;
use ndarray::{Array1, Array2, Array3, Array4, Axis};
use rand::RngExt;
use rayon::prelude::*;

use super::verdict::Element;
use super::{BenchActivations, BenchOp, BenchOptions};
use aqlm_formats::Result;

/// A matrix, inputs, and what the operation gives by the reference.
pub(super) struct Inputs<T> {
    /// codebooks and scales hold f16 values, as in a checkpoint
    pub(super) matrix: QuantizedMatrix,
    /// `[largest batch, in_features]`; empty for a decode
    x: Vec<T>,
    /// `[largest batch, out_features]`, or `[out_features, in_features]` for a decode; f64
    expected: Vec<f64>,
}

impl<T: Element> Inputs<T> {
    /// Exact tier: multiples of 1/8 of at most 1 and scales that are powers of two, so that products are
    /// multiples of 1/64 and every sum is exact in f32, sums of up to 32 products in f16 also. Results must
    /// be equal.
    pub(super) fn exact(options: &BenchOptions) -> Result<Self> {
        Self::new(options, options.seed, grid, |_| 0.25, grid)
    }

    /// Random tier: normal codewords, and x of which one in a hundred is twenty times as large.
    pub(super) fn random(options: &BenchOptions) -> Result<Self> {
        Self::new(
            options,
            options.seed ^ 1,
            // Numbers that x's format holds, so that kernels which keep codebooks in it round nothing.
            |rng| match options.activations {
                BenchActivations::F16 => 0.3 * normal(rng),
                BenchActivations::Bf16 => bf16::nearest(0.3 * normal(rng)).widened(),
            },
            |rng| 0.5 + 0.1 * normal(rng).abs(),
            |rng| normal(rng) * if rng.random_range(0..100) == 0 { 20.0 } else { 1.0 },
        )
    }

    fn new(
        options: &BenchOptions,
        seed: u64,
        codeword: impl Fn(&mut Stream) -> f64,
        scale: impl Fn(&mut Stream) -> f64,
        input: impl Fn(&mut Stream) -> f64,
    ) -> Result<Self> {
        let scheme = options.scheme;
        let (out_groups, in_groups) = scheme.groups(options.out_features, options.in_features)?;
        let mut rng = stream(seed, 0, None, Purpose::TestData);
        let size = scheme.codebook_size();
        let codes = Array3::from_shape_simple_fn((out_groups, in_groups, scheme.num_codebooks), || {
            rng.random_range(0..size as u32) as u16
        });
        let shape = (
            scheme.num_codebooks,
            size,
            scheme.out_group_size,
            scheme.in_group_size,
        );
        let codebooks = Array4::from_shape_simple_fn(shape, || codeword(&mut rng));
        let scales = Array1::from_shape_simple_fn(out_groups, || scale(&mut rng));
        let matrix = QuantizedMatrix::new(scheme, codes, codebooks, scales)?.rounded_to_f16()?;
        let weight = aqlm_reference::decode(&matrix);
        if options.op == BenchOp::Decode {
            let expected = weight.into_raw_vec_and_offset().0;
            return Ok(Self {
                matrix,
                x: Vec::new(),
                expected,
            });
        }
        let batch = options.batches.iter().copied().max().unwrap_or(1);
        let x: Vec<T> = (0..batch * options.in_features)
            .map(|_| T::nearest(input(&mut rng)))
            .collect();
        let expected = product(&x, &weight);
        Ok(Self { matrix, x, expected })
    }

    /// The first `batch` rows of x.
    pub(super) fn x(&self, batch: usize) -> &[T] {
        &self.x[..(batch * self.matrix.in_features()).min(self.x.len())]
    }

    /// What these rows give.
    pub(super) fn expected(&self, batch: usize) -> &[f64] {
        if self.x.is_empty() {
            &self.expected
        } else {
            &self.expected[..batch * self.matrix.out_features()]
        }
    }
}

/// X W^T in f64, `[batch, out_features]`, row-major. Blocks of output rows go to different threads.
fn product<T: Element>(x: &[T], weight: &Array2<f64>) -> Vec<f64> {
    let (out_features, in_features) = weight.dim();
    let batch = x.len() / in_features.max(1);
    let x = Array2::from_shape_fn((batch, in_features), |(n, i)| x[n * in_features + i].widened());
    let mut transposed = Array2::zeros((out_features, batch));
    transposed
        .axis_chunks_iter_mut(Axis(0), 64)
        .into_par_iter()
        .zip(weight.axis_chunks_iter(Axis(0), 64).into_par_iter())
        .for_each(|(mut y, weight)| y.assign(&weight.dot(&x.t())));
    transposed.t().iter().copied().collect()
}

fn grid(rng: &mut Stream) -> f64 {
    f64::from(rng.random_range(-8..=8)) / 8.0
}

/// Nearly normal: the sum of twelve uniforms. Sizes that vary matter here, far tails do not.
fn normal(rng: &mut Stream) -> f64 {
    (0..12).map(|_| rng.random_range(0.0..1.0)).sum::<f64>() - 6.0
}
