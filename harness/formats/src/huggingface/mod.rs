//! Model folders as transformers and the `aqlm` package know them.

pub mod config;
pub mod families;
mod fields;
mod llama_block;
mod rope;
