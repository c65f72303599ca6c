use aqlm_vocabulary::{AqlmError, AttentionSpec, GatedMlp, LayerId, Mlp, NormPlace, Result, RoutedMlp};
use ndarray::{Array1, ArrayView1};
use rayon::prelude::*;

use super::attention::{first_seen, scale, softmax};
use super::experts::sigmoid;
use super::fused::is_one;
use super::gated::gated_slice;
use super::rotary::Turn;
use super::routing::choose;
use super::soft_cap::soft_cap;
use super::{Block, Rotary, Weight};
use crate::cpu::row_major::elements;
use crate::cpu::vectorize::dot;

/// Output features that one task of a dense product with one row computes.
const OUTPUTS: usize = 128;

/// Keys and values of one block for the positions computed so far.
#[derive(Debug, Clone, Default)]
pub struct KvCacheLayer {
    /// after rotation, [positions, kv_heads x head_dim]
    keys: Vec<f32>,
    /// [positions, kv_heads x head_dim]
    values: Vec<f32>,
}

impl KvCacheLayer {
    /// An empty cache; it grows with use.
    pub fn new() -> Self {
        Self::default()
    }
}

/// [`block_forward`](super::block_forward) for one more position, from its input row of `[hidden]` to its
/// output row.
///
/// # Errors
/// `Argument` unless the cache holds exactly the positions before `position` and the rotary tables cover it;
/// `NotFinite` when a quantized layer is beyond the range of its storage.
///
/// # Panics
/// When the shapes of block and row do not fit together.
pub fn block_decode_step(
    block: &Block,
    rotary: &Rotary,
    cache: &mut KvCacheLayer,
    x: ArrayView1<'_, f32>,
    position: usize,
) -> Result<Array1<f32>> {
    let spec = block.spec();
    let width = spec.attention.key_width();
    let cached = cache.keys.len() / width;
    if cached != position || position >= rotary.positions() {
        return Err(AqlmError::argument(
            "position",
            format!(
                "{cached}, the next of the cache, below the {} of the rotary tables",
                rotary.positions()
            ),
            position,
        ));
    }
    let mut row = x.to_vec();
    let mut normed = row.clone();
    block.norm_in_place(NormPlace::BeforeAttention, &mut normed);
    let (layers, widths) = spec.attention.projections();
    let [mut q, mut k, v] = apply_each(block, layers, widths, &normed)?;
    block.norm_in_place(NormPlace::Query, &mut q);
    block.norm_in_place(NormPlace::Key, &mut k);
    rotary.rotate_row(&spec.attention, &mut q, position, Turn::Forward);
    rotary.rotate_row(&spec.attention, &mut k, position, Turn::Forward);
    cache.keys.extend_from_slice(&k);
    cache.values.extend_from_slice(&v);
    let attended = attend(&spec.attention, cache, &q, position);
    let mut added = apply(block, spec.attention.output, &attended)?;
    block.norm_in_place(NormPlace::AfterAttention, &mut added);
    add(&mut row, &added, spec.residual_scale as f32);

    normed.clone_from(&row);
    block.norm_in_place(NormPlace::BeforeMlp, &mut normed);
    let mut added = match &spec.mlp {
        Mlp::Dense(mlp) => gated(block, mlp, &normed)?,
        Mlp::Routed(mlp) => routed(block, mlp, &normed)?,
    };
    block.norm_in_place(NormPlace::AfterMlp, &mut added);
    add(&mut row, &added, spec.residual_scale as f32);
    Ok(Array1::from(row))
}

/// A gated MLP on one row.
fn gated(block: &Block, mlp: &GatedMlp, x: &[f32]) -> Result<Vec<f32>> {
    let inner = block.spec().shape(mlp.down).1;
    let [gate, up] = apply_each(block, [mlp.gate, mlp.up], [inner; 2], x)?;
    let mut activated = vec![0.0; inner];
    gated_slice(mlp.activation, &mut activated, &gate, &up);
    apply(block, mlp.down, &activated)
}

