//! Dense products and positive definite solves, by faer.
//!
//! Every result has a fixed order of summation. Products are split into row blocks of one size for any number
//! of threads, and a factorisation runs on one thread. Runs on different machines therefore choose the same
//! codes.

#[cfg(feature = "lapack")]
pub mod lapack;
mod upper_registers;

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt;
use faer::linalg::evd::{self, ComputeEigenvectors};
use faer::linalg::matmul;
use faer::{Accum, MatMut, MatRef, Par, Spec};
use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;

use self::upper_registers::clear_upper_registers;
use aqlm_vocabulary::{AqlmError, Result};

/// Number of rows of the result that one task computes. Fixed, because the split of a product may change its
/// last bits. Each task packs all of B for faer's kernels; with 64 rows, packing took an eighth of a block's
/// training.
const ROW_BLOCK: usize = 128;

/// Runs `f` on a faer view of the array; arrays that are neither row- nor column-major are copied first.
fn with_faer<R>(view: ArrayView2<'_, f64>, f: impl FnOnce(MatRef<'_, f64>) -> R) -> R {
    let (rows, cols) = view.dim();
    if let Some(slice) = view.as_slice() {
        return f(MatRef::from_row_major_slice(slice, rows, cols));
    }
    if let Some(slice) = view.t().to_slice() {
        return f(MatRef::from_column_major_slice(slice, rows, cols));
    }
    let copy: Vec<f64> = view.iter().copied().collect();
    f(MatRef::from_row_major_slice(&copy, rows, cols))
}

/// The product A B, [m, k] times [k, n].
///
/// Transposed operands (`a.t()`) cost nothing extra.
///
/// # Panics
/// When the inner sizes differ, as `ndarray::dot` does.
pub fn product(a: ArrayView2<'_, f64>, b: ArrayView2<'_, f64>) -> Array2<f64> {
    let (m, k) = a.dim();
    let n = b.ncols();
    assert_eq!(k, b.nrows(), "inner sizes of a product");
    if m * n * k == 0 {
        return Array2::zeros((m, n));
    }
    let mut out = Array2::zeros((m, n));
    with_faer(a, |a| {
        with_faer(b, |b| {
            out.axis_chunks_iter_mut(Axis(0), ROW_BLOCK)
                .into_par_iter()
                .enumerate()
                .for_each(|(i, mut block)| {
                    let rows = block.nrows();
                    let a = a.subrows(i * ROW_BLOCK, rows);
                    let slice = block
                        .as_slice_mut()
                        .expect("rows of a new array lie one after the other");
                    let block = MatMut::from_row_major_slice_mut(slice, rows, n);
                    matmul::matmul(block, Accum::Replace, a, b, 1.0, Par::Seq);
                    clear_upper_registers();
                });
        });
    });
    out
}

/// The Cholesky factor of a symmetric positive definite matrix, and the jitter that was added to its
/// diagonal.
#[derive(Debug, Clone)]
pub struct Cholesky {
    /// column-major; its lower triangle is the factor
    factor: Vec<f64>,
    order: usize,
    jitter: f64,
}

impl Cholesky {
    /// Factors A + jitter I. The jitter is the first of `first_jitter`, 100 times that, and so on, for which
    /// the factorisation succeeds.
    ///
    /// When `first_jitter` is zero and A itself does not factor, the sequence starts at the rounding error of
    /// the factorisation: order x epsilon x the largest diagonal entry. `what` names A in errors.
    ///
    /// # Errors
    /// `Shape` when A is not square. `NotPositiveDefinite`, with the failing pivot, when even a jitter of a
    /// thousandth of the largest diagonal entry does not help: then A is indefinite or has NaN.
    pub fn new(a: ArrayView2<'_, f64>, first_jitter: f64, what: &str) -> Result<Self> {
        let order = a.nrows();
        if a.ncols() != order {
            return Err(AqlmError::Shape {
                what: what.into(),
                expected: vec![order, order],
                found: a.shape().to_vec(),
            });
        }
        let largest = a.diag().iter().fold(0.0, |top: f64, x| top.max(x.abs()));
        let rounding = order as f64 * f64::EPSILON * largest;
        let mut jitter = first_jitter;
        loop {
            // A is symmetric, so its rows serve as the columns that faer expects.
            let mut factor: Vec<f64> = a.iter().copied().collect();
            for i in 0..order {
                factor[i * (order + 1)] += jitter;
            }
            match factor_in_place(&mut factor, order) {
                Ok(()) => {
                    return Ok(Self {
                        factor,
                        order,
                        jitter,
                    });
                }
                Err(pivot) if jitter > 1e-3 * largest || rounding == 0.0 || largest.is_nan() => {
                    return Err(AqlmError::NotPositiveDefinite {
                        what: what.into(),
                        pivot,
                    });
                }
                Err(_) => jitter = rounding.max(100.0 * jitter),
            }
        }
    }

