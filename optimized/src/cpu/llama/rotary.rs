use std::f64::consts::TAU;

use aqlm_vocabulary::{ArchSpec, AttentionSpec, Rope, RopeScaling};
use ndarray::{Array2, ArrayViewMut2, Axis};
use rayon::prelude::*;

use crate::cpu::row_major::{elements, elements_mut};
use crate::cpu::vectorize::{multiply_add, vectorized};

/// Rows of one task.
const ROWS: usize = 256;

/// Rotary position embedding (Su et al. 2021). Element i of the rotated part of a head is paired with element
/// i + half of that part; or, where the block says so, elements 2 i and 2 i + 1 are a pair. Holds the tables
/// of every different rotation of a model's blocks.
///
/// Frequencies and angles are rounded to f32, as in training and in other implementations. Exact angles move
/// the token losses of a real model at position 1,000 by more than 1e-4.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    positions: usize,
    tables: Vec<Tables>,
}

/// The tables of one rotation.
#[derive(Debug, Clone, PartialEq)]
struct Tables {
    rope: Rope,
    /// how many numbers of a head are rotated
    rotated: usize,
    /// [positions, rotated / 2]
    cos: Array2<f32>,
    /// [positions, rotated / 2]
    sin: Array2<f32>,
}

/// Direction of rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// as the model does
    Forward,
    /// the transpose, for gradients
    Back,
}

impl Tables {
    fn new(rope: &Rope, rotated: usize, positions: usize) -> Self {
        let half = rotated / 2;
        let radians: Vec<f32> = (0..half)
            .map(|i| radians_per_position(rope, i, rotated, positions) as f32)
            .collect();
        let scale = match rope.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::Long { attention_factor, .. } => {
                attention_factor
            }
            _ => 1.0,
        };
        let table = |f: fn(f64) -> f64| {
            Array2::from_shape_fn((positions, half), |(position, i)| {
                (scale * f(f64::from(position as f32 * radians[i]))) as f32
            })
        };
        Self {
            rope: rope.clone(),
            rotated,
            cos: table(f64::cos),
            sin: table(f64::sin),
        }
    }

    /// Rotates every head of one row.
    fn rotate_row(&self, spec: &AttentionSpec, row: &mut [f32], position: usize, turn: Turn) {
        let (cos, sin) = (self.cos.row(position), self.sin.row(position));
        let sign = match turn {
            Turn::Forward => 1.0,
            Turn::Back => -1.0,
        };
        let (cos, sin) = (elements(&cos), elements(&sin));
        if spec.neighbours {
            rotate_neighbours(row, spec.head_dim, cos, sin, sign);
        } else {
            rotate_heads(row, spec.head_dim, cos, sin, sign);
        }
    }
}

impl Rotary {
    /// The tables of all of a model's blocks for positions 0 to `positions` (exclusive). With dynamic scaling
    /// and LongRoPE, `positions` is the length of the sequence.
    pub fn of_model(arch: &ArchSpec, positions: usize) -> Self {
        let mut all = Self {
            positions,
            tables: Vec::new(),
        };
        for block in &arch.blocks {
            all.add(&block.attention);
        }
        all
    }

    /// The tables of one block.
    pub fn new(spec: &AttentionSpec, positions: usize) -> Self {
        let mut one = Self {
            positions,
            tables: Vec::new(),
        };
        one.add(spec);
        one
    }

    /// Adds the tables of a block's rotation, if it has one and they are not there yet.
    fn add(&mut self, spec: &AttentionSpec) {
        if let Some(rope) = &spec.rotary
            && self.find(rope, spec.rotated).is_none()
        {
            self.tables.push(Tables::new(rope, spec.rotated, self.positions));
        }
    }

    fn find(&self, rope: &Rope, rotated: usize) -> Option<&Tables> {
        let mut tables = self.tables.iter();
        tables.find(|tables| tables.rotated == rotated && tables.rope == *rope)
    }

    /// The tables of a block; `None` if it has no rotary embedding.
    ///
    /// # Panics
    /// When there are none of the block's rotation.
    fn of(&self, spec: &AttentionSpec) -> Option<&Tables> {
        let rope = spec.rotary.as_ref()?;
        Some(
            self.find(rope, spec.rotated)
                .expect("tables of the block's rotation"),
        )
    }

    /// How many positions the tables cover.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Cosines and sines of the first rotation, both [positions, rotated / 2]; empty if there is none.
    pub(crate) fn tables(&self) -> (&[f32], &[f32]) {
        self.tables.first().map_or((&[], &[]), |tables| {
            (elements(&tables.cos), elements(&tables.sin))
        })
    }

