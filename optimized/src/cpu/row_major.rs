//! Arrays as slices.
//!
//! Every array that this backend makes is in standard (row-major) layout, so it has a slice. An array that a
//! caller made may lie otherwise; it is laid out anew first, by `as_standard_layout` or by [`relaid`].

use ndarray::{Array, ArrayBase, Data, DataMut, Dimension};

/// The elements of an array that this backend made.
///
/// # Panics
/// When the array is not in standard layout.
#[track_caller]
pub(crate) fn elements<S: Data, D: Dimension>(array: &ArrayBase<S, D>) -> &[S::Elem] {
    array
        .as_slice()
        .expect("standard layout: made so by this backend")
}

/// [`elements`], to change.
///
/// # Panics
/// As [`elements`].
#[track_caller]
pub(crate) fn elements_mut<S: DataMut, D: Dimension>(array: &mut ArrayBase<S, D>) -> &mut [S::Elem] {
    array
        .as_slice_mut()
        .expect("standard layout: made so by this backend")
}

/// The elements of a caller's array, which is laid out anew if it has to be.
pub(crate) fn relaid<T: Clone, D: Dimension>(array: &mut Array<T, D>) -> &mut [T] {
    if !array.is_standard_layout() {
        *array = array.as_standard_layout().into_owned();
    }
    elements_mut(array)
}
