use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut1, s};

use super::soft_cap::{soft_cap, soft_cap_slope};
use crate::linalg::product;
use aqlm_vocabulary::AttentionSpec;

/// Number of queries that share one product with the keys. Causality makes half of all scores useless.
/// Splitting the queries lets the products skip most of that half, and limits memory to this many rows of
/// scores.
const QUERY_ROWS: usize = 64;

/// Causal attention with grouped queries, [tokens, heads x head_dim].
///
/// q is [tokens, heads x head_dim], its row t at position `first` + t. k and v are [`first` + tokens,
/// kv_heads x head_dim], one row per position. Query head h reads key and value head h / (heads / kv_heads).
/// Position i attends to positions max(0, i - window + 1) to i: softmax over them of `scale` <q_i, k_j>,
/// which a cap limits where there is one, then the average of v_j with these weights.
///
/// # Panics
/// When the shapes do not fit together as described.
pub fn attention(
    spec: &AttentionSpec,
    q: ArrayView2<f64>,
    k: ArrayView2<f64>,
    v: ArrayView2<f64>,
    first: usize,
) -> Array2<f64> {
    assert_eq!(k.nrows(), first + q.nrows(), "one key for each position");
    let mut out = Array2::zeros(q.dim());
    for head in 0..spec.heads {
        let (own, shared) = columns(spec, head);
        let keys = k.slice(s![.., shared.clone()]).to_owned();
        let values = v.slice(s![.., shared]).to_owned();
        for Span { queries, keys: seen } in spans(q.nrows(), first, spec.window) {
            let keys = keys.slice(s![seen.clone(), ..]);
            let values = values.slice(s![seen.clone(), ..]);
            let q = q.slice(s![queries.clone(), own.clone()]);
            let (p, _) = probabilities(spec, q, keys, first + queries.start, seen.start);
            out.slice_mut(s![queries, own.clone()])
                .assign(&product(p.view(), values));
        }
    }
    out
}

/// Gradients of [`attention`] over a whole sequence (`first` 0) with respect to q, k and v, given the
/// gradient with respect to its result.
///
/// With P the probabilities of one head, S its scaled scores and G the result's gradient: grad V = P^T G;
/// grad P = G V^T; grad S = P * (grad P - rowsum(P * grad P)), times the slope of the cap at S; grad Q =
/// `scale` grad S K; grad K = `scale` grad S^T Q. P is recomputed, because storing it would take tokens^2
/// numbers per head.
///
/// # Panics
/// When the shapes do not fit together as described.
pub fn attention_backward(
    spec: &AttentionSpec,
    q: ArrayView2<f64>,
    k: ArrayView2<f64>,
    v: ArrayView2<f64>,
    grad_out: ArrayView2<f64>,
) -> (Array2<f64>, Array2<f64>, Array2<f64>) {
    let mut grad_q = Array2::zeros(q.dim());
    let mut grad_k = Array2::zeros(k.dim());
    let mut grad_v = Array2::zeros(v.dim());
    for head in 0..spec.heads {
        let (own, shared) = columns(spec, head);
        let keys = k.slice(s![.., shared.clone()]).to_owned();
        let values = v.slice(s![.., shared.clone()]).to_owned();
        for Span { queries, keys: seen } in spans(q.nrows(), 0, spec.window) {
            let keys = keys.slice(s![seen.clone(), ..]);
            let values = values.slice(s![seen.clone(), ..]);
            let q = q.slice(s![queries.clone(), own.clone()]).to_owned();
            let grad = grad_out.slice(s![queries.clone(), own.clone()]).to_owned();
            let (p, slopes) = probabilities(spec, q.view(), keys, queries.start, seen.start);

            let mut grad_values = grad_v.slice_mut(s![seen.clone(), shared.clone()]);
            grad_values += &product(p.t(), grad.view());

            let mut grad_scores = product(grad.view(), values.t());
            for (mut grad, p) in grad_scores.rows_mut().into_iter().zip(p.rows()) {
                let mean = grad.dot(&p);
                grad.zip_mut_with(&p, |grad, &p| *grad = p * (*grad - mean) * spec.scale);
            }
            if let Some(slopes) = slopes {
                grad_scores *= &slopes;
            }
            grad_q
                .slice_mut(s![queries, own.clone()])
                .assign(&product(grad_scores.view(), keys));
            let mut grad_keys = grad_k.slice_mut(s![seen, shared.clone()]);
            grad_keys += &product(grad_scores.t(), q.view());
        }
    }
    (grad_q, grad_k, grad_v)
}

/// The columns of a query head, and those of its key and value head.
fn columns(spec: &AttentionSpec, head: usize) -> (Range<usize>, Range<usize>) {
    let shared = head / spec.heads_per_kv_head();
    let of = |head: usize| head * spec.head_dim..(head + 1) * spec.head_dim;
    (of(head), of(shared))
}

/// Consecutive queries and all keys that any of them attends to.
struct Span {
    /// rows of q
    queries: Range<usize>,
    /// rows of k and v
    keys: Range<usize>,
}

/// Splits `tokens` queries, the first of them at position `first`, into spans.
fn spans(tokens: usize, first: usize, window: Option<usize>) -> impl Iterator<Item = Span> {
    (0..tokens).step_by(QUERY_ROWS).map(move |start| {
        let end = tokens.min(start + QUERY_ROWS);
        Span {
            queries: start..end,
            keys: first_seen(first + start, window)..first + end,
        }
    })
}

