//! Measuring models: perplexity, logits, and text they write.

mod generate;
mod perplexity;

pub use generate::{Generated, Generator, Sampling};
pub use perplexity::{Evaluation, Perplexity, evaluate};
