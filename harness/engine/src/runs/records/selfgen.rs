use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::backends::BackendKind;

/// A file of text that a model wrote itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SelfgenRecord {
    /// the model, as named on the command line
    pub model: String,
    /// the file with the texts
    #[serde(serialize_with = "super::path_as_text")]
    pub out: PathBuf,
    /// texts
    pub texts: usize,
    /// their tokens, with the markers that a reader of the file adds
    pub tokens: usize,
    /// texts that the model ended itself
    pub ended: usize,
    /// most tokens of a text
    pub seqlen: usize,
    /// temperature of the draws
    pub temperature: f64,
    /// share of the probability from which tokens were drawn
    pub top_p: f64,
    /// seed of the draws
    pub seed: u64,
    /// the file with the prompts; `None` for documents from their beginning
    pub prompts: Option<String>,
    /// seconds of writing
    pub seconds: f64,
    /// `tokens` / `seconds`
    pub tokens_per_second: f64,
    /// the backend
    pub backend: BackendKind,
}