    /// Factors a matrix that may be singular. The jitter starts at the rounding error of the factorisation,
    /// so that no pivot is noise. Solutions then move only a bounded distance along the null space. To
    /// approach a minimiser of xT A x - 2 xT b, repeat `x += factor.solve(b - A x)`; each step is a descent.
    ///
    /// # Errors
    /// As [`Cholesky::new`]; also for a matrix of zeros.
    pub fn semidefinite(a: ArrayView2<'_, f64>, what: &str) -> Result<Self> {
        let largest = a.diag().iter().fold(0.0, |top: f64, x| top.max(x.abs()));
        Self::new(a, a.nrows() as f64 * f64::EPSILON * largest, what)
    }

    /// The jitter that was added to the diagonal.
    pub fn jitter(&self) -> f64 {
        self.jitter
    }

    /// L, lower triangular, with L L^T = A + jitter I.
    pub fn lower(&self) -> Array2<f64> {
        let n = self.order;
        Array2::from_shape_fn((n, n), |(i, j)| if i < j { 0.0 } else { self.factor[j * n + i] })
    }

    /// X of (A + jitter I) X = B, for B of shape [order, n].
    ///
    /// # Panics
    /// When B and A differ in their number of rows.
    pub fn solve(&self, b: ArrayView2<'_, f64>) -> Array2<f64> {
        let (rows, n) = b.dim();
        assert_eq!(rows, self.order, "rows of a right-hand side");
        let mut x: Vec<f64> = b.t().iter().copied().collect();
        let factor = MatRef::from_column_major_slice(&self.factor, self.order, self.order);
        llt::solve::solve_in_place(
            factor,
            MatMut::from_column_major_slice_mut(&mut x, rows, n),
            Par::Seq,
            MemStack::new(&mut []),
        );
        clear_upper_registers();
        Array2::from_shape_fn((rows, n), |(i, j)| x[j * rows + i])
    }
}

