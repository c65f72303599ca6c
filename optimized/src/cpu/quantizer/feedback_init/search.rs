use aqlm_vocabulary::{QuantizedMatrix, Scheme};
use faer::Accum;
use ndarray::{Array2, Array3, ArrayView2, Axis, s};
use rayon::prelude::*;

use super::choices::{Choices, Chooser};
use super::factor::Factor;
use crate::cpu::product::product_on_this_thread;
use crate::cpu::quantizer::sums::{Stage, steps, times_block};
use crate::cpu::row_major::elements;

/// Columns of L in a block of input groups. Inside a block, feedback comes from the block's own errors; one
/// product after the block brings the feedback of all undecided groups up to date.
const BLOCK_COLUMNS: usize = 128;

/// Rows of feedback of one task: output groups x hypotheses x rows of a group.
const TASK_ROWS: usize = 64;

/// The choice of one hypothesis at one input group: the hypothesis that it extends; its codes follow in the
/// history.
type Parents = Vec<u16>;

/// The output groups of one task.
struct Task {
    /// the first output group
    first: usize,
    count: usize,
    /// E L of the decided blocks for every hypothesis, [(count, hypotheses, go), columns before the block]
    feedback: Array2<f32>,
    /// known losses of every output group's hypotheses, best first
    losses: Vec<Vec<f64>>,
    /// for each decided input group, [count, hypotheses]
    parents: Vec<Parents>,
    /// for each decided input group, [count, hypotheses, M]
    codes: Vec<Vec<u16>>,
    chooser: Chooser,
}

/// Codes for the codebooks and scales of `matrix`, and the loss of each output group.
pub(super) fn search(
    weight: &Array2<f32>,
    factor: &Factor,
    matrix: &QuantizedMatrix,
    hypotheses: usize,
) -> (Array3<u16>, Vec<f64>) {
    let (out_groups, in_groups, num_codebooks) = matrix.codes().dim();
    let search = Search::new(weight, factor, matrix, hypotheses);
    let per_task = (TASK_ROWS / (hypotheses * search.go)).max(1);
    let mut tasks: Vec<Task> = (0..out_groups)
        .step_by(per_task)
        .map(|first| {
            let count = per_task.min(out_groups - first);
            Task {
                first,
                count,
                feedback: Array2::zeros((count * hypotheses * search.go, weight.ncols())),
                losses: vec![vec![0.0]; count],
                parents: Vec::with_capacity(in_groups),
                codes: Vec::with_capacity(in_groups),
                chooser: Chooser::default(),
            }
        })
        .collect();
    let per_block = (BLOCK_COLUMNS / search.gi).max(1);
    let mut end = in_groups;
    while end > 0 {
        let start = end.saturating_sub(1) / per_block * per_block;
        let groups: Vec<Group> = (start..end)
            .into_par_iter()
            .map(|place| search.group(place))
            .collect();
        tasks
            .par_iter_mut()
            .for_each(|task| search.block(task, start..end, &groups));
        end = start;
    }
    let mut codes = Array3::zeros((out_groups, in_groups, num_codebooks));
    let mut losses = Vec::with_capacity(out_groups);
    for task in &tasks {
        for o in 0..task.count {
            losses.push(task.losses[o][0]);
            let mut hypothesis = 0;
            for (step, &j) in factor.order.iter().enumerate() {
                // the history begins with the group that was decided first
                let step = in_groups - 1 - step;
                let at = o * hypotheses + hypothesis;
                let chosen = &task.codes[step][at * num_codebooks..][..num_codebooks];
                for (code, &chosen) in codes.slice_mut(s![task.first + o, j, ..]).iter_mut().zip(chosen) {
                    *code = chosen;
                }
                hypothesis = usize::from(task.parents[step][at]);
            }
        }
    }
    (codes, losses)
}

/// Data that all output groups share at one input group.
struct Group {
    stages: Vec<Stage>,
    /// L_jj, [gi, gi]
    lower: Vec<f32>,
}

