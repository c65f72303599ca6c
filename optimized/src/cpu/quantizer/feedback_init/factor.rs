use aqlm_vocabulary::{AqlmError, GroupOrder, Result};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt;
use faer::{MatMut, Par, Spec};
use ndarray::Array2;
use rayon::prelude::*;

use crate::cpu::product::clear_upper_registers;
use crate::cpu::quantizer::small_solve::SmallCholesky;

/// H with its input groups permuted, factored in f64.
#[derive(Debug, Clone)]
pub(in crate::cpu::quantizer) struct Factor {
    /// the input groups; the last one is decided first
    pub(super) order: Vec<usize>,
    /// L, [in_features, in_features], standard layout, zeros above the diagonal
    pub(super) lower: Array2<f32>,
}

impl Factor {
    /// # Errors
    /// `NotPositiveDefinite` when H [in_features, in_features] is indefinite.
    pub(in crate::cpu::quantizer) fn new(
        hessian: &Array2<f64>,
        gi: usize,
        order: GroupOrder,
    ) -> Result<Self> {
        let n = hessian.nrows();
        let order = groups_in_order(hessian, gi, order)?;
        let columns: Vec<usize> = order.iter().flat_map(|&j| j * gi..(j + 1) * gi).collect();
        let lower = cholesky(n, |i, j| hessian[[columns[i], columns[j]]])?;
        Ok(Self {
            order,
            lower: Array2::from_shape_fn((n, n), |(i, j)| if i < j { 0.0 } else { lower[j * n + i] as f32 }),
        })
    }
}

/// The input groups in this order.
///
/// # Errors
/// `NotPositiveDefinite` when H [in_features, in_features] is indefinite and the order depends on its
/// inverse.
pub(crate) fn groups_in_order(hessian: &Array2<f64>, gi: usize, order: GroupOrder) -> Result<Vec<usize>> {
    Ok(match order {
        GroupOrder::Natural => (0..hessian.nrows() / gi).collect(),
        GroupOrder::Diagonal => by_trace(hessian, gi),
        GroupOrder::Variance => by_conditional_variance(hessian, gi)?,
    })
}

/// Groups by the trace of H_jj, the least first; among equals the lower index first.
fn by_trace(hessian: &Array2<f64>, gi: usize) -> Vec<usize> {
    let traces: Vec<f64> = (0..hessian.nrows() / gi)
        .map(|j| (j * gi..(j + 1) * gi).map(|i| hessian[[i, i]]).sum())
        .collect();
    let mut groups: Vec<usize> = (0..traces.len()).collect();
    groups.sort_by(|&a, &b| f64::total_cmp(&traces[a], &traces[b]));
    groups
}

/// Groups such that the last one has the largest conditional variance given all others, the one before it the
/// largest given all but the last, and so on; among equals the higher index comes later.
///
/// P is the inverse of H restricted to undecided groups. The variance of group j is the determinant of
/// P_jj^-1. Deciding j subtracts P_:j P_jj^-1 P_j: from P.
fn by_conditional_variance(hessian: &Array2<f64>, gi: usize) -> Result<Vec<usize>> {
    let n = hessian.nrows();
    let mut inverse = inverse(hessian)?;
    let mut undecided: Vec<usize> = (0..n / gi).collect();
    let mut decided = Vec::with_capacity(n / gi);
    while !undecided.is_empty() {
        let blocks: Vec<SmallCholesky> = undecided
            .par_iter()
            .map(|&j| SmallCholesky::new(&block(&inverse, n, j, gi), gi, "inverse of the hessian"))
            .collect::<Result<_>>()?;
        let mut first = (f64::INFINITY, 0);
        for (at, block) in blocks.iter().enumerate() {
            let volume = block.log_volume();
            if volume <= first.0 {
                first = (volume, at);
            }
        }
        let j = undecided.remove(first.1);
        decided.push(j);
        let factor = &blocks[first.1];
        let own: Vec<f64> = (0..n)
            .flat_map(|i| inverse[i * n + j * gi..i * n + (j + 1) * gi].to_vec())
            .collect();
        inverse.par_chunks_exact_mut(n).enumerate().for_each(|(i, row)| {
            let mut solved = own[i * gi..(i + 1) * gi].to_vec();
            factor.solve(&mut solved);
            for (value, own) in row.iter_mut().zip(own.chunks_exact(gi)) {
                *value -= solved.iter().zip(own).map(|(a, b)| a * b).sum::<f64>();
            }
        });
    }
    decided.reverse();
    Ok(decided)
}

