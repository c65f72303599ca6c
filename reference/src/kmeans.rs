use ndarray::{Array1, Array2, ArrayView1, ArrayView2, ArrayViewMut1, Axis};
use rayon::prelude::*;

use crate::least::{least, slice_of};
use crate::linalg::product;
use aqlm_vocabulary::{Stream, sample_distinct};

/// Stopping rule of Lloyd's iterations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KMeansSettings {
    /// maximum number of iterations
    pub max_iterations: usize,
    /// number of iterations between tests of convergence
    pub check_every: usize,
    /// centroids have converged when each coordinate moved by at most `atol + rtol |coordinate|`
    pub rtol: f64,
    /// see `rtol`
    pub atol: f64,
}

impl KMeansSettings {
    /// The official engine's stopping rule with at most `max_iterations` iterations.
    pub fn new(max_iterations: usize) -> Self {
        Self {
            max_iterations,
            check_every: 10,
            rtol: 1e-6,
            atol: 1e-8,
        }
    }
}

/// Clusters of points.
#[derive(Debug, Clone, PartialEq)]
pub struct KMeans {
    /// [k, d]
    pub centroids: Array2<f64>,
    /// `[n]`, the nearest centroid of each point; ties go to the lower index
    pub assignments: Vec<usize>,
    /// mean squared distance of the points to their centroids
    pub inertia: f64,
}

/// Lloyd's k-means on `points` [n, d] from the centroids `init` [k, d].
///
/// A cluster that loses all its points keeps its centroid. After the last iteration points are assigned once
/// more, so that assignments and inertia belong to the returned centroids.
///
/// # Panics
/// When points and centroids have different dimensions.
pub fn kmeans(points: ArrayView2<'_, f64>, init: Array2<f64>, settings: &KMeansSettings) -> KMeans {
    let mut centroids = init;
    for iteration in 1..=settings.max_iterations {
        let (assignments, _) = nearest(points, &centroids);
        let moved = means(points, &assignments, &centroids);
        let converged = moved.iter().zip(&centroids).all(|(new, old)| {
            // written so that NaN counts as not converged
            (new - old).abs() <= settings.atol + settings.rtol * old.abs()
        });
        centroids = moved;
        if converged && iteration % settings.check_every.max(1) == 0 {
            break;
        }
    }
    let (assignments, squared_distance) = nearest(points, &centroids);
    KMeans {
        centroids,
        assignments,
        inertia: squared_distance / points.nrows().max(1) as f64,
    }
}

/// `k` distinct starting points. When there are fewer than `k` points, they are repeated in turn.
///
/// # Panics
/// When there are no points.
pub fn starting_points(points: ArrayView2<'_, f64>, k: usize, rng: &mut Stream) -> Array2<f64> {
    let sample = sample_distinct(rng, points.nrows(), k);
    let rows: Vec<usize> = sample.iter().copied().cycle().take(k).collect();
    points.select(Axis(0), &rows)
}

/// Each point's nearest centroid, and the sum of the squared distances.
fn nearest(points: ArrayView2<'_, f64>, centroids: &Array2<f64>) -> (Vec<usize>, f64) {
    // |x - c|^2 = |x|^2 - 2 x.c + |c|^2; |x|^2 does not affect the choice.
    let norms: Array1<f64> = centroids.outer_iter().map(|c| c.dot(&c)).collect();
    let blocks: Vec<(Vec<usize>, f64)> = points
        .axis_chunks_iter(Axis(0), 256)
        .into_par_iter()
        .map(|block| {
            let mut scores = product(block, centroids.t());
            let mut distance = 0.0;
            let choose = |(point, mut scores): (ArrayView1<'_, f64>, ArrayViewMut1<'_, f64>)| {
                scores.zip_mut_with(&norms, |product, norm| *product = norm - 2.0 * *product);
                let chosen = least(slice_of(&scores)).map_or(0, |(k, _)| k);
                for (x, c) in point.iter().zip(centroids.row(chosen)) {
                    distance += (x - c) * (x - c);
                }
                chosen
            };
            let choices = block
                .outer_iter()
                .zip(scores.outer_iter_mut())
                .map(choose)
                .collect();
            (choices, distance)
        })
        .collect();
    let total = blocks.iter().map(|(_, distance)| distance).sum();
    (
        blocks.into_iter().flat_map(|(choices, _)| choices).collect(),
        total,
    )
}

