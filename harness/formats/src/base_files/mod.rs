//! Base files: the log-probabilities of a dense model on a text, kept for comparisons with quantized models.
//!
//! [`lossless`] keeps logits exactly as the backend computed them, [`llama_cpp`] reads and writes the file
//! that `llama-perplexity --kl-divergence-base` makes. docs/formats.md 8 describes both.

pub mod llama_cpp;
pub mod lossless;
mod rows;

use std::fs::File;
use std::io::Read;
use std::path::Path;

pub use llama_cpp::{LlamaCppBase, LlamaCppWriter};
pub use lossless::{BaseKey, LosslessBase, LosslessWriter, Precision};
pub use rows::rows_of;

use crate::{Error, Result};

/// A base file of either kind, opened.
#[derive(Debug)]
pub enum BaseFile {
    /// logits as computed
    Lossless(LosslessBase),
    /// log-probabilities in 16 bits
    LlamaCpp(LlamaCppBase),
}

impl BaseFile {
    /// Opens a file of either kind; its first bytes decide.
    ///
    /// # Errors
    /// `Io`; those of [`LosslessBase::open`] and [`LlamaCppBase::open`].
    pub fn open(path: &Path) -> Result<Self> {
        let mut start = Vec::new();
        File::open(path)
            .and_then(|file| file.take(llama_cpp::MAGIC.len() as u64).read_to_end(&mut start))
            .map_err(Error::io(path, "read"))?;
        if start == llama_cpp::MAGIC {
            LlamaCppBase::open(path).map(Self::LlamaCpp)
        } else {
            LosslessBase::open(path).map(Self::Lossless)
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Lossless(base) => base.path(),
            Self::LlamaCpp(base) => base.path(),
        }
    }

    /// Number of tokens of the vocabulary.
    pub fn vocab(&self) -> usize {
        match self {
            Self::Lossless(base) => base.vocab(),
            Self::LlamaCpp(base) => base.vocab(),
        }
    }

    /// The windows' token ids.
    pub fn windows(&self) -> Vec<&[u32]> {
        match self {
            Self::Lossless(base) => base.windows(),
            Self::LlamaCpp(base) => base.windows(),
        }
    }
}

#[cfg(test)]
mod tests;
