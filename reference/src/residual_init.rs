use ndarray::{Array1, Array2, Array3, Array4, ArrayView2, Axis};

use crate::kmeans::{KMeansSettings, kmeans, starting_points};
use aqlm_vocabulary::{LayerSettings, Purpose, QuantizedMatrix, Result, Scheme, StreamKey};

/// Added to every scale, so that a row of zeros stays zero after the division (the official engine's value).
const TINY_SCALE: f64 = 1e-9;

/// The first codes and codebooks of a layer by residual k-means: k-means on the groups of the normalised
/// weight, subtract, and repeat for each of the M codebooks (paper section 3.1, algorithm 1 line 4).
///
/// A scale is the L2 norm of its output group's rows (paper section 3.2). H is not used.
///
/// # Errors
/// `NotDivisible` when the weight [out_features, in_features] cannot be cut into the scheme's groups.
pub fn residual_init(
    weight: &Array2<f64>,
    settings: &LayerSettings,
    key: StreamKey,
) -> Result<QuantizedMatrix> {
    initialize(weight, settings, key, |_, _, _| Ok(()))
}

/// The result of one codebook's k-means: the codebook [2^B, go gi] and a code for each group, [out_groups x
/// in_groups].
pub(crate) struct Fit {
    pub(crate) codebook: Array2<f64>,
    pub(crate) codes: Vec<usize>,
}

/// Residual k-means that calls `refine(fit, residual groups, scales)` for each codebook before subtracting
/// it.
pub(crate) fn initialize(
    weight: &Array2<f64>,
    settings: &LayerSettings,
    key: StreamKey,
    mut refine: impl FnMut(&mut Fit, ArrayView2<'_, f64>, &Array1<f64>) -> Result<()>,
) -> Result<QuantizedMatrix> {
    let scheme = settings.scheme;
    let (out_groups, in_groups) = scheme.groups(weight.nrows(), weight.ncols())?;
    let scales: Array1<f64> = weight
        .axis_chunks_iter(Axis(0), scheme.out_group_size)
        .map(|rows| rows.iter().map(|w| w * w).sum::<f64>().sqrt() + TINY_SCALE)
        .collect();
    let mut residual = groups_of(weight, &scales, scheme);
    let mut rng = key.stream(Purpose::Initialization);
    let mut codes = Array3::zeros((out_groups, in_groups, scheme.num_codebooks));
    let mut codebooks = Array4::zeros((
        scheme.num_codebooks,
        scheme.codebook_size(),
        scheme.out_group_size,
        scheme.in_group_size,
    ));
    for m in 0..scheme.num_codebooks {
        let start = starting_points(residual.view(), scheme.codebook_size(), &mut rng);
        let clusters = kmeans(
            residual.view(),
            start,
            &KMeansSettings::new(settings.kmeans_iterations),
        );
        let mut fit = Fit {
            codebook: clusters.centroids,
            codes: clusters.assignments,
        };
        refine(&mut fit, residual.view(), &scales)?;
        for (mut group, &code) in residual.outer_iter_mut().zip(&fit.codes) {
            group -= &fit.codebook.row(code);
        }
        for (slot, code) in codes.index_axis_mut(Axis(2), m).iter_mut().zip(fit.codes) {
            *slot = code as u16;
        }
        for (slot, value) in codebooks.index_axis_mut(Axis(0), m).iter_mut().zip(&fit.codebook) {
            *slot = *value;
        }
    }
    QuantizedMatrix::new(scheme, codes, codebooks, scales)
}

/// The weight divided by its scales, as vectors of out_group x in_group values: [out_groups x in_groups, go
/// gi], input groups fastest.
fn groups_of(weight: &Array2<f64>, scales: &Array1<f64>, scheme: Scheme) -> Array2<f64> {
    let (go, gi) = (scheme.out_group_size, scheme.in_group_size);
    let in_groups = weight.ncols() / gi;
    Array2::from_shape_fn((scales.len() * in_groups, go * gi), |(group, i)| {
        let (o, j) = (group / in_groups, group % in_groups);
        weight[[o * go + i / gi, j * gi + i % gi]] / scales[o]
    })
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;

    use super::*;
    use crate::decode;
    use crate::problem::{gaussian, settings};

    const KEY: StreamKey = StreamKey {
        seed: 5,
        block: 0,
        layer: None,
    };

    fn squared_error(weight: &Array2<f64>, matrix: &QuantizedMatrix) -> f64 {
        (weight - &decode(matrix)).mapv(|x| x * x).sum()
    }

    #[test]
    fn every_further_codebook_helps() {
        let weight = gaussian(1, 32, 16);
        let mut last = weight.mapv(|x| x * x).sum();
        for scheme in ["1x4g4", "2x4g4", "3x4g4", "4x4g4"] {
            let matrix = residual_init(&weight, &settings(scheme), KEY).unwrap();
            let error = squared_error(&weight, &matrix);
            assert!(error < last, "{scheme}: {error} after {last}");
            last = error;
        }
    }

    #[test]
    fn as_many_codewords_as_groups_are_exact() {
        let weight = gaussian(2, 8, 8);
        let matrix = residual_init(&weight, &settings("1x3g4o4"), KEY).unwrap();
        assert!(squared_error(&weight, &matrix) > 0.0 || matrix.codes().len() <= 8);
        let matrix = residual_init(&weight, &settings("1x4g4"), KEY).unwrap();
        assert_relative_eq!(decode(&matrix), weight, max_relative = 8.0 * f64::EPSILON);
    }

    #[test]
    fn zero_and_repeated_rows_stay_finite() {
        let mut weight = Array2::zeros((8, 8));
        for r in 4..8 {
            weight.row_mut(r).fill(0.25);
        }
        for scheme in ["2x4g4", "1x3g8o2"] {
            let matrix = residual_init(&weight, &settings(scheme), KEY).unwrap();
            assert_relative_eq!(decode(&matrix), weight, epsilon = 8.0 * f64::EPSILON);
        }
    }

    #[test]
    fn the_same_key_gives_the_same_matrix() {
        let weight = gaussian(3, 16, 16);
        let init = |key| residual_init(&weight, &settings("2x3g4"), key).unwrap();
        assert_eq!(init(KEY), init(KEY));
        assert_ne!(init(KEY), init(StreamKey { seed: 6, ..KEY }));
    }

    #[test]
    fn a_weight_that_cannot_be_cut_is_refused() {
        assert!(residual_init(&gaussian(1, 4, 10), &settings("1x2g4"), KEY).is_err());
    }

    #[test]
    fn scales_are_norms_and_never_zero() {
        let mut weight = gaussian(2, 16, 16);
        weight.row_mut(3).fill(0.0);
        let matrix = residual_init(&weight, &settings("1x3g4"), KEY).unwrap();
        for (row, &scale) in weight.outer_iter().zip(matrix.scales()) {
            let norm = row.dot(&row).sqrt();
            assert!(scale > norm && scale <= norm + 1e-6, "{scale}, {norm}");
        }
    }
}
