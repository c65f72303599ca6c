use faer::Accum;
use ndarray::{Array2, ArrayViewMut2, ArrayViewMut3, s};

use super::sweep::Sweep;
use crate::cpu::product::product_on_this_thread;
use crate::cpu::quantizer::codewords::{Codewords, score_by};
use crate::cpu::row_major::{elements, elements_mut};
use crate::cpu::simd::vector::{LANE_NUMBERS, Vector, multiply_add_by};
use crate::cpu::simd::{Kernel, SimdLevel, Width, run};

/// One of the best codings of an output group so far.
#[derive(Debug, Clone, Copy)]
struct Hypothesis {
    /// loss minus the loss of the initial codes
    loss: f64,
    /// index of its ancestor among the hypotheses at the start of this visit
    parent: usize,
}

/// A way to extend a hypothesis.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    /// loss minus the loss of the previous best hypothesis
    value: f32,
    parent: usize,
    code: usize,
}

/// The parent and the code of a hypothesis at one position.
type Step = (u16, u16);

/// Buffers of a search over one output group, reused at every position. Arrays of [beam, ...] come in pairs:
/// each step gathers its survivors from one into the other.
struct Scratch {
    /// growth of Q in the block, [beam][go x columns]
    change: [Vec<f32>; 2],
    /// whether Q has grown in each visit of the block, [beam][visits]
    grown: [Vec<bool>; 2],
    /// U of the current input group, [beam][go gi]
    local: [Vec<f32>; 2],
    /// growth of Q in the current input group, [beam][go gi]
    growth: [Vec<f32>; 2],
    /// the old and the new codeword times H_jj, and -2 s U
    image: Vec<f32>,
    new_image: Vec<f32>,
    vector: Vec<f32>,
    /// index of each hypothesis's ancestor at the start of the block
    roots: [Vec<usize>; 2],
    parents: Vec<Hypothesis>,
    candidates: Vec<Candidate>,
}

impl Scratch {
    fn new(beam: usize, len: usize, columns: usize, visits: usize) -> Self {
        let pair = |n: usize| [vec![0.0; n], vec![0.0; n]];
        Self {
            change: pair(beam * columns),
            grown: [vec![false; beam * visits], vec![false; beam * visits]],
            local: pair(beam * len),
            growth: pair(beam * len),
            image: vec![0.0; len],
            new_image: vec![0.0; len],
            vector: vec![0.0; len],
            roots: [vec![0; beam], vec![0; beam]],
            parents: Vec::with_capacity(beam),
            candidates: Vec::with_capacity(beam + 1),
        }
    }
}

