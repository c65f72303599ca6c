use std::collections::BTreeMap;

use aqlm_vocabulary::{ArchSpec, BlockSpec, Scheme};
use serde::Deserialize;

use super::paper::{parsed, unknown};
use aqlm_formats::{Error, Result};

/// The models that tables and plans know.
const MODELS: (&str, &str) = (
    "models.json",
    include_str!("../../../../golden/paper/models.json"),
);

/// The shape of a model, and where plans look for it and its texts.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PaperModel {
    /// its name
    pub model: String,
    /// width of the residual stream
    pub hidden_size: usize,
    /// width inside one MLP
    pub intermediate_size: usize,
    /// blocks
    pub blocks: usize,
    /// query heads
    pub heads: usize,
    /// key and value heads
    pub kv_heads: usize,
    /// width of one head
    pub head_dim: usize,
    /// MLPs in a block; 1 without experts
    pub experts: usize,
    /// tokens in the vocabulary
    pub vocab_size: usize,
    /// whether the head shares the embedding's weights
    pub tied: bool,
    /// path of the dense model in planned commands
    pub path: String,
    /// calibration text in planned commands
    pub calibration: String,
    /// tokens in a calibration sequence
    pub seqlen: usize,
    /// evaluation texts by column; for a model of the paper, as the paper measures
    pub evaluations: BTreeMap<String, PaperEvaluation>,
    /// where the shape stands
    pub source: String,
}

/// A column's evaluation.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PaperEvaluation {
    /// the text in planned commands
    pub data: String,
    /// tokens in a window
    pub ctx: usize,
    /// about how many tokens the text has, for estimates of time
    pub tokens: usize,
    /// other arguments of `aqlm eval`
    #[serde(default)]
    pub arguments: Vec<String>,
}

/// Every known model.
///
/// # Errors
/// `Internal` for a golden/paper/models.json that does not parse.
pub fn models() -> Result<Vec<PaperModel>> {
    parsed(MODELS)
}

/// Name of the known model that stands at a path in planned commands. The embedded model's runs name it with
/// "(embedded)" before.
///
/// # Errors
/// Those of [`models`].
pub(crate) fn name_at(path: &str) -> Result<Option<String>> {
    let path = path.strip_prefix("(embedded) ").unwrap_or(path);
    let known = models()?.into_iter().find(|model| model.path == path);
    Ok(known.map(|model| model.model))
}

/// The model of a name.
///
/// # Errors
/// `Argument` for an unknown name, with the known ones; those of [`models`].
pub fn model(name: &str) -> Result<PaperModel> {
    let all = models()?;
    let known: Vec<String> = all.iter().map(|model| model.model.clone()).collect();
    all.into_iter()
        .find(|model| model.model == name)
        .ok_or_else(|| unknown("model", &known, name))
}

