use serde::{Deserialize, Serialize};

/// Result of `aqlm demo`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DemoRecord {
    /// the scheme of the quantized model
    pub scheme: String,
    /// perplexity of the dense model
    #[serde(deserialize_with = "super::null_is_nan")]
    pub perplexity_before: f64,
    /// perplexity of the quantized model
    #[serde(deserialize_with = "super::null_is_nan")]
    pub perplexity_after: f64,
    /// codes, codebooks and scales, over all quantized weights
    pub bits_per_parameter: f64,
    /// bytes of the dense model's tensors
    pub bytes_before: u64,
    /// bytes of the quantized model's tensors
    pub bytes_after: u64,
    /// the prompt and the dense model's continuation
    pub text_before: String,
    /// the prompt and the quantized model's continuation
    pub text_after: String,
    /// total seconds
    pub seconds: f64,
    /// folder of the quantized model, if kept
    pub out: Option<String>,
}
