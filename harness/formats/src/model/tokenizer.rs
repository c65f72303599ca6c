use std::path::PathBuf;

use super::{Model, embedded};
use crate::gguf::GgufTokenizer;
use crate::huggingface::generation_stops;
use crate::tokenizer::Tokenizer;
use crate::tokenizer::sentence_piece::{self, Beside};
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
    /// `Kind` when the folder has neither tokenizer.json nor tokenizer.model; `Tokenizer`, `Json`, `Field`
    /// and `Unsupported` when its files are invalid; `Vocabulary` when it has ids beyond the embedding.
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
                let model = folder.join("tokenizer.model");
                let tokenizer = if path.is_file() {
                    Tokenizer::from_file(&path)?.with_markers(bos, eos)
                } else if model.is_file() {
                    let bytes = std::fs::read(&model).map_err(Error::io(&model, "read"))?;
                    let beside = Beside::read(folder)?;
                    let tokenizer = sentence_piece::from_bytes(&model, &bytes, &beside)?;
                    // the model's configuration outweighs the file's own markers
                    let bos = bos.or(tokenizer.bos());
                    let eos = if eos.is_empty() {
                        tokenizer.stops().to_vec()
                    } else {
                        eos
                    };
                    tokenizer.with_markers(bos, eos)
                } else {
                    return Err(Error::Kind {
                        path: folder.clone(),
                        expected: "a tokenizer.json or SentencePiece's tokenizer.model".into(),
                        found: "neither".into(),
                    });
                }
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
