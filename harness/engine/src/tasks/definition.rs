//! A task's definition: a data file without code.

use std::path::{Path, PathBuf};

use aqlm_formats::{Error, Result};
use serde::{Deserialize, Serialize};

use super::step::Step;
use super::template::Template;

/// The definitions of golden/tasks by name.
macro_rules! golden {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../../../golden/tasks/", $name, ".json")))),*]
    };
}

/// Every task that the program knows; the first five are those of the paper's tables.
const TASKS: [(&str, &str); 7] = golden![
    "winogrande",
    "piqa",
    "hellaswag",
    "arc_easy",
    "arc_challenge",
    "lambada_openai",
    "mmlu",
];

/// How a task makes contexts and continuations of a document, and what is measured.
///
/// Either one context has several continuations, or several contexts have one: partial evaluation, in which
/// the probability of the same words decides between beginnings.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskDefinition {
    /// its name on the command line
    #[serde(skip)]
    pub name: String,
    /// the data set's own name
    pub title: String,
    /// where the data set comes from
    pub source: String,
    /// name of the file with the documents, without ending
    pub data: String,
    /// stands before the first example
    #[serde(default)]
    pub description: Option<Template>,
    /// what the model reads
    pub contexts: Vec<Template>,
    /// what is scored behind a space
    pub continuations: Continuations,
    /// applied to every context and continuation
    #[serde(default)]
    pub steps: Vec<Step>,
    /// the right answer; none where the only continuation is right
    #[serde(default)]
    pub gold: Option<Gold>,
    /// what is measured
    pub metrics: Vec<Metric>,
    /// field by which documents are grouped: figures are also given by group, and examples come from the
    /// document's own group
    #[serde(default)]
    pub group: Option<String>,
    /// solved examples before the document
    #[serde(default)]
    pub shots: Option<Shots>,
}

/// The continuations of a document.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged, expecting = "a list of templates, or {\"each\": FIELD}")]
pub enum Continuations {
    /// these
    These(Vec<Template>),
    /// the texts in a list of the document
    Each(Each),
}

/// A field with a list of texts.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Each {
    /// the field
    pub each: String,
    /// how many there must be; two or more unless stated
    #[serde(default)]
    pub count: Option<usize>,
}

/// How a document tells its right answer.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(
    untagged,
    expecting = "{\"field\", \"counts_from\"} or {\"field\", \"among\"}"
)]
pub enum Gold {
    /// by a number
    Number(GoldNumber),
    /// by its label in a list of labels
    Label(GoldLabel),
}

/// A field with the number of the right answer, as a number or as digits.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldNumber {
    /// the field
    pub field: String,
    /// number of the first answer
    pub counts_from: usize,
}

/// A field with the label of the right answer.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldLabel {
    /// the field
    pub field: String,
    /// the field with the labels of all answers
    pub among: String,
}

/// Solved examples before a document.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shots {
    /// name of the file with the examples, without ending
    pub data: String,
    /// how many of them unless the user says otherwise
    pub count: usize,
}

/// A figure of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// share of documents whose right answer has the largest log-likelihood, the first of equal ones. With a
    /// single continuation: share of documents in which every token of it is the most likely one
    Acc,
    /// the same with log-likelihood / number of characters of the answer
    AccNorm,
    /// the same with log-likelihood / number of bytes of the answer
    AccBytes,
    /// exp(-mean log-likelihood of the continuation)
    Perplexity,
}

impl Metric {
    /// Its name in records and on the screen.
    pub fn name(self) -> &'static str {
        match self {
            Self::Acc => "acc",
            Self::AccNorm => "acc_norm",
            Self::AccBytes => "acc_bytes",
            Self::Perplexity => "perplexity",
        }
    }
}

