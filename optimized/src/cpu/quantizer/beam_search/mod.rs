//! Codes for fixed codebooks and scales (paper section 3.2, algorithm 1 line 9).
//!
//! Let dW = W - Q and G = dW H. Replacing the codeword c_old of codebook m in input group j by c changes the
//! loss of an output group with scale s by -2 s <G_j, c - c_old> + s^2 <(c - c_old) H_jj, c - c_old>. With
//! U = G_j + s c_old H_jj, this is s^2 <c H_jj, c> - 2 s <U, c> and a constant.
//!
//! A sweep visits every input group once, so G is needed only to the right of the finished groups. The groups
//! are first put in the order of the sweep. Then, as in GPTQ, a block of consecutive groups is searched while
//! only the block's own columns of G are updated. After the block, one matrix product updates all later
//! columns.
//!
//! A sweep with steps that choose two codes together is searched by `joint`, all others by `descent` (a beam
//! of one) or `hypotheses`.

mod columns;
mod descent;
mod hypotheses;
mod joint;
mod sweep;

use aqlm_vocabulary::{AqlmError, MAX_SUMS, Position, QuantizedMatrix, Result};
use ndarray::{Array2, Array3, Axis};
use rayon::prelude::*;

use self::columns::{columns, permute_columns, permuted};
use self::sweep::{Sweep, visits_per_block};
use super::codewords::Codewords;
use super::problem::Problem;
use super::trial::Trial;

pub(crate) use self::sweep::Visit;

/// Output groups of one task. Fixed, because the division of a product may change its last bits.
const OUT_GROUPS: usize = 64;

/// One sweep of beam search from the current codes of `matrix`; the result has their shape. For each output
/// group, starting from its current codes: at each step of `order` every hypothesis is expanded by all 2^B
/// codes, or all 2^(2B) pairs of codes, and the `beam` best distinct ones are kept. Positions outside `order`
/// keep their codes. `beam` 1 is coordinate descent (iterated conditional modes). An order that returns to a
/// group after leaving it is searched in several sweeps, each starting from the best codes of the previous
/// one.
///
/// # Errors
/// `Shape` when weight [out_features, in_features], H [in_features, in_features] and matrix do not match;
/// `Argument` for a beam of 0 or an order with positions outside the matrix; `Unsupported` for pairs of
/// codebooks with more than 2^16 sums.
pub fn beam_search(
    weight: &Array2<f32>,
    hessian: &Array2<f64>,
    matrix: &QuantizedMatrix,
    order: &[Position],
    beam: usize,
) -> Result<Array3<u16>> {
    let problem = Problem::new(weight, hessian)?;
    problem.check(matrix)?;
    Ok(
        search(&problem, Trial::new(&problem, matrix.clone()), order, beam)?
            .into_parts()
            .0,
    )
}

/// [`beam_search`] on a trial: its matrix with the codes found.
pub(crate) fn search(
    problem: &Problem,
    trial: Trial,
    order: &[Position],
    beam: usize,
) -> Result<QuantizedMatrix> {
    let (_, in_groups, num_codebooks) = trial.matrix.codes().dim();
    if beam == 0 {
        return Err(AqlmError::argument("beam", "at least 1 hypothesis", 0));
    }
    Position::check_order(order, in_groups, num_codebooks)?;
    let scheme = trial.matrix.scheme();
    let pairs = order.iter().any(|step| step.partner.is_some());
    if pairs && !scheme.sums_fit() {
        return Err(AqlmError::Unsupported(format!(
            "pairs of codes are searched among at most {MAX_SUMS} sums, {scheme} has {}",
            scheme.codebook_size().pow(2)
        )));
    }
    let len = scheme.group_len();
    let codewords: Vec<Codewords> = trial
        .matrix
        .codebooks()
        .outer_iter()
        .map(|codebook| Codewords::new(codebook.iter().map(|&c| c as f32).collect(), len))
        .collect();
    let Trial {
        mut matrix,
        mut image,
        ..
    } = trial;
    let mut sweeps = sweeps(order, in_groups).into_iter().peekable();
    while let Some(visits) = sweeps.next() {
        let columns = columns(&visits, in_groups, scheme.in_group_size);
        let codes = if visits
            .iter()
            .flat_map(|visit| &visit.steps)
            .any(|step| step.partner.is_some())
        {
            joint::sweep(problem, &matrix, image, &visits, &columns, beam)
        } else {
            sweep(problem, &matrix, image, &codewords, visits, &columns, beam)
        };
        matrix = matrix.with_codes(codes)?;
        if sweeps.peek().is_none() {
            break;
        }
        image = problem.image(&problem.error(&matrix));
    }
    Ok(matrix)
}

