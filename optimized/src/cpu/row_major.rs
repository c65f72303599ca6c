//! Arrays as slices.
//!
//! Every array that this backend makes is in standard (row-major) layout, so it has a slice. A caller's array
//! may have another layout; `as_standard_layout` or [`relaid`] copies it first.

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

/// [`elements`], mutable.
///
/// # Panics
/// As [`elements`].
#[track_caller]
pub(crate) fn elements_mut<S: DataMut, D: Dimension>(array: &mut ArrayBase<S, D>) -> &mut [S::Elem] {
    array
        .as_slice_mut()
        .expect("standard layout: made so by this backend")
}

/// The elements of a caller's array, copied to standard layout if necessary.
pub(crate) fn relaid<T: Clone, D: Dimension>(array: &mut Array<T, D>) -> &mut [T] {
    if !array.is_standard_layout() {
        *array = array.as_standard_layout().into_owned();
    }
    elements_mut(array)
}
