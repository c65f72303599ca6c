//! One layer under the two-sided objective tr(H_O E H E^T), E = W - Q, over the steps of any machine
//! (`reference/src/two_sided/`).
//!
//! A machine knows one-sided problems. Given all other rows, a row of a layer is one, with a target of its
//! own under the same H ([`TwoSidedOps::propose`]). All rows are searched together, as if each were the only
//! one to move. What they found is then accepted row by row, as far as it lowers the exact loss.

use aqlm_reference::damped_outer;
pub use aqlm_reference::require_single_rows;
use aqlm_vocabulary::{
    AqlmError, LayerEvent, LayerReport, LayerSettings, Position, QuantizedMatrix, StreamKey, Update,
};
use ndarray::{Array2, Axis};

use crate::alternate::{Steps, check_settings, rounds};
use crate::ops::{TwoSidedLayer, TwoSidedOps};
pub use crate::two_sided_host::ENOUGH;
use aqlm_formats::Result;

/// How often rows are searched in a sweep: all of them, then those that were not accepted, and so on.
const TRIES: usize = 8;

/// Added to the diagonal of H_O, as a share of its mean.
pub const OUTER_DAMPING: f64 = 1e-1;

/// A layer under two metrics of its error, on a machine.
struct TwoSided<'a, O: TwoSidedOps> {
    ops: &'a O,
    problem: &'a O::Problem,
    layer: TwoSidedLayer,
    /// H_O on the machine
    there: O::Outer,
    /// tr(H_O W H W^T)
    norm: f64,
    update: &'a Update,
}

/// A quantized matrix and tr(H_O E H E^T).
struct State {
    matrix: QuantizedMatrix,
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
pub fn alternate_two_sided<O: TwoSidedOps>(
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

impl<O: TwoSidedOps> Steps for TwoSided<'_, O> {
    type State = State;

    /// Codebooks and scales in turn.
    fn update(&mut self, state: State) -> Result<State> {
        let matrix =
            self.ops
                .update_two_sided(self.problem, &self.there, &self.layer, &state.matrix, self.update)?;
        let updated = self.state(matrix)?;
        Ok(if updated.loss < state.loss { updated } else { state })
    }

    /// One sweep of coordinate search from the current codes.
    fn search(&self, state: State, order: &[Position], beam: usize) -> Result<State> {
        let mut matrix = state.matrix;
        let mut errors = self.ops.errors(self.problem, &self.layer, &matrix)?;
        let mut rows: Vec<usize> = (0..matrix.out_features()).collect();
        for _ in 0..TRIES {
            (matrix, rows) = self.search_rows(&rows, matrix, &mut errors, order, beam)?;
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

impl<'a, O: TwoSidedOps> TwoSided<'a, O> {
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
            layer: TwoSidedLayer {
                weight,
                outer,
                hessian: aqlm_reference::damped(hessian, settings.damping),
            },
            there,
            norm,
            update: &settings.update,
        })
    }

    fn state(&self, matrix: QuantizedMatrix) -> Result<State> {
        let (problem, outer) = (self.problem, &self.there);
        let loss = self.ops.loss_two_sided(problem, outer, &self.layer, &matrix)?;
        Ok(State { matrix, loss })
    }

    /// The loss as a share of that of the weight itself.
    fn relative(&self, state: &State) -> f64 {
        if state.loss == 0.0 {
            0.0
        } else {
            state.loss / self.norm
        }
    }

    /// Searches these rows together, and accepts what each has found in the order of gains, as far as it
    /// still lowers the loss beside what was accepted before. Returns the rows that were not accepted.
    ///
    /// With X = H_O E, a step D_i of row i changes the loss by 2 <X_i H, D_i> + H_O\[i,i\] D_i H D_i^T, and
    /// two steps together by another 2 H_O\[i,j\] D_i H D_j^T.
    fn search_rows(
        &self,
        rows: &[usize],
        matrix: QuantizedMatrix,
        errors: &mut O::Errors,
        order: &[Position],
        beam: usize,
    ) -> Result<(QuantizedMatrix, Vec<usize>)> {
        let (ops, outer) = (self.ops, &self.layer.outer);
        let from = (&*errors, &matrix, rows);
        let found = ops.propose(self.problem, &self.there, &self.layer, from, order, beam)?;
        let coupling = |a: usize, b: usize| outer[[rows[a], rows[b]]] * found.products[[a, b]];
        let alone = |a: usize| found.linear[a] + coupling(a, a);
        let mut candidates: Vec<usize> = (0..rows.len()).filter(|&a| found.moved[a]).collect();
        candidates.sort_by(|&a, &b| f64::total_cmp(&alone(a), &alone(b)));
        let (mut accepted, mut left): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
        for a in candidates {
            let beside: f64 = accepted.iter().map(|&b| coupling(a, b)).sum();
            let lower = alone(a) + 2.0 * beside < 0.0;
            if lower { &mut accepted } else { &mut left }.push(a);
        }
        if accepted.is_empty() {
            return Ok((matrix, Vec::new()));
        }
        ops.accept(errors, &found, rows, &accepted)?;
        let mut codes = matrix.codes().clone();
        for &a in &accepted {
            let row = found.codes.index_axis(Axis(0), a);
            codes.index_axis_mut(Axis(0), rows[a]).assign(&row);
        }
        left.sort_unstable();
        let left = left.into_iter().map(|a| rows[a]).collect();
        Ok((matrix.with_codes(codes)?, left))
    }
}

fn inner(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
    // ndarray adds in an order that depends on the shape alone
    (a * b).sum()
}
