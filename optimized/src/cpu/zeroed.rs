use ndarray::{Array2, Array3};
use rayon::prelude::*;

/// Values that one task writes: a few pages.
const LEN: usize = 1 << 15;

/// Zeros written by all threads. The activations of a block are many times larger than a cache. If one thread
/// cleared them while the others wait, that would take as long as a product.
fn zeros(len: usize) -> Vec<f32> {
    (0..len).into_par_iter().with_min_len(LEN).map(|_| 0.0).collect()
}

/// [rows, columns] of zeros.
pub(crate) fn zeroed(shape: (usize, usize)) -> Array2<f32> {
    Array2::from_shape_vec(shape, zeros(shape.0 * shape.1)).expect("as many zeros as the shape has")
}

/// [sequences, tokens, features] of zeros.
pub(crate) fn zeroed_sequences(shape: (usize, usize, usize)) -> Array3<f32> {
    Array3::from_shape_vec(shape, zeros(shape.0 * shape.1 * shape.2)).expect("as many zeros as the shape has")
}
