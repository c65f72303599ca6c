//! One layer under the two-sided objective tr(H_O E H E^T), E = W - Q, over the steps of any machine
//! (`reference/src/two_sided/`).
//!
//! A machine knows one-sided problems. Given all other rows, a row of a layer is one, with a target of its
//! own under the same H ([`LayerOps::retargeted`]). All rows are searched together, as if each were the only
//! one to move. What they found is then accepted row by row, as far as it lowers the exact loss.

use aqlm_reference::linalg::product;
pub use aqlm_reference::require_single_rows;
use aqlm_reference::{Descent, damped_outer, decode, two_sided_codebooks, two_sided_scales};
use aqlm_vocabulary::{
    AqlmError, LayerEvent, LayerReport, LayerSettings, Position, QuantizedMatrix, StreamKey, Update,
};
use ndarray::{Array1, Array2, Axis};

use crate::alternate::{Steps, check_settings, rounds};
use crate::ops::LayerOps;
use aqlm_formats::Result;

/// How often rows are searched in a sweep: all of them, then those that were not accepted, and so on.
const TRIES: usize = 8;

/// Added to the diagonal of H_O, as a share of its mean.
pub const OUTER_DAMPING: f64 = 1e-1;

/// When codebooks are good enough for the next search of codes.
pub const ENOUGH: Descent = Descent {
    steps: usize::MAX,
    of_gain: 0.01,
    of_loss: 1e-5,
};

/// A layer and the two metrics of its error.
struct TwoSided<'a, O: LayerOps> {
    ops: &'a O,
    problem: &'a O::Problem,
    /// [out_features, in_features]
    weight: Array2<f64>,
    /// H_O, damped
    outer: Array2<f64>,
    /// the same on the machine
    there: O::Outer,
    /// the damped H
    hessian: Array2<f64>,
    /// tr(H_O W H W^T)
    norm: f64,
    update: &'a Update,
}

/// A quantized matrix, E, and tr(H_O E H E^T).
struct State {
    matrix: QuantizedMatrix,
    error: Array2<f64>,
    loss: f64,
}

/// Quantizes one layer under tr(H_O E H E^T): the one-sided initialisation, then rounds of (codebooks and
/// scales, one sweep of coordinate search over rows), under the rules of
/// [`alternate`](crate::alternate::alternate).
///
/// `problem` belongs to `weight` [out_features, in_features] and `hessian` [in_features, in_features].
/// `outer` is H_O; [`OUTER_DAMPING`] is added to it. Losses in the report are under the damped H_O and H.
///
/// # Errors
/// As [`alternate`](crate::alternate::alternate). `Unsupported` for output groups of several rows. `Argument`
/// for an update by Adam.
pub fn alternate_two_sided<O: LayerOps>(
    ops: &O,
    problem: &O::Problem,
    (weight, hessian, outer): (&Array2<f32>, &Array2<f64>, &Array2<f64>),
    settings: &LayerSettings,
    key: StreamKey,
    observe: &mut dyn FnMut(LayerEvent),
) -> Result<(QuantizedMatrix, LayerReport)> {
    let in_groups = check_settings(ops.shape(problem), settings)?;
    let mut sides = TwoSided::new(ops, problem, weight, hessian, outer, settings)?;
    let start = sides.state(ops.matrix(problem, &ops.initialize(problem, settings, key)?)?)?;
    let dead_inputs = ops.dead_inputs(problem);
    rounds(&mut sides, start, in_groups, dead_inputs, settings, key, observe)
}

impl<O: LayerOps> Steps for TwoSided<'_, O> {
    type State = State;

    /// Codebooks and scales in turn. A step that would raise the loss is not taken.
    fn update(&mut self, mut state: State) -> Result<State> {
        let Update::ClosedForm {
            max_unknowns,
            cg_steps,
            scale_rounds,
        } = *self.update
        else {
            return Err(AqlmError::argument(
                "update",
                "the closed form beside a two-sided objective",
                "adam",
            )
            .into());
        };
        let scheme = state.matrix.scheme();
        let unknowns = scheme.num_codebooks * scheme.codebook_size() * scheme.in_group_size;
        let descent = ENOUGH.with_steps(if unknowns <= max_unknowns {
            unknowns
        } else {
            cg_steps
        });
        let both = |dense: &Array2<f64>| self.ops.image(self.problem, Some(&self.there), dense);
        let right = |dense: &Array2<f64>| self.ops.image(self.problem, None, dense);
        for round in 0..scale_rounds.max(1) {
            let codebooks = two_sided_codebooks(
                &both,
                &self.weight,
                self.outer.diag(),
                &self.hessian,
                &state.matrix,
                descent,
            )?;
            state = self.better(state, |matrix| Ok(matrix.with_codebooks(codebooks)?))?;
            if round < scale_rounds {
                let scales = two_sided_scales(&right, &self.weight, &self.outer, &state.matrix)?;
                state = self.better(state, |matrix| Ok(matrix.with_scales(scales)?))?;
            }
        }
        Ok(state)
    }

    /// One sweep of coordinate search from the current codes.
    fn search(&self, state: State, order: &[Position], beam: usize) -> Result<State> {
        let State {
            mut matrix,
            mut error,
            ..
        } = state;
        let mut rows: Vec<usize> = (0..error.nrows()).collect();
        for _ in 0..TRIES {
            let mut codes = matrix.codes().clone();
            rows = self.search_rows(&rows, &matrix, &mut error, &mut codes, order, beam)?;
            matrix = matrix.with_codes(codes)?;
            if rows.is_empty() {
                break;
            }
        }
        self.state(matrix)
    }

    fn loss(&self, state: &State) -> f64 {
        self.relative(state)
    }

    fn matrix(&self, state: &State) -> Result<QuantizedMatrix> {
        Ok(state.matrix.clone())
    }
}

