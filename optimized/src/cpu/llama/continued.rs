use std::ops::Range;

use aqlm_vocabulary::{AttentionSpec, NormPlace};
use faer::Accum;
use ndarray::{Array2, ArrayView2, Axis, concatenate, s};
use rayon::prelude::*;

use super::attention::{QUERY_ROWS, first_seen, probabilities};
use super::forward::Projected;
use super::mlp::add_mlp;
use super::residual::{add_branch, normed_or_same};
use super::rotary::Turn;
use super::{Block, Rotary};
use crate::cpu::product::product_on_this_thread;
use crate::cpu::row_major::elements_mut;
use crate::cpu::zeroed::zeroed;

/// A sequence among the rows of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// its rows
    pub rows: Range<usize>,
    /// the rows of the sequence that it continues, which continues none itself; empty for a sequence of its
    /// own
    pub stem: Range<usize>,
}

/// [`block_forward`](super::block_forward) over sequences of any lengths, some of which continue others:
/// [rows, hidden] to the same. A beginning that several sequences share is computed once.
///
/// # Panics
/// When the shapes of block and x do not fit together, the pieces do not cover the rows, or the rotary tables
/// are shorter than a sequence with its stem.
pub fn block_forward_continued(
    block: &Block,
    rotary: &Rotary,
    x: ArrayView2<'_, f32>,
    pieces: &[Piece],
) -> Array2<f32> {
    let attending = &block.spec().attention;
    let x = x.as_standard_layout().into_owned();
    let normed = normed_or_same(block, NormPlace::BeforeAttention, &x);
    let Projected { mut q, mut k, v, .. } = Projected::unrotated(block, normed.view());
    for turned in [&mut q, &mut k] {
        for piece in pieces {
            let mut rows = turned.slice_mut(s![piece.rows.clone(), ..]);
            for (position, mut row) in (piece.stem.len()..).zip(rows.outer_iter_mut()) {
                rotary.rotate_row(attending, elements_mut(&mut row), position, Turn::Forward);
            }
        }
    }
    let attended = attention(attending, q.view(), k.view(), v.view(), pieces);
    let (middle, _) = add_branch(
        block,
        attending.output,
        attended.view(),
        &x,
        NormPlace::AfterAttention,
    );
    add_mlp(block, &middle).0
}

/// Causal attention of every piece to its stem and itself.
fn attention(
    spec: &AttentionSpec,
    q: ArrayView2<'_, f32>,
    k: ArrayView2<'_, f32>,
    v: ArrayView2<'_, f32>,
    pieces: &[Piece],
) -> Array2<f32> {
    let width = spec.heads_per_kv_head() * spec.head_dim;
    let heads = spec.key_width() / spec.head_dim;
    let tasks: Vec<(&Piece, usize)> = pieces
        .iter()
        .flat_map(|piece| (0..heads).map(move |head| (piece, head)))
        .collect();
    let results: Vec<Array2<f32>> = tasks
        .par_iter()
        .map(|(piece, head)| {
            let shared = head * spec.head_dim..(head + 1) * spec.head_dim;
            let whole = |all: ArrayView2<'_, f32>| {
                let part = |rows: &Range<usize>| all.slice_move(s![rows.clone(), shared.clone()]);
                concatenate![Axis(0), part(&piece.stem), part(&piece.rows)]
            };
            let own = q.slice(s![piece.rows.clone(), head * width..(head + 1) * width]);
            of_piece(spec, own, whole(k).view(), whole(v).view())
        })
        .collect();
    let mut out = zeroed(q.dim());
    for ((piece, head), result) in tasks.into_iter().zip(results) {
        out.slice_mut(s![piece.rows.clone(), head * width..(head + 1) * width])
            .assign(&result);
    }
    out
}

/// Attention of the query heads of one key head, [queries, heads x head_dim]. The queries are the last
/// positions of the keys and values, [positions, head_dim].
fn of_piece(
    spec: &AttentionSpec,
    q: ArrayView2<'_, f32>,
    keys: ArrayView2<'_, f32>,
    values: ArrayView2<'_, f32>,
) -> Array2<f32> {
    let mut out = zeroed(q.dim());
    let first = keys.nrows() - q.nrows();
    let mut scores = Array2::zeros((QUERY_ROWS.min(q.nrows()), keys.nrows()));
    for head in 0..spec.heads_per_kv_head() {
        let columns = head * spec.head_dim..(head + 1) * spec.head_dim;
        for start in (0..q.nrows()).step_by(QUERY_ROWS) {
            let queries = start..q.nrows().min(start + QUERY_ROWS);
            let at = first + start;
            let seen = first_seen(at, spec.window)..first + queries.end;
            let mut p = scores.slice_mut(s![..queries.len(), ..seen.len()]);
            let of_head = q.slice(s![queries.clone(), columns.clone()]);
            probabilities(
                spec,
                p.view_mut(),
                of_head,
                keys.slice(s![seen.clone(), ..]),
                at,
                seen.start,
                None,
            );
            product_on_this_thread(
                out.slice_mut(s![queries, columns.clone()]),
                Accum::Replace,
                p.view(),
                values.slice(s![seen, ..]),
                1.0,
            );
        }
    }
    out
}
