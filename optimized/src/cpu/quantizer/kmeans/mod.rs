mod bounds;

use aqlm_reference::vocabulary::{Stream, sample_distinct};
use rayon::prelude::*;

use bounds::Assignments;

/// Points whose squared distances one task adds up.
const POINTS: usize = 1024;

/// Numbers that all partial sums of one pass may take together.
const PARTIAL_SUMS: usize = 1 << 22;

/// Partial sums of one pass at most.
const PARTS: usize = 32;

/// When Lloyd's iterations stop, beside their number: every so many iterations ...
const CHECK_EVERY: usize = 10;
/// ... if no coordinate of a centroid has moved by more than this plus ...
const ATOL: f64 = 1e-8;
/// ... this share of itself (the official engine's rule, paper.md 2.2).
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
/// A cluster that loses all its points keeps its centroid. After the last iteration points are assigned once more,
/// so that assignments and inertia belong to the centroids that are returned. Iterations that would repeat the one
/// before, because no point has changed sides, are left out.
pub fn kmeans(points: &[f32], len: usize, init: Vec<f32>, max_iterations: usize) -> KMeans {
    let mut centroids = init;
    let mut assignments = Assignments::new(points, len, &centroids);
    for iteration in 1..=max_iterations {
        let moved = means(points, len, &assignments.nearest, &centroids);
        let converged = moved.iter().zip(&centroids).all(|(&new, &old)| {
            (f64::from(new) - f64::from(old)).abs() <= ATOL + RTOL * f64::from(old).abs()
        });
        let changed = assignments.follow(&centroids, &moved);
        centroids = moved;
        if changed == 0 || (converged && iteration % CHECK_EVERY == 0) {
            break;
        }
    }
    let assignments = assignments.nearest;
    let inertia = inertia(points, len, &centroids, &assignments);
    KMeans {
        centroids,
        assignments,
        inertia,
    }
}

/// `k` distinct points to start from; when there are fewer points, they are taken in turns.
pub fn starting_points(points: &[f32], len: usize, k: usize, rng: &mut Stream) -> Vec<f32> {
    let sample = sample_distinct(rng, points.len() / len, k);
    sample
        .iter()
        .cycle()
        .take(k)
        .flat_map(|&point| points[point * len..(point + 1) * len].iter().copied())
        .collect()
}

/// The mean of each cluster's points; the old centroid where there are none.
fn means(points: &[f32], len: usize, assignments: &[u32], old: &[f32]) -> Vec<f32> {
    let states = old.len() / len;
    let parts = (PARTIAL_SUMS / old.len()).clamp(1, PARTS);
    let part = assignments.len().div_ceil(parts).max(1);
    let partial: Vec<(Vec<f64>, Vec<u32>)> = points
        .par_chunks(part * len)
        .zip(assignments.par_chunks(part))
        .map(|(points, assignments)| {
            let mut sums = vec![0.0; old.len()];
            let mut counts = vec![0u32; states];
            for (point, &k) in points.chunks_exact(len).zip(assignments) {
                counts[k as usize] += 1;
                for (sum, x) in sums[k as usize * len..][..len].iter_mut().zip(point) {
                    *sum += f64::from(*x);
                }
            }
            (sums, counts)
        })
        .collect();
    let mut means = old.to_vec();
    means.par_chunks_mut(len).enumerate().for_each(|(k, mean)| {
        let count: u32 = partial.iter().map(|(_, counts)| counts[k]).sum();
        if count > 0 {
            for (i, mean) in mean.iter_mut().enumerate() {
                let sum: f64 = partial.iter().map(|(sums, _)| sums[k * len + i]).sum();
                *mean = (sum / f64::from(count)) as f32;
            }
        }
    });
    means
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
