use std::cmp::Ordering;

use aqlm_vocabulary::ChangeBudget;

/// The indices of the `count` largest numbers, largest first; among equals the lower index first. Only these
/// are sorted.
pub(super) fn largest(values: &[f64], count: usize) -> Vec<usize> {
    let before = |a: &usize, b: &usize| -> Ordering { values[*b].total_cmp(&values[*a]).then(a.cmp(b)) };
    let mut indices: Vec<usize> = (0..values.len()).collect();
    if count < indices.len() {
        indices.select_nth_unstable_by(count, before);
        indices.truncate(count);
    }
    indices.sort_unstable_by(before);
    indices
}

/// How many groups of each matrix may change in a step (see [`ChangeBudget`]), given the squared norms of its
/// groups' differences and its number of output groups.
pub fn allowances(matrices: &[(usize, &[f64])], share: f64, budget: ChangeBudget) -> Vec<usize> {
    match budget {
        // in the order of multiplication of the official code: what a product exceeds a whole number by is
        // rounded up, too
        ChangeBudget::Matrix => matrices
            .iter()
            .map(|&(out_groups, norms)| {
                let in_groups = norms.len() / out_groups.max(1);
                ((share * out_groups as f64 * in_groups as f64).ceil() as usize).min(norms.len())
            })
            .collect(),
        ChangeBudget::Model => {
            let all: Vec<f64> = matrices.iter().flat_map(|(_, norms)| *norms).copied().collect();
            let allowed = ((share * all.len() as f64).ceil() as usize).min(all.len());
            let mut ends = Vec::with_capacity(matrices.len());
            for (_, norms) in matrices {
                ends.push(ends.last().unwrap_or(&0) + norms.len());
            }
            let mut counts = vec![0; matrices.len()];
            for index in largest(&all, allowed) {
                counts[ends.partition_point(|&end| end <= index)] += 1;
            }
            counts
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_list_is_sorted_as_the_whole_list_would_be() {
        let values: Vec<f64> = (0..500).map(|i| f64::from((i * 7919) % 97)).collect();
        let mut sorted: Vec<usize> = (0..values.len()).collect();
        sorted.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
        for count in [0, 1, 13, 499, 500, 600] {
            assert_eq!(largest(&values, count), sorted[..count.min(500)]);
        }
    }

    #[test]
    fn budgets_are_shared_by_matrix_or_by_model() {
        let (first, second, none) = ([1.0, 5.0, 5.0, 0.0], [5.0, 9.0], []);
        let matrices = [(2, &first[..]), (0, &none[..]), (1, &second[..])];
        assert_eq!(allowances(&matrices, 0.3, ChangeBudget::Matrix), [2, 0, 1]);
        assert_eq!(allowances(&matrices, 0.5, ChangeBudget::Model), [2, 0, 1]);
        assert_eq!(allowances(&matrices, 1.0, ChangeBudget::Model), [4, 0, 2]);
        assert_eq!(allowances(&matrices, 0.0, ChangeBudget::Model), [0, 0, 0]);
    }
}
