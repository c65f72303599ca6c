//! Whether choices among points are the best there, up to rounding: what every assignment must be, however
//! ties break.

use ndarray::{ArrayView1, ArrayView2};

/// By how much the point's distance to `centroids[chosen]` is above the least, as a share of the magnitudes
/// that distances are computed from; NaN for a choice that is none.
pub(super) fn excess(point: ArrayView1<'_, f64>, centroids: ArrayView2<'_, f64>, chosen: usize) -> f64 {
    let distance = |centroid: ArrayView1<'_, f64>| -> f64 {
        point.iter().zip(centroid).map(|(p, c)| (p - c).powi(2)).sum()
    };
    let square = |x: ArrayView1<'_, f64>| x.iter().map(|x| x * x).sum::<f64>();
    if chosen >= centroids.nrows() {
        return f64::NAN;
    }
    let least = centroids.outer_iter().map(distance).fold(f64::INFINITY, f64::min);
    let largest = centroids.outer_iter().map(square).fold(square(point), f64::max);
    let above = distance(centroids.row(chosen)) - least;
    if above == 0.0 {
        0.0
    } else {
        above / (4.0 * largest)
    }
}
