use aqlm_vocabulary::{QuantizedMatrix, Result};
use ndarray::Array2;

use super::conjugate_gradients::dot;
use super::preconditioner::Preconditioner;
use crate::cpu::quantizer::places::Places;
use crate::cpu::quantizer::problem::Problem;
use crate::cpu::quantizer::trial::Trial;

/// Maximum number of unknowns whose whole normal matrix is factored: at most 0.36 G multiply-adds.
const FACTORED: usize = 1024;

/// Updates codebooks and scales alternately, `rounds` times, as
/// [`conjugate_gradients`](super::conjugate_gradients) and `Trial::rescale` do, but entirely in f64. For
/// problems so small that H was kept in f64 ([`Problem::wide`]).
///
/// If H has exactly or nearly a small rank, such problems can be fitted almost exactly. The loss then falls
/// by more digits than f32 has, and rounding would decide the result. Steps continue until f64 resolves no
/// gain, which costs almost nothing.
///
/// # Errors
/// `NotPositiveDefinite` when H is indefinite.
pub(super) fn descend(
    problem: &Problem,
    hessian: &Array2<f64>,
    trial: Trial,
    places: &Places,
    steps: usize,
    rounds: usize,
) -> Result<Trial> {
    let mut matrix = trial.matrix.clone();
    let mut state = State::new(problem, hessian, &matrix);
    let before = state.loss();
    for round in 0..rounds.max(1) {
        state.move_codebooks(&mut matrix, places, steps)?;
        if round < rounds {
            state.rescale(&mut matrix, problem);
        }
    }
    // The state has accumulated the roundings of all steps, so the loss is recomputed from the matrix.
    let after = State::new(problem, hessian, &matrix).loss();
    Ok(if after < before {
        Trial::new(problem, matrix)
    } else {
        trial
    })
}

/// E = W - Q and E H in f64.
struct State<'a> {
    hessian: &'a Array2<f64>,
    error: Array2<f64>,
    image: Array2<f64>,
}

impl<'a> State<'a> {
    fn new(problem: &Problem, hessian: &'a Array2<f64>, matrix: &QuantizedMatrix) -> Self {
        let codebooks: Vec<f64> = matrix.codebooks().iter().copied().collect();
        let error = problem.weight.mapv(f64::from) - decode(matrix, &codebooks);
        let image = error.dot(hessian);
        Self {
            hessian,
            error,
            image,
        }
    }

    fn loss(&self) -> f64 {
        (&self.image * &self.error).sum()
    }

    /// At most `steps` steps of conjugate gradients.
    fn move_codebooks(&mut self, matrix: &mut QuantizedMatrix, places: &Places, steps: usize) -> Result<()> {
        let (go, gi) = (matrix.scheme().out_group_size, matrix.scheme().in_group_size);
        let scales = matrix.scales().to_vec();
        let unknowns = matrix.codebooks().len() / go;
        let preconditioner = if unknowns <= FACTORED {
            Preconditioner::whole(self.hessian, matrix)?
        } else {
            Preconditioner::own_blocks(self.hessian, matrix, places)?
        };
        let mut residual = places.scatter(&self.image, &scales, go, gi);
        let mut preconditioned = preconditioner.apply(&residual);
        let mut direction = preconditioned.clone();
        let mut slope = dot(&residual, &preconditioned);
        let mut change = vec![0.0; direction.len()];
        let mut loss = self.loss();
        let mut fresh = true;
        for _ in 0..steps {
            if loss <= resolution(&self.error, self.hessian) {
                break;
            }
            let dense = decode(matrix, &direction);
            let image = dense.dot(self.hessian);
            let curvature = (&image * &dense).sum();
            let step = slope / curvature;
            let error = &self.error - &dense * step;
            let image = &self.image - image * step;
            let reached = (&image * &error).sum();
            // Also false for NaN. In the null space of H, slopes and curvatures are pure rounding errors.
            if curvature > resolution(&dense, self.hessian) && reached < loss {
                loss = reached;
                (self.error, self.image) = (error, image);
                for (change, direction) in change.iter_mut().zip(&direction) {
                    *change += step * direction;
                }
                residual = places.scatter(&self.image, &scales, go, gi);
                preconditioned = preconditioner.apply(&residual);
                fresh = false;
            } else if fresh {
                break;
            } else {
                fresh = true;
            }
            let next_slope = dot(&residual, &preconditioned);
            let keep = if fresh { 0.0 } else { next_slope / slope };
            for (direction, preconditioned) in direction.iter_mut().zip(&preconditioned) {
                *direction = keep * *direction + preconditioned;
            }
            slope = next_slope;
        }
        matrix.tune(|mut codebooks, _| {
            for (codebook, change) in codebooks.iter_mut().zip(change) {
                *codebook += change;
            }
        });
        Ok(())
    }

    /// Moves every scale to the minimum of its output group's loss. With Q the group's part, that is a factor
    /// of <Q, W>_H / <Q, Q>_H, or, with W = E + Q, of 1 + <Q, E>_H / <Q, Q>_H. Scales that do not affect the
    /// loss stay.
    fn rescale(&mut self, matrix: &mut QuantizedMatrix, problem: &Problem) {
        let go = matrix.scheme().out_group_size;
        matrix.tune(|_, mut scales| {
            for (o, scale) in scales.iter_mut().enumerate() {
                let rows = ndarray::s![o * go..(o + 1) * go, ..];
                let weight = problem.weight.slice(rows).mapv(f64::from);
                let mut error = self.error.slice_mut(rows);
                let decoded = &weight - &error;
                let decoded_image = decoded.dot(self.hessian);
                let square = (&decoded_image * &decoded).sum();
                if square > resolution(&decoded, self.hessian) {
                    let change = (&decoded_image * &error).sum() / square;
                    *scale *= 1.0 + change;
                    error.scaled_add(-change, &decoded);
                    self.image.slice_mut(rows).scaled_add(-change, &decoded_image);
                }
            }
        });
    }
}

/// The rounding error of tr(D H DT): epsilon in each element of H, whose largest eigenvalue is at most its
/// trace. For D in the null space of H, tr(D H DT) is nothing but this error.
fn resolution(dense: &Array2<f64>, hessian: &Array2<f64>) -> f64 {
    let square: f64 = dense.iter().map(|x| x * x).sum();
    4.0 * f64::EPSILON * square * hessian.diag().sum()
}

/// `codebooks` [M, 2^B, go, gi] decoded with the matrix's codes and scales.
fn decode(matrix: &QuantizedMatrix, codebooks: &[f64]) -> Array2<f64> {
    let (go, gi) = (matrix.scheme().out_group_size, matrix.scheme().in_group_size);
    let states = matrix.scheme().codebook_size();
    let mut dense = Array2::zeros((matrix.out_features(), matrix.in_features()));
    for ((o, j, m), &code) in matrix.codes().indexed_iter() {
        let codeword = &codebooks[(m * states + usize::from(code)) * go * gi..][..go * gi];
        for (a, values) in codeword.chunks_exact(gi).enumerate() {
            for (i, value) in values.iter().enumerate() {
                dense[[o * go + a, j * gi + i]] += matrix.scales()[o] * value;
            }
        }
    }
    dense
}