impl TaskDefinition {
    /// The names of all tasks that the program knows.
    pub fn known() -> Vec<&'static str> {
        TASKS.iter().map(|(name, _)| *name).collect()
    }

    /// A task by name, or from a definition of the user's own in a file that ends in .json.
    ///
    /// # Errors
    /// `Argument` for an unknown name, with the known ones; those of [`TaskDefinition::parse`]; `Io`.
    pub fn find(name: &str) -> Result<Self> {
        if let Some((name, text)) = TASKS.iter().find(|(known, _)| *known == name) {
            return Self::parse(&PathBuf::from(format!("{name}.json")), text.as_bytes());
        }
        let path = Path::new(name);
        if path.extension().is_some_and(|ending| ending == "json") {
            let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
            return Self::parse(path, &bytes);
        }
        let expected = format!("one of {}, or a file ending in .json", Self::known().join(", "));
        Err(Error::argument("tasks", &expected, name))
    }

    /// A definition from the bytes of its file. The file's name is the task's.
    ///
    /// # Errors
    /// `Json` and `Field`, with what is wrong.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let wrong = |field: &str, expected: &str, found: String| Error::Field {
            path: path.into(),
            field: field.into(),
            expected: expected.into(),
            found,
        };
        let value: serde_json::Value = serde_json::from_slice(bytes).map_err(Error::json(path, 1))?;
        let mut task: Self = serde_path_to_error::deserialize(value).map_err(|error| {
            let field = error.path().to_string();
            wrong(&field, "a definition of a task", error.inner().to_string())
        })?;
        task.name = path
            .file_stem()
            .map_or_else(String::new, |stem| stem.display().to_string());
        let answers = match &task.continuations {
            Continuations::These(templates) => templates.len(),
            // a list of a document has any length
            Continuations::Each(_) => 2,
        };
        let contexts = task.contexts.len();
        if contexts.min(answers) != 1 {
            return Err(wrong(
                "contexts",
                "one context or one continuation",
                format!("{contexts} and {answers}"),
            ));
        }
        let choices = contexts.max(answers) > 1;
        if choices != task.gold.is_some() {
            let expected = if choices {
                "the right answer"
            } else {
                "nothing beside a single continuation"
            };
            let found = if choices { "nothing" } else { "an answer" };
            return Err(wrong("gold", expected, found.into()));
        }
        for metric in &task.metrics {
            let possible = match metric {
                Metric::Acc => true,
                // the normalization divides by the length of what is scored
                Metric::AccNorm | Metric::AccBytes => choices && contexts == 1,
                Metric::Perplexity => !choices,
            };
            if !possible {
                return Err(wrong(
                    "metrics",
                    "acc; acc_norm and acc_bytes for several continuations; perplexity for a single one",
                    metric.name().into(),
                ));
            }
        }
        if task.metrics.is_empty() {
            return Err(wrong("metrics", "at least one", "none".into()));
        }
        Ok(task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_task_is_defined() {
        for name in TaskDefinition::known() {
            let task = TaskDefinition::find(name).unwrap();
            assert_eq!(task.name, name);
            assert!(task.metrics.contains(&Metric::Acc));
        }
        let error = TaskDefinition::find("piqua").unwrap_err().to_string();
        assert!(error.contains("winogrande, piqa, hellaswag"), "{error}");
    }

    #[test]
    fn definitions_that_contradict_themselves_are_refused() {
        let text = |changes: &str| {
            let start = r#"{"title": "", "source": "", "data": "x""#;
            format!("{start}, {changes}}}")
        };
        let one = r#""contexts": ["{q}"], "continuations": ["{a}"]"#;
        let two = r#""contexts": ["{q}"], "continuations": ["{a}", "{b}"]"#;
        let gold = r#""gold": {"field": "g", "counts_from": 0}"#;
        for (changes, words) in [
            (format!(r#"{one}, "metrics": ["acc_norm"]"#), "`metrics`"),
            (
                format!(r#"{one}, "metrics": []"#),
                "`metrics`: expected at least one",
            ),
            (format!(r#"{one}, {gold}, "metrics": ["acc"]"#), "`gold`"),
            (
                format!(r#"{two}, "metrics": ["acc"]"#),
                "`gold`: expected the right answer, found nothing",
            ),
            (
                format!(r#"{two}, {gold}, "metrics": ["perplexity"]"#),
                "`metrics`",
            ),
            (format!(r#"{two}, {gold}, "metrics": ["f1"]"#), "metrics[0]"),
            (format!(r#"{two}, {gold}, "metrics": ["acc"], "code": 1"#), "code"),
            (
                r#""contexts": ["{q}", "{r}"], "continuations": {"each": "a"}, "metrics": ["acc"]"#.into(),
                "one context or one continuation",
            ),
            (
                r#""contexts": ["{q|fly}"], "continuations": ["a"], "metrics": ["acc"]"#.into(),
                "fly",
            ),
        ] {
            let error = TaskDefinition::parse(Path::new("own.json"), text(&changes).as_bytes());
            let error = error.unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("own.json"), "{error}");
        }
    }
}
