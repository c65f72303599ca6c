use serde::{Deserialize, Serialize};

use crate::backends::BackendKind;

/// Perplexity of a model on a text, over windows that do not overlap.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// exp(mean_nll)
    #[serde(deserialize_with = "super::null_is_nan")]
    pub perplexity: f64,
    /// mean negative log-likelihood of a predicted token, in nats
    #[serde(deserialize_with = "super::null_is_nan")]
    pub mean_nll: f64,
    /// predicted tokens: windows x (ctx - 1)
    pub tokens: usize,
    /// windows
    pub windows: usize,
    /// tokens in a window
    pub ctx: usize,
    /// the model, as named on the command line
    pub model: String,
    /// the text's file
    pub data: String,
    /// the backend
    pub backend: BackendKind,
}
