//! Perplexity protocols: how a text becomes windows of tokens, and which predictions count.
//!
//! Figures of different protocols are not comparable, not even for the same text and model.
//! docs/evaluation.md describes each protocol and its source.

mod bos;
mod c4;
mod python_random;

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use aqlm_formats::base_files::llama_cpp::first_scored;
use aqlm_formats::base_files::rows_of;
use aqlm_formats::texts::{TextFormat, TokenStream};
use aqlm_formats::tokenizer::Tokenizer;
use aqlm_formats::{Error, Result};

pub use bos::Bos;

/// A protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// windows that do not overlap, all predictions; GPTQ, AQLM, QuIP#, QTIP
    Gptq,
    /// 256 random windows of C4's validation documents, all predictions; the same papers
    C4,
    /// the first 1100 documents of C4's validation, joined by spaces, 256 windows, all predictions
    C4New,
    /// chunks that begin with BOS, predictions of the second half; llama.cpp
    LlamaCpp,
    /// every token of the text once; the last window is shorter
    Plain,
}

impl Protocol {
    /// Its name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gptq => "gptq",
            Self::C4 => "c4",
            Self::C4New => "c4-new",
            Self::LlamaCpp => "llama-cpp",
            Self::Plain => "plain",
        }
    }

    /// Tokens in a window unless the user wants another number, for a model of at most `longest` positions:
    /// llama.cpp's default of 512, else 2048.
    pub fn default_ctx(self, longest: usize) -> usize {
        match self {
            Self::LlamaCpp => longest.min(512),
            _ => longest.min(2048),
        }
    }

    /// Cuts the text of a file into windows of `ctx` tokens, at most `limit` of them. `format` is needed
    /// where the file's name does not tell it.
    ///
    /// # Errors
    /// `Argument` for a `ctx` without a scored position or a `limit` of 0; `TooShort` for a text without a
    /// window (two windows for llama.cpp, which refuses less); those of reading and tokenizing the text.
    pub fn cut(
        self,
        path: &Path,
        format: Option<TextFormat>,
        tokenizer: &Tokenizer,
        ctx: usize,
        limit: Option<usize>,
    ) -> Result<EvaluationText> {
        let least = if self == Self::LlamaCpp { 3 } else { 2 };
        if ctx < least {
            return Err(Error::argument(
                "ctx",
                &format!("{least} or more"),
                ctx.to_string(),
            ));
        }
        if limit == Some(0) {
            return Err(Error::argument("windows", "1 or more", "0"));
        }
        let most = limit.unwrap_or(usize::MAX);
        let stream = || TokenStream::load_as(path, format, tokenizer);
        let owned = |windows: Vec<&[u32]>| windows.into_iter().map(<[u32]>::to_vec).collect::<Vec<_>>();
        let mut multiple = false;
        let mut windows = match self {
            Self::Gptq => {
                let stream = stream()?;
                multiple = stream.tokens().len().is_multiple_of(ctx);
                owned(stream.windows(ctx)?)
            }
            Self::C4 => c4::drawn(path, format, tokenizer, ctx, most)?,
            Self::C4New => c4::joined(path, format, tokenizer, ctx)?,
            Self::LlamaCpp => {
                let stream = stream()?;
                let found = stream.tokens().len();
                if found < 2 * ctx {
                    return Err(Error::TooShort {
                        path: path.into(),
                        what: format!("two windows of {ctx}, as llama.cpp requires"),
                        expected: 2 * ctx,
                        found,
                    });
                }
                owned(stream.windows(ctx)?)
            }
            Self::Plain => {
                let stream = stream()?;
                // A last window of one token predicts nothing.
                let windows = stream.tokens().chunks(ctx).filter(|window| window.len() > 1);
                let windows: Vec<Vec<u32>> = windows.map(<[u32]>::to_vec).collect();
                if windows.is_empty() {
                    return Err(Error::TooShort {
                        path: path.into(),
                        what: "one prediction".into(),
                        expected: 2,
                        found: stream.tokens().len(),
                    });
                }
                windows
            }
        };
        if matches!(self, Self::C4 | Self::C4New) {
            multiple = windows.len() == c4::WINDOWS;
        }
        let whole = windows.len() <= most;
        windows.truncate(most);
        Ok(EvaluationText {
            path: path.into(),
            protocol: self,
            ctx,
            bos: tokenizer
                .bos()
                .filter(|_| self == Self::LlamaCpp && tokenizer.adds_bos()),
            strict: (multiple && whole && windows.len() > 1).then(|| windows.len() - 1),
            windows,
        })
    }
}

/// A text cut into windows by a protocol.
#[derive(Debug, Clone, PartialEq)]
pub struct EvaluationText {
    path: PathBuf,
    protocol: Protocol,
    ctx: usize,
    windows: Vec<Vec<u32>>,
    /// the token that replaces the first one of every window before the model reads the window
    bos: Option<u32>,
    strict: Option<usize>,
}

impl EvaluationText {
    /// The text's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The protocol that cut it.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Tokens in a window; only the last one of the protocol `plain` may be shorter.
    pub fn ctx(&self) -> usize {
        self.ctx
    }

    /// The windows as they are in the text.
    pub fn windows(&self) -> Vec<&[u32]> {
        self.windows.iter().map(Vec::as_slice).collect()
    }

    /// The windows as the model reads them: llama.cpp replaces the first token of each by BOS if the
    /// tokenizer adds BOS.
    pub fn model_inputs(&self) -> Vec<Vec<u32>> {
        let mut inputs = self.windows.clone();
        if let Some(bos) = self.bos {
            for window in &mut inputs {
                window[0] = bos;
            }
        }
        inputs
    }

    /// First position of a window whose prediction counts. The prediction of position i is for token i + 1.
    pub fn first_scored(&self) -> usize {
        match self.protocol {
            Protocol::LlamaCpp => first_scored(self.ctx),
            _ => 0,
        }
    }

    /// Number of predictions that count.
    pub fn predictions(&self) -> usize {
        let of = |window: &Vec<u32>| rows_of(window.len(), self.first_scored());
        self.windows.iter().map(of).sum()
    }

    /// Number of windows that AQLM's code evaluates where it differs from GPTQ's: a window counts only if
    /// tokens follow it, so a text of exactly n windows has n - 1.
    pub fn strict_windows(&self) -> Option<usize> {
        self.strict
    }
}

#[cfg(test)]
mod tests;
