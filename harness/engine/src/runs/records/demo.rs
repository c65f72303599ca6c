use serde::{Deserialize, Serialize};

/// What `aqlm demo` came to.
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
    /// over all quantized weights: codes, codebooks and scales
    pub bits_per_parameter: f64,
    /// bytes of the dense model's tensors
    pub bytes_before: u64,
    /// bytes of the quantized model's tensors
    pub bytes_after: u64,
    /// the prompt and what the dense model makes of it
    pub text_before: String,
    /// the prompt and what the quantized model makes of it
    pub text_after: String,
    /// seconds of all of this
    pub seconds: f64,
    /// folder of the quantized model, where it was kept
    pub out: Option<String>,
}
