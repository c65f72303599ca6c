//! Measuring models: perplexity, logits, and text they write.

mod generate;
mod perplexity;

pub use generate::{Generated, Generator, Sampling};
pub use perplexity::{Perplexity, evaluate, hidden_after_blocks, perplexity};
