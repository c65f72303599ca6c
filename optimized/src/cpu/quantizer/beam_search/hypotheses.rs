use faer::Accum;
use ndarray::{Array2, ArrayViewMut2, ArrayViewMut3, s};

use super::{Sweep, add_image};
use crate::cpu::product::product_on_this_thread;
use crate::cpu::quantizer::codewords::subtract_rows;

/// One of the best codings of an output group so far.
#[derive(Debug, Clone, Copy)]
struct Hypothesis {
    /// loss less that of the codes at the start
    loss: f64,
    /// which hypothesis at the start of the present visit it comes from
    parent: usize,
}

/// A way to extend a hypothesis.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    /// loss less that of the best hypothesis before
    value: f32,
    parent: usize,
    code: usize,
}

/// What a search over one output group writes to again and again; [hypotheses, ...] each.
struct Scratch {
    /// columns of G that belong to the block, [beam][go x columns]
    gradient: Vec<Vec<f32>>,
    /// what Q has grown by in the block, [beam][go x columns]
    change: Vec<Vec<f32>>,
    /// U of the present input group, [beam][go gi]
    local: Vec<Vec<f32>>,
    /// what Q has grown by in the present input group, [beam][go gi]
    growth: Vec<Vec<f32>>,
    /// memory to move any of these through
    spare: Vec<Vec<f32>>,
    parents: Vec<Hypothesis>,
    vector: Vec<f32>,
    scores: Vec<f32>,
    candidates: Vec<Candidate>,
}

/// The parent and the code of every hypothesis at every position so far.
type History = Vec<Vec<(u16, u16)>>;

/// Beam search for the output groups of one task. G is theirs, with its columns in the order of the visits.
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
    let mut histories: Vec<History> = vec![History::new(); scales.len()];
    let states = sweep
        .codewords
        .iter()
        .map(super::super::codewords::Codewords::padded)
        .max()
        .unwrap_or(0);
    let mut scratch = Scratch {
        gradient: vec![Vec::new(); beam],
        change: vec![Vec::new(); beam],
        local: vec![Vec::new(); beam],
        growth: vec![Vec::new(); beam],
        spare: vec![Vec::new(); beam],
        parents: Vec::with_capacity(beam),
        vector: Vec::new(),
        scores: vec![0.0; states],
        candidates: Vec::with_capacity(beam + 1),
    };
    for block in sweep.blocks() {
        let columns = block.start * gi..block.end * gi;
        let rest = columns.end..width;
        let mut changes = Array2::<f32>::zeros((gradients.nrows(), columns.len()));
        let mut moved = Array2::<f32>::zeros((gradients.nrows(), rest.len()));
        for (o, (beam_of_row, history)) in beams.iter_mut().zip(&mut histories).enumerate() {
            let rows = o * beam * go..(o + 1) * beam * go;
            let roots = search_block(
                sweep,
                block.clone(),
                codes.slice(s![o, .., ..]),
                gradients.slice(s![rows.clone(), columns.clone()]),
                scales[o],
                beam_of_row,
                history,
                &mut scratch,
            );
            for (h, &root) in roots.iter().enumerate() {
                let to = rows.start + h * go..rows.start + (h + 1) * go;
                let from = rows.start + root * go..rows.start + (root + 1) * go;
                for (mut to, from) in changes
                    .slice_mut(s![to.clone(), ..])
                    .outer_iter_mut()
                    .zip(scratch.change[h].chunks_exact(columns.len()))
                {
                    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
                }
                moved
                    .slice_mut(s![to, ..])
                    .assign(&gradients.slice(s![from, rest.clone()]));
            }
        }
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
    for (o, history) in histories.iter().enumerate() {
        trace_back(sweep, history, codes.slice_mut(s![o, .., ..]));
    }
}

/// Writes the codes of the first, best hypothesis.
fn trace_back(sweep: &Sweep<'_>, history: &History, mut codes: ArrayViewMut2<'_, u16>) {
    let positions: Vec<(usize, usize)> = sweep
        .visits
        .iter()
        .flat_map(|visit| visit.codebooks.iter().map(|&m| (visit.group, m)))
        .collect();
    let mut hypothesis = 0;
    for (step, &(group, m)) in history.iter().zip(&positions).rev() {
        let (parent, code) = step[hypothesis];
        codes[[group, m]] = code;
        hypothesis = usize::from(parent);
    }
}

