//! Records: a type for every result that a command prints with `--json`. A record is written to standard
//! output and to run folders, and read back (docs/formats.md 4).
//!
//! A record is one JSON object. Its field `record` names the command and a version, as in `"eval/2"`. The
//! version grows when a field is added, removed or changes its meaning.
//!
//! JSON has no NaN and no infinities. Both are written as `null`; a `null` in place of a required number is
//! read as NaN.

mod bench;
mod check;
mod decode;
mod demo;
mod divergence;
mod eval;
mod fetch;
mod finetune;
mod generate;
mod inspect;
mod quantize;
mod report;
mod selfgen;
mod table;
mod tasks;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

pub use bench::{BenchCase, BenchReport, KernelRow, MemoryRate, Times};
pub use check::{CaseRow, CheckReport, Comparison, CrossReport, Outcome, Summary, Worst};
pub use decode::{DecodeReport, StageRow};
pub use demo::DemoRecord;
pub use divergence::{Bucket, DivergenceRecord, DivergenceStatistics, Estimate, Percentiles};
pub use eval::{EvalRecord, StrictPerplexity};
pub use fetch::FetchRecord;
pub use finetune::FinetuneRecord;
pub use generate::GenerateRecord;
pub use inspect::{InspectRecord, LayerErrors, Shape};
pub use quantize::{
    BlockReport, LARGEST_SPECTRUM, LayerSummary, QuantizeRecord, QuantizeReport, QuantizedLayer,
};
pub use report::ReportRecord;
pub use selfgen::SelfgenRecord;
pub use table::{
    Beside, Better, Figure, OurFigure, OurRuns, PlanCell, PlanLeftOut, PlanPhase, RunFigure, TableCell,
    TableCheck, TableColumn, TableEntry, TableListRecord, TableModel, TablePlanRecord, TableRecord, TableRow,
};
pub use tasks::{AnswerRecord, GroupFigure, MetricFigure, TaskDocumentRecord, TaskFigures, TasksRecord};

use aqlm_formats::durable;
use aqlm_formats::{Error, Result};

/// Name of the record in a run folder.
pub const FILE: &str = "record.json";

