//! Dense f32 products: faer's GEMM behind ndarray views. The bytes are the same for any number of threads.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};
use rayon::prelude::*;

/// Pieces of the output's longer side that are computed independently. Their boundaries depend only on the
/// shape, so neither the number of threads nor their timing can change a sum. There are enough pieces for the
/// threads of a desktop, and few enough that packing the shared operand once per piece stays cheap.
const PIECES: usize = 16;

/// Minimum length of a piece that is worth its own task: a few register tiles of faer's kernel.
const SHORTEST_PIECE: usize = 64;

/// `c = alpha a b`, or `c += alpha a b` with [`Accum::Add`], for views with any strides: a is [m, k], b is
/// [k, n], c is [m, n]. [`Par::Seq`] stays on this thread; `Par::rayon(_)` uses the current rayon pool. Both
/// give the same bytes.
///
/// # Panics
/// When the shapes do not fit together, which is a bug of the caller and never caused by data.
pub fn product_into(
    mut c: ArrayViewMut2<'_, f32>,
    accumulate: Accum,
    a: ArrayView2<'_, f32>,
    b: ArrayView2<'_, f32>,
    alpha: f32,
    par: Par,
) {
    assert_fit(c.dim(), a, b);
    // SAFETY: `c` is initialised, so either value of `accumulate` is valid.
    unsafe { in_pieces(c.view_mut(), accumulate, a, b, alpha, par) };
}

/// Panics unless `a b` exists and has this shape.
fn assert_fit(shape: (usize, usize), a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) {
    let (m, n) = shape;
    assert_eq!(
        (m, a.ncols(), n),
        (a.nrows(), b.nrows(), b.ncols()),
        "operands of a product"
    );
}

/// The body of [`product_into`].
///
/// # Safety
/// T is f32, or `MaybeUninit<f32>` if `accumulate` is [`Accum::Replace`]; shapes fit together.
unsafe fn in_pieces<T: Send + Sync>(
    mut c: ArrayViewMut2<'_, T>,
    accumulate: Accum,
    a: ArrayView2<'_, f32>,
    b: ArrayView2<'_, f32>,
    alpha: f32,
    par: Par,
) {
    let (m, n) = c.dim();
    let (axis, side) = if m >= n { (Axis(0), m) } else { (Axis(1), n) };
    if side == 0 {
        return;
    }
    let piece = side.div_ceil(PIECES).max(SHORTEST_PIECE);
    let one = |(index, mut c): (usize, ArrayViewMut2<'_, T>)| {
        let start = index * piece;
        let (a, b) = if axis == Axis(0) {
            let rows = c.nrows();
            (a.slice(ndarray::s![start..start + rows, ..]), b.view())
        } else {
            let columns = c.ncols();
            (a.view(), b.slice(ndarray::s![.., start..start + columns]))
        };
        matmul(view_mut(&mut c), accumulate, view(&a), view(&b), alpha, Par::Seq);
        clear_upper_registers();
    };
    match par {
        Par::Seq => c.axis_chunks_iter_mut(axis, piece).enumerate().for_each(one),
        Par::Rayon(_) => c
            .axis_chunks_iter_mut(axis, piece)
            .into_par_iter()
            .enumerate()
            .for_each(one),
    }
}

/// [`product_into`] in one piece on this thread, for operands that belong to one task. Its bytes may differ
/// from those of [`product_into`], but depend on the shapes alone.
///
/// # Panics
/// When the shapes do not fit together.
pub(crate) fn product_on_this_thread(
    mut c: ArrayViewMut2<'_, f32>,
    accumulate: Accum,
    a: ArrayView2<'_, f32>,
    b: ArrayView2<'_, f32>,
    alpha: f32,
) {
    assert_fit(c.dim(), a, b);
    matmul(view_mut(&mut c), accumulate, view(&a), view(&b), alpha, Par::Seq);
    clear_upper_registers();
}

/// `a b`: [m, k] x [k, n] -> [m, n].
///
/// # Panics
/// When the shapes do not fit together.
pub fn product(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>, par: Par) -> Array2<f32> {
    let shape = (a.nrows(), b.ncols());
    assert_fit(shape, a, b);
    let mut c = Array2::uninit(shape);
    // SAFETY: shapes fit. The product reads no element of `c` and writes every one, with zeros where there
    // are no terms. So all of `c` is initialised afterwards.
    unsafe {
        in_pieces(c.view_mut(), Accum::Replace, a, b, 1.0, par);
        c.assume_init()
    }
}

/// A linear layer: `y = x W^T`, x [samples, in], W [out, in] -> [samples, out].
///
/// # Panics
/// When the shapes do not fit together.
pub fn linear(x: ArrayView2<'_, f32>, weight: ArrayView2<'_, f32>, par: Par) -> Array2<f32> {
    product(x, weight.reversed_axes(), par)
}

/// The gradient of a linear layer's input: `dx = dy W`, dy [samples, out], W [out, in] -> [samples, in].
///
/// # Panics
/// When the shapes do not fit together.
pub fn linear_input_gradient(
    output_gradient: ArrayView2<'_, f32>,
    weight: ArrayView2<'_, f32>,
    par: Par,
) -> Array2<f32> {
    product(output_gradient, weight, par)
}

