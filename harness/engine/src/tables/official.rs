use std::collections::BTreeMap;

use aqlm_vocabulary::Scheme;
use serde::Deserialize;

use super::paper::{TunedPart, parsed};
use aqlm_formats::Result;

/// What the official code measured.
const OFFICIAL: (&str, &str) = (
    "official.json",
    include_str!("../../../../golden/paper/official.json"),
);

/// Figures of the official code.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Official {
    /// quantized and dense models
    pub(super) models: Vec<OfficialModel>,
    /// products
    pub(super) kernels: OfficialKernels,
}

/// Every model that the official code measured.
///
/// # Errors
/// `Internal` for a golden/paper/official.json that does not parse.
pub(crate) fn official_models() -> Result<Vec<OfficialModel>> {
    Ok(Official::read()?.models)
}

/// A model that the official code quantized or evaluated.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OfficialModel {
    /// its name in golden/paper/models.json
    pub(crate) model: String,
    /// the scheme; `None` for the dense model
    #[serde(default)]
    pub(crate) scheme: Option<Scheme>,
    /// average bits
    #[serde(default)]
    pub(crate) bits: Option<f64>,
    /// what was fine-tuned in a block
    pub(crate) tuned: Vec<TunedPart>,
    /// whether the whole model was fine-tuned, too
    pub(crate) end_to_end: bool,
    /// calibration sequences
    #[serde(default)]
    pub(crate) sequences: Option<usize>,
    /// tokens in a calibration sequence
    #[serde(default)]
    pub(crate) seqlen: Option<usize>,
    /// tokens in a window of a perplexity
    pub(crate) ctx: usize,
    /// figures by column
    pub(crate) figures: BTreeMap<String, f64>,
    /// how they were measured
    pub(crate) source: String,
}

/// Times of the official CUDA kernels.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OfficialKernels {
    /// how they were measured
    pub(super) source: String,
    /// every time
    pub(super) rows: Vec<OfficialKernel>,
}

/// One product of a matrix and a vector.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OfficialKernel {
    /// the GPU
    pub(super) device: String,
    /// rows of the matrix
    pub(super) out_features: usize,
    /// its columns
    pub(super) in_features: usize,
    /// the scheme; `None` for the dense product in FP16
    #[serde(default)]
    pub(super) scheme: Option<Scheme>,
    /// time of a product
    pub(super) microseconds: f64,
}

impl Official {
    /// Reads golden/paper/official.json.
    pub(super) fn read() -> Result<Self> {
        parsed(OFFICIAL)
    }

    /// The time of a product of this shape on a GPU whose name begins like `device`. Without a device: on the
    /// GPU listed last.
    pub(super) fn kernel(
        &self,
        device: Option<&str>,
        shape: (usize, usize),
        scheme: Option<Scheme>,
    ) -> Option<&OfficialKernel> {
        self.kernels.rows.iter().rfind(|row| {
            (row.out_features, row.in_features) == shape
                && row.scheme == scheme
                && device.is_none_or(|device| device.starts_with(&row.device))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::models::model;
    use super::super::paper::columns;
    use super::*;

    #[test]
    fn figures_are_finite_and_bits_follow_from_the_scheme() {
        let official = Official::read().unwrap();
        let known = columns().unwrap();
        for row in &official.models {
            let model = model(&row.model).unwrap();
            if let (Some(scheme), Some(bits)) = (row.scheme, row.bits) {
                assert!((model.bits_per_parameter(scheme) - bits).abs() < 1e-9, "{row:?}");
            }
            assert!(!row.figures.is_empty());
            for (column, value) in &row.figures {
                assert!(
                    value.is_finite() && *value > 0.0 && known.contains_key(column),
                    "{row:?}"
                );
            }
            assert_eq!(row.sequences.is_some(), row.seqlen.is_some());
        }
        for row in &official.kernels.rows {
            assert!(row.microseconds.is_finite() && row.microseconds > 0.0, "{row:?}");
        }
    }

    #[test]
    fn kernels_are_found_by_shape_scheme_and_device() {
        let official = Official::read().unwrap();
        let scheme = Some("2x8g8".parse().unwrap());
        let time = |device, scheme| {
            official
                .kernel(device, (11008, 4096), scheme)
                .map(|row| row.microseconds)
        };
        assert_eq!(
            time(Some("NVIDIA H200, compute capability 9.0"), scheme),
            Some(23.77)
        );
        assert_eq!(time(Some("NVIDIA H100 80GB HBM3"), None), Some(36.02));
        assert_eq!(time(None, None), Some(25.17));
        assert_eq!(time(Some("NVIDIA A100"), scheme), None);
    }
}