/// Divides an order into visits, and the visits into sweeps that see no group twice.
pub(crate) fn sweeps(order: &[Position], in_groups: usize) -> Vec<Vec<Visit>> {
    let mut sweeps = Vec::new();
    let mut visits: Vec<Visit> = Vec::new();
    let mut seen = vec![false; in_groups];
    for positions in order.chunk_by(|a, b| a.group == b.group) {
        let group = positions[0].group;
        if seen[group] {
            sweeps.push(std::mem::take(&mut visits));
            seen.fill(false);
        }
        // A repeated codebook starts a new visit, too.
        let mut steps: Vec<Position> = Vec::new();
        for &step in positions {
            if step
                .codebooks()
                .any(|m| steps.iter().any(|done| done.codebooks().any(|d| d == m)))
            {
                visits.push(Visit {
                    group,
                    steps: std::mem::take(&mut steps),
                });
                sweeps.push(std::mem::take(&mut visits));
                seen.fill(false);
            }
            steps.push(step);
        }
        seen[group] = true;
        visits.push(Visit { group, steps });
    }
    sweeps.push(visits);
    sweeps
}

/// `image` is (W - Q) H.
fn sweep(
    problem: &Problem,
    matrix: &QuantizedMatrix,
    image: Array2<f32>,
    codewords: &[Codewords],
    visits: Vec<Visit>,
    columns: &[usize],
    beam: usize,
) -> Array3<u16> {
    let out_groups = matrix.codes().dim().0;
    let (go, gi) = (matrix.scheme().out_group_size, matrix.scheme().in_group_size);
    let hessian = permuted(&problem.hessian, columns);
    let forms = visits
        .par_iter()
        .enumerate()
        .map(|(visit, _)| {
            let at = visit * gi..(visit + 1) * gi;
            let block: Vec<f32> = hessian
                .slice(ndarray::s![at.clone(), at])
                .iter()
                .copied()
                .collect();
            codewords
                .iter()
                .map(|codewords| {
                    let mut forms = vec![0.0; codewords.padded()];
                    codewords.forms(&block, gi, &mut forms);
                    forms
                })
                .collect()
        })
        .collect();
    let near = if beam == 1 {
        Vec::new()
    } else {
        (0..visits.len())
            .into_par_iter()
            .map(|visit| {
                let per_block = visits_per_block(gi);
                let start = visit / per_block * per_block;
                let part = hessian.slice(ndarray::s![
                    start * gi..(visit + 1) * gi,
                    visit * gi..(visit + 1) * gi
                ]);
                part.iter().copied().collect()
            })
            .collect()
    };
    let sweep = Sweep {
        matrix,
        codewords,
        visits,
        forms,
        hessian,
        near,
        beam,
    };

    // In standard layout, as the searches require.
    let mut gradient = Array2::zeros(image.dim());
    permute_columns(gradient.view_mut(), &image, None, columns);
    drop(image);
    let mut codes = matrix.codes().clone();
    let tasks = codes
        .axis_chunks_iter_mut(Axis(0), OUT_GROUPS)
        .into_par_iter()
        .zip(gradient.axis_chunks_iter_mut(Axis(0), OUT_GROUPS * go))
        .zip((0..out_groups.div_ceil(OUT_GROUPS)).into_par_iter());
    tasks.for_each(|((codes, gradient), task)| {
        let first = task * OUT_GROUPS;
        let scales: Vec<f32> = matrix
            .scales()
            .iter()
            .skip(first)
            .take(codes.dim().0)
            .map(|&s| s as f32)
            .collect();
        if beam == 1 {
            descent::descend(&sweep, codes, gradient, &scales);
        } else {
            hypotheses::search(&sweep, codes, gradient, &scales);
        }
    });
    codes
}