/// Beam search for the output groups of one task. `gradient` holds the task's rows of G, with columns in the
/// order of the visits.
pub(super) fn search(
    sweep: &Sweep<'_>,
    mut codes: ArrayViewMut3<'_, u16>,
    gradient: ArrayViewMut2<'_, f32>,
    scales: &[f32],
) {
    let (go, gi) = sweep.group_size();
    let beam = sweep.beam;
    let width = gradient.ncols();
    // G of every hypothesis: rows of [out group][hypothesis][go]
    let mut gradients = Array2::<f32>::zeros((scales.len() * beam * go, width));
    for (o, rows) in gradient.axis_chunks_iter(ndarray::Axis(0), go).enumerate() {
        gradients
            .slice_mut(s![o * beam * go..(o * beam + 1) * go, ..])
            .assign(&rows);
    }
    let mut beams: Vec<Vec<Hypothesis>> = vec![vec![Hypothesis { loss: 0.0, parent: 0 }]; scales.len()];
    let positions: usize = sweep.visits.iter().map(|visit| visit.steps.len()).sum();
    // [out group][position][beam]
    let mut history: Vec<Step> = vec![(0, 0); scales.len() * positions * beam];
    let longest = sweep.blocks().map(|block| block.len()).max().unwrap_or(0);
    let mut scratch = Scratch::new(beam, go * gi, go * gi * longest, longest);
    let mut changes = Array2::<f32>::zeros((0, 0));
    let mut position = 0;
    for block in sweep.blocks() {
        let columns = block.start * gi..block.end * gi;
        let rest = columns.end..width;
        let per_block: usize = sweep.visits[block.clone()]
            .iter()
            .map(|visit| visit.steps.len())
            .sum();
        if changes.ncols() != columns.len() {
            changes = Array2::zeros((gradients.nrows(), columns.len()));
        }
        let mut moved = Array2::<f32>::zeros((gradients.nrows(), rest.len()));
        for (o, hypotheses) in beams.iter_mut().enumerate() {
            let rows = o * beam * go..(o + 1) * beam * go;
            let start = (o * positions + position) * beam;
            let search = BlockSearch {
                sweep,
                block: block.clone(),
                codes: codes.slice(s![o, .., ..]),
                gradients: elements(&gradients),
                first_row: rows.start,
                width,
                scale: scales[o],
                hypotheses,
                history: &mut history[start..start + per_block * beam],
                scratch: &mut scratch,
            };
            // SAFETY: the current level is available. Slicing checks the lengths.
            unsafe { run(SimdLevel::current(), Width::Sixteen, search) };
            for (h, &root) in scratch.roots[0].iter().enumerate().take(hypotheses.len()) {
                let to = rows.start + h * go..rows.start + (h + 1) * go;
                let from = rows.start + root * go..rows.start + (root + 1) * go;
                let change = &scratch.change[0][h * go * columns.len()..(h + 1) * go * columns.len()];
                for (mut to, from) in changes
                    .slice_mut(s![to.clone(), ..])
                    .outer_iter_mut()
                    .zip(change.chunks_exact(columns.len()))
                {
                    elements_mut(&mut to).copy_from_slice(from);
                }
                moved
                    .slice_mut(s![to, ..])
                    .assign(&gradients.slice(s![from, rest.clone()]));
            }
        }
        position += per_block;
        if !rest.is_empty() {
            product_on_this_thread(
                moved.view_mut(),
                Accum::Add,
                changes.view(),
                sweep.hessian.slice(s![columns, rest.clone()]),
                -1.0,
            );
            gradients.slice_mut(s![.., rest]).assign(&moved);
        }
    }
    for (o, history) in history.chunks_exact((positions * beam).max(1)).enumerate() {
        trace_back(sweep, history, codes.slice_mut(s![o, .., ..]));
    }
}

/// Writes the codes of the first hypothesis, which is the best.
fn trace_back(sweep: &Sweep<'_>, history: &[Step], mut codes: ArrayViewMut2<'_, u16>) {
    let positions: Vec<(usize, usize)> = sweep
        .visits
        .iter()
        .flat_map(|visit| visit.steps.iter().map(|step| (visit.group, step.codebook)))
        .collect();
    let mut hypothesis = 0;
    for (steps, &(group, m)) in history.chunks_exact(sweep.beam).zip(&positions).rev() {
        let (parent, code) = steps[hypothesis];
        codes[[group, m]] = code;
        hypothesis = usize::from(parent);
    }
}

/// Searches one output group through a block of visits. Leaves the new hypotheses in `hypotheses`, their
/// growth within the block in `scratch.change[0]`, and their ancestors at the start of the block in
/// `scratch.roots[0]`.
struct BlockSearch<'a> {
    sweep: &'a Sweep<'a>,
    block: std::ops::Range<usize>,
    /// [in_groups, M]
    codes: ndarray::ArrayView2<'a, u16>,
    /// G, rows of `width`, those of this output group from `first_row` on
    gradients: &'a [f32],
    first_row: usize,
    width: usize,
    scale: f32,
    hypotheses: &'a mut Vec<Hypothesis>,
    /// [positions of the block][beam]
    history: &'a mut [Step],
    scratch: &'a mut Scratch,
}

impl Kernel for BlockSearch<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(mut self) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            if self.sweep.group_size() == (1, 8) {
                self.visits::<V, 8>();
            } else {
                self.visits::<V, 0>();
            }
        }
    }
}

