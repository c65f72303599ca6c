use ndarray::{Array1, Array2, Array4, ArrayView2, Axis, s};
use rayon::prelude::*;

use aqlm_vocabulary::QuantizedMatrix;

/// For each codeword of one codebook, the groups that use it, in order: the transpose of the codes.
pub(crate) struct Occurrences {
    starts: Vec<usize>,
    places: Vec<(usize, usize)>,
}

impl Occurrences {
    /// From the codes [out_groups, in_groups] of one codebook of `states` codewords.
    pub(crate) fn new(codes: ArrayView2<'_, u16>, states: usize) -> Self {
        let mut starts = vec![0; states + 1];
        for &code in codes {
            starts[usize::from(code) + 1] += 1;
        }
        for k in 0..states {
            starts[k + 1] += starts[k];
        }
        let mut next = starts.clone();
        let mut places = vec![(0, 0); codes.len()];
        for (place, &code) in codes.indexed_iter() {
            let slot = &mut next[usize::from(code)];
            places[*slot] = place;
            *slot += 1;
        }
        Self { starts, places }
    }

    /// One for each codebook of a matrix.
    pub(crate) fn of_matrix(matrix: &QuantizedMatrix) -> Vec<Self> {
        let states = matrix.scheme().codebook_size();
        matrix
            .codes()
            .axis_iter(Axis(2))
            .map(|codes| Self::new(codes, states))
            .collect()
    }

    /// The pairs (output group, input group) that use codeword `k`.
    pub(crate) fn of(&self, k: usize) -> &[(usize, usize)] {
        &self.places[self.starts[k]..self.starts[k + 1]]
    }

    /// The metric of the loss as a function of codeword `k` alone: the sum of s_o^2 H_jj over the groups (o,
    /// j) that use it, [gi, gi]. Zero for an unused codeword.
    pub(crate) fn metric(
        &self,
        k: usize,
        scales: &Array1<f64>,
        hessian: &Array2<f64>,
        gi: usize,
    ) -> Array2<f64> {
        let mut weights = vec![0.0; hessian.nrows() / gi];
        for &(o, j) in self.of(k) {
            weights[j] += scales[o] * scales[o];
        }
        let mut metric = Array2::zeros((gi, gi));
        for (j, &weight) in weights.iter().enumerate().filter(|(_, weight)| **weight != 0.0) {
            let columns = j * gi..(j + 1) * gi;
            metric.scaled_add(weight, &hessian.slice(s![columns.clone(), columns]));
        }
        metric
    }
}

/// The adjoint of decoding: for D of shape [out_features, in_features], the sum of s_o D_(o, j) over the
/// groups (o, j) that use each codeword, in the shape of the codebooks.
pub(crate) fn scatter(
    dense: &Array2<f64>,
    matrix: &QuantizedMatrix,
    occurrences: &[Occurrences],
) -> Array4<f64> {
    let (go, gi) = (matrix.scheme().out_group_size, matrix.scheme().in_group_size);
    let mut sums = Array4::zeros(matrix.codebooks().raw_dim());
    for (occurrences, mut sums) in occurrences.iter().zip(sums.outer_iter_mut()) {
        sums.axis_iter_mut(Axis(0))
            .into_par_iter()
            .enumerate()
            .for_each(|(k, mut sum)| {
                for &(o, j) in occurrences.of(k) {
                    let group = dense.slice(s![o * go..(o + 1) * go, j * gi..(j + 1) * gi]);
                    sum.scaled_add(matrix.scales()[o], &group);
                }
            });
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode;
    use crate::problem::{gaussian, problem};

    #[test]
    fn every_place_is_listed_once_in_order() {
        let p = problem(1, "2x2g4", 6, 5);
        for (m, occurrences) in Occurrences::of_matrix(&p.matrix).iter().enumerate() {
            let mut total = 0;
            for k in 0..4 {
                let places = occurrences.of(k);
                assert!(places.is_sorted());
                assert!(
                    places
                        .iter()
                        .all(|&(o, j)| usize::from(p.matrix.codes()[[o, j, m]]) == k)
                );
                total += places.len();
            }
            assert_eq!(total, 30);
        }
    }

    #[test]
    fn scatter_is_the_adjoint_of_decode() {
        for seed in 0..20 {
            let p = problem(seed, "3x3g4o2", 4, 3);
            let dense = gaussian(seed + 50, 8, 12);
            let left = (decode(&p.matrix) * &dense).sum();
            let scattered = scatter(&dense, &p.matrix, &Occurrences::of_matrix(&p.matrix));
            let right = (&scattered * p.matrix.codebooks()).sum();
            // at most 96 x 3 products, of size below 100
            assert!((left - right).abs() <= 300.0 * 100.0 * f64::EPSILON);
        }
    }
}
