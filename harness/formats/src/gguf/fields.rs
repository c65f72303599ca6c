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

    /// A token's id. All ones, signed or not, stand for no token.
    pub(super) fn token_id(&self, field: &str) -> Result<Option<i64>> {
        let id = self.integer(field)?;
        Ok(id.filter(|id| ![-1, i64::from(u32::MAX), i64::MAX].contains(id)))
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

    /// A finite number. An f32 is converted to the decimal from which it was rounded: 1e-5 is stored as
    /// 9.99999974737875e-6.
    pub(super) fn number(&self, field: &str) -> Result<Option<f64>> {
        let number = match self.metadata.get(field) {
            None => return Ok(None),
            Some(Metadata::Integer(value)) => *value as f64,
            Some(Metadata::Float(value)) => *value,
            Some(Metadata::Single(value)) => {
                let decimal = value.to_string().parse();
                decimal.expect("a printed number is a number")
            }
            Some(_) => return Err(self.wrong(field, "a number")),
        };
        if number.is_finite() {
            Ok(Some(number))
        } else {
            Err(self.wrong(field, "a finite number"))
        }
    }

    pub(super) fn required_number(&self, field: &str) -> Result<f64> {
        self.number(field)?.ok_or_else(|| self.wrong(field, "a number"))
    }
}