/// Declares [`Record`]. A new record is one line here and one file beside this one.
macro_rules! records {
    ($($(#[$doc:meta])* $variant:ident($fields:ty) = $kind:literal,)*) => {
        /// The record of any command.
        #[derive(Debug, Clone, PartialEq, Serialize)]
        #[serde(tag = "record")]
        pub enum Record {
            $($(#[$doc])* #[serde(rename = $kind)] $variant($fields),)*
        }

        impl Record {
            /// Every record that this version of the program writes and reads.
            pub const KINDS: &[&str] = &[$($kind),*];

            /// The field `record`: the record's command and version.
            pub fn kind(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $kind,)*
                }
            }

            /// A record from its fields; `None` for an unknown kind.
            fn of_kind(
                kind: &str,
                fields: Value,
            ) -> Option<std::result::Result<Self, serde_path_to_error::Error<serde_json::Error>>> {
                match kind {
                    $($kind => Some(serde_path_to_error::deserialize(fields).map(Self::$variant)),)*
                    _ => None,
                }
            }
        }

        $(impl From<$fields> for Record {
            fn from(fields: $fields) -> Self {
                Self::$variant(fields)
            }
        })*
    };
}

records! {
    /// `aqlm demo`
    Demo(DemoRecord) = "demo/1",
    /// `aqlm fetch`
    Fetch(FetchRecord) = "fetch/1",
    /// `aqlm inspect`
    Inspect(InspectRecord) = "inspect/2",
    /// `aqlm quantize`
    Quantize(QuantizeRecord) = "quantize/3",
    /// `aqlm finetune`
    Finetune(FinetuneRecord) = "finetune/2",
    /// `aqlm eval`
    Eval(EvalRecord) = "eval/2",
    /// `aqlm eval --against`
    Divergence(DivergenceRecord) = "divergence/1",
    /// `aqlm tasks`
    Tasks(TasksRecord) = "tasks/1",
    /// a line of `aqlm tasks --results`
    TaskDocument(TaskDocumentRecord) = "task_document/1",
    /// `aqlm selfgen`
    Selfgen(SelfgenRecord) = "selfgen/1",
    /// `aqlm generate`
    Generate(GenerateRecord) = "generate/1",
    /// `aqlm check`
    Check(CrossReport) = "check/1",
    /// `aqlm check --vectors`
    Vectors(CheckReport) = "vectors/1",
    /// `aqlm bench`
    Bench(BenchReport) = "bench/2",
    /// `aqlm bench --random-weights`
    Decode(DecodeReport) = "decode/2",
    /// `aqlm table --list`
    TableList(TableListRecord) = "table_list/1",
    /// `aqlm table`
    Table(TableRecord) = "table/1",
    /// `aqlm table --plan`
    TablePlan(TablePlanRecord) = "table_plan/1",
    /// `aqlm report`
    Report(ReportRecord) = "report/1",
}

impl Record {
    /// The JSON document in one line, without a final newline.
    #[expect(clippy::missing_panics_doc, reason = "as of to_json")]
    pub fn to_line(&self) -> String {
        serde_json::to_string(self)
            .expect("records are numbers, strings, lists and maps with strings as keys")
    }

    /// The JSON document, indented, without a final newline.
    #[expect(clippy::missing_panics_doc, reason = "no record makes it panic")]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self)
            .expect("records are numbers, strings, lists and maps with strings as keys")
    }
}

/// Writes a record atomically.
///
/// # Errors
/// `Error::Io`.
pub fn write(path: &Path, record: &Record) -> Result<()> {
    durable::write_text(path, &format!("{}\n", record.to_json()))
}

/// Reads any record.
///
/// # Errors
/// `Error::Io`. `Error::Json` with the position when the file is not JSON or is truncated. `Error::Field`
/// with the field, what was expected and what was found; for an unknown kind or version the field is
/// `record`.
pub fn read(path: &Path) -> Result<Record> {
    let text = std::fs::read(path).map_err(Error::io(path, "read"))?;
    parse(path, &text)
}

/// Reads any record from the bytes of a document; `name` is what errors call the file.
///
/// # Errors
/// As [`read`], without `Io`.
pub fn parse(name: &Path, document: &[u8]) -> Result<Record> {
    let mut fields: Value = serde_json::from_slice(document).map_err(Error::json(name, 1))?;
    let wrong = |field: &str, expected: String, found: String| Error::Field {
        path: name.into(),
        field: field.into(),
        expected,
        found,
    };
    let kind = match fields.as_object_mut().map(|fields| fields.remove("record")) {
        Some(Some(Value::String(kind))) => kind,
        found => {
            let found = found.map_or("no object", |found| match found {
                Some(_) => "no string",
                None => "nothing",
            });
            return Err(wrong("record", one_of(Record::KINDS), found.into()));
        }
    };
    match Record::of_kind(&kind, fields) {
        Some(record) => record.map_err(|error| {
            let field = match error.path().to_string() {
                whole if whole == "." => "whole record".into(),
                field => field,
            };
            wrong(
                &field,
                format!("what {kind} has there"),
                error.inner().to_string(),
            )
        }),
        None => Err(wrong("record", expected_instead_of(&kind), kind)),
    }
}

/// The expectation named in an error for an unknown kind: the known version of the same record, or all
/// records.
fn expected_instead_of(kind: &str) -> String {
    let of_command = |kind: &str| kind.split('/').next().map(str::to_owned);
    let known = Record::KINDS
        .iter()
        .find(|known| of_command(known) == of_command(kind));
    known.map_or_else(
        || one_of(Record::KINDS),
        |known| format!("{known}, the version that this program reads"),
    )
}

fn one_of(kinds: &[&str]) -> String {
    format!("one of {}", kinds.join(", "))
}

/// Writes a path as text; bytes that are not UTF-8 are replaced, since JSON has no others.
fn path_as_text<S: Serializer>(path: &Path, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// [`path_as_text`], or `null`.
#[expect(clippy::ref_option, reason = "serde passes a reference to the field")]
fn path_or_null<S: Serializer>(
    path: &Option<PathBuf>,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    match path {
        Some(path) => path_as_text(path, serializer),
        None => serializer.serialize_none(),
    }
}

/// Reads a number that is `null` if it was NaN or infinite.
fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests;