/// A mixture of experts on one row, of which only the chosen ones are touched.
fn routed(block: &Block, mlp: &RoutedMlp, x: &[f32]) -> Result<Vec<f32>> {
    let mut scores = apply(block, mlp.router, x)?;
    let mut out = vec![0.0; x.len()];
    for (expert, weight) in choose(mlp, &mut scores) {
        let added = gated(block, &mlp.experts[expert], x)?;
        add(&mut out, &added, weight);
    }
    if let Some(shared) = &mlp.shared {
        let factor = sigmoid(apply(block, shared.gate, x)?[0]);
        add(&mut out, &gated(block, &shared.mlp, x)?, factor);
    }
    Ok(out)
}

/// Attention of the newest position, [heads x head_dim], over the cache.
fn attend(spec: &AttentionSpec, cache: &KvCacheLayer, q: &[f32], position: usize) -> Vec<f32> {
    let head_dim = spec.head_dim;
    let width = spec.key_width();
    let seen = first_seen(position, spec.window)..position + 1;
    let mut out = vec![0.0; q.len()];
    out.par_chunks_mut(head_dim)
        .zip(q.par_chunks(head_dim))
        .enumerate()
        .for_each(|(head, (out, q))| {
            let offset = head / spec.heads_per_kv_head() * head_dim;
            let of =
                |all: &[f32], j: usize| j * width + offset..(all.len().min(j * width + offset + head_dim));
            let mut scores: Vec<f32> = seen
                .clone()
                .map(|j| scale(spec) * dot(q, &cache.keys[of(&cache.keys, j)]))
                .collect();
            if let Some(cap) = spec.cap {
                soft_cap(&mut scores, cap as f32);
            }
            softmax(&mut scores);
            for (j, p) in seen.clone().zip(scores) {
                for (out, v) in out.iter_mut().zip(&cache.values[of(&cache.values, j)]) {
                    *out += p * v;
                }
            }
        });
    out
}

/// One of the block's linear layers on one row.
fn apply(block: &Block, layer: LayerId, x: &[f32]) -> Result<Vec<f32>> {
    let layer = block.layer(layer);
    let mut y;
    match &layer.weight {
        Weight::Quantized(quantized) => {
            let packed = quantized.packed()?;
            y = vec![0.0; packed.out_features()];
            packed.matvec(x, &mut y)?;
        }
        Weight::Dense(weight) => {
            y = vec![0.0; weight.nrows()];
            let weight = elements(weight);
            y.par_chunks_mut(OUTPUTS)
                .zip(weight.par_chunks(OUTPUTS * x.len()))
                .for_each(|(y, rows)| {
                    for (y, row) in y.iter_mut().zip(rows.chunks_exact(x.len())) {
                        *y = dot(row, x);
                    }
                });
        }
    }
    if let Some(bias) = &layer.bias {
        for (y, b) in y.iter_mut().zip(bias) {
            *y += b;
        }
    }
    Ok(y)
}

/// The outputs of layers that read the same row, each with its own weight, or as parts of one layer.
fn apply_each<const N: usize>(
    block: &Block,
    layers: [LayerId; N],
    widths: [usize; N],
    x: &[f32],
) -> Result<[Vec<f32>; N]> {
    let mut outputs = layers.map(|_| Vec::new());
    if is_one(&layers) {
        let all = apply(block, layers[0], x)?;
        let mut rest = all.as_slice();
        for (output, width) in outputs.iter_mut().zip(widths) {
            let (part, others) = rest.split_at(width);
            *output = part.to_vec();
            rest = others;
        }
    } else {
        for (output, layer) in outputs.iter_mut().zip(layers) {
            *output = apply(block, layer, x)?;
        }
    }
    Ok(outputs)
}

fn add(to: &mut [f32], other: &[f32], factor: f32) {
    for (to, other) in to.iter_mut().zip(other) {
        *to += factor * other;
    }
}
