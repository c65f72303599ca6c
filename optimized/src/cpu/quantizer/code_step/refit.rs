use aqlm_vocabulary::{CodeSettings, QuantizedMatrix};
use ndarray::{Array2, Array4};
use rayon::prelude::*;

use crate::cpu::quantizer::decode::decode;
use crate::cpu::row_major::{elements, elements_mut};

/// Conjugate gradients end at this share of the first residual.
const TOLERANCE: f64 = 1e-8;
/// They end after this many iterations at the latest.
const ITERATIONS: usize = 500;

/// The codebooks after they went `share` of the way to the least squares fit of `buffer`
/// ([`CodeSettings::refit`]). Those of a buffer or scales that are not finite stay.
///
/// Each coordinate of the codewords is a problem of its own, with the same matrix: on its diagonal the
/// squared scales of each codeword's groups, beside it those of the groups that two codewords share.
pub(super) fn refit(matrix: &QuantizedMatrix, buffer: &Array2<f32>, share: f64) -> Array4<f64> {
    let mut codebooks = matrix.codebooks().clone();
    let scheme = matrix.scheme();
    let len = scheme.out_group_size * scheme.in_group_size;
    let system = System::of(matrix);
    let errors = errors(matrix, buffer);
    if !(system.ridge > 0.0 && system.ridge.is_finite() && errors.iter().flatten().all(|e| e.is_finite())) {
        return codebooks;
    }
    let movements: Vec<Vec<f64>> = errors.par_iter().map(|error| system.solve(error)).collect();
    for (word, entries) in elements_mut(&mut codebooks).chunks_exact_mut(len).enumerate() {
        for (entry, movement) in entries.iter_mut().zip(&movements) {
            *entry += share * movement[word];
        }
    }
    codebooks
}

/// For each coordinate of a codeword, [length of a group], and each codeword, [M 2^B], the differences of its
/// groups from the buffer, each times its scale.
fn errors(matrix: &QuantizedMatrix, buffer: &Array2<f32>) -> Vec<Vec<f64>> {
    let scheme = matrix.scheme();
    let (go, gi) = (scheme.out_group_size, scheme.in_group_size);
    let (num_codebooks, states) = (scheme.num_codebooks, scheme.codebook_size());
    let (_, in_groups) = matrix.groups();
    let weight = decode(matrix);
    let width = weight.ncols();
    let (weight, buffer, codes) = (elements(&weight), elements(buffer), elements(matrix.codes()));
    (0..go * gi)
        .into_par_iter()
        .map(|i| {
            let (a, b) = (i / gi, i % gi);
            let mut errors = vec![0.0; num_codebooks * states];
            for (group, codes) in codes.chunks_exact(num_codebooks).enumerate() {
                let (o, j) = (group / in_groups, group % in_groups);
                let at = (o * go + a) * width + j * gi + b;
                let error = matrix.scales()[o] * (f64::from(buffer[at]) - f64::from(weight[at]));
                for (m, &code) in codes.iter().enumerate() {
                    errors[m * states + usize::from(code)] += error;
                }
            }
            errors
        })
        .collect()
}

/// The matrix of the fit, without its ridge.
struct System {
    states: usize,
    ridge: f64,
    /// [M 2^B]
    diagonal: Vec<f64>,
    /// for each pair of codebooks, the first before the second, [2^B, 2^B]
    pairs: Vec<(usize, usize, Vec<f64>)>,
}

impl System {
    fn of(matrix: &QuantizedMatrix) -> Self {
        let scheme = matrix.scheme();
        let (num_codebooks, states) = (scheme.num_codebooks, scheme.codebook_size());
        let (_, in_groups) = matrix.groups();
        let groups = || {
            elements(matrix.codes())
                .chunks_exact(num_codebooks)
                .enumerate()
                .map(|(group, codes)| (codes, matrix.scales()[group / in_groups].powi(2)))
        };
        let mut diagonal = vec![0.0; num_codebooks * states];
        for (codes, square) in groups() {
            for (m, &code) in codes.iter().enumerate() {
                diagonal[m * states + usize::from(code)] += square;
            }
        }
        let numbers: Vec<(usize, usize)> = (0..num_codebooks)
            .flat_map(|first| (first + 1..num_codebooks).map(move |second| (first, second)))
            .collect();
        let pairs = numbers
            .into_par_iter()
            .map(|(first, second)| {
                let mut shared = vec![0.0; states * states];
                for (codes, square) in groups() {
                    shared[usize::from(codes[first]) * states + usize::from(codes[second])] += square;
                }
                (first, second, shared)
            })
            .collect();
        Self {
            states,
            ridge: CodeSettings::REFIT_RIDGE * diagonal.iter().sum::<f64>() / diagonal.len() as f64,
            diagonal,
            pairs,
        }
    }

    /// The product of the matrix and its ridge with a vector.
    fn times(&self, x: &[f64]) -> Vec<f64> {
        let states = self.states;
        let mut product: Vec<f64> = self
            .diagonal
            .iter()
            .zip(x)
            .map(|(diagonal, x)| (diagonal + self.ridge) * x)
            .collect();
        for (first, second, shared) in &self.pairs {
            let (first, second) = (first * states, second * states);
            for (k, row) in shared.chunks_exact(states).enumerate() {
                let x_of_row = x[first + k];
                let mut sum = 0.0;
                for (l, &square) in row.iter().enumerate() {
                    sum += square * x[second + l];
                    product[second + l] += square * x_of_row;
                }
                product[first + k] += sum;
            }
        }
        product
    }

    /// Conjugate gradients, preconditioned by the diagonal.
    fn solve(&self, right: &[f64]) -> Vec<f64> {
        let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
        let conditioned = |residual: &[f64]| -> Vec<f64> {
            residual
                .iter()
                .zip(&self.diagonal)
                .map(|(r, diagonal)| r / (diagonal + self.ridge))
                .collect()
        };
        let mut x = vec![0.0; right.len()];
        let mut residual = right.to_vec();
        let mut direction = conditioned(&residual);
        let mut slope = dot(&residual, &direction);
        let enough = TOLERANCE * TOLERANCE * slope;
        for _ in 0..ITERATIONS {
            if slope <= enough {
                break;
            }
            let product = self.times(&direction);
            let step = slope / dot(&direction, &product);
            for (to, d) in x.iter_mut().zip(&direction) {
                *to += step * d;
            }
            for (to, p) in residual.iter_mut().zip(&product) {
                *to -= step * p;
            }
            let next = conditioned(&residual);
            let next_slope = dot(&residual, &next);
            let keep = next_slope / slope;
            for (d, n) in direction.iter_mut().zip(next) {
                *d = n + keep * *d;
            }
            slope = next_slope;
        }
        x
    }
}