// Loops throughout instead of iterators with closures, because a closure would be compiled without V's
// instructions.
impl BlockSearch<'_> {
    /// `LEN` is the length of a group if known at compile time (groups of one output), else 0.
    #[inline(always)]
    unsafe fn visits<V: Vector, const LEN: usize>(&mut self) {
        let sweep = self.sweep;
        let (go, gi) = if LEN == 0 { sweep.group_size() } else { (1, LEN) };
        let len = go * gi;
        let columns = self.block.len() * gi;
        let visits = self.block.len();
        for h in 0..self.hypotheses.len() {
            self.scratch.roots[0][h] = h;
        }
        self.scratch.change[0].fill(0.0);
        self.scratch.grown[0].fill(false);
        let mut position = 0;
        for visit in 0..visits {
            let near = &sweep.near[self.block.start + visit];
            let (before, own) = near.split_at(visit * gi * gi);
            for h in 0..self.hypotheses.len() {
                self.hypotheses[h].parent = h;
                let root = self.scratch.roots[0][h];
                for a in 0..go {
                    let row = self.first_row + root * go + a;
                    let from = row * self.width + (self.block.start + visit) * gi;
                    let local = &mut self.scratch.local[0][h * len + a * gi..][..gi];
                    local.copy_from_slice(&self.gradients[from..from + gi]);
                    let change = &self.scratch.change[0][(h * go + a) * columns..][..columns];
                    let grown = &self.scratch.grown[0][h * visits..][..visit];
                    for (v, &grown) in grown.iter().enumerate() {
                        if grown {
                            let change = &change[v * gi..(v + 1) * gi];
                            subtract_image::<V>(local, change, &before[v * gi * gi..][..gi * gi], gi);
                        }
                    }
                }
            }
            self.scratch.growth[0][..self.hypotheses.len() * len].fill(0.0);
            let group = sweep.visits[self.block.start + visit].group;
            for c in 0..sweep.visits[self.block.start + visit].steps.len() {
                let m = sweep.visits[self.block.start + visit].steps[c].codebook;
                let old = usize::from(self.codes[[group, m]]);
                // SAFETY: guaranteed by the caller.
                unsafe { self.extend::<V>(visit, m, old, own, (go, gi), position) };
                position += 1;
            }
            self.inherit(visit, (go, gi));
        }
    }

    /// Copies each hypothesis's state in this block from its ancestor, and adds its growth in this visit.
    #[inline(always)]
    fn inherit(&mut self, visit: usize, (go, gi): (usize, usize)) {
        let scratch = &mut *self.scratch;
        let visits = self.block.len();
        let columns = visits * gi;
        let mut moved = false;
        for (h, hypothesis) in self.hypotheses.iter().enumerate() {
            moved |= hypothesis.parent != h;
        }
        if moved {
            let [from, to] = &mut scratch.change;
            let [grown_from, grown_to] = &mut scratch.grown;
            for (h, hypothesis) in self.hypotheses.iter().enumerate() {
                let parent = hypothesis.parent;
                scratch.roots[1][h] = scratch.roots[0][parent];
                grown_to[h * visits..][..visit].copy_from_slice(&grown_from[parent * visits..][..visit]);
                grown_to[h * visits + visit..(h + 1) * visits].fill(false);
                for a in 0..go {
                    let done = visit * gi;
                    let to = &mut to[(h * go + a) * columns..][..columns];
                    to[..done].copy_from_slice(&from[(parent * go + a) * columns..][..done]);
                    to[done..].fill(0.0);
                }
            }
            scratch.roots.swap(0, 1);
            scratch.change.swap(0, 1);
            scratch.grown.swap(0, 1);
        }
        for h in 0..self.hypotheses.len() {
            let growth = &scratch.growth[0][h * go * gi..(h + 1) * go * gi];
            let mut grown = false;
            for &x in growth {
                grown |= x != 0.0;
            }
            if grown {
                scratch.grown[0][h * visits + visit] = true;
                for (a, growth) in growth.chunks_exact(gi).enumerate() {
                    scratch.change[0][(h * go + a) * columns + visit * gi..][..gi].copy_from_slice(growth);
                }
            }
        }
    }

    /// Expands every hypothesis by all codes at one position and keeps the best results.
    #[inline(always)]
    unsafe fn extend<V: Vector>(
        &mut self,
        visit: usize,
        m: usize,
        old: usize,
        own: &[f32],
        (go, gi): (usize, usize),
        position: usize,
    ) {
        let len = go * gi;
        let sweep = self.sweep;
        let scale = self.scale;
        let codewords = &sweep.codewords[m];
        let forms = &sweep.forms[self.block.start + visit][m];
        let scratch = &mut *self.scratch;
        let reference = self.hypotheses[0].loss;
        let candidates = &mut scratch.candidates;
        candidates.clear();
        // First the old code for every parent. Its loss is exactly the parent's, which sets a threshold that
        // few other candidates pass.
        for (parent, hypothesis) in self.hypotheses.iter().enumerate() {
            let candidate = Candidate {
                value: (hypothesis.loss - reference) as f32,
                parent,
                code: old,
            };
            insert(candidates, sweep.beam, candidate);
        }
        image_of::<V>(codewords.row(old), own, gi, &mut scratch.image);
        for (parent, hypothesis) in self.hypotheses.iter().enumerate() {
            let local = &mut scratch.local[0][parent * len..(parent + 1) * len];
            for i in 0..len {
                local[i] = multiply_add_by::<V>(scale, scratch.image[i], local[i]);
                scratch.vector[i] = -2.0 * scale * local[i];
            }
            let above = (hypothesis.loss - reference) as f32;
            let old_score = score_by::<V>(codewords.row(old), forms[old], &scratch.vector, scale * scale);
            let expansion = Expansion {
                codewords,
                forms,
                vector: &scratch.vector,
                weight: scale * scale,
                base: above - old_score,
                old,
                parent,
            };
            // SAFETY: forms and coordinates are padded to whole vectors; the caller has V's instructions.
            unsafe { expansion.collect::<V>(candidates, sweep.beam) };
        }

        let steps = &mut self.history[position * sweep.beam..(position + 1) * sweep.beam];
        let mut unchanged = candidates.len() == self.hypotheses.len();
        for (h, candidate) in candidates.iter().enumerate() {
            steps[h] = (candidate.parent as u16, candidate.code as u16);
            unchanged &= candidate.parent == h && candidate.code == old;
        }
        if unchanged {
            for h in 0..candidates.len() {
                let local = &mut scratch.local[0][h * len..(h + 1) * len];
                for i in 0..len {
                    local[i] = multiply_add_by::<V>(-scale, scratch.image[i], local[i]);
                }
            }
            return;
        }
        scratch.parents.clear();
        scratch.parents.extend_from_slice(self.hypotheses);
        self.hypotheses.clear();
        let [local_from, local_to] = &mut scratch.local;
        let [growth_from, growth_to] = &mut scratch.growth;
        for (h, candidate) in candidates.iter().enumerate() {
            let parent = scratch.parents[candidate.parent];
            let from = candidate.parent * len..(candidate.parent + 1) * len;
            let (local_from, growth_from) = (&local_from[from.clone()], &growth_from[from]);
            let local_to = &mut local_to[h * len..(h + 1) * len];
            let growth_to = &mut growth_to[h * len..(h + 1) * len];
            let changed = candidate.code != old;
            self.hypotheses.push(Hypothesis {
                loss: if changed {
                    reference + f64::from(candidate.value)
                } else {
                    parent.loss
                },
                parent: parent.parent,
            });
            if changed {
                let (new, old) = (codewords.row(candidate.code), codewords.row(old));
                image_of::<V>(new, own, gi, &mut scratch.new_image);
                for i in 0..len {
                    local_to[i] = multiply_add_by::<V>(-scale, scratch.new_image[i], local_from[i]);
                    growth_to[i] = multiply_add_by::<V>(scale, new[i] - old[i], growth_from[i]);
                }
            } else {
                for i in 0..len {
                    local_to[i] = multiply_add_by::<V>(-scale, scratch.image[i], local_from[i]);
                }
                growth_to.copy_from_slice(growth_from);
            }
        }
        scratch.local.swap(0, 1);
        scratch.growth.swap(0, 1);
    }
}