/// A diagonal block of a matrix of order n.
fn block(matrix: &[f64], n: usize, j: usize, gi: usize) -> Vec<f64> {
    (j * gi..(j + 1) * gi)
        .flat_map(|i| &matrix[i * n + j * gi..i * n + (j + 1) * gi])
        .copied()
        .collect()
}

/// (H + ridge I)^-1, [n, n]. The updates of the inverse lose as many digits as the condition number has; a
/// ridge of sqrt(epsilon) x the largest diagonal entry leaves half of them.
fn inverse(hessian: &Array2<f64>) -> Result<Vec<f64>> {
    let n = hessian.nrows();
    let largest = hessian.diag().iter().fold(0.0, |top: f64, x| top.max(x.abs()));
    let ridge = if largest == 0.0 {
        1.0
    } else {
        f64::EPSILON.sqrt() * largest
    };
    let factor = cholesky(n, |i, j| hessian[[i, j]] + if i == j { ridge } else { 0.0 })?;
    let mut inverse = vec![0.0; n * n];
    for i in 0..n {
        inverse[i * (n + 1)] = 1.0;
    }
    llt::solve::solve_in_place(
        faer::MatRef::from_column_major_slice(&factor, n, n),
        MatMut::from_column_major_slice_mut(&mut inverse, n, n),
        Par::Seq,
        MemStack::new(&mut []),
    );
    clear_upper_registers();
    Ok(inverse)
}

/// The lower factor, column-major, of a symmetric positive semidefinite matrix plus the first of a growing
/// series of jitters with which it factors: zero, then the rounding error of the factorisation, then a
/// hundred times as much each time. A matrix of zeros has a factor of zeros.
fn cholesky(n: usize, element: impl Fn(usize, usize) -> f64) -> Result<Vec<f64>> {
    let largest = (0..n).fold(0.0f64, |top, i| top.max(element(i, i).abs()));
    if largest == 0.0 {
        return Ok(vec![0.0; n * n]);
    }
    let mut jitter = 0.0;
    loop {
        let mut factor: Vec<f64> = (0..n * n).map(|at| element(at % n, at / n)).collect();
        for i in 0..n {
            factor[i * (n + 1)] += jitter;
        }
        match factor_in_place(&mut factor, n) {
            Ok(()) => return Ok(factor),
            Err(pivot) if jitter > 1e-3 * largest || !largest.is_finite() => {
                return Err(AqlmError::NotPositiveDefinite {
                    what: "hessian".into(),
                    pivot,
                });
            }
            Err(_) => jitter = (100.0 * jitter).max(n as f64 * f64::EPSILON * largest),
        }
    }
}

/// On one thread, so that no byte depends on their number. The error is the failing pivot.
fn factor_in_place(matrix: &mut [f64], n: usize) -> std::result::Result<(), usize> {
    if let Some(pivot) = (0..n).find(|&i| !matrix[i * (n + 1)].is_finite()) {
        return Err(pivot);
    }
    let mut memory = MemBuffer::new(llt::factor::cholesky_in_place_scratch::<f64>(
        n,
        Par::Seq,
        Spec::default(),
    ));
    let result = llt::factor::cholesky_in_place(
        MatMut::from_column_major_slice_mut(matrix, n, n),
        llt::factor::LltRegularization::default(),
        Par::Seq,
        MemStack::new(&mut memory),
        Spec::default(),
    );
    clear_upper_registers();
    match result {
        Ok(_) => Ok(()),
        Err(llt::factor::LltError::NonPositivePivot { index }) => Err(index),
    }
}
