use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A model that `aqlm fetch` put in place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchRecord {
    /// its folder
    #[serde(serialize_with = "super::path_as_text")]
    pub path: PathBuf,
    /// the source in words; "already there" when nothing was fetched
    pub source: String,
}