/// The gradient of a linear layer's weight, added to `gradient`: `dW += dy^T x`, dy [samples, out],
/// x [samples, in], dW [out, in].
///
/// # Panics
/// When the shapes do not fit together.
pub fn add_linear_weight_gradient(
    gradient: ArrayViewMut2<'_, f32>,
    output_gradient: ArrayView2<'_, f32>,
    x: ArrayView2<'_, f32>,
    par: Par,
) {
    product_into(gradient, Accum::Add, output_gradient.reversed_axes(), x, 1.0, par);
}

/// Restores the vector registers to the state that code without AVX expects. faer's kernels return with the
/// upper halves in use. Until they are cleared, every mixture of SSE and AVX code on that thread is slow
/// (`exp` by a factor of 14).
pub(crate) fn clear_upper_registers() {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx") {
        // SAFETY: the processor has AVX; no value lives in the upper halves here.
        unsafe { std::arch::x86_64::_mm256_zeroupper() };
    }
}

fn view<'a>(a: &'a ArrayView2<'_, f32>) -> MatRef<'a, f32> {
    let [row, column] = [a.strides()[0], a.strides()[1]];
    // SAFETY: pointer, shape and strides (in elements) come from a live view that outlives the result.
    unsafe { MatRef::from_raw_parts(a.as_ptr(), a.nrows(), a.ncols(), row, column) }
}

/// T is f32 or `MaybeUninit<f32>`.
fn view_mut<'a, T>(a: &'a mut ArrayViewMut2<'_, T>) -> MatMut<'a, f32> {
    let (rows, columns) = a.dim();
    let [row, column] = [a.strides()[0], a.strides()[1]];
    // SAFETY: as in `view`, and the exclusive borrow of a mutable view rules out aliases. `MaybeUninit<f32>`
    // has the layout of f32, and faer accesses the elements only through the pointer.
    unsafe { MatMut::from_raw_parts_mut(a.as_mut_ptr().cast::<f32>(), rows, columns, row, column) }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array, s};
    use proptest::prelude::*;

    use super::*;

    /// Small multiples of 1/8, whose products and sums are exact in f32 in any order.
    fn dyadic(rows: usize, columns: usize, salt: usize) -> Array2<f32> {
        Array::from_shape_fn((rows, columns), |(i, j)| {
            ((i * 31 + j * 17 + salt * 7) % 33) as f32 / 8.0 - 2.0
        })
    }

    fn naive(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> Array2<f32> {
        Array::from_shape_fn((a.nrows(), b.ncols()), |(i, j)| {
            (0..a.ncols())
                .map(|k| f64::from(a[[i, k]]) * f64::from(b[[k, j]]))
                .sum::<f64>() as f32
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn products_are_exact_on_a_dyadic_grid(m in 1..90usize, k in 1..70usize, n in 1..150usize, salt in 0..9usize) {
            let (x, w) = (dyadic(m, k, salt), dyadic(n, k, salt + 1));
            let expected = naive(x.view(), w.t());
            for par in [Par::Seq, Par::rayon(0)] {
                prop_assert_eq!(&linear(x.view(), w.view(), par), &expected);
                let dy = dyadic(m, n, salt + 2);
                prop_assert_eq!(linear_input_gradient(dy.view(), w.view(), par), naive(dy.view(), w.view()));
                let mut dw = Array2::ones((n, k));
                add_linear_weight_gradient(dw.view_mut(), dy.view(), x.view(), par);
                prop_assert_eq!(dw, naive(dy.t(), x.view()) + 1.0);
            }
        }
    }

    #[test]
    fn the_number_of_threads_changes_nothing() {
        // Irrational-looking entries reveal a different order of summation.
        let x = Array::from_shape_fn((301, 513), |(i, j)| ((i * 513 + j) as f32 * 0.7).sin());
        let w = Array::from_shape_fn((1030, 513), |(i, j)| ((i * 513 + j) as f32 * 0.3).cos());
        let alone = linear(x.view(), w.view(), Par::Seq);
        for threads in [1, 2, 3, 5] {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            assert_eq!(
                pool.install(|| linear(x.view(), w.view(), Par::rayon(0))),
                alone,
                "{threads} threads"
            );
        }
        assert!(alone.iter().any(|&y| y != 0.0));
    }

    #[test]
    fn strided_and_empty_views_work() {
        let x = dyadic(12, 20, 1);
        let every_other = x.slice(s![..;2, ..;-3]);
        let w = dyadic(9, every_other.ncols(), 2);
        assert_eq!(linear(every_other, w.view(), Par::Seq), naive(every_other, w.t()));
        assert_eq!(
            linear(x.slice(s![..0, ..]), dyadic(4, 20, 0).view(), Par::Seq).dim(),
            (0, 4)
        );
        // Without terms to add, uninitialised memory must not show.
        for par in [Par::Seq, Par::rayon(0)] {
            assert_eq!(
                product(Array2::zeros((70, 0)).view(), Array2::zeros((0, 30)).view(), par),
                Array2::<f32>::zeros((70, 30))
            );
        }
    }
}
