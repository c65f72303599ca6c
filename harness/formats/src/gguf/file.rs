use serde_json::{Map, Value, json};

use super::container::Container;
use super::fields::Fields;
use crate::Result;

/// A file's metadata and tensors, from which an architecture makes a configuration.
pub(super) struct File<'a> {
    pub(super) container: &'a Container,
    pub(super) fields: &'a Fields<'a>,
    /// width of the residual stream
    pub(super) hidden: usize,
    /// query heads
    pub(super) heads: usize,
    /// width of a head
    pub(super) head_dim: usize,
    pub(super) blocks: usize,
}

impl File<'_> {
    pub(super) fn has(&self, tensor: &str) -> bool {
        self.container.tensors.contains_key(tensor)
    }

    /// Which part of each head is rotated.
    pub(super) fn rotated_part(&self) -> Result<f64> {
        let rotated = self.fields.optional_size("rope.dimension_count")?;
        Ok(rotated.map_or(1.0, |rotated| rotated as f64 / self.head_dim as f64))
    }

    /// For each block, whether it has the window: what the file says, or all of `pattern` blocks but the
    /// last.
    ///
    /// # Errors
    /// `Field` for a value that is neither a number nor one flag for each block.
    pub(super) fn windows(&self, pattern: usize) -> Result<Vec<bool>> {
        let field = "attention.sliding_window_pattern";
        if let Some(flags) = self.fields.flags(field, self.blocks)? {
            return Ok(flags);
        }
        let pattern = match self.fields.integer(field)? {
            None => pattern,
            // as llama.cpp takes 0: all blocks
            Some(0) => usize::MAX,
            Some(_) => self.fields.size(field)?,
        };
        Ok((0..self.blocks)
            .map(|block| block % pattern < pattern - 1)
            .collect())
    }
}

/// A configuration under Hugging Face's field names.
#[derive(Default)]
pub(super) struct Config(Map<String, Value>);

impl Config {
    pub(super) fn set(&mut self, key: &str, value: Value) {
        self.0.insert(key.into(), value);
    }

    pub(super) fn into_map(self) -> Map<String, Value> {
        self.0
    }

    /// Names the family, by its `model_type` and its class.
    pub(super) fn family(&mut self, name: &str, class: &str) {
        self.set("model_type", json!(name));
        self.set("architectures", json!([class]));
    }

    /// Sets `layer_types` by what says whether a block has the window.
    pub(super) fn layer_types(&mut self, slides: &[bool]) {
        let name = |&slides: &bool| {
            if slides {
                "sliding_attention"
            } else {
                "full_attention"
            }
        };
        let names: Vec<&str> = slides.iter().map(name).collect();
        self.set("layer_types", json!(names));
    }
}
