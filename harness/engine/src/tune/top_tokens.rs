use aqlm_vocabulary::TopTokens;
use ndarray::{Array1, Array2, ArrayView1};
use rayon::prelude::*;

/// The `k` most likely tokens at every position of logits [positions, vocab], with their log-probabilities
/// and the total probability of all other tokens. `k` is at most the vocabulary size. Of equal logits the
/// smaller token id comes first.
pub(super) fn top_tokens(logits: &Array2<f64>, k: usize) -> TopTokens {
    let rows: Vec<(Vec<u32>, Vec<f32>, f32)> = logits
        .outer_iter()
        .into_par_iter()
        .map(|row| top_of_row(&row, k))
        .collect();
    let element = |t: usize, i: usize| (rows[t].0[i], rows[t].1[i]);
    TopTokens {
        tokens: Array2::from_shape_fn((rows.len(), k), |(t, i)| element(t, i).0),
        log_probabilities: Array2::from_shape_fn((rows.len(), k), |(t, i)| element(t, i).1),
        rest: Array1::from_shape_fn(rows.len(), |t| rows[t].2),
    }
}

fn top_of_row(logits: &ArrayView1<'_, f64>, k: usize) -> (Vec<u32>, Vec<f32>, f32) {
    let largest = logits.fold(f64::NEG_INFINITY, |most, &logit| most.max(logit));
    let sum: f64 = logits.iter().map(|logit| (logit - largest).exp()).sum();
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let by_logit = |a: &u32, b: &u32| {
        logits[*b as usize]
            .total_cmp(&logits[*a as usize])
            .then_with(|| a.cmp(b))
    };
    if k < order.len() {
        order.select_nth_unstable_by(k, by_logit);
    }
    order[..k].sort_unstable_by(by_logit);
    // Summed directly: one minus the sum of the listed tokens would lose a small remainder to cancellation.
    let rest: f64 = order[k..]
        .iter()
        .map(|&token| (logits[token as usize] - largest).exp())
        .sum();
    order.truncate(k);
    let log_probability = |&token: &u32| ((logits[token as usize] - largest) - sum.ln()) as f32;
    let values = order.iter().map(log_probability).collect();
    (order, values, (rest / sum) as f32)
}

#[cfg(test)]
mod tests {
    use ndarray::arr2;

    use super::*;

    #[test]
    fn the_likeliest_come_first_and_the_rest_adds_up() {
        // probabilities 1/2, 1/8, 1/4, 1/8
        let logits = arr2(&[[4f64.ln(), 0.0, 2f64.ln(), 0.0]]);
        let top = top_tokens(&logits, 2);
        assert_eq!(top.tokens, arr2(&[[0, 2]]));
        assert_eq!(top.log_probabilities, arr2(&[[0.5f32.ln(), 0.25f32.ln()]]));
        assert_eq!(top.rest[0], 0.25);
        let all = top_tokens(&logits, 4);
        assert_eq!(all.tokens, arr2(&[[0, 2, 1, 3]]));
        assert_eq!(all.rest[0], 0.0);
    }
}
