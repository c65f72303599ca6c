use std::path::PathBuf;

use super::{Model, embedded};
use crate::gguf::GgufTokenizer;
use crate::huggingface::generation_stops;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result, json};

/// Origin of the tokenizer.
#[derive(Debug)]
pub(crate) enum TokenizerSource {
    Folder(PathBuf),
    Embedded,
    Gguf(GgufTokenizer),
}

impl Model {
    pub(crate) fn tokenizer_source(&self) -> &TokenizerSource {
        &self.tokenizer
    }

    /// The model's tokenizer.
    ///
    /// # Errors
    /// `Kind` when the folder has no tokenizer.json; `Tokenizer`, `Json` and `Field` when its files are
    /// invalid; `Vocabulary` when it has ids beyond the embedding.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let (bos, eos) = (self.config.bos, self.config.eos.clone());
        let tokenizer = match &self.tokenizer {
            TokenizerSource::Embedded => {
                Tokenizer::from_bytes(&self.source.join("tokenizer.json"), embedded::TOKENIZER)?
                    .with_markers(bos, eos)
            }
            TokenizerSource::Gguf(gguf) => gguf.build()?.with_markers(bos, eos),
            TokenizerSource::Folder(folder) => {
                let path = folder.join("tokenizer.json");
                if !path.is_file() {
                    let old = folder.join("tokenizer.model").is_file();
                    return Err(Error::Kind {
                        path: folder.clone(),
                        expected: "a tokenizer.json".into(),
                        found: if old {
                            "only SentencePiece's tokenizer.model"
                        } else {
                            "none"
                        }
                        .into(),
                    });
                }
                let tokenizer = Tokenizer::from_file(&path)?
                    .with_markers(bos, eos)
                    .with_stops(generation_stops(folder)?);
                let config = folder.join("tokenizer_config.json");
                if config.is_file() {
                    tokenizer.with_tokenizer_config(&config, &json::read(&config)?)?
                } else {
                    tokenizer
                }
            }
        };
        let rows = self.config().vocab_size;
        match tokenizer.largest_id() {
            Some((id, token)) if id as usize >= rows => Err(Error::Vocabulary {
                path: self.source.clone(),
                rows,
                id,
                token,
            }),
            _ => Ok(tokenizer),
        }
    }
}