/// Data that all output groups share.
struct Search<'a> {
    /// with columns in the order of the factor
    weight: Array2<f32>,
    factor: &'a Factor,
    /// M codebooks, [2^B, len] each
    codebooks: Vec<Vec<f32>>,
    scales: Vec<f32>,
    hypotheses: usize,
    scheme: Scheme,
    go: usize,
    gi: usize,
}

impl<'a> Search<'a> {
    fn new(weight: &Array2<f32>, factor: &'a Factor, matrix: &QuantizedMatrix, hypotheses: usize) -> Self {
        let scheme = matrix.scheme();
        let gi = scheme.in_group_size;
        let columns: Vec<usize> = factor.order.iter().flat_map(|&j| j * gi..(j + 1) * gi).collect();
        let mut permuted = Array2::zeros(weight.dim());
        permuted
            .axis_iter_mut(Axis(0))
            .into_par_iter()
            .zip(weight.axis_iter(Axis(0)))
            .for_each(|(mut to, from)| {
                for (to, &column) in to.iter_mut().zip(&columns) {
                    *to = from[column];
                }
            });
        Self {
            weight: permuted,
            factor,
            codebooks: narrow(matrix),
            scales: matrix.scales().iter().map(|&scale| scale as f32).collect(),
            hypotheses,
            scheme,
            go: scheme.out_group_size,
            gi,
        }
    }

    fn group(&self, place: usize) -> Group {
        let gi = self.gi;
        let own = place * gi..(place + 1) * gi;
        let lower: Vec<f32> = self
            .factor
            .lower
            .slice(s![own.clone(), own])
            .iter()
            .copied()
            .collect();
        let stages = stages(&self.codebooks, self.scheme, &lower);
        Group { stages, lower }
    }

    /// Decides a block of input groups, the last first, and updates the feedback of the groups before it.
    fn block(&self, task: &mut Task, places: std::ops::Range<usize>, groups: &[Group]) {
        let (go, gi, keep) = (self.go, self.gi, self.hypotheses);
        let len = go * gi;
        let begin = places.start * gi;
        let width = places.len() * gi;
        let rows = task.count * keep * go;
        let scales = &self.scales[task.first..task.first + task.count];
        // E of the block's decided groups for every hypothesis, and the hypothesis at the block's end from
        // which each descends
        let mut errors = Array2::<f32>::zeros((rows, width));
        let mut inherited = errors.clone();
        let mut roots: Vec<usize> = (0..task.count * keep).map(|slot| slot % keep).collect();
        let mut local = Array2::<f32>::zeros((rows, gi));
        let mut choices = Choices::default();
        let mut own = vec![0.0; len];
        for (place, group) in places.clone().zip(groups).rev() {
            let at = (place - places.start) * gi;
            if at + gi < width {
                let behind = s![begin + at + gi..begin + width, begin + at..begin + at + gi];
                product_on_this_thread(
                    local.view_mut(),
                    Accum::Replace,
                    errors.slice(s![.., at + gi..]),
                    self.factor.lower.slice(behind),
                    1.0,
                );
            } else {
                local.fill(0.0);
            }
            choices.clear();
            for o in 0..task.count {
                for (a, own) in own.chunks_exact_mut(gi).enumerate() {
                    let row = self.weight_row(task.first + o, a, place);
                    times_block(row, &group.lower, gi, own);
                }
                for (h, &loss) in task.losses[o].iter().enumerate() {
                    choices.push(loss, h);
                    let slot = o * keep + h;
                    for a in 0..go {
                        let root = (o * keep + roots[slot]) * go + a;
                        let feedback = task.feedback.slice(s![root, begin + at..begin + at + gi]);
                        let local = local.row(slot * go + a);
                        for ((own, feedback), local) in own[a * gi..].iter().zip(feedback).zip(local) {
                            choices.left.push(own + feedback + local);
                        }
                    }
                }
                choices.end_owner();
            }
            task.chooser
                .choose(&mut choices, &group.stages, len, scales, keep);
            self.extend(task, &choices, place, at, &mut errors, &mut inherited, &mut roots);
        }
        let mut feedback = Array2::<f32>::zeros((rows, begin));
        for o in 0..task.count {
            for h in 0..keep {
                let slot = o * keep + h;
                for a in 0..go {
                    let root = (o * keep + roots[slot]) * go + a;
                    feedback
                        .row_mut(slot * go + a)
                        .assign(&task.feedback.slice(s![root, ..begin]));
                }
            }
        }
        if begin > 0 {
            product_on_this_thread(
                feedback.view_mut(),
                Accum::Add,
                errors.view(),
                self.factor.lower.slice(s![begin..begin + width, ..begin]),
                1.0,
            );
        }
        task.feedback = feedback;
    }

