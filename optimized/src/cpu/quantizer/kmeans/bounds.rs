//! Lloyd's assignments without comparing every point to every centroid (Hamerly, SDM 2010).
//!
//! Each point keeps an upper bound on the distance to its own centroid and a lower bound on the distance to
//! all others. When centroids move, the upper bound grows by the own centroid's move, and the lower bound
//! shrinks by the largest move of any other. A full search is needed only if the two bounds meet. Every
//! assignment equals that of a full search, because the bounds are kept apart by more than the rounding of
//! the scores that a full search would compare.

use rayon::prelude::*;

use crate::cpu::quantizer::codewords::{Codewords, Nearest};

/// Points that one task assigns.
const POINTS: usize = 1024;

/// The bounds of one point.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// at least the distance to the own centroid
    upper: f32,
    /// at most the distance to any other centroid
    lower: f32,
}

/// A point that changed its cluster.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Change {
    pub(super) point: u32,
    pub(super) from: u32,
}

/// The assignments of all points, kept up to date as centroids move.
pub(super) struct Assignments<'a> {
    /// [n, len]
    points: &'a [f32],
    len: usize,
    /// `[n]`
    pub(super) nearest: Vec<u32>,
    bounds: Vec<Bounds>,
}

/// How far the centroids have moved since the last assignment.
struct Drift {
    /// `[k]`
    own: Vec<f64>,
    /// the centroid that moved furthest, its move, and the largest move of any other
    furthest: (usize, f64, f64),
}

impl Drift {
    fn new(from: &[f32], to: &[f32], len: usize) -> Self {
        let own: Vec<f64> = from
            .chunks_exact(len)
            .zip(to.chunks_exact(len))
            .map(|(from, to)| {
                let square: f64 = from
                    .iter()
                    .zip(to)
                    .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
                    .sum();
                square.sqrt()
            })
            .collect();
        let mut furthest = (0, 0.0, 0.0);
        for (k, &distance) in own.iter().enumerate() {
            if distance > furthest.1 {
                furthest = (k, distance, furthest.1);
            } else if distance > furthest.2 {
                furthest.2 = distance;
            }
        }
        Self { own, furthest }
    }

    /// The largest move of a centroid other than `k`.
    fn of_others(&self, k: usize) -> f64 {
        if k == self.furthest.0 {
            self.furthest.2
        } else {
            self.furthest.1
        }
    }
}

/// An f32 at least as large as x >= 0.
fn above(x: f64) -> f32 {
    (x * (1.0 + 2.0 * f64::from(f32::EPSILON))) as f32
}

/// An f32 at most as large as x, and not negative.
fn under(x: f64) -> f32 {
    (x.max(0.0) * (1.0 - 2.0 * f64::from(f32::EPSILON))) as f32
}

/// Bound on the rounding error of comparing two scores |c|^2 - 2 <x, c> in f32, given bounds on |c| and |x|.
/// Each score is a sum of `len` + 1 terms that together are at most (|c| + |x|)^2, with at most two roundings
/// a term; |c|^2 itself has as many.
fn resolution(len: usize, centroid: f64, point: f64) -> f64 {
    let roundings = 4.0 * (len + 2) as f64;
    2.0 * roundings * f64::from(f32::EPSILON) * (centroid + point).powi(2)
}

impl<'a> Assignments<'a> {
    /// Assigns every point by a full search.
    pub(super) fn new(points: &'a [f32], len: usize, centroids: &[f32]) -> Self {
        let n = points.len() / len;
        let mut assignments = Self {
            points,
            len,
            nearest: vec![0; n],
            // Trivial bounds: every point is searched.
            bounds: vec![
                Bounds {
                    upper: f32::INFINITY,
                    lower: 0.0,
                };
                n
            ],
        };
        assignments.follow(centroids, centroids);
        assignments
    }

    /// Updates the assignments after centroids [k, len] moved, and returns the points that changed their
    /// cluster, in order. Ties go to the lower index.
    pub(super) fn follow(&mut self, from: &[f32], to: &[f32]) -> Vec<Change> {
        let len = self.len;
        let drift = Drift::new(from, to, len);
        let codewords = Codewords::new(to.to_vec(), len);
        let squares = codewords.squares();
        let longest = squares
            .iter()
            .filter(|square| square.is_finite())
            .fold(0.0f32, |longest, &square| longest.max(square));
        let task = Task {
            len,
            drift: &drift,
            codewords: &codewords,
            squares: &squares,
            longest: f64::from(longest).sqrt() * (1.0 + f64::from(f32::EPSILON) * (len + 2) as f64),
        };
        let changes: Vec<Vec<Change>> = self
            .nearest
            .par_chunks_mut(POINTS)
            .zip(self.bounds.par_chunks_mut(POINTS))
            .zip(self.points.par_chunks(POINTS * len))
            .enumerate()
            .map_init(
                Scratch::default,
                |scratch, (number, ((nearest, bounds), points))| {
                    task.follow(number * POINTS, nearest, bounds, points, scratch)
                },
            )
            .collect();
        changes.concat()
    }
}

#[derive(Default)]
struct Scratch {
    /// points that need a full search
    open: Vec<u32>,
    vectors: Vec<f32>,
    ones: Vec<f32>,
    found: Vec<Nearest>,
}

