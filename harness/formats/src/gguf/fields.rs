use std::collections::BTreeMap;
use std::path::Path;

use super::metadata::{Kind, Metadata};
use crate::{Error, Result};

/// The shortest decimal that rounds to this f32, which is likely the number that was meant.
pub(super) fn decimal(value: f32) -> f64 {
    let decimal = value.to_string().parse();
    decimal.expect("a printed number is a number")
}

/// First parts of the names of fields that mean the same for every architecture. All other fields begin with
/// the architecture's name.
const OF_ALL: [&str; 3] = ["general.", "tokenizer.", "split."];

/// Metadata, with the file's path and field names for errors.
///
/// A field of the architecture is named without it: `block_count` stands for `llama.block_count`.
pub(super) struct Fields<'a> {
    pub(super) path: &'a Path,
    /// `general.architecture`; empty where no field of an architecture is read
    pub(super) architecture: &'a str,
    pub(super) metadata: &'a BTreeMap<String, Metadata>,
}

impl<'a> Fields<'a> {
    /// The field's whole name.
    pub(super) fn name(&self, field: &str) -> String {
        if OF_ALL.iter().any(|first| field.starts_with(first)) {
            field.into()
        } else {
            format!("{}.{field}", self.architecture)
        }
    }

    pub(super) fn get(&self, field: &str) -> Option<&'a Metadata> {
        self.metadata.get(&self.name(field))
    }

    pub(super) fn wrong(&self, field: &str, expected: &str) -> Error {
        Error::Field {
            path: self.path.into(),
            field: self.name(field),
            expected: expected.into(),
            found: self
                .get(field)
                .map_or_else(|| "nothing".into(), Metadata::describe),
        }
    }

    pub(super) fn unsupported(&self, field: &str, expected: &str, found: String) -> Error {
        Error::Unsupported {
            path: self.path.into(),
            field: self.name(field),
            expected: expected.into(),
            found,
        }
    }

    pub(super) fn optional_text(&self, field: &str) -> Result<Option<&'a str>> {
        match self.get(field) {
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
        match self.get(field) {
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

    /// True or false.
    pub(super) fn flag(&self, field: &str) -> Result<Option<bool>> {
        match self.get(field) {
            None => Ok(None),
            Some(Metadata::Flag(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(field, "true or false")),
        }
    }

    /// A list of `length` flags; `None` for nothing, or a single number.
    pub(super) fn flags(&self, field: &str, length: usize) -> Result<Option<Vec<bool>>> {
        match self.get(field) {
            None | Some(Metadata::Integer(_)) => Ok(None),
            Some(Metadata::Numbers(list)) if list.kind == Kind::Bool => {
                let flags = list.bytes.iter().map(|&byte| byte != 0);
                let flags: Vec<bool> = flags.collect();
                if flags.len() == length {
                    Ok(Some(flags))
                } else {
                    Err(self.wrong(field, &format!("{length} flags, one a block")))
                }
            }
            Some(_) => Err(self.wrong(field, "a whole number, or a list of flags")),
        }
    }

    /// A positive number; `None` for 0, which stands for an absent one in llama.cpp.
    pub(super) fn factor(&self, field: &str) -> Result<Option<f64>> {
        match self.number(field)? {
            Some(value) if value < 0.0 => Err(self.wrong(field, "a positive number, or 0 for none")),
            value => Ok(value.filter(|&value| value != 0.0)),
        }
    }

    /// A size; `None` for 0.
    pub(super) fn size_or_none(&self, field: &str) -> Result<Option<usize>> {
        match self.integer(field)? {
            Some(0) => Ok(None),
            _ => self.optional_size(field),
        }
    }

    /// A finite number. An f32 is converted to the decimal from which it was rounded: 1e-5 is stored as
    /// 9.99999974737875e-6.
    pub(super) fn number(&self, field: &str) -> Result<Option<f64>> {
        let number = match self.get(field) {
            None => return Ok(None),
            Some(Metadata::Integer(value)) => *value as f64,
            Some(Metadata::Float(value)) => *value,
            Some(Metadata::Single(value)) => decimal(*value),
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
