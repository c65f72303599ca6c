use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result};

/// Sizes above this are rejected as damage, so that products of two of them cannot overflow.
const LARGEST_SIZE: usize = 1 << 31;

/// Fields of one JSON object, with the file's path and field names for errors.
pub(super) struct Fields<'a> {
    pub(super) path: &'a Path,
    pub(super) prefix: &'a str,
    pub(super) map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn name(&self, key: &str) -> String {
        if self.prefix.is_empty() {
            key.into()
        } else {
            format!("{}.{key}", self.prefix)
        }
    }

    /// The value, if present and not null.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn wrong(&self, key: &str, expected: impl Into<String>) -> Error {
        Error::Field {
            path: self.path.into(),
            field: self.name(key),
            expected: expected.into(),
            found: self.map.get(key).map_or_else(|| "nothing".into(), brief),
        }
    }

    pub(super) fn unsupported(&self, key: &str, expected: &str, found: String) -> Error {
        Error::Unsupported {
            path: self.path.into(),
            field: self.name(key),
            expected: expected.into(),
            found,
        }
    }

    pub(super) fn optional_str(&self, key: &str) -> Result<Option<&'a str>> {
        self.get(key)
            .map(|value| value.as_str().ok_or_else(|| self.wrong(key, "a text")))
            .transpose()
    }

    pub(super) fn required_str(&self, key: &str) -> Result<&'a str> {
        self.optional_str(key)?.ok_or_else(|| self.wrong(key, "a text"))
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.get(key)
            .map(|value| value.as_bool().ok_or_else(|| self.wrong(key, "true or false")))
            .transpose()
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key)
            .map(|value| value.as_f64().ok_or_else(|| self.wrong(key, "a number")))
            .transpose()
    }

    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>> {
        let number = self.number(key)?;
        if number.is_some_and(|value| !(value.is_finite() && value > 0.0)) {
            return Err(self.wrong(key, "a positive number"));
        }
        Ok(number)
    }

    pub(super) fn required_positive(&self, key: &str) -> Result<f64> {
        self.positive(key)?
            .ok_or_else(|| self.wrong(key, "a positive number"))
    }

    pub(super) fn count(&self, key: &str) -> Result<Option<usize>> {
        self.get(key)
            .map(|value| {
                value
                    .as_u64()
                    .map(|number| number as usize)
                    .filter(|&number| number <= LARGEST_SIZE)
                    .ok_or_else(|| self.wrong(key, format!("a whole number of 0 to {LARGEST_SIZE}")))
            })
            .transpose()
    }

    pub(super) fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        match self.count(key) {
            Ok(Some(0)) | Err(_) => Err(self.wrong(key, format!("a whole number of 1 to {LARGEST_SIZE}"))),
            ok => ok,
        }
    }

    pub(super) fn size(&self, key: &str) -> Result<usize> {
        self.optional_size(key)?
            .ok_or_else(|| self.wrong(key, format!("a whole number of 1 to {LARGEST_SIZE}")))
    }

    /// One id or a list of ids.
    pub(super) fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        let list = match value {
            Value::Array(list) => list.as_slice(),
            single => std::slice::from_ref(single),
        };
        // some configurations write -1 for "none"
        if let [Value::Number(number)] = list
            && number.as_i64() == Some(-1)
        {
            return Ok(Vec::new());
        }
        list.iter()
            .map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
            .collect::<Option<_>>()
            .ok_or_else(|| self.wrong(key, "a token id or a list of them"))
    }
}

/// A JSON value for an error message: complete if short, else its beginning.
pub(super) fn brief(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = value.to_string();
    if text.chars().count() <= LONGEST {
        text
    } else {
        text.chars().take(LONGEST).chain("...".chars()).collect()
    }
}