/// The mean of each cluster's points; the old centroid for an empty cluster.
fn means(points: ArrayView2<'_, f64>, assignments: &[usize], old: &Array2<f64>) -> Array2<f64> {
    let mut sums = Array2::zeros(old.raw_dim());
    let mut counts = vec![0usize; old.nrows()];
    for (point, &k) in points.outer_iter().zip(assignments) {
        let mut sum = sums.row_mut(k);
        sum += &point;
        counts[k] += 1;
    }
    for (k, mut sum) in sums.outer_iter_mut().enumerate() {
        if counts[k] == 0 {
            sum.assign(&old.row(k));
        } else {
            sum /= counts[k] as f64;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use ndarray::array;
    use proptest::prelude::*;

    use super::*;
    use crate::problem::{config, gaussian};
    use aqlm_vocabulary::{Purpose, stream};

    proptest! {
        #![proptest_config(config(24))]
        #[test]
        fn more_iterations_never_hurt(seed: u64, iterations in 0usize..8) {
            let points = gaussian(seed, 300, 3);
            let init = starting_points(points.view(), 9, &mut stream(seed, 0, None, Purpose::Initialization));
            let inertia = |n| kmeans(points.view(), init.clone(), &KMeansSettings::new(n)).inertia;
            // both are sums of 300 squares
            prop_assert!(inertia(iterations + 1) <= inertia(iterations) * (1.0 + 300.0 * f64::EPSILON));
        }

        #[test]
        fn every_point_has_its_nearest_centroid(seed: u64) {
            let points = gaussian(seed, 600, 4);
            let result = kmeans(points.view(), points.slice(ndarray::s![..7, ..]).to_owned(), &KMeansSettings::new(5));
            let mut total = 0.0;
            for (point, &chosen) in points.outer_iter().zip(&result.assignments) {
                let distances: Vec<f64> =
                    result.centroids.outer_iter().map(|c| (&point - &c).mapv(|v| v * v).sum()).collect();
                let least = distances.iter().copied().fold(f64::INFINITY, f64::min);
                // the choice compares |c|^2 - 2 x.c, in which numbers of size up to about 100 cancel
                prop_assert!(distances[chosen] <= least + 100.0 * 16.0 * f64::EPSILON);
                total += distances[chosen];
            }
            prop_assert!((result.inertia - total / 600.0).abs() <= 600.0 * f64::EPSILON * total);
        }
    }

    #[test]
    fn an_empty_cluster_keeps_its_centroid() {
        let points = array![[0.0], [1.0], [2.0]];
        let result = kmeans(points.view(), array![[1.0], [50.0]], &KMeansSettings::new(100));
        assert_eq!(result.centroids, array![[1.0], [50.0]]);
        assert_eq!(result.assignments, [0, 0, 0]);
        assert_eq!(result.inertia, 2.0 / 3.0);
    }

    #[test]
    fn fewer_points_than_clusters_start_with_repeats() {
        let points = array![[1.0], [2.0]];
        let mut rng = stream(1, 0, None, Purpose::Initialization);
        let init = starting_points(points.view(), 5, &mut rng);
        assert_eq!(init.dim(), (5, 1));
        let result = kmeans(points.view(), init, &KMeansSettings::new(10));
        assert_eq!(result.inertia, 0.0);
    }

    #[test]
    fn it_ends_when_centroids_stand_still() {
        let run = |size: f64, iterations| {
            let points = gaussian(3, 500, 3) * size;
            let start = starting_points(
                points.view(),
                20,
                &mut stream(3, 0, None, Purpose::Initialization),
            );
            kmeans(points.view(), start, &KMeansSettings::new(iterations))
        };
        let every = KMeansSettings::new(1).check_every;
        // Moves below the absolute tolerance count as convergence, which is tested only every `check_every`
        // iterations.
        let (large, tiny) = (1.0, 1e-12);
        assert!(run(large, 2 * every).inertia < run(large, every).inertia);
        assert!(run(tiny, every).inertia < run(tiny, every - 1).inertia);
        assert_eq!(run(tiny, 5 * every).centroids, run(tiny, every).centroids);
        // So do moves below the relative tolerance of a large coordinate.
        let shifted = |iterations| {
            let points = gaussian(3, 500, 3) * 1e-4 + 1e4;
            let start = starting_points(
                points.view(),
                20,
                &mut stream(3, 0, None, Purpose::Initialization),
            );
            kmeans(points.view(), start, &KMeansSettings::new(iterations))
        };
        assert_eq!(shifted(5 * every).centroids, shifted(every).centroids);
    }
}
