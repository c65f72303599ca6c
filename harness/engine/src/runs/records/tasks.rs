use serde::{Deserialize, Serialize};

use super::Estimate;
use crate::backends::BackendKind;
use crate::protocol::Bos;

/// A model's figures on tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TasksRecord {
    /// the model, as named on the command line
    pub model: String,
    /// the backend
    pub backend: BackendKind,
    /// whether texts began with BOS
    pub bos: Bos,
    /// whether the model read BOS at the beginning of a text that is not empty
    pub with_bos: bool,
    /// tokens that the model can read at once; longer texts lost their beginning
    pub positions: usize,
    /// seconds of the model's work
    pub seconds: f64,
    /// the tasks
    pub tasks: Vec<TaskFigures>,
}

/// A model's figures on one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskFigures {
    /// the task's name
    pub task: String,
    /// the file with its documents
    pub data: String,
    /// solved examples before each document
    pub shots: usize,
    /// documents
    pub documents: usize,
    /// documents of which a text lost its beginning
    pub cut: usize,
    /// documents with a log-likelihood that is NaN or infinite
    pub not_finite: usize,
    /// the figures
    pub metrics: Vec<MetricFigure>,
    /// the first metric by group, where the task has groups
    pub groups: Vec<GroupFigure>,
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricFigure {
    /// acc, acc_norm, acc_bytes or perplexity
    pub metric: String,
    /// mean over documents, with its standard error
    pub estimate: Estimate,
}

/// A figure of a group of documents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupFigure {
    /// the group
    pub group: String,
    /// its documents
    pub documents: usize,
    /// mean over them, with its standard error
    pub estimate: Estimate,
}

/// A model's answer to one document of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskDocumentRecord {
    /// the task's name
    pub task: String,
    /// number of the document in the data, from 0
    pub index: usize,
    /// its line in the data file, from 1
    pub line: usize,
    /// its group, if the task has groups
    pub group: Option<String>,
    /// index of the right answer
    pub gold: usize,
    /// the answers, in the document's order
    pub answers: Vec<AnswerRecord>,
    /// whether the right answer has the largest log-likelihood; of a single answer, whether every token is
    /// the most likely one
    pub acc: bool,
    /// the same by log-likelihood per character; `None` where the task does not measure it
    pub acc_norm: Option<bool>,
    /// the same by log-likelihood per byte; `None` where the task does not measure it
    pub acc_bytes: Option<bool>,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnswerRecord {
    /// sum of the natural logarithms of its tokens' probabilities
    #[serde(deserialize_with = "super::null_is_nan")]
    pub log_likelihood: f64,
    /// whether every token is the most likely one
    pub greedy: bool,
    /// its tokens
    pub tokens: usize,
    /// characters of its text without the space in front
    pub characters: usize,
    /// bytes of the same
    pub bytes: usize,
    /// tokens that its context lost at the beginning
    pub cut: usize,
}
