use ndarray::{Array2, ArrayView2};

/// All sums of a row of `a` and a row of `b`, those of `b` fastest: [rows of a x rows of b, columns].
pub(crate) fn sums(a: ArrayView2<'_, f64>, b: ArrayView2<'_, f64>) -> Array2<f64> {
    Array2::from_shape_fn((a.nrows() * b.nrows(), a.ncols()), |(k, i)| {
        a[[k / b.nrows(), i]] + b[[k % b.nrows(), i]]
    })
}