/// Searches one output group through a block of visits. Leaves the new hypotheses in `hypotheses`, their growth within
/// the block in `scratch.change`, and returns which hypothesis at the start of the block each comes from.
#[expect(
    clippy::too_many_arguments,
    reason = "the state of one output group, which lives in arrays of many"
)]
fn search_block(
    sweep: &Sweep<'_>,
    block: std::ops::Range<usize>,
    codes: ndarray::ArrayView2<'_, u16>,
    gradients: ndarray::ArrayView2<'_, f32>,
    scale: f32,
    hypotheses: &mut Vec<Hypothesis>,
    history: &mut History,
    scratch: &mut Scratch,
) -> Vec<usize> {
    let (go, gi) = sweep.group_size();
    let columns = block.len() * gi;
    let mut roots: Vec<usize> = (0..hypotheses.len()).collect();
    for (h, (gradient, change)) in scratch
        .gradient
        .iter_mut()
        .zip(&mut scratch.change)
        .enumerate()
        .take(hypotheses.len())
    {
        gradient.clear();
        gradient.extend(gradients.slice(s![h * go..(h + 1) * go, ..]));
        change.clear();
        change.resize(go * columns, 0.0);
    }
    let mut own = Vec::new();
    for visit in block.clone() {
        let at = (visit - block.start) * gi..(visit - block.start + 1) * gi;
        sweep.own_block(visit, &mut own);
        for (h, hypothesis) in hypotheses.iter_mut().enumerate() {
            hypothesis.parent = h;
            let local = &mut scratch.local[h];
            local.clear();
            for row in scratch.gradient[h].chunks_exact(columns) {
                local.extend_from_slice(&row[at.clone()]);
            }
            scratch.growth[h].clear();
            scratch.growth[h].resize(go * gi, 0.0);
        }
        let group = sweep.visits[visit].group;
        for &m in &sweep.visits[visit].codebooks {
            let old = usize::from(codes[[group, m]]);
            extend(sweep, (visit, m), old, scale, &own, hypotheses, history, scratch);
        }
        inherit(hypotheses, &mut roots, scratch);
        // Within the block, later columns of G follow at once.
        let later = at.end..columns;
        let rows = sweep.rows_from(
            block.start * gi + at.start,
            (block.start * gi + later.start).min(sweep.hessian.ncols() - 1),
        );
        for h in 0..hypotheses.len() {
            let growth = &scratch.growth[h];
            for (a, growth) in growth.chunks_exact(gi).enumerate() {
                if growth.iter().all(|&x| x == 0.0) {
                    continue;
                }
                scratch.change[h][a * columns + at.start..a * columns + at.end].copy_from_slice(growth);
                if !later.is_empty() {
                    let target = &mut scratch.gradient[h][a * columns + later.start..(a + 1) * columns];
                    subtract_rows(target, growth, rows, sweep.hessian.ncols());
                }
            }
        }
    }
    roots
}

/// Gives every hypothesis the block's state of the one that it comes from.
fn inherit(hypotheses: &[Hypothesis], roots: &mut Vec<usize>, scratch: &mut Scratch) {
    if hypotheses.len() == roots.len() && hypotheses.iter().enumerate().all(|(h, x)| x.parent == h) {
        return;
    }
    let parents = || hypotheses.iter().map(|hypothesis| hypothesis.parent);
    pick(&mut scratch.gradient, &mut scratch.spare, parents());
    pick(&mut scratch.change, &mut scratch.spare, parents());
    *roots = hypotheses
        .iter()
        .map(|hypothesis| roots[hypothesis.parent])
        .collect();
}

/// Puts a copy of the vector of each parent in the place of its child.
fn pick(all: &mut Vec<Vec<f32>>, spare: &mut Vec<Vec<f32>>, parents: impl Iterator<Item = usize>) {
    std::mem::swap(all, spare);
    for (to, parent) in all.iter_mut().zip(parents) {
        to.clone_from(&spare[parent]);
    }
}

