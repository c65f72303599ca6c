use serde::{Deserialize, Serialize};

use crate::backends::BackendKind;
use crate::protocol::Protocol;

/// Divergence of a model from the dense model on a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DivergenceRecord {
    /// the model, as named on the command line
    pub model: String,
    /// the dense model, as named on the command line; `None` when a base file stands for it
    pub against: Option<String>,
    /// the base file that was read, if any
    pub base: Option<String>,
    /// the text's file
    pub data: String,
    /// how the text was cut into windows, and which predictions count
    pub protocol: Protocol,
    /// tokens in a window
    pub ctx: usize,
    /// windows
    pub windows: usize,
    /// the backend
    pub backend: BackendKind,
    /// least log-probability of a token in the dense model for the token to count in the divergence, in nats:
    /// llama.cpp's rule for its base files; `None` when all tokens count
    pub floor: Option<f64>,
    /// the model against the dense model
    pub divergence: Box<DivergenceStatistics>,
    /// the dense model against itself, rounded to bf16 behind every block; `None` where it was not measured
    pub noise_floor: Option<Box<DivergenceStatistics>>,
}

/// Statistics over the scored positions. Positions at which a loss or the divergence is NaN or infinite are
/// counted in `not_finite` and enter nothing else. Divergences and losses are in nats.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DivergenceStatistics {
    /// positions with finite numbers
    pub positions: usize,
    /// the other scored positions
    pub not_finite: usize,
    /// KL(dense || model) of the next-token distributions
    pub kl: Estimate,
    /// quantiles of the same
    pub kl_percentiles: Percentiles,
    /// share of positions at which both models have the same most likely token
    pub same_top: Estimate,
    /// probability of the text's token in the model minus that in the dense model
    pub delta_p: Estimate,
    /// quantiles of the same
    pub delta_p_percentiles: Percentiles,
    /// root of the mean square of the same
    pub delta_p_rms: Estimate,
    /// perplexity of the model
    pub perplexity: Estimate,
    /// perplexity of the dense model
    pub dense_perplexity: Estimate,
    /// ln(perplexity / dense perplexity); the error is that of the mean of paired differences of losses
    pub ln_ratio: Estimate,
    /// Pearson's correlation of the two models' losses
    #[serde(deserialize_with = "super::null_is_nan")]
    pub loss_correlation: f64,
    /// the positions by the dense model's largest probability
    pub buckets: Vec<Bucket>,
}

/// A mean, or a function of one, with its standard error: the standard deviation of the mean, or its image to
/// first order.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// the figure
    #[serde(deserialize_with = "super::null_is_nan")]
    pub value: f64,
    /// its standard error; NaN for fewer than two positions
    #[serde(deserialize_with = "super::null_is_nan")]
    pub error: f64,
}

/// Quantiles with linear interpolation: those of llama.cpp, and both quartiles.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// largest value
    #[serde(deserialize_with = "super::null_is_nan")]
    pub maximum: f64,
    /// 99.9 %
    #[serde(deserialize_with = "super::null_is_nan")]
    pub p99_9: f64,
    /// 99 %
    #[serde(deserialize_with = "super::null_is_nan")]
    pub p99: f64,
    /// 95 %
    #[serde(deserialize_with = "super::null_is_nan")]
    pub p95: f64,
    /// 90 %
    #[serde(deserialize_with = "super::null_is_nan")]
    pub p90: f64,
    /// 75 %
    #[serde(deserialize_with = "super::null_is_nan")]
    pub p75: f64,
    /// 50 %
    #[serde(deserialize_with = "super::null_is_nan")]
    pub median: f64,
    /// 25 %
    #[serde(deserialize_with = "super::null_is_nan")]
    pub p25: f64,
    /// 10 %
    #[serde(deserialize_with = "super::null_is_nan")]
    pub p10: f64,
    /// 5 %
    #[serde(deserialize_with = "super::null_is_nan")]
    pub p5: f64,
    /// 1 %
    #[serde(deserialize_with = "super::null_is_nan")]
    pub p1: f64,
    /// 0.1 %
    #[serde(deserialize_with = "super::null_is_nan")]
    pub p0_1: f64,
    /// smallest value
    #[serde(deserialize_with = "super::null_is_nan")]
    pub minimum: f64,
}

/// Positions at which the dense model's largest probability is at least `from` and below `to`; the last
/// bucket includes 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    /// least probability
    pub from: f64,
    /// end of the interval
    pub to: f64,
    /// positions
    pub positions: usize,
    /// KL(dense || model) over them
    pub kl: Estimate,
    /// share of them with the same most likely token
    pub same_top: Estimate,
}