/// The earliest position that a position attends to.
fn first_seen(position: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

/// The attention probabilities of one head, [queries, keys]; zero for keys that a query does not attend to.
/// With a cap, also its slopes at the scaled scores.
///
/// Row t of q is at position `at` + t, row j of the keys at position `seen` + j.
fn probabilities(
    spec: &AttentionSpec,
    q: ArrayView2<f64>,
    keys: ArrayView2<f64>,
    at: usize,
    seen: usize,
) -> (Array2<f64>, Option<Array2<f64>>) {
    let mut scores = product(q, keys.t());
    let mut scale = spec.scale;
    let slopes = spec.cap.map(|cap| {
        scores.mapv_inplace(|score| soft_cap(spec.scale * score, cap));
        scale = 1.0;
        scores.mapv(|score| soft_cap_slope(score, cap))
    });
    for (t, mut row) in scores.rows_mut().into_iter().enumerate() {
        let position = at + t;
        let visible = first_seen(position, spec.window) - seen..position + 1 - seen;
        row.slice_mut(s![..visible.start]).fill(0.0);
        row.slice_mut(s![visible.end..]).fill(0.0);
        softmax(row.slice_mut(s![visible]), scale);
    }
    (scores, slopes)
}

/// Softmax of `scale` times the scores, in place. Subtracting the largest score first keeps the exponentials
/// at most 1.
fn softmax(mut scores: ArrayViewMut1<f64>, scale: f64) {
    let largest = scores.fold(f64::NEG_INFINITY, |most, &score| most.max(score));
    scores.mapv_inplace(|score| (scale * (score - largest)).exp());
    let total = scores.sum();
    scores /= total;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::finite_difference::assert_gradient;
    use crate::llama::test_data::{config, inner, normal, random};

    /// The definition, one query and one number at a time.
    fn by_definition(spec: &AttentionSpec, q: &Array2<f64>, k: &Array2<f64>, v: &Array2<f64>) -> Array2<f64> {
        let width = spec.head_dim;
        let mut out = Array2::zeros(q.dim());
        for ((i, column), out) in out.indexed_iter_mut() {
            let (head, c) = (column / width, column % width);
            let shared = head * spec.kv_heads / spec.heads;
            let (mut total, mut sum) = (0.0, 0.0);
            for j in 0..=i {
                if spec.window.is_some_and(|window| i - j >= window) {
                    continue;
                }
                let score: f64 = (0..width)
                    .map(|d| q[[i, head * width + d]] * k[[j, shared * width + d]])
                    .sum();
                let scaled = spec.scale * score;
                let weight = spec.cap.map_or(scaled, |cap| cap * (scaled / cap).tanh()).exp();
                total += weight;
                sum += weight * v[[j, shared * width + c]];
            }
            *out = sum / total;
        }
        out
    }

    #[test]
    fn agrees_with_the_definition() {
        // 150 tokens are three spans; windows shorter than a span, across spans, and longer than the sequence
        for (kv_heads, window, scale, cap) in [
            (4, None, 0.5, None),
            (2, None, 0.2, None),
            (1, Some(7), 0.5, Some(0.8)),
            (2, Some(100), 0.5, None),
            (4, Some(1), 0.5, Some(2.0)),
            (2, Some(500), 0.7, Some(1.5)),
        ] {
            let mut spec = config(kv_heads, window).attention;
            (spec.scale, spec.cap) = (scale, cap);
            let mut rng = random(5);
            let q = normal(&mut rng, (150, 16));
            let k = normal(&mut rng, (150, 4 * kv_heads));
            let v = normal(&mut rng, (150, 4 * kv_heads));
            let expected = by_definition(&spec, &q, &k, &v);
            let found = attention(&spec, q.view(), k.view(), v.view(), 0);
            // sums of up to 150 terms, in two orders, of averages of numbers below about 5
            let limit = 2.0 * 150.0 * f64::EPSILON * 5.0;
            assert!(
                (&found - &expected)
                    .iter()
                    .all(|difference| difference.abs() <= limit),
                "{kv_heads} {window:?}"
            );

            // only the last queries, against all keys
            let tail = attention(&spec, q.slice(s![147.., ..]), k.view(), v.view(), 147);
            assert!(
                (&tail - &expected.slice(s![147.., ..]))
                    .iter()
                    .all(|difference| difference.abs() <= limit)
            );
        }
    }

    #[test]
    fn huge_scores_do_not_overflow() {
        let spec = config(4, None).attention;
        let q = 1e3 * normal(&mut random(6), (5, 16));
        let out = attention(&spec, q.view(), q.view(), q.view(), 0);
        assert!(out.iter().all(|value| value.is_finite()));
    }

    #[test]
    fn gradients_match_finite_differences() {
        for (kv_heads, window, tokens, cap) in [
            (4, None, 5, None),
            (2, None, 5, Some(0.9)),
            (1, Some(3), 6, None),
            (2, Some(2), 66, Some(1.5)),
        ] {
            let mut spec = config(kv_heads, window).attention;
            (spec.scale, spec.cap) = (0.6, cap);
            let mut rng = random(7);
            let [q, direction] = [(); 2].map(|()| normal(&mut rng, (tokens, 16)));
            let [k, v] = [(); 2].map(|()| normal(&mut rng, (tokens, 4 * kv_heads)));
            let loss = |q: &Array2<f64>, k: &Array2<f64>, v: &Array2<f64>| {
                inner(&attention(&spec, q.view(), k.view(), v.view(), 0), &direction)
            };
            let (grad_q, grad_k, grad_v) =
                attention_backward(&spec, q.view(), k.view(), v.view(), direction.view());
            let terms = direction.len();
            let name = |part: &str| format!("{part}, {kv_heads} kv heads, window {window:?}");
            assert_gradient(&name("q"), &grad_q, &q, terms, |q| loss(q, &k, &v));
            assert_gradient(&name("k"), &grad_k, &k, terms, |k| loss(&q, k, &v));
            assert_gradient(&name("v"), &grad_v, &v, terms, |v| loss(&q, &k, v));
        }
    }
}
