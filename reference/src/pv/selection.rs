use aqlm_vocabulary::{ChangeBudget, Scheme};
use ndarray::Array2;

/// The squared norm of each group of a weight-shaped array, [out_groups, in_groups], in the weight's own unit
/// (scales included).
pub fn group_norms(weight: &Array2<f64>, scheme: Scheme) -> Array2<f64> {
    let (go, gi) = (scheme.out_group_size, scheme.in_group_size);
    let mut norms = Array2::zeros((weight.nrows() / go, weight.ncols() / gi));
    for ((row, column), value) in weight.indexed_iter() {
        norms[[row / go, column / gi]] += value * value;
    }
    norms
}

/// How many groups of each matrix may change in a step, given the squared norms of its differences from its
/// buffer.
///
/// With a budget for each matrix: the share of its groups, rounded up, in the order of multiplication of the
/// official code, since a product that ends just above a whole number is rounded up too. With one budget for
/// the model: the share of all groups, of which each matrix gets as many as it has among the largest
/// differences. Among equal differences the earlier matrix and the earlier group come first.
pub fn allowances(norms: &[Array2<f64>], share: f64, budget: ChangeBudget) -> Vec<usize> {
    match budget {
        ChangeBudget::Matrix => norms
            .iter()
            .map(|norms| {
                let (out_groups, in_groups) = norms.dim();
                let allowed = (share * out_groups as f64 * in_groups as f64).ceil() as usize;
                allowed.min(norms.len())
            })
            .collect(),
        ChangeBudget::Model => {
            let total: usize = norms.iter().map(Array2::len).sum();
            let allowed = ((share * total as f64).ceil() as usize).min(total);
            let all: Vec<f64> = norms.iter().flatten().copied().collect();
            let mut counts = vec![0; norms.len()];
            for index in largest(&all, allowed) {
                let mut end = 0;
                let before = |norms: &&Array2<f64>| {
                    end += norms.len();
                    end <= index
                };
                counts[norms.iter().take_while(before).count()] += 1;
            }
            counts
        }
    }
}

/// The indices of the `count` largest numbers, largest first; among equals the lower index first.
pub fn largest(values: &[f64], count: usize) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..values.len()).collect();
    indices.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
    indices.truncate(count);
    indices
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn groups_are_measured_in_both_directions() {
        let scheme = Scheme::with_out_group(1, 1, 2, 2).unwrap();
        let weight = array![[1.0, 0.0, 0.0, 3.0], [2.0, 0.0, 4.0, 0.0]];
        assert_eq!(group_norms(&weight, scheme), array![[5.0, 25.0]]);
    }

    #[test]
    fn the_largest_come_first_and_ties_keep_their_order() {
        assert_eq!(largest(&[1.0, 3.0, 2.0, 3.0], 3), [1, 3, 2]);
        assert_eq!(largest(&[1.0], 0), [0usize; 0]);
        assert_eq!(largest(&[1.0, 2.0], 5), [1, 0]);
    }

    #[test]
    fn shares_are_rounded_up() {
        let norms = [Array2::<f64>::zeros((24, 8)), Array2::zeros((1, 3))];
        assert_eq!(allowances(&norms, 0.1, ChangeBudget::Matrix), [20, 1]);
        assert_eq!(allowances(&norms, 0.0, ChangeBudget::Matrix), [0, 0]);
        assert_eq!(allowances(&norms, 1.0, ChangeBudget::Matrix), [192, 3]);
    }

    #[test]
    fn one_budget_goes_where_differences_are_largest() {
        let norms = [array![[1.0, 5.0], [5.0, 0.0]], array![[5.0, 9.0]]];
        let counts = |share| allowances(&norms, share, ChangeBudget::Model);
        assert_eq!(counts(0.0), [0, 0]);
        assert_eq!(counts(1.0 / 6.0), [0, 1]);
        // of three equal differences the two of the first matrix
        assert_eq!(counts(0.5), [2, 1]);
        assert_eq!(counts(0.51), [2, 2]);
        assert_eq!(counts(1.0), [4, 2]);
    }
}
