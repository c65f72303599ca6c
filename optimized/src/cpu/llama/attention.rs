use std::ops::Range;

use aqlm_vocabulary::AttentionSpec;
use faer::Accum;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use super::soft_cap::{soft_cap, soft_cap_slopes};
use crate::cpu::product::product_on_this_thread;
use crate::cpu::row_major::{elements, elements_mut};
use crate::cpu::vectorize::{LANES, close, dot, exp, vectorized};
use crate::cpu::zeroed::zeroed;

/// Queries that share one product with the keys. Causality wastes half of all scores. Cutting the queries
/// into spans lets the products skip most of that half, and keeps a task's scores in the L2 cache.
pub(super) const QUERY_ROWS: usize = 64;

/// Causal attention within each sequence, [rows, heads x head_dim], for q of that shape and k, v of [rows,
/// kv_heads x head_dim]. The rows hold sequences of `tokens` rows one after another.
///
/// Query head h reads key and value head h / (heads / kv_heads). Position i attends to positions max(0, i -
/// window + 1) to i: their weights are the softmax of `scale` <q_i, k_j>, which a cap limits where there is
/// one, and the result is the average of v_j with these weights.
pub(super) fn attention(
    spec: &AttentionSpec,
    q: ArrayView2<'_, f32>,
    k: ArrayView2<'_, f32>,
    v: ArrayView2<'_, f32>,
    tokens: usize,
) -> Array2<f32> {
    let mut out = zeroed(q.dim());
    let own = spec.heads_per_kv_head() * spec.head_dim;
    let tasks: Vec<_> = tiles_mut(out.view_mut(), tokens, own)
        .into_iter()
        .zip(tiles(q, tokens, own))
        .zip(
            tiles(k, tokens, spec.head_dim)
                .into_iter()
                .zip(tiles(v, tokens, spec.head_dim)),
        )
        .collect();
    tasks.into_par_iter().for_each(|((mut out, q), (k, v))| {
        let mut scores = Array2::zeros((QUERY_ROWS.min(tokens), tokens));
        for head in 0..spec.heads_per_kv_head() {
            let columns = head * spec.head_dim..(head + 1) * spec.head_dim;
            for Span { queries, keys } in spans(tokens, spec.window) {
                let q = q.slice(s![queries.clone(), columns.clone()]);
                let mut p = scores.slice_mut(s![..queries.len(), ..keys.len()]);
                let seen = k.slice(s![keys.clone(), ..]);
                probabilities(spec, p.view_mut(), q, seen, queries.start, keys.start, None);
                product_on_this_thread(
                    out.slice_mut(s![queries, columns.clone()]),
                    Accum::Replace,
                    p.view(),
                    v.slice(s![keys, ..]),
                    1.0,
                );
            }
        }
    });
    out
}

/// Gradients of [`attention`] with respect to q, k and v, given the gradient of its result.
///
/// With P the probabilities of one head, S its scaled scores and G the result's gradient: grad V = P^T G;
/// grad P = G V^T; grad S = P (grad P - rowsum(P grad P)), times the slope of the cap at S; grad Q = `scale`
/// grad S K; grad K = `scale` grad S^T Q. P is recomputed, because keeping it would take tokens^2 numbers a
/// head.
pub(super) fn attention_backward(
    spec: &AttentionSpec,
    q: ArrayView2<'_, f32>,
    k: ArrayView2<'_, f32>,
    v: ArrayView2<'_, f32>,
    tokens: usize,
    grad_out: ArrayView2<'_, f32>,
) -> [Array2<f32>; 3] {
    let mut gradients = [zeroed(q.dim()), zeroed(k.dim()), zeroed(v.dim())];
    let [grad_q, grad_k, grad_v] = &mut gradients;
    let width = spec.head_dim;
    let own = spec.heads_per_kv_head() * width;
    let grads_kv = tiles_mut(grad_k.view_mut(), tokens, width)
        .into_iter()
        .zip(tiles_mut(grad_v.view_mut(), tokens, width));
    let tasks: Vec<_> = tiles_mut(grad_q.view_mut(), tokens, own)
        .into_iter()
        .zip(grads_kv)
        .zip(
            tiles(q, tokens, own)
                .into_iter()
                .zip(tiles(grad_out, tokens, own)),
        )
        .zip(tiles(k, tokens, width).into_iter().zip(tiles(v, tokens, width)))
        .collect();
    let scale = scale(spec);
    tasks.into_par_iter().for_each(
        |(((mut grad_q, (mut grad_k, mut grad_v)), (q, grad_out)), (k, v))| {
            let mut scores = Array2::zeros((QUERY_ROWS.min(tokens), tokens));
            let mut grads = scores.clone();
            let mut slopes = spec.cap.map(|_| scores.clone());
            for head in 0..spec.heads_per_kv_head() {
                let columns = head * width..(head + 1) * width;
                for Span { queries, keys } in spans(tokens, spec.window) {
                    let q = q.slice(s![queries.clone(), columns.clone()]);
                    let grad = grad_out.slice(s![queries.clone(), columns.clone()]);
                    let seen = k.slice(s![keys.clone(), ..]);
                    let mut p = scores.slice_mut(s![..queries.len(), ..keys.len()]);
                    let mut slopes = slopes
                        .as_mut()
                        .map(|slopes| slopes.slice_mut(s![..queries.len(), ..keys.len()]));
                    let to = slopes.as_mut().map(|slopes| slopes.view_mut());
                    probabilities(spec, p.view_mut(), q, seen, queries.start, keys.start, to);
                    let grad_values = grad_v.slice_mut(s![keys.clone(), ..]);
                    product_on_this_thread(grad_values, Accum::Add, p.t(), grad, 1.0);

                    let mut grad_scores = grads.slice_mut(s![..queries.len(), ..keys.len()]);
                    let values = v.slice(s![keys.clone(), ..]);
                    product_on_this_thread(grad_scores.view_mut(), Accum::Replace, grad, values.t(), 1.0);
                    for (mut grad, p) in grad_scores.outer_iter_mut().zip(p.outer_iter()) {
                        let (grad, p) = (elements_mut(&mut grad), elements(&p));
                        let mean = dot(grad, p);
                        for (grad, p) in grad.iter_mut().zip(p) {
                            *grad = p * (*grad - mean);
                        }
                    }
                    if let Some(slopes) = slopes {
                        grad_scores *= &slopes;
                    }
                    let grad_queries = grad_q.slice_mut(s![queries, columns.clone()]);
                    product_on_this_thread(grad_queries, Accum::Replace, grad_scores.view(), seen, scale);
                    let grad_keys = grad_k.slice_mut(s![keys, ..]);
                    product_on_this_thread(grad_keys, Accum::Add, grad_scores.t(), q, scale);
                }
            }
        },
    );
    gradients
}

