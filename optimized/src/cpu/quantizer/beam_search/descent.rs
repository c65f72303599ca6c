use faer::Accum;
use ndarray::{Array2, ArrayViewMut2, ArrayViewMut3, s};

use super::sweep::Sweep;
use crate::cpu::product::product_on_this_thread;
use crate::cpu::quantizer::codewords::subtract_rows;
use crate::cpu::row_major::elements_mut;

/// Coordinate descent: the best code at each position in turn, for the output groups of one task. `gradient`
/// holds the task's rows of G, with columns in the order of the visits.
pub(super) fn descend(
    sweep: &Sweep<'_>,
    mut codes: ArrayViewMut3<'_, u16>,
    mut gradient: ArrayViewMut2<'_, f32>,
    scales: &[f32],
) {
    let (go, gi) = sweep.group_size();
    let len = go * gi;
    let weights: Vec<f32> = scales.iter().map(|s| s * s).collect();
    let mut own = Vec::new();
    let mut found = Vec::new();
    // U of every output group, -2 s U, and the growth of Q in this input group
    let mut local = vec![0.0; scales.len() * len];
    let mut vectors = local.clone();
    let mut growth = local.clone();
    for block in sweep.blocks() {
        let columns = block.start * gi..block.end * gi;
        // the growth of Q in this block
        let mut change = Array2::<f32>::zeros((gradient.nrows(), columns.len()));
        let mut changed = false;
        for visit in block.clone() {
            let group = sweep.visits[visit].group;
            let at = visit * gi..(visit + 1) * gi;
            sweep.own_block(visit, &mut own);
            for (r, row) in gradient.slice(s![.., at.clone()]).outer_iter().enumerate() {
                for (to, from) in local[r * gi..(r + 1) * gi].iter_mut().zip(row) {
                    *to = *from;
                }
            }
            growth.fill(0.0);
            for step in &sweep.visits[visit].steps {
                let m = step.codebook;
                let codewords = &sweep.codewords[m];
                let forms = &sweep.forms[visit][m];
                for (o, &scale) in scales.iter().enumerate() {
                    let old = usize::from(codes[[o, group, m]]);
                    let u = &mut local[o * len..(o + 1) * len];
                    add_image(u, scale, codewords.row(old), &own, gi);
                    for (v, u) in vectors[o * len..(o + 1) * len].iter_mut().zip(u) {
                        *v = -2.0 * scale * *u;
                    }
                }
                codewords.nearest(forms, &vectors, &weights, &mut found);
                for (o, &scale) in scales.iter().enumerate() {
                    let old = usize::from(codes[[o, group, m]]);
                    let of_group = o * len..(o + 1) * len;
                    // The current code stays unless another is strictly better.
                    let score = codewords.score(old, forms, &vectors[of_group.clone()], weights[o]);
                    let new = if found[o].score < score {
                        found[o].code as usize
                    } else {
                        old
                    };
                    if new != old {
                        codes[[o, group, m]] = new as u16;
                        let (new, old) = (codewords.row(new), codewords.row(old));
                        for ((growth, new), old) in growth[of_group.clone()].iter_mut().zip(new).zip(old) {
                            *growth += scale * (new - old);
                        }
                    }
                    add_image(&mut local[of_group], -scale, codewords.row(new), &own, gi);
                }
            }
            let later = at.end..columns.end;
            let rows = sweep.rows_from(at.start, later.start);
            let width = gradient.ncols();
            let whole = elements_mut(&mut gradient);
            for (r, growth) in growth.chunks_exact(gi).enumerate() {
                if growth.iter().all(|&x| x == 0.0) {
                    continue;
                }
                changed = true;
                for (to, from) in change
                    .slice_mut(s![r, at.start - columns.start..at.end - columns.start])
                    .iter_mut()
                    .zip(growth)
                {
                    *to = *from;
                }
                if !later.is_empty() {
                    let target = &mut whole[r * width + later.start..r * width + later.end];
                    subtract_rows(target, growth, rows, sweep.hessian.ncols());
                }
            }
        }
        let rest = columns.end..gradient.ncols();
        if changed && !rest.is_empty() {
            product_on_this_thread(
                gradient.slice_mut(s![.., rest.clone()]),
                Accum::Add,
                change.view(),
                sweep.hessian.slice(s![columns, rest]),
                -1.0,
            );
        }
    }
}

/// to += factor c B for each row of c, both [go gi], for a symmetric B of [gi, gi].
fn add_image(to: &mut [f32], factor: f32, codeword: &[f32], block: &[f32], gi: usize) {
    for (to, c) in to.chunks_exact_mut(gi).zip(codeword.chunks_exact(gi)) {
        for (to, row) in to.iter_mut().zip(block.chunks_exact(gi)) {
            let mut sum = 0.0;
            for (c, h) in c.iter().zip(row) {
                sum += c * h;
            }
            *to += factor * sum;
        }
    }
}