/// All codes for one hypothesis at one position.
struct Expansion<'a> {
    codewords: &'a Codewords,
    /// <c H_jj, c> of each codeword, padded with infinities
    forms: &'a [f32],
    /// -2 s U
    vector: &'a [f32],
    /// s^2
    weight: f32,
    /// added to a score to make the candidate's value
    base: f32,
    /// the old code, already a candidate
    old: usize,
    parent: usize,
}

impl Expansion<'_> {
    /// Adds the codes below the threshold to the candidates.
    #[inline(always)]
    unsafe fn collect<V: Vector>(&self, candidates: &mut Vec<Candidate>, beam: usize) {
        let padded = self.forms.len();
        let columns = self.codewords.columns();
        assert_eq!(
            columns.len(),
            padded * self.vector.len(),
            "coordinates of the codewords"
        );
        if self.vector.len() == 8 {
            // SAFETY: the lengths were just compared, and `padded` is a multiple of the lanes.
            unsafe { self.collect_among::<V, 8>(columns, padded, candidates, beam) };
        } else {
            // SAFETY: as above.
            unsafe { self.collect_among::<V, 0>(columns, padded, candidates, beam) };
        }
    }

    #[inline(always)]
    unsafe fn collect_among<V: Vector, const LEN: usize>(
        &self,
        columns: &[f32],
        padded: usize,
        candidates: &mut Vec<Candidate>,
        beam: usize,
    ) {
        // SAFETY: columns holds len x padded values and forms padded values, where padded is a multiple of
        // the lanes.
        unsafe {
            let weight = V::splat(self.weight);
            let mut coordinates = [weight; 8];
            for i in 0..LEN {
                coordinates[i] = V::splat(self.vector[i]);
            }
            let mut bound = V::splat(threshold(candidates, beam) - self.base);
            for first in (0..padded).step_by(V::LANES) {
                let mut scores = weight.mul(V::load(self.forms.as_ptr().add(first)));
                if LEN == 0 {
                    for (i, &v) in self.vector.iter().enumerate() {
                        let column = V::load(columns.as_ptr().add(i * padded + first));
                        scores = V::splat(v).mul_add(column, scores);
                    }
                } else {
                    for i in 0..LEN {
                        let column = V::load(columns.as_ptr().add(i * padded + first));
                        scores = coordinates[i].mul_add(column, scores);
                    }
                }
                let mut below = scores.below(bound);
                if below == 0 {
                    continue;
                }
                let mut lanes = [0.0; LANE_NUMBERS.len()];
                scores.store(lanes.as_mut_ptr());
                while below != 0 {
                    let lane = below.trailing_zeros() as usize;
                    below &= below - 1;
                    if first + lane != self.old {
                        let candidate = Candidate {
                            value: self.base + lanes[lane],
                            parent: self.parent,
                            code: first + lane,
                        };
                        insert(candidates, beam, candidate);
                    }
                }
                bound = V::splat(threshold(candidates, beam) - self.base);
            }
        }
    }
}

