use std::collections::BTreeMap;
use std::path::Path;

use crate::huggingface::names::{EMBEDDING, LM_HEAD};
use crate::tensors::{TensorInfo, TensorSource};
use crate::{Error, Result};

/// What a causal model's class puts before the names of the model without its head.
const PREFIX: &str = "model.";

/// Tensors under the names of a causal model, though they are stored under others.
#[derive(Debug)]
struct Renamed {
    stored: Box<dyn TensorSource>,
    /// name -> stored name
    names: BTreeMap<String, String>,
}

/// The tensors under the names of a causal model. transformers takes two other namings: all names without
/// `model.`, as a model without its head is saved; and a tied model with `lm_head.weight` alone, which is
/// then the embedding, too.
pub(super) fn under_usual_names(stored: Box<dyn TensorSource>, tied: bool) -> Box<dyn TensorSource> {
    let listed = stored.names();
    let of_model = |name: &String| {
        let parts = ["embed_tokens.", "layers.", "norm."];
        parts.iter().any(|part| name.starts_with(part))
    };
    let bare = listed.iter().any(of_model) && !listed.iter().any(|name| name.starts_with(PREFIX));
    let usual = |name: String| {
        let prefix = if bare && of_model(&name) { PREFIX } else { "" };
        (format!("{prefix}{name}"), name)
    };
    let mut names: BTreeMap<String, String> = listed.into_iter().map(usual).collect();
    let head_alone = tied && !names.contains_key(EMBEDDING) && names.contains_key(LM_HEAD);
    if head_alone && let Some(head) = names.remove(LM_HEAD) {
        names.insert(EMBEDDING.into(), head);
    }
    if bare || head_alone {
        Box::new(Renamed { stored, names })
    } else {
        stored
    }
}

impl Renamed {
    fn stored_name<'a>(&'a self, name: &'a str) -> Result<&'a str> {
        let known = self.names.get(name).map(String::as_str);
        known.ok_or_else(|| self.missing(name))
    }
}

impl TensorSource for Renamed {
    fn path(&self) -> &Path {
        self.stored.path()
    }

    fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.stored.info(self.names.get(name)?)
    }

    fn read_floats(&self, name: &str) -> Result<Vec<f32>> {
        self.stored.read_floats(self.stored_name(name)?)
    }

    fn read_integers(&self, name: &str) -> Result<Vec<i64>> {
        self.stored.read_integers(self.stored_name(name)?)
    }

    fn missing(&self, name: &str) -> Error {
        // a shard that is not there is known by the stored names
        let bare = name.strip_prefix(PREFIX).unwrap_or(name);
        match self.stored.missing(bare) {
            error @ Error::Shard { .. } => error,
            _ => self.stored.missing(name),
        }
    }
}
