//! Text that a model writes itself, for calibration and tuning.

use std::path::Path;

use aqlm_formats::tokenizer::Tokenizer;
use aqlm_formats::{Error, Result};
use aqlm_vocabulary::{Purpose, stream};

use crate::generate::{Sampling, generate};
use crate::ops::ResidentModel;

/// Texts that are written at most before the next look at their number of tokens.
const WAVE: usize = 64;

/// What a model is to write.
#[derive(Debug, Clone, PartialEq)]
pub struct SelfText {
    /// texts are written until they have so many tokens, with the markers that a reader of the file adds
    pub tokens: usize,
    /// most tokens of a text
    pub seqlen: usize,
    /// how a token is drawn
    pub sampling: Sampling,
    /// text i draws from the stream of (this seed, i)
    pub seed: u64,
    /// text i continues prompt i modulo their number; empty: every text is a document of its own
    pub prompts: Vec<Vec<u32>>,
}

/// A text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// its tokens, without the prompt's and without markers
    pub tokens: Vec<u32>,
    /// whether the model ended it itself
    pub ended: bool,
}

/// Prompts from the beginnings of documents: the first `length` tokens of each that has as many. BOS comes
/// first if the tokenizer has one, and counts.
///
/// # Errors
/// `Argument` when no document is long enough; those of the tokenizer.
pub fn prompts(
    documents: &[String],
    path: &Path,
    tokenizer: &Tokenizer,
    length: usize,
) -> Result<Vec<Vec<u32>>> {
    let mut prompts = Vec::new();
    for document in documents {
        let mut tokens: Vec<u32> = tokenizer.bos().into_iter().collect();
        tokens.extend(tokenizer.encode(document, false)?);
        if tokens.len() >= length {
            tokens.truncate(length);
            prompts.push(tokens);
        }
    }
    if prompts.is_empty() || length == 0 {
        return Err(Error::TooShort {
            path: path.into(),
            what: "one prompt".into(),
            expected: length.max(1),
            found: 0,
        });
    }
    Ok(prompts)
}

impl SelfText {
    /// Lets a model write. Text i depends on the model, the settings and i alone: neither on other texts nor
    /// on the number of texts that a machine writes at once. `progress` receives the tokens of every wave.
    ///
    /// # Errors
    /// `Argument` for zero tokens, and without prompts for a tokenizer without BOS, and for a model that
    /// ends every text at once; those of the model.
    pub fn write(
        &self,
        model: &mut dyn ResidentModel,
        tokenizer: &Tokenizer,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<Written>> {
        for (name, value) in [("--tokens", self.tokens), ("--seqlen", self.seqlen)] {
            if value == 0 {
                return Err(Error::argument(name, "1 or more", "0"));
            }
        }
        let start = match tokenizer.bos() {
            Some(bos) => vec![bos],
            None if self.prompts.is_empty() => {
                let found = format!("none in {}", tokenizer.path().display());
                return Err(Error::argument(
                    "--prompts",
                    "prompts, or a tokenizer with BOS",
                    found,
                ));
            }
            None => Vec::new(),
        };
        let markers = usize::from(tokenizer.bos().is_some()) + usize::from(tokenizer.eos().is_some());
        let mut texts: Vec<Written> = Vec::new();
        let mut total = 0;
        while total < self.tokens {
            let first = texts.len();
            // Texts beyond the wanted tokens are dropped below, so no text depends on this number.
            let least = rayon::current_num_threads().min(WAVE);
            let count = (self.tokens - total)
                .div_ceil(self.seqlen + markers)
                .clamp(least, WAVE);
            let wave = model.write_texts(count, &|index, session| {
                let index = first + index;
                let prompt = match self.prompts.len() {
                    0 => &start,
                    count => &self.prompts[index % count],
                };
                // streams have two numbers of their own, of which the second is a block's elsewhere
                let mut rng = stream(self.seed, index, None, Purpose::Generation);
                let stops = tokenizer.stops();
                let written = generate(
                    session,
                    prompt,
                    self.seqlen,
                    stops,
                    self.sampling,
                    &mut rng,
                    &mut |_| true,
                )?;
                Ok(written.tokens)
            })?;
            if wave.iter().all(Vec::is_empty) {
                let found = format!("{} texts that end before their first token", wave.len());
                return Err(Error::argument("model", "one that writes", found));
            }
            let before = total;
            for tokens in wave {
                if total >= self.tokens {
                    break;
                }
                total += tokens.len() + markers;
                texts.push(Written {
                    ended: tokens.len() < self.seqlen,
                    tokens,
                });
            }
            progress(total - before);
        }
        Ok(texts)
    }
}