impl PaperModel {
    /// (out_features, in_features) of every quantized layer of a block. Routers of experts stay dense.
    pub fn linears(&self) -> Vec<(usize, usize)> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut linears = vec![
            (queries, hidden),
            (keys, hidden),
            (keys, hidden),
            (hidden, queries),
        ];
        for _ in 0..self.experts {
            linears.extend([(inner, hidden), (inner, hidden), (hidden, inner)]);
        }
        linears
    }

    /// Number of inputs of every Hessian of a block: attention's input, its output, and for each MLP the
    /// input (shared by all experts) and the activation.
    pub fn hessians(&self) -> Vec<usize> {
        let mut inputs = vec![self.hidden_size, self.heads * self.head_dim, self.hidden_size];
        inputs.extend(std::iter::repeat_n(self.intermediate_size, self.experts));
        inputs
    }

    /// Weights of a block's quantized layers.
    pub fn block_parameters(&self) -> usize {
        self.linears().iter().map(|(rows, columns)| rows * columns).sum()
    }

    /// Weights of the embedding and the head; a tied head counts once.
    pub fn outer_parameters(&self) -> usize {
        self.vocab_size * self.hidden_size * if self.tied { 1 } else { 2 }
    }

    /// Average bits of a quantized weight (paper appendix H, equation 10), over all layers.
    pub fn bits_per_parameter(&self, scheme: Scheme) -> f64 {
        let bits: f64 = self
            .linears()
            .iter()
            .map(|&(rows, columns)| scheme.bits(rows, columns))
            .sum();
        bits / self.block_parameters() as f64
    }

    /// Refuses a model of another shape.
    ///
    /// # Errors
    /// `Argument` with the first number that differs.
    pub fn check_shape(&self, arch: &ArchSpec) -> Result<()> {
        let block = arch.blocks.first();
        let of_block = |number: fn(&BlockSpec) -> usize| block.map_or(0, number);
        for (what, expected, found) in [
            ("blocks", self.blocks, arch.blocks.len()),
            ("hidden_size", self.hidden_size, arch.hidden_size),
            ("vocab_size", self.vocab_size, arch.vocab_size),
            (
                "intermediate_size",
                self.intermediate_size,
                of_block(BlockSpec::intermediate_size),
            ),
            ("heads", self.heads, of_block(|block| block.attention.heads)),
            (
                "kv_heads",
                self.kv_heads,
                of_block(|block| block.attention.kv_heads),
            ),
        ] {
            if expected != found {
                return Err(Error::argument(
                    "model of the grid",
                    &format!("{}, with {what} {expected}", self.model),
                    format!("one with {what} {found}"),
                ));
            }
        }
        Ok(())
    }

    /// The first layer that the scheme does not divide, or that has fewer groups than a codebook has
    /// codewords, in words; `None` if the scheme fits every layer.
    pub fn misfit(&self, scheme: Scheme) -> Option<String> {
        self.linears().into_iter().find_map(|(rows, columns)| {
            let layer = format!("a layer of {rows} to {columns}");
            match scheme.groups(rows, columns) {
                Err(error) => Some(format!("{layer}: {error}")),
                Ok((out_groups, in_groups)) if out_groups * in_groups < scheme.codebook_size() => {
                    Some(format!(
                        "{layer} has {} groups for {} codewords",
                        out_groups * in_groups,
                        scheme.codebook_size()
                    ))
                }
                Ok(_) => None,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn average_bits_of_known_models() {
        for (name, scheme, bits) in [
            ("llama-2-7b", "1x15g8", 2.023),
            ("llama-2-13b", "2x11g8", 2.764),
            ("llama-2-70b", "2x16g8", 4.139),
            ("mistral-7b", "1x15g8", 2.013),
            ("mixtral-8x7b", "2x15g8", 3.915),
            ("smollm2-135m", "2x8g8", 2.153),
            ("tiny-stories-4m", "2x6g8", 1.696),
        ] {
            let found = model(name).unwrap().bits_per_parameter(scheme.parse().unwrap());
            assert!((found - bits).abs() < 5e-4, "{name} {scheme}: {found}");
        }
    }

    #[test]
    fn the_embedded_model_has_its_own_shape_and_no_other() {
        let embedded = aqlm_formats::model::Model::embedded().unwrap();
        model("tiny-stories-4m")
            .unwrap()
            .check_shape(embedded.config())
            .unwrap();
        let error = model("smollm2-135m")
            .unwrap()
            .check_shape(embedded.config())
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "model of the grid: expected smollm2-135m, with blocks 30, found one with blocks 4"
        );
    }

    #[test]
    fn unknown_names_list_the_known_ones() {
        let error = model("llama-3").unwrap_err().to_string();
        assert!(
            error.starts_with("model: expected one of llama-2-7b, ") && error.ends_with("found `llama-3`"),
            "{error}"
        );
    }

    #[test]
    fn schemes_that_do_not_fit_are_told() {
        let tiny = model("tiny-stories-4m").unwrap();
        let misfit = |scheme: &str| tiny.misfit(scheme.parse().unwrap());
        assert_eq!(misfit("2x6g8"), None);
        assert_eq!(
            misfit("1x15g8").unwrap(),
            "a layer of 256 to 256 has 8192 groups for 32768 codewords"
        );
        assert!(misfit("1x6g24").unwrap().contains("256"));
    }
}
