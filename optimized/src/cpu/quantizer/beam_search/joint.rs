//! Sweeps in which two codes of a group are chosen together, among all sums of their codewords.
//!
//! The score of a sum c is that of a codeword, s^2 <c H_jj, c> - 2 s <U, c>. With H_jj as the metric it
//! splits into the parts that `sums` needs. A table of products belongs to an input group, so here all output
//! groups of a task go through one group after the other, where `hypotheses` takes a whole block for each.

use std::ops::Range;

use aqlm_vocabulary::{Position, QuantizedMatrix};
use faer::Accum;
use ndarray::{Array2, Array3, s};
use rayon::prelude::*;

use super::columns::{permute_columns, permuted};
use super::sweep::{Visit, blocks};
use crate::cpu::product::product_on_this_thread;
use crate::cpu::quantizer::problem::Problem;
use crate::cpu::quantizer::sums::{Scorer, Stage, Sum, times_block};
use crate::cpu::row_major::elements;

/// Rows of G of one task: output groups x hypotheses x rows of a group.
const TASK_ROWS: usize = 64;

/// The output groups of one task, with up to `beam` hypotheses each.
struct Task {
    /// the first output group
    first: usize,
    count: usize,
    /// G of every hypothesis at the start of the current block, [(count, beam, go), in_features]
    gradient: Array2<f32>,
    /// losses of every output group's hypotheses minus the loss of its initial codes, best first
    losses: Vec<Vec<f64>>,
    /// for each step, [count, beam]: the hypothesis that was extended, and its codes
    history: Vec<Vec<Taken>>,
    scorer: Scorer,
}

/// The choice of one hypothesis at one step.
#[derive(Debug, Clone, Copy, Default)]
struct Taken {
    parent: u16,
    first: u16,
    second: u16,
}

/// What all output groups share at one visit.
struct Tables {
    stages: Vec<Stage>,
    /// H_jj, [gi, gi]
    own: Vec<f32>,
}

/// What all output groups share.
struct Sweep<'a> {
    matrix: &'a QuantizedMatrix,
    visits: &'a [Visit],
    /// M codebooks, [2^B, len] each
    codebooks: Vec<Vec<f32>>,
    scales: Vec<f32>,
    /// H with rows and columns in the order of the visits
    hessian: Array2<f32>,
    beam: usize,
    go: usize,
    gi: usize,
}

/// One sweep over `visits`, which see no group twice. `image` is (W - Q) H; `columns` are in the order of the
/// visits.
pub(super) fn sweep(
    problem: &Problem,
    matrix: &QuantizedMatrix,
    image: Array2<f32>,
    visits: &[Visit],
    columns: &[usize],
    beam: usize,
) -> Array3<u16> {
    let scheme = matrix.scheme();
    let narrow = |codebook: ndarray::ArrayView3<'_, f64>| codebook.iter().map(|&c| c as f32).collect();
    let sweep = Sweep {
        matrix,
        visits,
        codebooks: matrix.codebooks().outer_iter().map(narrow).collect(),
        scales: matrix.scales().iter().map(|&scale| scale as f32).collect(),
        hessian: permuted(&problem.hessian, columns),
        beam,
        go: scheme.out_group_size,
        gi: scheme.in_group_size,
    };
    let mut gradient = Array2::zeros(image.dim());
    permute_columns(gradient.view_mut(), &image, None, columns);
    drop(image);
    let mut tasks = sweep.tasks(&gradient);
    drop(gradient);
    for block in blocks(visits.len(), sweep.gi) {
        let tables: Vec<Tables> = block
            .clone()
            .into_par_iter()
            .map(|visit| sweep.tables(visit))
            .collect();
        tasks
            .par_iter_mut()
            .for_each(|task| sweep.block(task, block.clone(), &tables));
    }
    let mut codes = matrix.codes().clone();
    for task in &tasks {
        sweep.trace_back(task, &mut codes);
    }
    codes
}

