//! Texts with fields of a document in them.

use std::path::Path;

use aqlm_formats::texts::{Row, kind_of};
use aqlm_formats::{Error, Result};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::step::Step;

/// A document, and the file that holds it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Document<'a> {
    /// the file
    pub(super) path: &'a Path,
    /// the document
    pub(super) row: &'a Row,
}

impl<'a> Document<'a> {
    /// The error of a field.
    pub(super) fn wrong(self, field: &str, expected: &str, found: impl Into<String>) -> Error {
        Error::Line {
            path: self.path.into(),
            line: self.row.line,
            expected: format!("field `{field}`: {expected}"),
            found: found.into(),
        }
    }

    /// The value of a field; dots lead into objects and lists, as in `choices.0`.
    pub(super) fn value(self, field: &str) -> Result<&'a Value> {
        let mut parts = field.split('.');
        let mut value = parts.next().and_then(|part| self.row.fields.get(part));
        for part in parts {
            value = match value {
                Some(Value::Array(values)) => part.parse().ok().and_then(|index: usize| values.get(index)),
                Some(Value::Object(fields)) => fields.get(part),
                _ => None,
            };
        }
        value.ok_or_else(|| self.wrong(field, "a value", "nothing"))
    }

    /// A field's text; a number's digits.
    pub(super) fn text(self, field: &str) -> Result<String> {
        match self.value(field)? {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            other => Err(self.wrong(field, "a string", kind_of(other))),
        }
    }

    /// A field that is a list of at least one text.
    pub(super) fn texts(self, field: &str) -> Result<Vec<String>> {
        match self.value(field)? {
            Value::Array(values) if !values.is_empty() => (0..values.len())
                .map(|index| self.text(&format!("{field}.{index}")))
                .collect(),
            Value::Array(_) => Err(self.wrong(field, "a list of strings", "an empty list")),
            other => Err(self.wrong(field, "a list of strings", kind_of(other))),
        }
    }

    /// The text after the steps.
    pub(super) fn stepped(self, field: &str, text: String, steps: &[Step]) -> Result<String> {
        steps.iter().try_fold(text, |text, step| {
            let missing = || self.wrong(field, "a text with an underscore", format!("{text:?}"));
            step.apply(&text).ok_or_else(missing)
        })
    }
}

/// A text in which `{field}` stands for a field of the document, and `{field|step|step}` for the field after
/// these steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Template(Vec<Piece>);

#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Text(String),
    Field { name: String, steps: Vec<Step> },
}

impl Template {
    /// Reads a template; the error is the reason in words.
    fn parse(text: &str) -> std::result::Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('{') {
            pieces.push(Piece::Text(before.into()));
            let (field, behind) = behind
                .split_once('}')
                .ok_or_else(|| format!("expected a }} for every {{, found {text:?}"))?;
            let mut words = field.split('|');
            let name = words.next().unwrap_or_default().to_owned();
            if name.is_empty() {
                return Err(format!("expected the name of a field in {{}}, found {text:?}"));
            }
            let step = |word: &str| serde_json::from_value(word.into()).map_err(|error| error.to_string());
            let steps = words.map(step).collect::<std::result::Result<_, String>>()?;
            pieces.push(Piece::Field { name, steps });
            rest = behind;
        }
        pieces.push(Piece::Text(rest.into()));
        Ok(Self(pieces))
    }

    /// The text for a document.
    pub(super) fn fill(&self, document: Document<'_>) -> Result<String> {
        let mut filled = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => filled.push_str(text),
                Piece::Field { name, steps } => {
                    let text = document.text(name)?;
                    filled.push_str(&document.stepped(name, text, steps)?);
                }
            }
        }
        Ok(filled)
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use aqlm_formats::texts::rows_of;

    use super::*;

    fn filled(template: &str, row: &str) -> Result<String> {
        let rows = rows_of(Path::new("x.jsonl"), row.as_bytes()).unwrap();
        let document = Document {
            path: Path::new("x.jsonl"),
            row: &rows[0],
        };
        Template::parse(template).unwrap().fill(document)
    }

    #[test]
    fn fields_and_their_steps_are_filled_in() {
        let row = r#"{"a": " x ", "n": 3, "list": ["p", "q"], "inner": {"b": "_y"}}"#;
        assert_eq!(
            filled("<{a|strip}> {n} {list.1}{inner.b|after_blank}", row).unwrap(),
            "<x> 3 qy"
        );
        assert_eq!(filled("no field", row).unwrap(), "no field");
    }

    #[test]
    fn what_is_missing_is_named() {
        let row = "\n{\"a\": [1], \"b\": \"x\"}";
        for (template, words) in [
            (
                "{c}",
                "x.jsonl, line 2: expected field `c`: a value, found nothing",
            ),
            (
                "{a}",
                "x.jsonl, line 2: expected field `a`: a string, found a list",
            ),
            ("{a.1}", "field `a.1`: a value, found nothing"),
            ("{b.c}", "field `b.c`: a value, found nothing"),
            (
                "{b|before_blank}",
                "field `b`: a text with an underscore, found \"x\"",
            ),
        ] {
            let error = filled(template, row).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        for template in ["{a", "{}", "{a|fly}"] {
            assert!(Template::parse(template).is_err(), "{template}");
        }
    }
}
