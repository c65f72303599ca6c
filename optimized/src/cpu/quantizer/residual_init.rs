use aqlm_vocabulary::{LayerSettings, Purpose, QuantizedMatrix, Result, Scheme, StreamKey};
use ndarray::{Array1, Array2, Array3, Array4};
use rayon::prelude::*;

use super::kmeans::{kmeans, starting_points};
use crate::cpu::row_major::elements;

/// Added to every scale, so that dividing a row of zeros by its scale gives zeros (the official engine's
/// value).
const TINY_SCALE: f64 = 1e-9;

/// Initial codes and codebooks of a layer by residual k-means: k-means on the groups of the normalised
/// weight, subtraction of the result, and the same again for each of the M codebooks (paper section 3.1,
/// algorithm 1 line 4).
///
/// A scale is the L2 norm of its output group's rows (paper section 3.2). H is not used.
///
/// # Errors
/// `NotDivisible` when the weight [out_features, in_features] cannot be cut into the scheme's groups.
pub fn residual_init(
    weight: &Array2<f32>,
    settings: &LayerSettings,
    key: StreamKey,
) -> Result<QuantizedMatrix> {
    initialize(weight, settings, key, |_, _, _| Ok(()))
}

/// A codebook and the codes of all groups.
pub(super) struct Fit {
    /// [2^B, go gi]
    pub(super) codebook: Vec<f32>,
    /// [out_groups x in_groups]
    pub(super) codes: Vec<u32>,
}

/// Residual k-means that calls `refine(fit, residual groups [out_groups x in_groups, go gi], scales)` after
/// each codebook, before the codebook is subtracted.
pub(super) fn initialize(
    weight: &Array2<f32>,
    settings: &LayerSettings,
    key: StreamKey,
    mut refine: impl FnMut(&mut Fit, &[f32], &[f64]) -> Result<()>,
) -> Result<QuantizedMatrix> {
    let scheme = settings.scheme;
    let (out_groups, in_groups) = scheme.groups(weight.nrows(), weight.ncols())?;
    let weight = weight.as_standard_layout();
    let weight = elements(&weight);
    let band = weight.len() / out_groups;
    let scales: Vec<f64> = weight
        .par_chunks(band)
        .map(|rows| {
            let square: f64 = rows.iter().map(|&w| f64::from(w) * f64::from(w)).sum();
            square.sqrt() + TINY_SCALE
        })
        .collect();
    let len = scheme.group_len();
    let mut residual = groups_of(weight, &scales, scheme);
    let mut rng = key.stream(Purpose::Initialization);
    let mut codes = Array3::zeros((out_groups, in_groups, scheme.num_codebooks));
    let mut codebooks = Vec::with_capacity(scheme.num_codebooks * scheme.codebook_size() * len);
    for m in 0..scheme.num_codebooks {
        let start = starting_points(&residual, len, scheme.codebook_size(), &mut rng);
        let clusters = kmeans(&residual, len, start, settings.kmeans_iterations);
        let mut fit = Fit {
            codebook: clusters.centroids,
            codes: clusters.assignments,
        };
        refine(&mut fit, &residual, &scales)?;
        residual
            .par_chunks_mut(len)
            .zip(&fit.codes)
            .for_each(|(group, &code)| {
                for (x, c) in group.iter_mut().zip(&fit.codebook[code as usize * len..][..len]) {
                    *x -= c;
                }
            });
        for (slot, code) in codes.slice_mut(ndarray::s![.., .., m]).iter_mut().zip(fit.codes) {
            *slot = code as u16;
        }
        codebooks.extend(fit.codebook.into_iter().map(f64::from));
    }
    let shape = (
        scheme.num_codebooks,
        scheme.codebook_size(),
        scheme.out_group_size,
        scheme.in_group_size,
    );
    let codebooks = Array4::from_shape_vec(shape, codebooks)
        .expect("k-means ends with as many centroids as it was given");
    QuantizedMatrix::new(scheme, codes, codebooks, Array1::from(scales))
}

/// The weight over its scales as vectors of out_group x in_group values: [out_groups x in_groups, go gi],
/// input groups fastest.
fn groups_of(weight: &[f32], scales: &[f64], scheme: Scheme) -> Vec<f32> {
    let (go, gi) = (scheme.out_group_size, scheme.in_group_size);
    let band = weight.len() / scales.len();
    let width = band / go;
    let mut groups = vec![0.0; weight.len()];
    groups
        .par_chunks_mut(band)
        .zip(weight.par_chunks(band))
        .zip(scales)
        .for_each(|((groups, rows), &scale)| {
            for (j, group) in groups.chunks_exact_mut(go * gi).enumerate() {
                for (a, part) in group.chunks_exact_mut(gi).enumerate() {
                    for (to, from) in part.iter_mut().zip(&rows[a * width + j * gi..]) {
                        *to = (f64::from(*from) / scale) as f32;
                    }
                }
            }
        });
    groups
}
