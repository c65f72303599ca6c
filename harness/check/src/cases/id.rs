use std::str::FromStr;

use aqlm_vocabulary::Scheme;

use aqlm_formats::{Error, Result};

/// Maximum number of rows or columns: enough for an output layer.
const LARGEST: u64 = 1 << 20;

/// Reads the fields of a case's id from left to right; fields are joined with `-`.
pub(super) struct Fields<'a> {
    id: &'a str,
    rest: std::str::Split<'a, char>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(id: &'a str) -> Self {
        Self {
            id,
            rest: id.split('-'),
        }
    }

    pub(super) fn refuse<T>(&self, expected: &str, found: &str) -> Result<T> {
        Err(Error::argument(
            &format!("case `{}`", self.id),
            expected,
            format!("`{found}`"),
        ))
    }

    /// The next field as text; empty after the last.
    pub(super) fn text(&mut self) -> &'a str {
        self.rest.next().unwrap_or_default()
    }

    /// A field that is one of an enum's words.
    pub(super) fn word<T: FromStr<Err = Error>>(&mut self) -> Result<T> {
        let text = self.text();
        match text.parse() {
            Ok(word) => Ok(word),
            Err(Error::Argument { what, expected, .. }) => self.refuse(&format!("{what}: {expected}"), text),
            Err(other) => Err(other),
        }
    }

    /// The next field, if it is one of an enum's words; otherwise `absent`, and the field is still to be
    /// read.
    pub(super) fn optional_word<T: FromStr<Err = Error>>(&mut self, absent: T) -> T {
        let rest = self.rest.clone();
        if let Ok(word) = self.text().parse() {
            return word;
        }
        self.rest = rest;
        absent
    }

    /// A field such as `b3`: a letter, then a number within `range`.
    pub(super) fn number(&mut self, letter: char, range: std::ops::RangeInclusive<u64>) -> Result<u64> {
        let text = self.text();
        let number = text.strip_prefix(letter).and_then(canonical);
        match number {
            Some(number) if range.contains(&number) => Ok(number),
            _ => self.refuse(
                &format!("{letter} and a number in {}..={}", range.start(), range.end()),
                text,
            ),
        }
    }

    pub(super) fn scheme(&mut self) -> Result<Scheme> {
        let text = self.text();
        match text.parse::<Scheme>() {
            Ok(scheme) if scheme.to_string() == text => Ok(scheme),
            _ => self.refuse("a scheme such as 2x8g8 or 2x8g8o2", text),
        }
    }

    /// A field such as `96x72`.
    pub(super) fn shape(&mut self) -> Result<(usize, usize)> {
        let text = self.text();
        let sides = text
            .split_once('x')
            .and_then(|(rows, columns)| Some((canonical(rows)?, canonical(columns)?)));
        match sides {
            Some((rows @ 1..=LARGEST, columns @ 1..=LARGEST)) => Ok((rows as usize, columns as usize)),
            _ => self.refuse("a shape such as 96x72", text),
        }
    }

    pub(super) fn finish(mut self) -> Result<()> {
        match self.rest.next() {
            None => Ok(()),
            Some(text) => self.refuse("the end of the id", text),
        }
    }
}

/// A decimal number in canonical form, so that it prints as itself: no sign, no leading zeros.
fn canonical(text: &str) -> Option<u64> {
    let number = text.parse::<u64>().ok()?;
    (number.to_string() == text).then_some(number)
}
