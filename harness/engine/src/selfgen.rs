//! Text that a model writes itself, for calibration and tuning.

use std::path::Path;

use aqlm_formats::durable::sha256;
use aqlm_formats::tokenizer::Tokenizer;
use aqlm_formats::{Error, Result};
use aqlm_vocabulary::{Purpose, stream};
use serde::{Deserialize, Serialize};

use crate::generate::{Sampling, generate};
use crate::ops::ResidentModel;
use crate::runs::json_lines::JsonLines;
use crate::runs::lock::FileLock;

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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// its tokens, without the prompt's and without markers
    pub tokens: Vec<u32>,
    /// whether the model ended it itself
    pub ended: bool,
}

/// A wave of texts of an unfinished run.
#[derive(Debug, Serialize, Deserialize)]
struct Wave {
    /// fingerprint of what decides the texts
    of: String,
    /// number of the first text
    first: usize,
    texts: Vec<Written>,
    /// of the texts, as JSON
    sha256: String,
}

/// The texts of an unfinished run, in a file that grows by a wave at a time.
pub struct Unfinished {
    of: String,
    waves: JsonLines<Wave>,
    /// held as long as this value lives
    _lock: FileLock,
}

/// SHA-256 of texts as JSON.
fn digest(texts: &[Written]) -> Result<String> {
    let json =
        serde_json::to_vec(texts).map_err(|error| Error::Internal(format!("texts as JSON: {error}")))?;
    Ok(sha256(&json))
}

impl Unfinished {
    /// Opens the file, or prepares a new one. `model` is the model's fingerprint.
    ///
    /// # Errors
    /// `Exists` for a file without `resume`, and when another process writes to it; `Field` for one of
    /// another run, or whose texts are not those that were written; `Io`.
    pub fn open(path: &Path, resume: bool, model: &str, text: &SelfText) -> Result<Self> {
        if path.exists() && !resume {
            return Err(Error::Exists {
                path: path.into(),
                what: "texts of an unfinished run: --resume continues it".into(),
            });
        }
        // The number of tokens may grow: texts do not depend on it.
        let of = sha256(
            format!(
                "{model} {} {:?} {} {:?}",
                text.seqlen, text.sampling, text.seed, text.prompts
            )
            .as_bytes(),
        );
        let lock = FileLock::take(path)?;
        let waves = JsonLines::<Wave>::open(path, "a wave of texts")?;
        let mut first = 0;
        for (line, wave) in (1..).zip(waves.records()) {
            let differs = |field: &str, expected: String, found: String| Error::Field {
                path: path.into(),
                field: format!("`{field}` of line {line}"),
                expected,
                found,
            };
            if wave.of != of {
                let expected = format!("{of}, this model with these settings and prompts");
                return Err(differs("of", expected, wave.of.clone()));
            }
            if wave.first != first {
                return Err(differs("first", first.to_string(), wave.first.to_string()));
            }
            let sha256 = digest(&wave.texts)?;
            if wave.sha256 != sha256 {
                return Err(differs("sha256", sha256, wave.sha256.clone()));
            }
            first += wave.texts.len();
        }
        Ok(Self {
            of,
            waves,
            _lock: lock,
        })
    }

    fn texts(&self) -> Vec<Written> {
        let waves = self.waves.records().iter();
        waves.flat_map(|wave| wave.texts.iter().cloned()).collect()
    }

    fn append(&mut self, texts: &[Written]) -> Result<()> {
        let waves = self.waves.records().iter();
        self.waves.append(Wave {
            of: self.of.clone(),
            first: waves.map(|wave| wave.texts.len()).sum(),
            texts: texts.to_vec(),
            sha256: digest(texts)?,
        })
    }

    /// Removes the file, once its texts are elsewhere.
    ///
    /// # Errors
    /// `Io`.
    pub fn remove(self) -> Result<()> {
        let path = self.waves.path();
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(path, "remove")(error))
            }
            _ => Ok(()),
        }
    }
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
    /// on the number of texts that a machine writes at once. So a run that continues an unfinished one ends
    /// in the same texts. `progress` receives the tokens of the texts that are there, and then of every wave.
    ///
    /// # Errors
    /// `Argument` for zero tokens, and without prompts for a tokenizer without BOS, and for a model that
    /// ends every text at once; those of the model; `Io`.
    pub fn write(
        &self,
        model: &mut dyn ResidentModel,
        tokenizer: &Tokenizer,
        unfinished: &mut Unfinished,
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
        // Another number of tokens may have been asked for: those texts count that are needed now.
        for text in unfinished.texts() {
            if total < self.tokens {
                total += text.tokens.len() + markers;
                texts.push(text);
            }
        }
        progress(total);
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
            unfinished.append(&texts[first..])?;
            progress(total - before);
        }
        Ok(texts)
    }
}