    /// Cosines and sines of a block's rotation, both [positions, rotated / 2]; `None` if it has none.
    ///
    /// # Panics
    /// When there are no tables of the block's rotation.
    pub(crate) fn tables_of(&self, spec: &AttentionSpec) -> Option<(&[f32], &[f32])> {
        self.of(spec)
            .map(|tables| (elements(&tables.cos), elements(&tables.sin)))
    }

    /// Rotates every head of every row, [rows, heads x head_dim], in place, as the block says: row r is at
    /// position r mod `tokens`.
    pub(super) fn rotate(
        &self,
        spec: &AttentionSpec,
        mut x: ArrayViewMut2<'_, f32>,
        tokens: usize,
        turn: Turn,
    ) {
        let Some(tables) = self.of(spec) else {
            return;
        };
        x.axis_chunks_iter_mut(Axis(0), ROWS)
            .into_par_iter()
            .enumerate()
            .for_each(|(task, mut rows)| {
                for (r, mut row) in rows.outer_iter_mut().enumerate() {
                    let position = (task * ROWS + r) % tokens;
                    tables.rotate_row(spec, elements_mut(&mut row), position, turn);
                }
            });
    }

    /// Rotates every head of one row, [heads x head_dim].
    pub(super) fn rotate_row(&self, spec: &AttentionSpec, row: &mut [f32], position: usize, turn: Turn) {
        if let Some(tables) = self.of(spec) {
            tables.rotate_row(spec, row, position, turn);
        }
    }
}

#[inline(always)]
fn rotate_body<const FUSED: bool>(row: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32], sign: f32) {
    let half = cos.len();
    for head in row.chunks_exact_mut(head_dim) {
        let (first, second) = head[..2 * half].split_at_mut(half);
        for (((a, b), &cos), &sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            let sin = sign * sin;
            (*a, *b) = (
                multiply_add::<FUSED>(*a, cos, -(*b * sin)),
                multiply_add::<FUSED>(*b, cos, *a * sin),
            );
        }
    }
}

vectorized! {
    /// Rotates every pair (a, b) of every head by its angle, times `sign`.
    fn rotate_heads(row: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32], sign: f32) = rotate_body
}

/// [`rotate_heads`] for pairs of neighbours.
fn rotate_neighbours(row: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32], sign: f32) {
    for head in row.chunks_exact_mut(head_dim) {
        for ((pair, &cos), &sin) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
            let ([a, b], sin) = (*pair, sign * sin);
            *pair = [a * cos - b * sin, b * cos + a * sin];
        }
    }
}

/// The angle by which pair i of the rotated `head_dim` numbers turns from one position to the next:
/// theta^(-2i / head_dim), adjusted by the model's long-context variant. `positions` is the length of the
/// sequence, on which dynamic scaling depends.
fn radians_per_position(rope: &Rope, i: usize, head_dim: usize, positions: usize) -> f64 {
    let exponent = -((2 * i) as f64) / head_dim as f64;
    let plain = rope.theta.powf(exponent);
    match rope.scaling {
        RopeScaling::None => plain,
        RopeScaling::Long {
            ref long,
            original_max_position_embeddings,
            ..
        } if positions > original_max_position_embeddings => plain / long[i],
        RopeScaling::Long { ref short, .. } => plain / short[i],
        RopeScaling::Linear { factor } => plain / factor,
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let wavelength = TAU / plain;
            let context = original_max_position_embeddings as f64;
            if wavelength < context / high_freq_factor {
                plain
            } else if wavelength > context / low_freq_factor {
                plain / factor
            } else {
                let smooth = (context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * plain / factor + smooth * plain
            }
        }
        RopeScaling::Dynamic {
            factor,
            max_position_embeddings,
        } => {
            let growth = (positions as f64 / max_position_embeddings as f64).max(1.0) - 1.0;
            let power = head_dim as f64 / (head_dim as f64 - 2.0);
            (rope.theta * (1.0 + factor * growth).powf(power)).powf(exponent)
        }
        RopeScaling::Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast,
            beta_slow,
            truncate,
            ..
        } => {
            // pair j turns context theta^(-2j / head_dim) / TAU times over the original context
            let pair_turning = |turns: f64| {
                let wavelength = original_max_position_embeddings as f64 / turns;
                (wavelength / TAU).log(rope.theta) * head_dim as f64 / 2.0
            };
            let (from, to) = if truncate {
                (pair_turning(beta_fast).floor(), pair_turning(beta_slow).ceil())
            } else {
                (pair_turning(beta_fast), pair_turning(beta_slow))
            };
            let (from, to) = (from.max(0.0), to.min((head_dim - 1) as f64));
            let width = if to == from { 0.001 } else { to - from };
            let interpolated = ((i as f64 - from) / width).clamp(0.0, 1.0);
            plain * (1.0 - interpolated) + plain / factor * interpolated
        }
    }
}
