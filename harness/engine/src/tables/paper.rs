use std::collections::BTreeMap;

use aqlm_vocabulary::Scheme;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::backends::BackendKind;
use crate::runs::records::Better;
use aqlm_formats::{Error, Result};

/// Lists files of golden/paper with their texts.
macro_rules! golden {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../../../golden/paper/", $name)))),*]
    };
}

/// The tables, in the order in which they are listed.
pub(super) const TABLES: [(&str, &str); 19] = golden![
    "table-1.json",
    "table-2.json",
    "table-3.json",
    "table-4.json",
    "table-5.json",
    "table-6.json",
    "table-7.json",
    "table-8.json",
    "table-9.json",
    "table-10.json",
    "table-11.json",
    "table-12.json",
    "table-13.json",
    "table-14.json",
    "table-15.json",
    "table-16.json",
    "figure-4.json",
    "versions.json",
    "releases.json",
];

/// The descriptions of columns.
const COLUMNS: (&str, &str) = (
    "columns.json",
    include_str!("../../../../golden/paper/columns.json"),
);

/// One table of the paper.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PaperTable {
    /// its id on the command line: its number in the fourth version of the paper, or a word
    pub id: String,
    /// its title
    pub title: String,
    /// the text that it comes from
    pub source: String,
    /// what must be known to read it
    pub about: String,
    /// names of its columns, in order; [`columns`] describes them
    pub columns: Vec<String>,
    /// its rows, in order
    pub rows: Vec<PaperRow>,
}

/// One row of a table.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PaperRow {
    /// its id, unique in the table
    pub row: String,
    /// the model, by its name in golden/paper/models.json
    pub model: String,
    /// the method, as the paper calls it; a star marks end-to-end fine-tuning
    pub method: String,
    /// the device of a speed
    #[serde(default)]
    pub device: Option<String>,
    /// the backend of ours that stands beside that device
    #[serde(default)]
    pub backend: Option<BackendKind>,
    /// the scheme, where it is stated or follows from the bits
    #[serde(default)]
    pub scheme: Option<Scheme>,
    /// average bits as printed
    #[serde(default)]
    pub bits: Option<f64>,
    /// how the row is measured again; `None` for a method that this project does not have
    #[serde(default)]
    pub recipe: Option<Recipe>,
    /// figures by column
    pub figures: BTreeMap<String, PaperFigure>,
    /// where all of the figures stand
    pub source: PaperSource,
    /// remarks
    #[serde(default)]
    pub notes: Vec<String>,
}

/// The place of a row's figures.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PaperSource {
    /// the version of the paper, or another text
    pub text: String,
    /// the table in it
    pub table: String,
    /// the row in that table
    pub row: String,
}

impl PaperSource {
    /// The place in words.
    pub fn words(&self) -> String {
        let Self { text, table, row } = self;
        let table = if table.starts_with(|first: char| first.is_ascii_digit()) {
            format!("Table {table}")
        } else {
            table.clone()
        };
        format!("{text}, {table}, row {row}")
    }
}

/// How a row is measured again.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recipe {
    /// the dense model, evaluated
    Dense,
    /// the model quantized at the row's scheme, then evaluated
    Quantize(QuantizeRecipe),
}

/// How a row's model is quantized.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantizeRecipe {
    /// calibration sequences
    pub sequences: usize,
    /// what is fine-tuned in a block; nothing when empty
    pub tuned: Vec<TunedPart>,
    /// whether the whole model is fine-tuned, too
    pub end_to_end: bool,
    /// other arguments of `aqlm quantize`
    #[serde(default)]
    pub arguments: Vec<String>,
}

/// A part of a block that can be fine-tuned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TunedPart {
    /// codebooks
    Codebooks,
    /// scales
    Scales,
    /// RMSNorm weights
    Norms,
}

impl TunedPart {
    /// All parts.
    pub const ALL: [Self; 3] = [Self::Codebooks, Self::Scales, Self::Norms];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Codebooks => "codebooks",
            Self::Scales => "scales",
            Self::Norms => "norms",
        }
    }
}

/// A figure as printed, or the mean of several runs.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum PaperFigure {
    /// one number
    One(f64),
    /// several runs
    Mean {
        /// their mean
        value: f64,
        /// their standard deviation
        deviation: f64,
        /// their number
        runs: usize,
    },
}

impl PaperFigure {
    /// The number, or the mean.
    pub fn value(self) -> f64 {
        match self {
            Self::One(value) | Self::Mean { value, .. } => value,
        }
    }

    /// The standard deviation, if there is one.
    pub fn deviation(self) -> Option<f64> {
        match self {
            Self::One(_) => None,
            Self::Mean { deviation, .. } => Some(deviation),
        }
    }
}

/// The description of a column.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Column {
    /// its name in print
    pub title: String,
    /// what its figures are, with the unit
    pub what: String,
    /// which figures are better
    pub better: Better,
    /// decimals in print
    pub decimals: usize,
}

/// Every table.
///
/// # Errors
/// `Internal` for a file of golden/paper that does not parse.
pub fn tables() -> Result<Vec<PaperTable>> {
    TABLES.into_iter().map(parsed).collect()
}

/// The table of an id.
///
/// # Errors
/// `Argument` for an unknown id, with the known ones; those of [`tables`].
pub fn table(id: &str) -> Result<PaperTable> {
    let all = tables()?;
    let known: Vec<String> = all.iter().map(|table| table.id.clone()).collect();
    all.into_iter()
        .find(|table| table.id == id)
        .ok_or_else(|| unknown("table", &known, id))
}

/// The columns, by name.
///
/// # Errors
/// `Internal` for a golden/paper/columns.json that does not parse.
pub fn columns() -> Result<BTreeMap<String, Column>> {
    parsed(COLUMNS)
}

/// Reads one file of golden/paper.
pub(super) fn parsed<T: DeserializeOwned>((name, text): (&str, &str)) -> Result<T> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    serde_path_to_error::deserialize(&mut deserializer)
        .map_err(|error| Error::Internal(format!("golden/paper/{name}: {}: {error}", error.path())))
}

/// The error for a name that is none of the known ones.
pub(super) fn unknown(what: &str, known: &[String], found: &str) -> Error {
    Error::argument(
        what,
        &format!("one of {}", known.join(", ")),
        format!("`{found}`"),
    )
}

impl PaperTable {
    /// The row of an id.
    ///
    /// # Errors
    /// `Argument` for an unknown id, with the known ones.
    pub fn row(&self, id: &str) -> Result<&PaperRow> {
        let known: Vec<String> = self.rows.iter().map(|row| row.row.clone()).collect();
        self.rows
            .iter()
            .find(|row| row.row == id)
            .ok_or_else(|| unknown(&format!("row of table {}", self.id), &known, id))
    }

    /// The models of its rows, each once, in order.
    pub fn models(&self) -> Vec<String> {
        let mut models: Vec<String> = Vec::new();
        for row in &self.rows {
            if !models.contains(&row.model) {
                models.push(row.model.clone());
            }
        }
        models
    }
}

#[cfg(test)]
mod tests;
