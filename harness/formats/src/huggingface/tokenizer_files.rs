//! A checkpoint's tokenizer files.

use std::io::Write;
use std::path::Path;

use crate::durable::{write_json, write_synced};
use crate::model::{Model, TokenizerSource};
use crate::{Error, Result};

pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// Files other than weights that belong to a checkpoint and are copied unchanged.
const COPIED: [&str; 9] = [
    "tokenizer.json",
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
];

/// Copies the tokenizer files, or generates them if the source is not a folder. Returns their names.
pub(super) fn tokenizer_files(to: &Path, source: &Model) -> Result<Vec<String>> {
    let mut files = Vec::new();
    if let TokenizerSource::Folder(folder) = source.tokenizer_source() {
        for name in COPIED {
            let from = folder.join(name);
            if from.is_file() {
                let bytes = std::fs::read(&from).map_err(Error::io(&from, "read"))?;
                write_synced(&to.join(name), |file| file.write_all(&bytes))?;
                files.push(name.into());
            }
        }
        // Without this file, transformers guesses from the model's type; one generation of it then adds BOS
        // to every text.
        let has = |name: &str| files.iter().any(|file| file == name);
        if has("tokenizer.json") && !has(TOKENIZER_CONFIG) {
            let config = source
                .tokenizer()?
                .config_json(source.config().max_position_embeddings);
            write_json(&to.join(TOKENIZER_CONFIG), &config)?;
            files.push(TOKENIZER_CONFIG.into());
        }
        return Ok(files);
    }
    let tokenizer = source.tokenizer()?;
    let text = tokenizer.to_json()?;
    write_synced(&to.join("tokenizer.json"), |file| file.write_all(text.as_bytes()))?;
    write_json(
        &to.join(TOKENIZER_CONFIG),
        &tokenizer.config_json(source.config().max_position_embeddings),
    )?;
    Ok(vec!["tokenizer.json".into(), TOKENIZER_CONFIG.into()])
}
