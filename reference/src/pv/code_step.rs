use aqlm_vocabulary::{CodeSettings, QuantizedMatrix};
use ndarray::{Array2, Array3, s};
use rayon::prelude::*;

use super::metric::transformed;
use super::recode::SCORE_ERROR;
use super::{GradientProducts, group_norms, largest, recode, trusted};
use crate::decode::decode;

/// New codes of a matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Recoded {
    /// [out_groups, in_groups, M]
    pub codes: Array3<u16>,
    /// groups of which at least one code changed
    pub changed: usize,
    /// [out_groups, in_groups]: how clearly each group was decided, as a distance in the weight's unit: the
    /// decisions stay as long as no group's difference from the buffer moves by more, nor any sum of
    /// codewords times its scale, under the same metric.
    pub margins: Array2<f64>,
}

/// The choice of new codes for a matrix with updated codebooks and scales: the `count` groups with the
/// largest differences from `buffer`, [out_features, in_features], get the codes that [`recode()`] finds for
/// the buffer's group divided by its scale. With a trust ratio only the first of them keep their new codes
/// ([`trusted()`]). With `products` the search measures distances by their metric.
///
/// A scale of zero leaves no target, so such a group keeps its codes.
#[expect(
    clippy::missing_panics_doc,
    reason = "the shapes are those of one matrix; nothing makes it panic"
)]
pub fn code_step(
    matrix: &QuantizedMatrix,
    buffer: &Array2<f64>,
    count: usize,
    settings: &CodeSettings,
    products: Option<&GradientProducts>,
    order: &[usize],
) -> Recoded {
    let scheme = matrix.scheme();
    let (go, gi) = (scheme.out_group_size, scheme.in_group_size);
    let (_, in_groups) = matrix.groups();
    let weight = decode(matrix);
    let norms = group_norms(&(buffer - &weight), scheme);
    let norms: Vec<f64> = norms.into_iter().collect();
    let by_size = largest(&norms, norms.len());
    let (selected, dropped) = by_size.split_at(count.min(by_size.len()));

    let mut margins = vec![f64::INFINITY; norms.len()];
    divide(&mut margins, &norms, selected, dropped);
    let codebooks = matrix
        .codebooks()
        .to_shape((scheme.num_codebooks, scheme.codebook_size(), go * gi))
        .expect("the same codewords as vectors");
    let rows = codebooks
        .to_shape((codebooks.len() / gi.max(1), gi))
        .expect("the rows of all codewords");
    let roots = products.map(GradientProducts::roots);
    // the codebooks of each place in a row, in coordinates in which its metric is Euclid
    let places: Option<Vec<Array3<f64>>> = roots.as_ref().map(|roots| {
        let of_place = |root| {
            transformed(rows.view(), root)
                .into_shape_with_order(codebooks.raw_dim())
                .expect("as many entries")
        };
        roots.iter().map(of_place).collect()
    });
    let found: Vec<(Vec<u16>, f64, f64)> = selected
        .par_iter()
        .map(|&group| {
            let (o, j) = (group / in_groups, group % in_groups);
            let scale = matrix.scales()[o];
            let mut target = buffer
                .slice(s![o * go..(o + 1) * go, j * gi..(j + 1) * gi])
                .mapv(|value| value / scale);
            let (mut searched, mut longest) = (codebooks.view(), 1.0);
            if let (Some(roots), Some(places)) = (&roots, &places) {
                target = transformed(target.view(), &roots[j]);
                searched = places[j].view();
                // what a vector of length 1 may become
                longest = roots[j].iter().map(|entry| entry * entry).sum::<f64>().sqrt();
            }
            let target: Vec<f64> = target.iter().copied().collect();
            let old = matrix.codes().slice(s![o, j, ..]).to_vec();
            let (new, margin) = recode(&target, searched, &old, order, settings.beam, settings.residuals);
            let sum = |codes: &[u16], i: usize| -> f64 {
                let entry = |(m, &code): (usize, &u16)| codebooks[[m, usize::from(code), i]];
                codes.iter().enumerate().map(entry).sum()
            };
            let change = (0..go * gi)
                .map(|i| (scale * (sum(&new, i) - sum(&old, i))).powi(2))
                .sum();
            (new, margin / longest, change)
        })
        .collect();
    for (&group, (_, margin, _)) in selected.iter().zip(&found) {
        let scale = matrix.scales()[group / in_groups].abs();
        margins[group] = margins[group].min(scale * margin);
    }

    let mut kept = selected.len();
    if let Some(ratio) = settings.trust_ratio {
        let changes: Vec<f64> = found.iter().map(|(_, _, change)| *change).collect();
        let bound = ratio * weight.iter().map(|w| w * w).sum::<f64>().sqrt();
        kept = trusted(&changes, bound);
        divide(&mut margins, &norms, &selected[..kept], &selected[kept..]);
        let mut squares = 0.0;
        for (&group, change) in selected.iter().skip(1).zip(&changes) {
            squares += change;
            let distance = (f64::sqrt(squares) - bound).abs() - 2.0 * SCORE_ERROR * bound;
            margins[group] = margins[group].min(distance.max(0.0) / 2.0);
        }
    }
    let mut codes = matrix.codes().clone();
    let mut changed = 0;
    for (&group, (new, _, _)) in selected[..kept].iter().zip(&found) {
        let mut old = codes.slice_mut(s![group / in_groups, group % in_groups, ..]);
        changed += usize::from(old.iter().ne(new));
        old.iter_mut().zip(new).for_each(|(old, &new)| *old = new);
    }
    Recoded {
        codes,
        changed,
        margins: Array2::from_shape_vec(matrix.groups(), margins).expect("a margin for each group"),
    }
}

/// Lowers the margins of groups by their distance from the cut between the two lists, both sorted by norm.
fn divide(margins: &mut [f64], norms: &[f64], kept: &[usize], dropped: &[usize]) {
    let (Some(&last), Some(&first)) = (kept.last(), dropped.first()) else {
        return;
    };
    // both groups may move
    let distance = |larger: f64, smaller: f64| {
        let gap = larger.sqrt() - smaller.sqrt() - 2.0 * SCORE_ERROR * larger.sqrt();
        gap.max(0.0) / 2.0
    };
    for &group in kept {
        margins[group] = margins[group].min(distance(norms[group], norms[first]));
    }
    for &group in dropped {
        margins[group] = margins[group].min(distance(norms[last], norms[group]));
    }
}