/// Overwrites the lower triangle with the factor; the error is the failing pivot.
fn factor_in_place(matrix: &mut [f64], order: usize) -> std::result::Result<(), usize> {
    if let Some(i) = (0..order).find(|&i| !matrix[i * (order + 1)].is_finite()) {
        return Err(i);
    }
    let mut memory = MemBuffer::new(llt::factor::cholesky_in_place_scratch::<f64>(
        order,
        Par::Seq,
        Spec::default(),
    ));
    let result = llt::factor::cholesky_in_place(
        MatMut::from_column_major_slice_mut(matrix, order, order),
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

/// X of A X = B for a symmetric positive definite A of shape [n, n] and B of shape [n, k]; see
/// [`Cholesky::new`] for a singular A.
///
/// # Errors
/// As [`Cholesky::new`].
pub fn solve_spd(a: ArrayView2<'_, f64>, b: ArrayView2<'_, f64>, what: &str) -> Result<Array2<f64>> {
    Ok(Cholesky::new(a, 0.0, what)?.solve(b))
}

/// The eigenvalues of a symmetric matrix, in ascending order.
///
/// # Errors
/// `Shape` when A is not square, `NotFinite` when it has NaN or infinities, or when its eigenvalues do not
/// converge. `what` names A in errors.
pub fn eigenvalues(a: ArrayView2<'_, f64>, what: &str) -> Result<Vec<f64>> {
    let order = a.nrows();
    if a.ncols() != order {
        return Err(AqlmError::Shape {
            what: what.into(),
            expected: vec![order, order],
            found: a.shape().to_vec(),
        });
    }
    if let Some(((row, column), &value)) = a.indexed_iter().find(|(_, value)| !value.is_finite()) {
        return Err(AqlmError::NotFinite {
            what: what.into(),
            index: vec![row, column],
            value,
        });
    }
    let mut values = Diag::<f64>::zeros(order);
    let mut memory = MemBuffer::new(evd::self_adjoint_evd_scratch::<f64>(
        order,
        ComputeEigenvectors::No,
        Par::Seq,
        Spec::default(),
    ));
    let outcome = with_faer(a, |a| {
        evd::self_adjoint_evd(
            a,
            values.as_mut(),
            None,
            Par::Seq,
            MemStack::new(&mut memory),
            Spec::default(),
        )
    });
    clear_upper_registers();
    if outcome.is_err() {
        return Err(AqlmError::NotFinite {
            what: format!("eigenvalues of {what}"),
            index: vec![0],
            value: f64::NAN,
        });
    }
    Ok(values.column_vector().iter().copied().collect())
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;
    use proptest::prelude::*;

    use super::*;
    use crate::problem::{config, gaussian, spd};

    proptest! {
        #![proptest_config(config(64))]
        #[test]
        fn products_are_ndarrays(m in 0usize..300, k in 0usize..20, n in 0usize..20, seed: u64) {
            let (a, b) = (gaussian(seed, m, k), gaussian(seed ^ 1, k, n));
            let expected = a.dot(&b);
            // k terms of size about 1, each rounded once or twice
            let epsilon = 8.0 * (k + 1) as f64 * f64::EPSILON;
            let bt = b.t().as_standard_layout().into_owned();
            prop_assert!(approx::abs_diff_eq!(product(a.view(), b.view()), expected, epsilon = 4.0 * epsilon));
            prop_assert!(approx::abs_diff_eq!(product(a.view(), bt.t()), expected, epsilon = 4.0 * epsilon));
        }

        #[test]
        fn solutions_solve(n in 1usize..30, k in 1usize..4, seed: u64) {
            let (a, x) = (spd(seed, n), gaussian(seed ^ 1, n, k));
            let b = a.dot(&x);
            let factor = Cholesky::new(a.view(), 0.0, "a").unwrap();
            prop_assert_eq!(factor.jitter(), 0.0);
            // backward stable: residual within n eps |A| |x|
            let residual = a.dot(&factor.solve(b.view())) - &b;
            let size = a.iter().map(|v| v * v).sum::<f64>().sqrt() * x.iter().map(|v| v * v).sum::<f64>().sqrt();
            let norm = residual.iter().map(|v| v * v).sum::<f64>().sqrt();
            prop_assert!(norm <= 4.0 * n as f64 * f64::EPSILON * size);
        }
    }

    #[test]
    fn eigenvalues_are_those_of_a_known_matrix() {
        let a = ndarray::array![[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 5.0]];
        let found = eigenvalues(a.view(), "a").unwrap();
        for (value, expected) in found.iter().zip([1.0, 3.0, 5.0]) {
            assert!((value - expected).abs() <= 64.0 * f64::EPSILON, "{found:?}");
        }
    }

    #[test]
    fn what_has_no_eigenvalues_is_refused() {
        assert!(eigenvalues(Array2::zeros((2, 3)).view(), "a").is_err());
        assert!(eigenvalues(Array2::from_elem((2, 2), f64::NAN).view(), "a").is_err());
    }

    #[test]
    fn strided_views_are_copied() {
        let a = gaussian(1, 9, 8);
        let odd = a.slice(ndarray::s![..;2, ..;3]);
        assert_relative_eq!(product(odd.t(), odd), odd.t().dot(&odd), max_relative = 1e-14);
    }

    #[test]
    fn a_singular_matrix_gets_the_smallest_jitter_that_works() {
        let column = gaussian(5, 12, 1);
        let singular = column.dot(&column.t());
        let factor = Cholesky::new(singular.view(), 0.0, "rank one").unwrap();
        assert!(factor.jitter() > 0.0 && factor.jitter() < 1e-10);
    }

    #[test]
    fn an_indefinite_matrix_is_refused() {
        let mut a = Array2::<f64>::eye(4);
        a[[2, 2]] = -1.0;
        assert_eq!(
            Cholesky::new(a.view(), 0.0, "a").err(),
            Some(AqlmError::NotPositiveDefinite {
                what: "a".into(),
                pivot: 2
            })
        );
        a[[2, 2]] = f64::NAN;
        assert!(solve_spd(a.view(), a.view(), "a").is_err());
        assert!(matches!(
            Cholesky::new(a.slice(ndarray::s![..3, ..]), 0.0, "a"),
            Err(AqlmError::Shape { .. })
        ));
    }
}