/// The factor of the scores before the softmax.
pub(super) fn scale(spec: &AttentionSpec) -> f32 {
    spec.scale as f32
}

/// The earliest position that a position attends to.
pub(super) fn first_seen(position: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

/// The matrix cut into [tokens, width] tiles, sequence by sequence, and within each from left to right.
fn tiles(x: ArrayView2<'_, f32>, tokens: usize, width: usize) -> Vec<ArrayView2<'_, f32>> {
    let (rows, columns) = x.dim();
    (0..rows / tokens * (columns / width))
        .map(|i| {
            let (sequence, tile) = (i / (columns / width), i % (columns / width));
            x.slice_move(s![
                sequence * tokens..(sequence + 1) * tokens,
                tile * width..(tile + 1) * width
            ])
        })
        .collect()
}

/// [`tiles`], mutable.
fn tiles_mut(x: ArrayViewMut2<'_, f32>, tokens: usize, width: usize) -> Vec<ArrayViewMut2<'_, f32>> {
    let mut result = Vec::new();
    let mut rest = x;
    while rest.nrows() > 0 {
        let (mut sequence, below) = rest.split_at(Axis(0), tokens);
        rest = below;
        while sequence.ncols() > 0 {
            let (tile, right) = sequence.split_at(Axis(1), width);
            result.push(tile);
            sequence = right;
        }
    }
    result
}

/// Consecutive queries and all keys that any of them attends to.
struct Span {
    queries: Range<usize>,
    keys: Range<usize>,
}

/// Cuts a sequence into spans.
fn spans(tokens: usize, window: Option<usize>) -> impl Iterator<Item = Span> {
    (0..tokens).step_by(QUERY_ROWS).map(move |start| {
        let end = tokens.min(start + QUERY_ROWS);
        Span {
            queries: start..end,
            keys: first_seen(start, window)..end,
        }
    })
}

/// The attention probabilities of one head, [queries, keys], zero where a query does not attend. Row t of q
/// is at position `at` + t, row j of the keys at position `seen` + j. With a cap, its slopes at the scaled
/// scores go to `slopes`.
pub(super) fn probabilities(
    spec: &AttentionSpec,
    mut p: ArrayViewMut2<'_, f32>,
    q: ArrayView2<'_, f32>,
    keys: ArrayView2<'_, f32>,
    at: usize,
    seen: usize,
    mut slopes: Option<ArrayViewMut2<'_, f32>>,
) {
    product_on_this_thread(p.view_mut(), Accum::Replace, q, keys.t(), scale(spec));
    for (t, mut row) in p.outer_iter_mut().enumerate() {
        let position = at + t;
        let start = first_seen(position, spec.window) - seen;
        let end = position + 1 - seen;
        let row = elements_mut(&mut row);
        row[..start].fill(0.0);
        row[end..].fill(0.0);
        if let Some(cap) = spec.cap {
            soft_cap(&mut row[start..end], cap as f32);
            if let Some(slopes) = &mut slopes {
                let mut slopes = slopes.row_mut(t);
                soft_cap_slopes(
                    &mut elements_mut(&mut slopes)[start..end],
                    &row[start..end],
                    cap as f32,
                );
            }
        }
        softmax(&mut row[start..end]);
    }
}

#[inline(always)]
fn softmax_body<const FUSED: bool>(scores: &mut [f32]) {
    let mut largest = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = scores.as_chunks::<LANES>();
    for chunk in whole {
        for i in 0..LANES {
            largest[i] = largest[i].max(chunk[i]);
        }
    }
    let largest = largest
        .iter()
        .chain(rest)
        .fold(f32::NEG_INFINITY, |most, &score| most.max(score));
    let mut lanes = [0.0; LANES];
    let (whole, rest) = scores.as_chunks_mut::<LANES>();
    for chunk in whole {
        for i in 0..LANES {
            chunk[i] = exp::<FUSED>(chunk[i] - largest);
            lanes[i] += chunk[i];
        }
    }
    for (i, score) in rest.iter_mut().enumerate() {
        *score = exp::<FUSED>(*score - largest);
        lanes[i] += *score;
    }
    let factor = 1.0 / close(lanes);
    for score in scores {
        *score *= factor;
    }
}

vectorized! {
    /// Softmax in place. Subtracts the largest score first, so that no exponential is above 1.
    pub(super) fn softmax(scores: &mut [f32]) = softmax_body
}
