use ndarray::{Array2, ArrayViewMut2, Axis};
use rayon::prelude::*;

use super::sweep::Visit;

/// The columns in the order of the visits; those of groups that are not visited come last.
pub(super) fn columns(visits: &[Visit], in_groups: usize, gi: usize) -> Vec<usize> {
    let mut visited = vec![false; in_groups];
    let mut columns: Vec<usize> = Vec::with_capacity(in_groups * gi);
    for visit in visits {
        visited[visit.group] = true;
        columns.extend(visit.group * gi..(visit.group + 1) * gi);
    }
    for (j, _) in visited.iter().enumerate().filter(|(_, visited)| !**visited) {
        columns.extend(j * gi..(j + 1) * gi);
    }
    columns
}

/// The matrix with rows and columns permuted.
pub(super) fn permuted(matrix: &Array2<f32>, order: &[usize]) -> Array2<f32> {
    let mut result = Array2::zeros((order.len(), order.len()));
    permute_columns(result.view_mut(), matrix, Some(order), order);
    result
}

/// Writes the rows of `from`, in the order of `rows` or unchanged, with their columns in the order of
/// `columns`.
pub(super) fn permute_columns(
    mut to: ArrayViewMut2<'_, f32>,
    from: &Array2<f32>,
    rows: Option<&[usize]>,
    columns: &[usize],
) {
    to.axis_iter_mut(Axis(0))
        .into_par_iter()
        .enumerate()
        .for_each(|(row, mut to)| {
            let from = from.row(rows.map_or(row, |rows| rows[row]));
            for (to, &column) in to.iter_mut().zip(columns) {
                *to = from[column];
            }
        });
}
