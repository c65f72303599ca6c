use aqlm_vocabulary::{LinearWeight, QuantizedMatrix};
use faer::{Mat, Side};

use aqlm_formats::model::Model;
use aqlm_formats::{Error, Result};

/// Most codewords of a layer in a scatter.
pub const SCATTER_CODEWORDS: usize = 240;

/// How often the codes of one codebook of a layer are used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CodebookUsage {
    /// entropy of the codes in bits; at most the scheme's bits of a code
    pub entropy: f64,
    /// codewords that no group uses
    pub dead: usize,
}

/// Usage of a layer's codebooks.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerUsage {
    /// full name, as in `model.layers.0.self_attn.q_proj`
    pub layer: String,
    /// bits of a code
    pub nbits: u32,
    /// each codebook
    pub codebooks: Vec<CodebookUsage>,
}

impl LayerUsage {
    /// Mean entropy of the codebooks as a share of the bits of a code, from 0 to 1.
    pub fn entropy_share(&self) -> f64 {
        let sum: f64 = self.codebooks.iter().map(|codebook| codebook.entropy).sum();
        sum / (self.codebooks.len() as f64 * f64::from(self.nbits))
    }

    /// Codewords of all codebooks that no group uses.
    pub fn dead(&self) -> usize {
        self.codebooks.iter().map(|codebook| codebook.dead).sum()
    }
}

/// A codeword in a plane.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Codeword {
    /// index of its codebook
    pub codebook: usize,
    /// along the first principal axis of the layer's codewords
    pub first: f64,
    /// along the second
    pub second: f64,
}

/// The codes and codewords of a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Codebooks {
    /// usage of every quantized layer
    pub usage: Vec<LayerUsage>,
    /// the layer of the scatter: the last one of the middle block
    pub scatter_layer: String,
    /// its codewords, at most [`SCATTER_CODEWORDS`], at equal steps through each codebook
    pub scatter: Vec<Codeword>,
    /// share of the codewords' variance along both axes, from 0 to 1
    pub scatter_share: f64,
}

/// Reads the codes of a checkpoint, one layer in memory at a time. `None` for a model without quantized
/// layers.
///
/// # Errors
/// Those of [`Model::linear`]; `Internal` when no eigenvectors are found.
pub fn codebooks(model: &Model) -> Result<Option<Codebooks>> {
    let config = model.config();
    let mut usage = Vec::new();
    let mut scatter = None;
    for (block, spec) in config.blocks.iter().enumerate() {
        for layer in spec.layers() {
            let LinearWeight::Quantized(matrix) = model.linear(block, layer)?.weight else {
                continue;
            };
            let name = config.layer_name(block, layer);
            usage.push(LayerUsage {
                layer: name.clone(),
                nbits: matrix.scheme().nbits,
                codebooks: usage_of(&matrix),
            });
            // Overwritten up to the last layer of the middle block.
            if block <= config.blocks.len() / 2 {
                scatter = Some((name, matrix));
            }
        }
    }
    let Some((scatter_layer, matrix)) = scatter else {
        return Ok(None);
    };
    let (scatter, scatter_share) = principal_plane(&matrix)?;
    Ok(Some(Codebooks {
        usage,
        scatter_layer,
        scatter,
        scatter_share,
    }))
}

fn usage_of(matrix: &QuantizedMatrix) -> Vec<CodebookUsage> {
    let scheme = matrix.scheme();
    let mut counts = vec![vec![0_u64; scheme.codebook_size()]; scheme.num_codebooks];
    for ((_, _, codebook), &code) in matrix.codes().indexed_iter() {
        counts[codebook][usize::from(code)] += 1;
    }
    let usage = |counts: Vec<u64>| {
        let total: u64 = counts.iter().sum();
        let used = || counts.iter().filter(|&&count| count > 0);
        let share = |&count: &u64| count as f64 / total as f64;
        CodebookUsage {
            // adding 0 turns the -0 of a single used codeword into 0
            entropy: -used()
                .map(|count| share(count) * share(count).log2())
                .sum::<f64>()
                + 0.0,
            dead: counts.len() - used().count(),
        }
    };
    counts.into_iter().map(usage).collect()
}