/// The threshold that a candidate's value must be below.
#[inline(always)]
fn threshold(candidates: &[Candidate], beam: usize) -> f32 {
    if candidates.len() < beam {
        f32::INFINITY
    } else {
        candidates[candidates.len() - 1].value
    }
}

/// Inserts a candidate among the best, behind equals, and drops the worst beyond `beam`.
#[inline(always)]
fn insert(candidates: &mut Vec<Candidate>, beam: usize, candidate: Candidate) {
    let mut place = candidates.len();
    while place > 0 && candidates[place - 1].value > candidate.value {
        place -= 1;
    }
    if place < beam {
        if candidates.len() == beam {
            candidates.pop();
        }
        candidates.insert(place, candidate);
    }
}

/// c B for each row of c, [go gi], for a symmetric B of [gi, gi].
#[inline(always)]
fn image_of<V: Vector>(codeword: &[f32], block: &[f32], gi: usize, image: &mut [f32]) {
    image.fill(0.0);
    for (image, c) in image.chunks_exact_mut(gi).zip(codeword.chunks_exact(gi)) {
        for (b, row) in block.chunks_exact(gi).enumerate() {
            for i in 0..gi {
                image[i] = multiply_add_by::<V>(c[b], row[i], image[i]);
            }
        }
    }
}

/// local -= c B for one row c of a group, B being [gi, gi].
#[inline(always)]
fn subtract_image<V: Vector>(local: &mut [f32], c: &[f32], block: &[f32], gi: usize) {
    for (b, row) in block.chunks_exact(gi).enumerate() {
        for i in 0..gi {
            local[i] = multiply_add_by::<V>(-c[b], row[i], local[i]);
        }
    }
}