impl Sweep<'_> {
    fn tasks(&self, gradient: &Array2<f32>) -> Vec<Task> {
        let out_groups = self.scales.len();
        let per_task = (TASK_ROWS / (self.beam * self.go)).max(1);
        (0..out_groups)
            .step_by(per_task)
            .map(|first| {
                let count = per_task.min(out_groups - first);
                let mut own = Array2::zeros((count * self.beam * self.go, gradient.ncols()));
                for o in 0..count {
                    let (to, from) = (o * self.beam * self.go, (first + o) * self.go);
                    own.slice_mut(s![to..to + self.go, ..])
                        .assign(&gradient.slice(s![from..from + self.go, ..]));
                }
                Task {
                    first,
                    count,
                    gradient: own,
                    losses: vec![vec![0.0]; count],
                    history: Vec::new(),
                    scorer: Scorer::default(),
                }
            })
            .collect()
    }

    fn tables(&self, visit: usize) -> Tables {
        let (gi, len) = (self.gi, self.go * self.gi);
        let at = visit * gi..(visit + 1) * gi;
        let own: Vec<f32> = self.hessian.slice(s![at.clone(), at]).iter().copied().collect();
        let stage = |step: &Position| {
            let second = step.partner.map(|m| self.codebooks[m].as_slice());
            Stage::under(&self.codebooks[step.codebook], second, len, &own, gi)
        };
        let stages = self.visits[visit].steps.iter().map(stage).collect();
        Tables { stages, own }
    }

    /// Searches a block of visits, and brings G of all later columns up to date.
    fn block(&self, task: &mut Task, visits: Range<usize>, tables: &[Tables]) {
        let (go, gi, beam) = (self.go, self.gi, self.beam);
        let begin = visits.start * gi;
        let width = visits.len() * gi;
        let rows = task.count * beam * go;
        // the growth of Q in this block for every hypothesis, and the hypothesis at the block's start from
        // which each descends
        let mut change = Array2::<f32>::zeros((rows, width));
        let mut roots: Vec<usize> = (0..task.count * beam).map(|slot| slot % beam).collect();
        let mut inside = Array2::<f32>::zeros((rows, gi));
        for (visit, tables) in visits.clone().zip(tables) {
            let at = (visit - visits.start) * gi;
            inside.fill(0.0);
            if at > 0 {
                let before = s![begin..begin + at, begin + at..begin + at + gi];
                product_on_this_thread(
                    inside.view_mut(),
                    Accum::Replace,
                    change.slice(s![.., ..at]),
                    self.hessian.slice(before),
                    1.0,
                );
            }
            let mut local = Array2::<f32>::zeros((rows, gi));
            for o in 0..task.count {
                for h in 0..task.losses[o].len() {
                    let slot = o * beam + h;
                    for a in 0..go {
                        let root = (o * beam + roots[slot]) * go + a;
                        let gradient = task.gradient.slice(s![root, begin + at..begin + at + gi]);
                        let to = local.row_mut(slot * go + a);
                        ndarray::Zip::from(to)
                            .and(gradient)
                            .and(inside.row(slot * go + a))
                            .for_each(|to, gradient, inside| *to = gradient - inside);
                    }
                }
            }
            let steps = &self.visits[visit].steps;
            for (step, stage) in steps.iter().zip(&tables.stages) {
                let taken = self.choose(task, *step, stage, &tables.own, &mut local);
                self.inherit(task, &taken, at, &mut change, &mut roots);
                self.grow(task, *step, &taken, at, &mut change);
                task.history.push(taken);
            }
        }
        let rest = begin + width..task.gradient.ncols();
        if rest.is_empty() {
            return;
        }
        let mut moved = Array2::<f32>::zeros(task.gradient.dim());
        for (slot, &root) in roots.iter().enumerate() {
            let owner = slot / beam * beam;
            for a in 0..go {
                let from = task.gradient.slice(s![(owner + root) * go + a, rest.clone()]);
                moved.slice_mut(s![slot * go + a, rest.clone()]).assign(&from);
            }
        }
        product_on_this_thread(
            moved.slice_mut(s![.., rest.clone()]),
            Accum::Add,
            change.view(),
            self.hessian.slice(s![begin..begin + width, rest]),
            -1.0,
        );
        task.gradient = moved;
    }

    /// Expands every hypothesis by all choices of a step and keeps the best. `local`, [(count, beam, go),
    /// gi], enters as G_j of the parents and leaves as that of the kept hypotheses.
    fn choose(
        &self,
        task: &mut Task,
        step: Position,
        stage: &Stage,
        own: &[f32],
        local: &mut Array2<f32>,
    ) -> Vec<Taken> {
        let (go, gi, beam) = (self.go, self.gi, self.beam);
        let len = go * gi;
        let mut image = vec![0.0; len];
        let mut ends = Vec::with_capacity(task.count);
        task.scorer.clear();
        for o in 0..task.count {
            let scale = self.scales[task.first + o];
            self.image_of(step, self.before(task, o, step), own, &mut image);
            for h in 0..task.losses[o].len() {
                let rows = (o * beam + h) * go..(o * beam + h + 1) * go;
                for (u, image) in local.slice_mut(s![rows.clone(), ..]).iter_mut().zip(&image) {
                    *u += scale * image;
                }
                let local = &elements(local)[rows.start * gi..rows.end * gi];
                task.scorer.vectors.extend(local.iter().map(|u| -2.0 * scale * u));
                task.scorer.weights.push(scale * scale);
            }
            ends.push(task.scorer.weights.len());
        }
        task.scorer.offsets.resize(task.scorer.weights.len(), 0.0);
        task.scorer.score(stage);

        let mut taken = vec![Taken::default(); task.count * beam];
        let mut next = Array2::<f32>::zeros(local.dim());
        let mut start = 0;
        for (o, end) in ends.into_iter().enumerate() {
            let scale = self.scales[task.first + o];
            let (first, second) = self.before(task, o, step);
            let losses = std::mem::take(&mut task.losses[o]);
            // The unchanged codes of every parent come first, and keep their losses exactly.
            let above = |h: usize| (losses[h] - losses[0]) as f32;
            let unchanged: Vec<Sum> = (0..losses.len())
                .map(|h| Sum {
                    value: above(h),
                    at: start + h,
                    first,
                    second,
                })
                .collect();
            for h in 0..losses.len() {
                task.scorer.offsets[start + h] =
                    above(h) - task.scorer.score_of(stage, start + h, first, second);
            }
            // The unchanged codes are found once more among all sums, so as many more are selected.
            let best = task
                .scorer
                .select(start..end, stage, beam + losses.len(), &unchanged);
            let mut kept: Vec<Sum> = Vec::with_capacity(beam);
            for &sum in best {
                let same =
                    |other: &Sum| (other.at, other.first, other.second) == (sum.at, sum.first, sum.second);
                if kept.len() < beam && !kept.iter().any(same) {
                    kept.push(sum);
                }
            }
            for (h, sum) in kept.into_iter().enumerate() {
                let parent = sum.at - start;
                let changed = (sum.first, sum.second) != (first, second);
                task.losses[o].push(if changed {
                    losses[0] + f64::from(sum.value)
                } else {
                    losses[parent]
                });
                taken[o * beam + h] = Taken {
                    parent: parent as u16,
                    first: sum.first as u16,
                    second: sum.second as u16,
                };
                self.image_of(step, (sum.first, sum.second), own, &mut image);
                let (to, from) = ((o * beam + h) * go, (o * beam + parent) * go);
                let from = &elements(local)[from * gi..(from + go) * gi];
                for ((to, from), image) in next
                    .slice_mut(s![to..to + go, ..])
                    .iter_mut()
                    .zip(from)
                    .zip(&image)
                {
                    *to = from - scale * image;
                }
            }
            start = end;
        }
        *local = next;
        taken
    }

    /// The codes of a step before the sweep; the second is 0 for a single codebook.
    fn before(&self, task: &Task, o: usize, step: Position) -> (usize, usize) {
        let code = |m| usize::from(self.matrix.codes()[[task.first + o, step.group, m]]);
        (code(step.codebook), step.partner.map_or(0, code))
    }

    /// c H_jj of the sum of a step's codewords.
    fn image_of(&self, step: Position, (first, second): (usize, usize), own: &[f32], image: &mut [f32]) {
        let len = image.len();
        let mut sum = self.codebooks[step.codebook][first * len..][..len].to_vec();
        if let Some(partner) = step.partner {
            for (sum, c) in sum
                .iter_mut()
                .zip(&self.codebooks[partner][second * len..][..len])
            {
                *sum += c;
            }
        }
        for (sum, image) in sum.chunks_exact(self.gi).zip(image.chunks_exact_mut(self.gi)) {
            times_block(sum, own, self.gi, image);
        }
    }

    /// Copies what the kept hypotheses have of their parents: the growth in the block up to this group, whose
    /// first column is `at`, and the root.
    fn inherit(
        &self,
        task: &Task,
        taken: &[Taken],
        at: usize,
        change: &mut Array2<f32>,
        roots: &mut [usize],
    ) {
        let (go, beam) = (self.go, self.beam);
        for o in 0..task.count {
            let hypotheses = task.losses[o].len();
            let parent = |h: usize| usize::from(taken[o * beam + h].parent);
            if (0..hypotheses).all(|h| parent(h) == h) {
                continue;
            }
            let rows = o * beam * go..(o + 1) * beam * go;
            let before = change.slice(s![rows.clone(), ..at + self.gi]).to_owned();
            let mut after = change.slice_mut(s![rows, ..at + self.gi]);
            let roots_before = roots[o * beam..(o + 1) * beam].to_vec();
            for h in 0..hypotheses {
                roots[o * beam + h] = roots_before[parent(h)];
                for a in 0..go {
                    after.row_mut(h * go + a).assign(&before.row(parent(h) * go + a));
                }
            }
        }
    }

    /// Adds the growth of Q at this group, whose first column in the block is `at`.
    fn grow(&self, task: &Task, step: Position, taken: &[Taken], at: usize, change: &mut Array2<f32>) {
        let (go, gi, beam) = (self.go, self.gi, self.beam);
        let len = go * gi;
        for o in 0..task.count {
            let scale = self.scales[task.first + o];
            let (first, second) = self.before(task, o, step);
            for h in 0..task.losses[o].len() {
                let chosen = taken[o * beam + h];
                let codebooks = [
                    Some((step.codebook, usize::from(chosen.first), first)),
                    step.partner.map(|m| (m, usize::from(chosen.second), second)),
                ];
                for (m, new, old) in codebooks.into_iter().flatten().filter(|(_, new, old)| new != old) {
                    let codebook = &self.codebooks[m];
                    for i in 0..len {
                        let row = (o * beam + h) * go + i / gi;
                        change[[row, at + i % gi]] +=
                            scale * (codebook[new * len + i] - codebook[old * len + i]);
                    }
                }
            }
        }
    }

    /// Writes the codes of every output group's best hypothesis.
    fn trace_back(&self, task: &Task, codes: &mut Array3<u16>) {
        let steps: Vec<&Position> = self.visits.iter().flat_map(|visit| &visit.steps).collect();
        for o in 0..task.count {
            let mut hypothesis = 0;
            for (taken, step) in task.history.iter().zip(&steps).rev() {
                let taken = taken[o * self.beam + hypothesis];
                codes[[task.first + o, step.group, step.codebook]] = taken.first;
                if let Some(partner) = step.partner {
                    codes[[task.first + o, step.group, partner]] = taken.second;
                }
                hypothesis = usize::from(taken.parent);
            }
        }
    }
}
