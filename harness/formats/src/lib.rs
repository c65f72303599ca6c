//! What people have, in and out: Hugging Face folders, safetensors, GGUF files, tokenizers, texts, and
//! fetching them.

pub mod durable;
pub mod error;
pub mod fetch;
pub mod huggingface;
pub mod model;
pub mod texts;
pub mod tokenizer;

pub use error::{Error, Result};
