//! Zero-shot and few-shot tasks as the LM Evaluation Harness defines them (docs/evaluation.md).
//!
//! A task is a data file: [`TaskDefinition`]. Its documents become contexts and continuations
//! ([`questions()`]), these become tokens ([`encode()`]), a model says how likely every continuation is
//! ([`likelihoods()`]), and the likelihoods become accuracies ([`document`], [`figures`]).

mod definition;
mod encode;
mod questions;
mod run;
mod score;
mod step;
mod template;

pub use definition::{Continuations, Each, Gold, GoldLabel, GoldNumber, Metric, Shots, TaskDefinition};
pub use encode::{Encoded, encode};
pub use questions::{Question, questions};
pub use run::{likelihoods, tokens_read};
pub use score::{document, figures};
pub use step::Step;
pub use template::Template;

#[cfg(test)]
mod tests;
