use serde::{Deserialize, Serialize};

use crate::backends::BackendKind;
use crate::protocol::Protocol;

/// Perplexity of a model on a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// exp(mean_nll)
    #[serde(deserialize_with = "super::null_is_nan")]
    pub perplexity: f64,
    /// mean negative log-likelihood of a predicted token, in nats
    #[serde(deserialize_with = "super::null_is_nan")]
    pub mean_nll: f64,
    /// predicted tokens that count
    pub tokens: usize,
    /// those whose loss is NaN or infinite; the mean is not finite, either, unless there are none
    pub not_finite: usize,
    /// windows
    pub windows: usize,
    /// tokens in a window
    pub ctx: usize,
    /// how the text was cut into windows, and which predictions count
    pub protocol: Protocol,
    /// what AQLM's code would measure, where it drops the last window and GPTQ's code does not
    pub strict: Option<StrictPerplexity>,
    /// the model, as named on the command line
    pub model: String,
    /// the text's file
    pub data: String,
    /// the backend
    pub backend: BackendKind,
}

/// Perplexity without the last window: AQLM's code counts a window only if tokens follow it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StrictPerplexity {
    /// over these windows
    #[serde(deserialize_with = "super::null_is_nan")]
    pub perplexity: f64,
    /// one window fewer than `windows`
    pub windows: usize,
}
