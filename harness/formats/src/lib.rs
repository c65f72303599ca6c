//! Reading and writing of users' files: Hugging Face folders, safetensors, GGUF files, tokenizers and texts.
//!
//! [`model::Model`] is the common interface of all model formats. Opening one reads no weights but describes
//! the model; weights are then read block by block:
//!
//! ```
//! use aqlm_formats::model::Model;
//! use aqlm_formats::texts::TokenStream;
//!
//! # fn main() -> aqlm_formats::Result<()> {
//! let model = Model::embedded()?; // or Model::open("folder or file.gguf")
//! println!("{} blocks of {}", model.config().blocks.len(), model.config().hidden_size);
//! let block = model.block(0)?;
//! assert_eq!(block.norms[0].len(), model.config().hidden_size);
//!
//! let text = "Once upon a time there was a cat.";
//! let stream = TokenStream::from_bytes("story.txt".as_ref(), text.as_bytes(), &model.tokenizer()?)?;
//! assert_eq!(model.tokenizer()?.decode(stream.tokens(), true)?, text);
//! # Ok(())
//! # }
//! ```
//!
//! | module | what it is for |
//! |---|---|
//! | [`model`] | models in, and checkpoints out in the layout that transformers and the `aqlm` package load |
//! | [`tensors`] | what every format of weights offers: named tensors, read one at a time |
//! | [`safetensors`] | named arrays of any numbers in and out, with checksums |
//! | [`tokenizer`] | text to tokens and back |
//! | [`texts`] | text files as streams of tokens, cut into windows and calibration sequences |
//! | [`base_files`] | log-probabilities of a dense model on a text, kept for comparisons |
//! | [`fetch`] | models from the Hub or a Python package |
//! | [`durable`] | files that are either whole or absent |
//! | [`hostile`] | the readers as functions of bytes, for fuzzers |
//!
//! Every function that can fail returns [`Error`], which names the file and the field or tensor, what was
//! expected and what was found. `examples/open_model.rs` opens a model, lists its layers and reads a weight.

pub mod base_files;
pub mod durable;
pub mod error;
pub mod fetch;
mod gguf;
pub mod hostile;
pub mod huggingface;
mod json;
pub mod model;
pub mod safetensors;
mod stand_in;
pub mod tensors;
pub mod texts;
pub mod tokenizer;

pub use error::{Error, Result};
