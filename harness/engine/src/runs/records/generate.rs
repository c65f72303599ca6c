use serde::{Deserialize, Serialize};

use crate::backends::BackendKind;

/// What a model wrote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerateRecord {
    /// the model, as it was named
    pub model: String,
    /// the text that it continued
    pub prompt: String,
    /// its continuation
    pub text: String,
    /// the continuation's token ids
    pub tokens: Vec<u32>,
    /// tokens of the prompt, a document-start token included
    pub prompt_tokens: usize,
    /// seconds spent on the continuation, the prompt's not included
    pub seconds: f64,
    /// tokens of the continuation a second
    pub tokens_per_second: f64,
    /// which backend computed
    pub backend: BackendKind,
}
