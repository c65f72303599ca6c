use std::path::Path;

use serde_json::Value;

use super::fields::{Fields, brief};
use crate::{Error, Result, json};

/// The file with a model's settings of generation.
const FILE: &str = "generation_config.json";

/// The tokens at which generation stops by a folder's generation_config.json; empty without that file or
/// without the field. transformers prefers them to those of config.json.
///
/// # Errors
/// `Io`, `Json`; `Field` when `eos_token_id` is neither an id nor a list of them.
pub(crate) fn generation_stops(folder: &Path) -> Result<Vec<u32>> {
    let path = folder.join(FILE);
    if !path.is_file() {
        return Ok(Vec::new());
    }
    match json::read(&path)? {
        Value::Object(map) => Fields {
            path: &path,
            prefix: "",
            map: &map,
        }
        .token_ids("eos_token_id"),
        other => Err(Error::Field {
            path,
            field: "(the whole file)".into(),
            expected: "a JSON object".into(),
            found: brief(&other),
        }),
    }
}
