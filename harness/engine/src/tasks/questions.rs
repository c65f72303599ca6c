//! Documents of a task as contexts and continuations.

use std::collections::BTreeMap;
use std::path::Path;

use aqlm_formats::texts::{Row, rows};
use aqlm_formats::{Error, Result};

use super::definition::{Continuations, Gold, TaskDefinition};
use super::template::Document;

/// Stands between a context and a continuation.
const DELIMITER: &str = " ";

/// Stands behind a solved example.
const SHOT_DELIMITER: &str = "\n\n";

/// A document of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// its line in the data file, from 1
    pub line: usize,
    /// its group, if the task has groups
    pub group: Option<String>,
    /// a context and its continuation, delimiter included, for every answer
    pub pairs: Vec<(String, String)>,
    /// characters and bytes of the continuations without the delimiter
    pub lengths: Vec<(usize, usize)>,
    /// index of the right answer; 0 for a single continuation
    pub gold: usize,
}

/// What a document says, before examples are put in front.
struct Parts {
    contexts: Vec<String>,
    continuations: Vec<String>,
    gold: usize,
    group: Option<String>,
}

/// The questions of a data file, at most `limit` of them.
///
/// `shots` is a file with solved examples, and how many of them stand before every document: the first ones,
/// of the document's own group if the task has groups.
///
/// # Errors
/// `Line` for a document without a field, with another number of choices, or with an answer that is none of
/// them; `Field` for a group with too few examples; those of reading the files.
pub fn questions(
    task: &TaskDefinition,
    data: &Path,
    limit: Option<usize>,
    shots: Option<(&Path, usize)>,
) -> Result<Vec<Question>> {
    let examples = match shots {
        Some((path, count)) => examples(task, path, count)?,
        None => BTreeMap::new(),
    };
    let mut rows = rows(data)?;
    rows.truncate(limit.unwrap_or(usize::MAX));
    let question = |row: &Row| -> Result<Question> {
        let document = Document { path: data, row };
        let Parts {
            contexts,
            continuations,
            gold,
            group,
        } = parts(task, document)?;
        let mut before = match &task.description {
            Some(description) => description.fill(document)?,
            None => String::new(),
        };
        if let Some((path, count)) = shots {
            let own = examples.get(&group).map_or(&[][..], Vec::as_slice);
            if own.len() < count {
                return Err(Error::Field {
                    path: path.into(),
                    field: task.group.clone().unwrap_or_else(|| "examples".into()),
                    expected: format!("{count} examples of {}", group.as_deref().unwrap_or("the task")),
                    found: own.len().to_string(),
                });
            }
            before.extend(own.iter().map(String::as_str));
        }
        let lengths = continuations
            .iter()
            .map(|text| (text.chars().count(), text.len()));
        let lengths = lengths.collect();
        let answers = contexts.len().max(continuations.len());
        let pair = |answer: usize| {
            let context = &contexts[answer.min(contexts.len() - 1)];
            let continuation = &continuations[answer.min(continuations.len() - 1)];
            (format!("{before}{context}"), format!("{DELIMITER}{continuation}"))
        };
        Ok(Question {
            line: row.line,
            group,
            pairs: (0..answers).map(pair).collect(),
            lengths,
            gold,
        })
    };
    rows.iter().map(question).collect()
}

/// The first `count` solved examples of every group.
fn examples(
    task: &TaskDefinition,
    path: &Path,
    count: usize,
) -> Result<BTreeMap<Option<String>, Vec<String>>> {
    let mut examples: BTreeMap<Option<String>, Vec<String>> = BTreeMap::new();
    for row in &rows(path)? {
        let parts = parts(task, Document { path, row })?;
        let of_group = examples.entry(parts.group).or_default();
        if of_group.len() < count {
            let context = &parts.contexts[parts.gold.min(parts.contexts.len() - 1)];
            let answer = &parts.continuations[parts.gold.min(parts.continuations.len() - 1)];
            of_group.push(format!("{context}{DELIMITER}{answer}{SHOT_DELIMITER}"));
        }
    }
    Ok(examples)
}

fn parts(task: &TaskDefinition, document: Document<'_>) -> Result<Parts> {
    let stepped = |text: String| document.stepped("of the task", text, &task.steps);
    let contexts = task
        .contexts
        .iter()
        .map(|template| stepped(template.fill(document)?));
    let contexts: Vec<String> = contexts.collect::<Result<_>>()?;
    let continuations = match &task.continuations {
        Continuations::These(templates) => templates
            .iter()
            .map(|template| template.fill(document))
            .collect::<Result<_>>()?,
        Continuations::Each(each) => {
            let texts = document.texts(&each.each)?;
            let fits = each.count.map_or(texts.len() > 1, |count| texts.len() == count);
            if !fits {
                let expected = each.count.map_or("2 or more".into(), |count| count.to_string());
                let found = texts.len().to_string();
                return Err(document.wrong(&each.each, &format!("{expected} choices"), found));
            }
            texts
        }
    };
    let continuations: Vec<String> = continuations.into_iter().map(stepped).collect::<Result<_>>()?;
    let answers = contexts.len().max(continuations.len());
    Ok(Parts {
        gold: gold(task, document, answers)?,
        group: task
            .group
            .as_deref()
            .map(|group| document.text(group))
            .transpose()?,
        contexts,
        continuations,
    })
}

/// Index of the right one of so many answers.
fn gold(task: &TaskDefinition, document: Document<'_>, answers: usize) -> Result<usize> {
    match &task.gold {
        None => Ok(0),
        Some(Gold::Number(number)) => {
            let text = document.text(&number.field)?;
            let index = text
                .parse::<usize>()
                .ok()
                .and_then(|value| value.checked_sub(number.counts_from));
            index.filter(|&index| index < answers).ok_or_else(|| {
                let (first, last) = (number.counts_from, number.counts_from + answers - 1);
                document.wrong(
                    &number.field,
                    &format!("a number from {first} to {last}"),
                    format!("{text:?}"),
                )
            })
        }
        Some(Gold::Label(label)) => {
            let text = document.text(&label.field)?;
            let labels = document.texts(&label.among)?;
            if labels.len() != answers {
                let expected = format!("a label for each of {answers} choices");
                return Err(document.wrong(&label.among, &expected, format!("{} labels", labels.len())));
            }
            labels.iter().position(|label| *label == text).ok_or_else(|| {
                document.wrong(
                    &label.field,
                    &format!("one of {}", labels.join(", ")),
                    format!("{text:?}"),
                )
            })
        }
    }
}
