//! Measuring models: perplexity, logits, and text they write.

mod generate;
mod perplexity;

pub use generate::{Generated, Generator, Sampling, Session, Writer, generate};
pub use perplexity::{Evaluation, Perplexity, evaluate, evaluate_on_gpu, losses};
