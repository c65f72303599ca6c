use std::collections::BTreeMap;
use std::path::Path;

use super::metadata::Metadata;
use crate::{Error, Result};

/// Metadata, with the file's path and field names for errors.
pub(super) struct Fields<'a> {
    pub(super) path: &'a Path,
    pub(super) metadata: &'a BTreeMap<String, Metadata>,
}

impl<'a> Fields<'a> {
    pub(super) fn wrong(&self, field: &str, expected: &str) -> Error {
        Error::Field {
            path: self.path.into(),
            field: field.into(),
            expected: expected.into(),
            found: self
                .metadata
                .get(field)
                .map_or_else(|| "nothing".into(), Metadata::describe),
        }
    }

    pub(super) fn unsupported(&self, field: &str, expected: &str, found: String) -> Error {
        Error::Unsupported {
            path: self.path.into(),
            field: field.into(),
            expected: expected.into(),
            found,
        }
    }

    pub(super) fn optional_text(&self, field: &str) -> Result<Option<&'a str>> {
        match self.metadata.get(field) {
            None => Ok(None),
            Some(Metadata::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(field, "a text")),
        }
    }

    pub(super) fn text(&self, field: &str) -> Result<&'a str> {
        self.optional_text(field)?
            .ok_or_else(|| self.wrong(field, "a text"))
    }

    pub(super) fn integer(&self, field: &str) -> Result<Option<i64>> {
        match self.metadata.get(field) {
            None => Ok(None),
            Some(Metadata::Integer(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(field, "a whole number")),
        }
    }

    pub(super) fn optional_size(&self, field: &str) -> Result<Option<usize>> {
        match self.integer(field)? {
            None => Ok(None),
            Some(value) if value > 0 => Ok(Some(value as usize)),
            Some(_) => Err(self.wrong(field, "a positive whole number")),
        }
    }

    pub(super) fn size(&self, field: &str) -> Result<usize> {
        self.optional_size(field)?
            .ok_or_else(|| self.wrong(field, "a positive whole number"))
    }

    /// A number. An f32 is converted to the decimal from which it was rounded: 1e-5 is stored as
    /// 9.99999974737875e-6.
    pub(super) fn number(&self, field: &str) -> Result<Option<f64>> {
        match self.metadata.get(field) {
            None => Ok(None),
            Some(Metadata::Integer(value)) => Ok(Some(*value as f64)),
            Some(Metadata::Float(value)) => Ok(Some(*value)),
            Some(Metadata::Single(value)) => {
                let decimal = value.to_string().parse();
                Ok(Some(decimal.expect("a printed number is a number")))
            }
            Some(_) => Err(self.wrong(field, "a number")),
        }
    }

    pub(super) fn required_number(&self, field: &str) -> Result<f64> {
        self.number(field)?.ok_or_else(|| self.wrong(field, "a number"))
    }
}
