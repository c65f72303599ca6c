use serde::{Deserialize, Serialize};

use crate::backends::BackendKind;

/// Text that a model generated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerateRecord {
    /// the model, as named on the command line
    pub model: String,
    /// the prompt
    pub prompt: String,
    /// its continuation
    pub text: String,
    /// the continuation's token ids
    pub tokens: Vec<u32>,
    /// tokens of the prompt, including a document-start token
    pub prompt_tokens: usize,
    /// seconds of the continuation, without the prompt
    pub seconds: f64,
    /// tokens of the continuation per second
    pub tokens_per_second: f64,
    /// the backend
    pub backend: BackendKind,
}
