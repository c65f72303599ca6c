use aqlm_formats::tokenizer::Tokenizer;
use aqlm_formats::{Error, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Whether a text of a task begins with the token that starts a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Bos {
    /// if the tokenizer puts it there, as lm-eval does since 0.4.9.2
    Auto,
    /// no, as lm-eval did before, and with it the tables of papers until 2025
    Never,
    /// yes, even if the tokenizer does not
    Always,
}

impl Bos {
    /// The tokens of a text.
    ///
    /// # Errors
    /// `Argument` when BOS is wanted of a tokenizer that has none; those of the tokenizer.
    pub fn encode(self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
        if self == Self::Always && !tokenizer.adds_bos() {
            let bos = tokenizer.bos().ok_or_else(|| {
                let found = format!("none in {}", tokenizer.path().display());
                Error::argument("bos", "a tokenizer with a token that starts a document", found)
            })?;
            let mut tokens = tokenizer.encode(text, false)?;
            tokens.insert(0, bos);
            return Ok(tokens);
        }
        tokenizer.encode(text, self != Self::Never)
    }
}