/// Expands every hypothesis by all codes at one position and keeps the best.
#[expect(
    clippy::too_many_arguments,
    reason = "the state of one output group, which lives in arrays of many"
)]
fn extend(
    sweep: &Sweep<'_>,
    (visit, m): (usize, usize),
    old: usize,
    scale: f32,
    own: &[f32],
    hypotheses: &mut Vec<Hypothesis>,
    history: &mut History,
    scratch: &mut Scratch,
) {
    let (_, gi) = sweep.group_size();
    let codewords = &sweep.codewords[m];
    let forms = &sweep.forms[visit][m];
    let reference = hypotheses[0].loss;
    let candidates = &mut scratch.candidates;
    candidates.clear();
    // Nothing changes: exactly the parents' losses, and a threshold that few others pass.
    for (parent, hypothesis) in hypotheses.iter().enumerate() {
        let value = (hypothesis.loss - reference) as f32;
        insert(
            candidates,
            sweep.beam,
            Candidate {
                value,
                parent,
                code: old,
            },
        );
    }
    let vector = &mut scratch.vector;
    for (parent, hypothesis) in hypotheses.iter().enumerate() {
        let local = &mut scratch.local[parent];
        add_image(local, scale, codewords.row(old), own, gi);
        vector.clear();
        vector.extend(local.iter().map(|u| -2.0 * scale * u));
        let weight = scale * scale;
        let scores = &mut scratch.scores[..codewords.padded()];
        codewords.scores(forms, vector, weight, scores);
        let base = (hypothesis.loss - reference) as f32 - scores[old];
        // where it would be chosen a second time
        scores[old] = f32::INFINITY;
        for (chunk, lanes) in scores
            .as_chunks::<{ crate::cpu::vectorize::LANES }>()
            .0
            .iter()
            .enumerate()
        {
            let threshold = if candidates.len() < sweep.beam {
                f32::INFINITY
            } else {
                candidates[candidates.len() - 1].value - base
            };
            // a minimum over all lanes, which vectorises, where `any` would branch on each
            let below = lanes.iter().fold(f32::INFINITY, |least, &score| least.min(score)) < threshold;
            if !below {
                continue;
            }
            for (l, &score) in lanes.iter().enumerate() {
                let code = chunk * crate::cpu::vectorize::LANES + l;
                if score.is_finite() {
                    insert(
                        candidates,
                        sweep.beam,
                        Candidate {
                            value: base + score,
                            parent,
                            code,
                        },
                    );
                }
            }
        }
    }

    let parents = &mut scratch.parents;
    parents.clone_from(hypotheses);
    let unchanged = candidates.len() == parents.len()
        && candidates
            .iter()
            .enumerate()
            .all(|(h, x)| x.parent == h && x.code == old);
    history.push(
        candidates
            .iter()
            .map(|x| (x.parent as u16, x.code as u16))
            .collect(),
    );
    if unchanged {
        for local in &mut scratch.local[..parents.len()] {
            add_image(local, -scale, codewords.row(old), own, gi);
        }
        return;
    }
    let chosen = || candidates.iter().map(|candidate| candidate.parent);
    pick(&mut scratch.local, &mut scratch.spare, chosen());
    pick(&mut scratch.growth, &mut scratch.spare, chosen());
    hypotheses.clear();
    for (h, candidate) in candidates.iter().enumerate() {
        let parent = parents[candidate.parent];
        let loss = if candidate.code == old {
            parent.loss
        } else {
            reference + f64::from(candidate.value)
        };
        hypotheses.push(Hypothesis {
            loss,
            parent: parent.parent,
        });
        add_image(
            &mut scratch.local[h],
            -scale,
            codewords.row(candidate.code),
            own,
            gi,
        );
        if candidate.code != old {
            let (new, old) = (codewords.row(candidate.code), codewords.row(old));
            for ((growth, new), old) in scratch.growth[h].iter_mut().zip(new).zip(old) {
                *growth += scale * (new - old);
            }
        }
    }
}

/// Puts a candidate in its place among the best, behind equals; drops the worst beyond `beam`.
fn insert(candidates: &mut Vec<Candidate>, beam: usize, candidate: Candidate) {
    let place = candidates.partition_point(|other| other.value <= candidate.value);
    if place < beam {
        if candidates.len() == beam {
            candidates.pop();
        }
        candidates.insert(place, candidate);
    }
}