struct Task<'a> {
    len: usize,
    drift: &'a Drift,
    codewords: &'a Codewords,
    squares: &'a [f32],
    /// at least the length of the longest centroid
    longest: f64,
}

impl Task<'_> {
    /// Whether a search could only find the current centroid again.
    fn settled(&self, upper: f64, lower: f64) -> bool {
        // |x| <= |c| + |x - c|
        (lower - upper) * (lower + upper) > resolution(self.len, self.longest, self.longest + upper)
    }

    /// Updates the points from `first` on.
    fn follow(
        &self,
        first: usize,
        nearest: &mut [u32],
        bounds: &mut [Bounds],
        points: &[f32],
        scratch: &mut Scratch,
    ) -> Vec<Change> {
        let len = self.len;
        let Scratch {
            open,
            vectors,
            ones,
            found,
        } = scratch;
        open.clear();
        vectors.clear();
        for (i, (bounds, &own)) in bounds.iter_mut().zip(&*nearest).enumerate() {
            let own = own as usize;
            let lower = (f64::from(bounds.lower) - self.drift.of_others(own)).max(0.0);
            let mut upper = f64::from(bounds.upper) + self.drift.own[own];
            let point = &points[i * len..(i + 1) * len];
            if !self.settled(upper, lower) && upper.is_finite() {
                upper = distance(point, self.codewords.row(own));
            }
            if self.settled(upper, lower) {
                bounds.upper = above(upper);
                bounds.lower = under(lower);
            } else {
                open.push(i as u32);
                vectors.extend(point.iter().map(|x| -2.0 * x));
            }
        }
        ones.resize(open.len().max(ones.len()), 1.0);
        self.codewords
            .nearest_two(self.squares, vectors, &ones[..open.len()], found);
        let mut changes = Vec::new();
        for (&i, found) in open.iter().zip(&*found) {
            let i = i as usize;
            if nearest[i] != found.code {
                changes.push(Change {
                    point: (first + i) as u32,
                    from: nearest[i],
                });
            }
            nearest[i] = found.code;
            let square: f64 = points[i * len..(i + 1) * len]
                .iter()
                .map(|x| f64::from(*x).powi(2))
                .sum();
            let rounding = resolution(len, self.longest, square.sqrt());
            bounds[i].upper = above((square + f64::from(found.score) + rounding).max(0.0).sqrt());
            bounds[i].lower = under((square + f64::from(found.second) - rounding).max(0.0).sqrt());
        }
        changes
    }
}

/// |x - c|, with independent partial sums.
fn distance(x: &[f32], c: &[f32]) -> f64 {
    let ((whole_x, rest_x), (whole_c, rest_c)) = (x.as_chunks::<8>(), c.as_chunks::<8>());
    let mut lanes = [0.0; 8];
    for (x, c) in whole_x.iter().zip(whole_c) {
        for i in 0..8 {
            let difference = f64::from(x[i]) - f64::from(c[i]);
            lanes[i] += difference * difference;
        }
    }
    for (i, (x, c)) in rest_x.iter().zip(rest_c).enumerate() {
        lanes[i] += (f64::from(*x) - f64::from(*c)).powi(2);
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    (((a + e) + (c + g)) + ((b + f) + (d + h))).sqrt()
}

#[cfg(test)]
mod tests {
    use super::super::sums::Sums;
    use super::*;

    /// Points in clumps, some of them equal, far from the origin in one coordinate.
    fn points(n: usize, len: usize) -> Vec<f32> {
        (0..n * len)
            .map(|i| {
                let (point, coordinate) = (i / len, i % len);
                let clump = (point * 7 % 13) as f32;
                let noise = ((point / 3 * 31 + coordinate * 17) % 101) as f32 / 101.0;
                clump * ((coordinate + 1) as f32).sin() + noise + if coordinate == 0 { 30.0 } else { 0.0 }
            })
            .collect()
    }

    #[test]
    fn bounds_change_no_assignment() {
        for (n, len, k) in [(500, 8, 16), (333, 4, 9), (1200, 8, 64)] {
            let points = points(n, len);
            let mut centroids = points[..k * len].to_vec();
            let mut bounded = Assignments::new(&points, len, &centroids);
            let mut skipped = false;
            for iteration in 0..30 {
                let full = Assignments::new(&points, len, &centroids);
                assert_eq!(bounded.nearest, full.nearest, "iteration {iteration}");
                skipped |= bounded
                    .bounds
                    .iter()
                    .zip(&full.bounds)
                    .any(|(a, b)| a.lower != b.lower);
                for (i, bounds) in bounded.bounds.iter().enumerate() {
                    let mut exact: Vec<f64> = centroids
                        .chunks_exact(len)
                        .map(|centroid| distance(&points[i * len..(i + 1) * len], centroid))
                        .collect();
                    let own = exact.swap_remove(bounded.nearest[i] as usize);
                    let other = exact.into_iter().fold(f64::INFINITY, f64::min);
                    assert!(f64::from(bounds.upper) >= own && f64::from(bounds.lower) <= other);
                }
                let moved = Sums::new(&points, len, &full.nearest, k).means(&centroids);
                bounded.follow(&centroids, &moved);
                centroids = moved;
            }
            assert!(skipped, "every point was searched every time");
        }
    }
}
