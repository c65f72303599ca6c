use rayon::prelude::*;

use super::bounds::Change;

/// Limit on the numbers in all partial sums of one pass together.
const PARTIAL_SUMS: usize = 1 << 22;

/// Maximum number of partial sums of one pass.
const PARTS: usize = 32;

/// If more than one in this many points change their cluster, all sums are recomputed.
const SHARE: usize = 8;

/// The sum of each cluster's points in f64, updated as points change their cluster: after the first dozen
/// iterations few do. Points are moved in their order, so no byte depends on the number of threads. The
/// rounding of the moves is far below that of a centroid to f32.
pub(super) struct Sums {
    len: usize,
    /// [k, len]
    totals: Vec<f64>,
    /// `[k]`
    counts: Vec<u32>,
}

impl Sums {
    /// From points [n, len], each in one of `states` clusters.
    pub(super) fn new(points: &[f32], len: usize, nearest: &[u32], states: usize) -> Self {
        let parts = (PARTIAL_SUMS / (states * len)).clamp(1, PARTS);
        let part = nearest.len().div_ceil(parts).max(1);
        let partial: Vec<(Vec<f64>, Vec<u32>)> = points
            .par_chunks(part * len)
            .zip(nearest.par_chunks(part))
            .map(|(points, nearest)| {
                let mut sums = vec![0.0; states * len];
                let mut counts = vec![0u32; states];
                for (point, &k) in points.chunks_exact(len).zip(nearest) {
                    counts[k as usize] += 1;
                    for (sum, x) in sums[k as usize * len..][..len].iter_mut().zip(point) {
                        *sum += f64::from(*x);
                    }
                }
                (sums, counts)
            })
            .collect();
        let mut all = Self {
            len,
            totals: vec![0.0; states * len],
            counts: vec![0; states],
        };
        for (sums, counts) in &partial {
            for (all, sum) in all.totals.iter_mut().zip(sums) {
                *all += sum;
            }
            for (all, count) in all.counts.iter_mut().zip(counts) {
                *all += count;
            }
        }
        all
    }

    /// Updates the sums after points changed their cluster; `nearest` holds the new clusters.
    pub(super) fn follow(&mut self, points: &[f32], nearest: &[u32], changes: &[Change]) {
        if changes.len() * SHARE > nearest.len() {
            *self = Self::new(points, self.len, nearest, self.counts.len());
            return;
        }
        let len = self.len;
        for change in changes {
            let (point, from) = (change.point as usize, change.from as usize);
            let to = nearest[point] as usize;
            self.counts[from] -= 1;
            self.counts[to] += 1;
            for (i, x) in points[point * len..(point + 1) * len].iter().enumerate() {
                self.totals[from * len + i] -= f64::from(*x);
                self.totals[to * len + i] += f64::from(*x);
            }
        }
    }

    /// The mean of each cluster's points; for an empty cluster, the old centroid from [k, len].
    pub(super) fn means(&self, old: &[f32]) -> Vec<f32> {
        let mut means = old.to_vec();
        for (k, mean) in means.chunks_exact_mut(self.len).enumerate() {
            if self.counts[k] > 0 {
                for (mean, sum) in mean.iter_mut().zip(&self.totals[k * self.len..]) {
                    *mean = (sum / f64::from(self.counts[k])) as f32;
                }
            }
        }
        means
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_that_follow_are_those_formed_anew() {
        let (n, len, states) = (1000, 3, 7);
        let points: Vec<f32> = (0..n * len).map(|i| (i as f32 * 0.37).sin()).collect();
        let mut nearest: Vec<u32> = (0..n as u32).map(|i| i % 6).collect();
        let mut sums = Sums::new(&points, len, &nearest, states);
        let old = vec![9.0; states * len];
        // the last cluster is empty at first, the first cluster at the end
        for round in 0..20 {
            let changes: Vec<Change> = (0..n)
                .filter(|i| i % 20 == round || (round == 19 && nearest[*i] == 0))
                .map(|i| Change {
                    point: i as u32,
                    from: nearest[i],
                })
                .collect();
            for change in &changes {
                nearest[change.point as usize] = 1 + (change.from + round as u32) % 6;
            }
            sums.follow(&points, &nearest, &changes);
            let anew = Sums::new(&points, len, &nearest, states);
            assert_eq!(sums.counts, anew.counts);
            for (a, b) in sums.means(&old).iter().zip(anew.means(&old)) {
                assert!((a - b).abs() <= f32::EPSILON * b.abs().max(0.1), "{a} {b}");
            }
        }
        assert_eq!(sums.means(&old)[..len], old[..len]);
    }
}
