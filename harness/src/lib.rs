//! The parts of the `aqlm` command: models and data in and out, backends behind one trait, the pipeline, checks.

pub mod backend;
pub mod bench;
pub mod cases;
pub mod check;
pub mod cli;
pub mod data;
pub mod durable;
pub mod error;
pub mod eval;
pub mod fetch;
pub mod hostile;
pub mod model;
pub mod pipeline;
pub mod tokenizer;

pub use error::{Error, Result};
