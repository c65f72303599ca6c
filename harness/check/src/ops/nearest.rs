//! Whether choices among points are the nearest ones, up to rounding: a requirement on every assignment,
//! however ties break.

use ndarray::{ArrayView1, ArrayView2};

/// How far the point's distance to `centroids[chosen]` is above the minimum, as a share of the magnitudes
/// from which distances are computed. NaN for an index that is out of range.
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
