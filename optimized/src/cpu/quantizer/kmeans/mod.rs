mod bounds;
mod sums;

use aqlm_vocabulary::{Stream, sample_distinct};
use rayon::prelude::*;

use bounds::Assignments;
use sums::Sums;

/// Points whose squared distances one task adds up.
const POINTS: usize = 1024;

/// Iterations between convergence tests, as in the official engine.
const CHECK_EVERY: usize = 10;
/// Centroids have converged when each coordinate moved by at most `ATOL + RTOL |coordinate|`.
const ATOL: f64 = 1e-8;
/// See [`ATOL`].
const RTOL: f64 = 1e-6;

/// Clusters of points.
#[derive(Debug, Clone, PartialEq)]
pub struct KMeans {
    /// [k, len]
    pub centroids: Vec<f32>,
    /// `[n]`, the nearest centroid of each point; ties go to the lower index
    pub assignments: Vec<u32>,
    /// mean squared distance of the points to their centroids
    pub inertia: f64,
}

/// Lloyd's k-means on `points` [n, len] from the centroids `init` [k, len].
///
/// A cluster that loses all its points keeps its centroid. After the last iteration points are assigned once
/// more, so that assignments and inertia match the returned centroids. Iterations in which no point changes
/// its cluster would only repeat, and are skipped.
pub fn kmeans(points: &[f32], len: usize, init: Vec<f32>, max_iterations: usize) -> KMeans {
    let mut centroids = init;
    let mut assignments = Assignments::new(points, len, &centroids);
    let mut sums = Sums::new(points, len, &assignments.nearest, centroids.len() / len);
    for iteration in 1..=max_iterations {
        let moved = sums.means(&centroids);
        let converged = moved.iter().zip(&centroids).all(|(&new, &old)| {
            (f64::from(new) - f64::from(old)).abs() <= ATOL + RTOL * f64::from(old).abs()
        });
        let changed = assignments.follow(&centroids, &moved);
        centroids = moved;
        if changed.is_empty() || (converged && iteration % CHECK_EVERY == 0) {
            break;
        }
        sums.follow(points, &assignments.nearest, &changed);
    }
    let assignments = assignments.nearest;
    let inertia = inertia(points, len, &centroids, &assignments);
    KMeans {
        centroids,
        assignments,
        inertia,
    }
}

/// `k` distinct points to start from; with fewer points, points repeat in turn.
pub fn starting_points(points: &[f32], len: usize, k: usize, rng: &mut Stream) -> Vec<f32> {
    let sample = sample_distinct(rng, points.len() / len, k);
    sample
        .iter()
        .cycle()
        .take(k)
        .flat_map(|&point| points[point * len..(point + 1) * len].iter().copied())
        .collect()
}

fn inertia(points: &[f32], len: usize, centroids: &[f32], assignments: &[u32]) -> f64 {
    let parts: Vec<f64> = points
        .par_chunks(POINTS * len)
        .zip(assignments.par_chunks(POINTS))
        .map(|(points, assignments)| {
            let mut sum = 0.0;
            for (point, &k) in points.chunks_exact(len).zip(assignments) {
                for (x, c) in point.iter().zip(&centroids[k as usize * len..][..len]) {
                    let difference = f64::from(*x) - f64::from(*c);
                    sum += difference * difference;
                }
            }
            sum
        })
        .collect();
    parts.iter().sum::<f64>() / assignments.len().max(1) as f64
}
