//! Steps of the alternation under tr(H_O E H E^T), E = W - Q, on the host in f64, for a machine that does
//! only products and one-sided searches.

use aqlm_reference::linalg::product;
use aqlm_reference::{Descent, decode, two_sided_codebooks, two_sided_scales};
use aqlm_vocabulary::{AqlmError, QuantizedMatrix, Update};
use ndarray::{Array2, Array3, Axis};

use aqlm_formats::Result;

/// When codebooks are good enough for the next search of codes.
pub const ENOUGH: Descent = Descent {
    steps: usize::MAX,
    of_gain: 0.01,
    of_loss: 1e-5,
};

/// A layer and the two metrics of its error.
#[derive(Debug, Clone)]
pub struct TwoSidedLayer {
    /// [out_features, in_features]
    pub weight: Array2<f64>,
    /// H_O, damped
    pub outer: Array2<f64>,
    /// the damped H
    pub hessian: Array2<f64>,
}

/// What rows of a layer have found, each as if it were the only one to move.
#[derive(Debug, Clone)]
pub struct Proposal<E> {
    /// [rows, in_groups, M]
    pub codes: Array3<u16>,
    /// rows whose error changes
    pub moved: Vec<bool>,
    /// 2 <X_i H, D_i>, with X = H_O E and D_i the change of row i
    pub linear: Vec<f64>,
    /// D_i H D_j^T, [rows, rows]
    pub products: Array2<f64>,
    /// the errors of these rows after the change, on the machine
    pub errors: E,
}

/// H_O D H for D [out_features, in_features], or D H for any rows where the first argument is false.
pub(crate) type Image<'a> = dyn Fn(bool, &Array2<f64>) -> Result<Array2<f64>> + 'a;

/// tr(H_O E H E^T).
///
/// # Errors
/// Those of `image`.
pub(crate) fn loss(image: &Image<'_>, layer: &TwoSidedLayer, matrix: &QuantizedMatrix) -> Result<f64> {
    let error = errors(layer, matrix);
    // ndarray adds in an order that depends on the shape alone
    Ok((image(true, &error)? * error).sum())
}

/// E.
pub(crate) fn errors(layer: &TwoSidedLayer, matrix: &QuantizedMatrix) -> Array2<f64> {
    &layer.weight - &decode(matrix)
}

/// What these rows find. `search` sweeps over rows of a quantized matrix with a target of their own, [rows,
/// in_features].
///
/// # Errors
/// Those of `image` and `search`.
pub(crate) fn propose(
    image: &Image<'_>,
    search: &dyn Fn(&Array2<f32>, QuantizedMatrix) -> Result<QuantizedMatrix>,
    layer: &TwoSidedLayer,
    (errors, matrix, rows): (&Array2<f64>, &QuantizedMatrix, &[usize]),
) -> Result<Proposal<Array2<f64>>> {
    let outer = &layer.outer;
    let weighted = product(outer.select(Axis(0), rows).view(), errors.view());
    let before = errors.select(Axis(0), rows);
    let weight = layer.weight.select(Axis(0), rows);
    let mut target = &weight - &before;
    for ((mut target, weighted), &row) in target.outer_iter_mut().zip(weighted.outer_iter()).zip(rows) {
        target.scaled_add(1.0 / outer[[row, row]], &weighted);
    }
    let found = search(&target.mapv(|value| value as f32), matrix.of_out_groups(rows))?;
    let after = weight - decode(&found);
    let steps = &after - &before;
    let image = image(false, &steps)?;
    Ok(Proposal {
        codes: found.codes().clone(),
        moved: steps
            .outer_iter()
            .map(|step| step.iter().any(|&x| x != 0.0))
            .collect(),
        linear: (2.0 * (&weighted * &image).sum_axis(Axis(1))).to_vec(),
        products: product(steps.view(), image.t()),
        errors: after,
    })
}

/// Takes over the errors of the accepted ones among these rows.
pub(crate) fn accept(
    errors: &mut Array2<f64>,
    proposal: &Proposal<Array2<f64>>,
    rows: &[usize],
    accepted: &[usize],
) {
    for &a in accepted {
        errors.row_mut(rows[a]).assign(&proposal.errors.row(a));
    }
}

/// Codebooks and scales in turn, as `update` says. A step that would raise the loss is not taken.
///
/// # Errors
/// `Argument` for an update by Adam, `NotPositiveDefinite` when H is indefinite; those of `image`.
pub(crate) fn update(
    image: &Image<'_>,
    layer: &TwoSidedLayer,
    matrix: &QuantizedMatrix,
    update: &Update,
) -> Result<QuantizedMatrix> {
    let Update::ClosedForm {
        max_unknowns,
        cg_steps,
        scale_rounds,
    } = *update
    else {
        return Err(
            AqlmError::argument("update", "the closed form beside a two-sided objective", "adam").into(),
        );
    };
    let descent = ENOUGH.with_steps(matrix.scheme().descent_steps(max_unknowns, cg_steps));
    let both = |dense: &Array2<f64>| image(true, dense);
    let right = |dense: &Array2<f64>| image(false, dense);
    let loss = |matrix: &QuantizedMatrix| loss(image, layer, matrix);
    let mut best = (loss(matrix)?, matrix.clone());
    let consider = |candidate: QuantizedMatrix, best: &mut (f64, QuantizedMatrix)| -> Result<()> {
        let loss = loss(&candidate)?;
        if loss < best.0 {
            *best = (loss, candidate);
        }
        Ok(())
    };
    for round in 0..scale_rounds.max(1) {
        let (weights, hessian) = (layer.outer.diag(), &layer.hessian);
        let codebooks = two_sided_codebooks(&both, &layer.weight, weights, hessian, &best.1, descent)?;
        consider(best.1.clone().with_codebooks(codebooks)?, &mut best)?;
        if round < scale_rounds {
            let scales = two_sided_scales(&right, &layer.weight, &layer.outer, &best.1)?;
            consider(best.1.clone().with_scales(scales)?, &mut best)?;
        }
    }
    Ok(best.1)
}