/// Codewords along the first two principal axes of all codewords of a layer, and the share of the variance
/// along these axes. An axis points to where its largest component is positive.
fn principal_plane(matrix: &QuantizedMatrix) -> Result<(Vec<Codeword>, f64)> {
    let scheme = matrix.scheme();
    let length = scheme.group_len();
    let codewords: Vec<(usize, Vec<f64>)> = matrix
        .codebooks()
        .outer_iter()
        .enumerate()
        .flat_map(|(index, codebook)| {
            let words: Vec<_> = codebook
                .outer_iter()
                .map(|word| (index, word.iter().copied().collect()))
                .collect();
            words
        })
        .collect();
    let count = codewords.len() as f64;
    let mean: Vec<f64> = (0..length)
        .map(|at| codewords.iter().map(|(_, word)| word[at]).sum::<f64>() / count)
        .collect();
    let covariance = Mat::from_fn(length, length, |i, j| {
        let products = codewords
            .iter()
            .map(|(_, word)| (word[i] - mean[i]) * (word[j] - mean[j]));
        products.sum::<f64>() / count
    });
    let eigen = covariance
        .self_adjoint_eigen(Side::Lower)
        .map_err(|error| Error::Internal(format!("principal axes of codewords: {error:?}")))?;
    let variances = eigen.S();
    // Eigenvalues ascend.
    let axis = |from_last: usize| -> Vec<f64> {
        let Some(column) = length.checked_sub(from_last + 1) else {
            return vec![0.0; length];
        };
        let mut axis: Vec<f64> = (0..length).map(|row| eigen.U()[(row, column)]).collect();
        let largest = axis
            .iter()
            .copied()
            .fold(0.0, |a: f64, b| if b.abs() > a.abs() { b } else { a });
        if largest < 0.0 {
            for value in &mut axis {
                *value = -*value;
            }
        }
        axis
    };
    let axes = [axis(0), axis(1)];
    let along =
        |word: &[f64], axis: &[f64]| -> f64 { (0..length).map(|at| (word[at] - mean[at]) * axis[at]).sum() };
    let step = codewords.len().div_ceil(SCATTER_CODEWORDS).max(1);
    let plane = codewords.iter().step_by(step).map(|(codebook, word)| Codeword {
        codebook: *codebook,
        first: along(word, &axes[0]),
        second: along(word, &axes[1]),
    });
    let whole: f64 = (0..length).map(|at| variances[at].max(0.0)).sum();
    let kept: f64 = (length.saturating_sub(2)..length)
        .map(|at| variances[at].max(0.0))
        .sum();
    Ok((plane.collect(), if whole > 0.0 { kept / whole } else { 0.0 }))
}

#[cfg(test)]
mod tests {
    use aqlm_vocabulary::Scheme;
    use ndarray::{Array1, Array3, Array4};

    use super::*;

    /// One codebook of four codewords of two weights, and the given codes.
    fn matrix(codes: &[u16]) -> QuantizedMatrix {
        let scheme: Scheme = "1x2g2".parse().unwrap();
        let words = [3.0, 0.0, -3.0, 0.0, 0.0, 1.0, 0.0, -1.0];
        QuantizedMatrix::new(
            scheme,
            Array3::from_shape_vec((codes.len(), 1, 1), codes.to_vec()).unwrap(),
            Array4::from_shape_vec((1, 4, 1, 2), words.to_vec()).unwrap(),
            Array1::ones(codes.len()),
        )
        .unwrap()
    }

    #[test]
    fn entropy_and_dead_codewords_are_those_of_the_counts() {
        let usage = |codes: &[u16]| usage_of(&matrix(codes))[0];
        assert_eq!(
            usage(&[0, 1, 2, 3]),
            CodebookUsage {
                entropy: 2.0,
                dead: 0
            }
        );
        assert_eq!(
            usage(&[1, 1, 1, 1]),
            CodebookUsage {
                entropy: 0.0,
                dead: 3
            }
        );
        let quarter = usage(&[0, 0, 0, 3]);
        let expected = 0.75 * (4.0_f64 / 3.0).log2() + 0.25 * 2.0;
        assert!((quarter.entropy - expected).abs() < 1e-15 && quarter.dead == 2);
    }

    #[test]
    fn the_plane_of_two_dimensional_codewords_is_their_own() {
        let (plane, share) = principal_plane(&matrix(&[0])).unwrap();
        assert!((share - 1.0).abs() < 1e-12);
        let expected = [(3.0, 0.0), (-3.0, 0.0), (0.0, 1.0), (0.0, -1.0)];
        for (word, (first, second)) in plane.iter().zip(expected) {
            assert!((word.first - first).abs() < 1e-12 && (word.second - second).abs() < 1e-12);
        }
    }

    #[test]
    fn the_embedded_dense_model_has_no_codes() {
        assert_eq!(codebooks(&Model::embedded().unwrap()).unwrap(), None);
    }
}