    /// Makes the choices the hypotheses of their output groups.
    #[expect(
        clippy::too_many_arguments,
        reason = "the state of one block, which two functions share"
    )]
    fn extend(
        &self,
        task: &mut Task,
        choices: &Choices,
        place: usize,
        at: usize,
        errors: &mut Array2<f32>,
        inherited: &mut Array2<f32>,
        roots: &mut [usize],
    ) {
        let (go, gi, keep) = (self.go, self.gi, self.hypotheses);
        let num_codebooks = self.codebooks.len();
        let len = go * gi;
        let mut parents = vec![0u16; task.count * keep];
        let mut codes = vec![0u16; task.count * keep * num_codebooks];
        let mut moved = false;
        for o in 0..task.count {
            task.losses[o].clear();
            for (h, n) in choices.of(o).enumerate() {
                task.losses[o].push(choices.loss[n]);
                let slot = o * keep + h;
                parents[slot] = choices.parent[n];
                moved |= usize::from(choices.parent[n]) != h;
                codes[slot * num_codebooks..][..num_codebooks]
                    .copy_from_slice(&choices.codes[n * num_codebooks..][..num_codebooks]);
            }
        }
        if moved {
            let before = roots.to_vec();
            for o in 0..task.count {
                for h in 0..keep {
                    let (slot, parent) = (o * keep + h, o * keep + usize::from(parents[o * keep + h]));
                    roots[slot] = before[parent];
                    for a in 0..go {
                        inherited
                            .slice_mut(s![slot * go + a, at + gi..])
                            .assign(&errors.slice(s![parent * go + a, at + gi..]));
                    }
                }
            }
            std::mem::swap(errors, inherited);
        }
        for o in 0..task.count {
            let scale = self.scales[task.first + o];
            for h in 0..choices.of(o).len() {
                let slot = o * keep + h;
                for a in 0..go {
                    let weight = self.weight_row(task.first + o, a, place);
                    for (i, &weight) in weight.iter().enumerate() {
                        let mut sum = 0.0;
                        for (m, codebook) in self.codebooks.iter().enumerate() {
                            let code = usize::from(codes[slot * num_codebooks + m]);
                            sum += codebook[code * len + a * gi + i];
                        }
                        errors[[slot * go + a, at + i]] = weight - scale * sum;
                    }
                }
            }
        }
        task.parents.push(parents);
        task.codes.push(codes);
    }

    /// One row of one group of the weight.
    fn weight_row(&self, out_group: usize, row: usize, place: usize) -> &[f32] {
        let width = self.weight.ncols();
        &elements(&self.weight)[(out_group * self.go + row) * width + place * self.gi..][..self.gi]
    }
}

/// The codebooks in f32, [2^B, len] each.
pub(super) fn narrow(matrix: &QuantizedMatrix) -> Vec<Vec<f32>> {
    matrix
        .codebooks()
        .outer_iter()
        .map(|codebook| codebook.iter().map(|&c| c as f32).collect())
        .collect()
}

/// The stages of a group with the given L_jj.
pub(super) fn stages(codebooks: &[Vec<f32>], scheme: Scheme, lower: &[f32]) -> Vec<Stage> {
    let (len, gi) = (scheme.group_len(), scheme.in_group_size);
    steps(scheme)
        .map(|step| {
            let second = codebooks[step.clone()].get(1).map(Vec::as_slice);
            Stage::in_space(&codebooks[step.start], second, len, lower, gi)
        })
        .collect()
}

/// Used by the fit of codebooks.
pub(super) fn identity(gi: usize) -> Vec<f32> {
    let identity = Array2::<f32>::eye(gi);
    ArrayView2::from(&identity).iter().copied().collect()
}