impl<'a, O: LayerOps> TwoSided<'a, O> {
    fn new(
        ops: &'a O,
        problem: &'a O::Problem,
        weight: &Array2<f32>,
        hessian: &Array2<f64>,
        outer: &Array2<f64>,
        settings: &'a LayerSettings,
    ) -> Result<Self> {
        require_single_rows(settings.scheme)?;
        if outer.nrows() != weight.nrows() {
            return Err(AqlmError::Shape {
                what: "H_O".into(),
                expected: vec![weight.nrows(), weight.nrows()],
                found: outer.shape().to_vec(),
            }
            .into());
        }
        let outer = damped_outer(outer, OUTER_DAMPING)?;
        let there = ops.outer(&outer)?;
        let weight = weight.mapv(f64::from);
        let norm = inner(&ops.image(problem, Some(&there), &weight)?, &weight);
        Ok(Self {
            ops,
            problem,
            weight,
            outer,
            there,
            hessian: aqlm_reference::damped(hessian, settings.damping),
            norm,
            update: &settings.update,
        })
    }

    fn state(&self, matrix: QuantizedMatrix) -> Result<State> {
        let error = &self.weight - &decode(&matrix);
        let image = self.ops.image(self.problem, Some(&self.there), &error)?;
        Ok(State {
            matrix,
            loss: inner(&image, &error),
            error,
        })
    }

    /// The loss as a share of that of the weight itself.
    fn relative(&self, state: &State) -> f64 {
        if state.loss == 0.0 {
            0.0
        } else {
            state.loss / self.norm
        }
    }

    /// The state with its matrix changed, if that lowers the loss.
    fn better(
        &self,
        state: State,
        change: impl FnOnce(QuantizedMatrix) -> Result<QuantizedMatrix>,
    ) -> Result<State> {
        let other = self.state(change(state.matrix.clone())?)?;
        Ok(if other.loss < state.loss { other } else { state })
    }

    /// Searches these rows together, and accepts what each has found in the order of gains, as far as it
    /// still lowers the loss beside what was accepted before. Returns the rows that were not accepted.
    ///
    /// With X = H_O E, a step D_i of row i changes the loss by 2 <X_i H, D_i> + H_O\[i,i\] D_i H D_i^T, and
    /// two steps together by another 2 H_O\[i,j\] D_i H D_j^T.
    fn search_rows(
        &self,
        rows: &[usize],
        matrix: &QuantizedMatrix,
        error: &mut Array2<f64>,
        codes: &mut ndarray::Array3<u16>,
        order: &[Position],
        beam: usize,
    ) -> Result<Vec<usize>> {
        let weighted = product(self.outer.select(Axis(0), rows).view(), error.view());
        let before = error.select(Axis(0), rows);
        let weight = self.weight.select(Axis(0), rows);
        let mut target = &weight - &before;
        for ((mut target, weighted), &row) in target.outer_iter_mut().zip(weighted.outer_iter()).zip(rows) {
            target.scaled_add(1.0 / self.outer[[row, row]], &weighted);
        }
        let part = self.ops.retargeted(self.problem, &narrow(&target))?;
        let trial = self.ops.trial(&part, rows_of(matrix, rows)?)?;
        let trial = self.ops.search(&part, trial, order, beam)?;
        let found = self.ops.matrix(&part, &trial)?;
        drop((part, trial));
        let steps = weight - decode(&found) - before;
        let image = self.ops.image(self.problem, None, &steps)?;
        let products = product(steps.view(), image.t());
        let coupling = |a: usize, b: usize| self.outer[[rows[a], rows[b]]] * products[[a, b]];
        let linear: Array1<f64> = 2.0 * (&weighted * &image).sum_axis(Axis(1));
        let alone = |a: usize| linear[a] + coupling(a, a);
        let moved = |a: &usize| steps.row(*a).iter().any(|&x| x != 0.0);
        let mut candidates: Vec<usize> = (0..rows.len()).filter(moved).collect();
        candidates.sort_by(|&a, &b| f64::total_cmp(&alone(a), &alone(b)));
        let (mut accepted, mut left): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
        for a in candidates {
            let beside: f64 = accepted.iter().map(|&b| coupling(a, b)).sum();
            let lower = alone(a) + 2.0 * beside < 0.0;
            if !lower {
                left.push(a);
                continue;
            }
            accepted.push(a);
            error.row_mut(rows[a]).scaled_add(1.0, &steps.row(a));
            codes
                .index_axis_mut(Axis(0), rows[a])
                .assign(&found.codes().index_axis(Axis(0), a));
        }
        if accepted.is_empty() {
            return Ok(Vec::new());
        }
        left.sort_unstable();
        Ok(left.into_iter().map(|a| rows[a]).collect())
    }
}

/// Some rows of a quantized matrix.
fn rows_of(matrix: &QuantizedMatrix, rows: &[usize]) -> Result<QuantizedMatrix> {
    Ok(QuantizedMatrix::new(
        matrix.scheme(),
        matrix.codes().select(Axis(0), rows),
        matrix.codebooks().clone(),
        matrix.scales().select(Axis(0), rows),
    )?)
}

fn narrow(values: &Array2<f64>) -> Array2<f32> {
    values.mapv(|value| value as f32)
}

fn inner(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
    // ndarray adds in an order that depends on the shape alone
    (a * b).sum()
}
