//! Accuracies from log-likelihoods, as lm-eval defines them.

use std::collections::BTreeMap;

use super::definition::{Metric, TaskDefinition};
use super::encode::Encoded;
use super::questions::Question;
use crate::likelihood::Likelihood;
use crate::runs::records::{AnswerRecord, Estimate, GroupFigure, MetricFigure, TaskDocumentRecord};

/// Scores a document. `index` is its number in the data, from 0.
pub fn document(
    task: &TaskDefinition,
    index: usize,
    question: &Question,
    encoded: &[Encoded],
    likelihoods: &[Likelihood],
) -> TaskDocumentRecord {
    let answers: Vec<AnswerRecord> = (0..likelihoods.len())
        .map(|answer| {
            // partial evaluation has one continuation for all contexts
            let (characters, bytes) = question.lengths[answer.min(question.lengths.len() - 1)];
            AnswerRecord {
                log_likelihood: likelihoods[answer].log_likelihood,
                greedy: likelihoods[answer].greedy,
                tokens: encoded[answer].continuation.len(),
                characters,
                bytes,
                cut: encoded[answer].cut,
            }
        })
        .collect();
    let right = |score: &dyn Fn(&AnswerRecord) -> f64| {
        let scores: Vec<f64> = answers.iter().map(score).collect();
        largest(&scores) == question.gold
    };
    let measured =
        |metric, score: &dyn Fn(&AnswerRecord) -> f64| task.metrics.contains(&metric).then(|| right(score));
    TaskDocumentRecord {
        task: task.name.clone(),
        index,
        line: question.line,
        group: question.group.clone(),
        gold: question.gold,
        acc: if let [only] = &answers[..] {
            only.greedy
        } else {
            right(&|answer| answer.log_likelihood)
        },
        acc_norm: measured(Metric::AccNorm, &|answer| {
            answer.log_likelihood / answer.characters as f64
        }),
        acc_bytes: measured(Metric::AccBytes, &|answer| {
            answer.log_likelihood / answer.bytes as f64
        }),
        answers,
    }
}

/// Index of the largest score, the first of equal ones. NaN is largest, as in numpy, whose `argmax` lm-eval
/// uses.
fn largest(scores: &[f64]) -> usize {
    if let Some(nan) = scores.iter().position(|score| score.is_nan()) {
        return nan;
    }
    (0..scores.len()).fold(0, |best, i| if scores[i] > scores[best] { i } else { best })
}

/// The figures of a task's documents, and the first of them by group.
pub fn figures(
    task: &TaskDefinition,
    documents: &[TaskDocumentRecord],
) -> (Vec<MetricFigure>, Vec<GroupFigure>) {
    let mut groups: BTreeMap<&str, Vec<&TaskDocumentRecord>> = BTreeMap::new();
    for document in documents {
        if let Some(group) = &document.group {
            groups.entry(group).or_default().push(document);
        }
    }
    let value = |metric, document: &TaskDocumentRecord| match metric {
        Metric::Acc => f64::from(document.acc),
        Metric::AccNorm => f64::from(document.acc_norm == Some(true)),
        Metric::AccBytes => f64::from(document.acc_bytes == Some(true)),
        Metric::Perplexity => document
            .answers
            .first()
            .map_or(f64::NAN, |only| only.log_likelihood),
    };
    let values = |metric, documents: &mut dyn Iterator<Item = &TaskDocumentRecord>| -> Vec<f64> {
        documents.map(|document| value(metric, document)).collect()
    };
    let metrics = task.metrics.iter().map(|&metric| {
        let whole = mean(&values(metric, &mut documents.iter()));
        let estimate = match metric {
            Metric::Perplexity => {
                let value = (-whole.value).exp();
                // to first order, the error of an exponential
                let error = value * whole.error;
                Estimate { value, error }
            }
            _ if groups.is_empty() => whole,
            _ => {
                let of_groups = groups
                    .values()
                    .map(|group| values(metric, &mut group.iter().copied()));
                Estimate {
                    value: whole.value,
                    error: pooled_error(&of_groups.collect::<Vec<_>>()),
                }
            }
        };
        MetricFigure {
            metric: metric.name().into(),
            estimate,
        }
    });
    let metrics = metrics.collect();
    let groups = groups.iter().map(|(group, documents)| GroupFigure {
        group: (*group).into(),
        documents: documents.len(),
        estimate: mean(&values(task.metrics[0], &mut documents.iter().copied())),
    });
    (metrics, groups.collect())
}

/// The mean, and its error: sample standard deviation / sqrt(n).
fn mean(values: &[f64]) -> Estimate {
    let n = values.len() as f64;
    let value = values.iter().sum::<f64>() / n;
    Estimate {
        value,
        error: (squares(values, value) / (n - 1.0) / n).sqrt(),
    }
}

/// Sum of the squared distances from `center`.
fn squares(values: &[f64], center: f64) -> f64 {
    values
        .iter()
        .map(|value| (value - center) * (value - center))
        .sum()
}

/// lm-eval's error of a mean over groups: that of documents whose variance is the pooled one of the groups.
/// NaN while every group has one document.
fn pooled_error(groups: &[Vec<f64>]) -> f64 {
    let count: usize = groups.iter().map(Vec::len).sum();
    let within: f64 = groups.iter().map(|group| squares(group, mean(group).value)).sum();
    (within / count.saturating_sub(groups.len()) as f64 / count as f64).sqrt()
}
