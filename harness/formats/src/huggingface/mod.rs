//! Model folders in the layout of transformers and the `aqlm` package: configuration, names, shards, layers
//! and writing.

pub mod block_file;
pub mod config;
mod experts;
pub mod families;
mod fields;
mod generation;
pub(crate) mod index;
mod keys;
pub(crate) mod linear;
mod llama_block;
pub(crate) mod names;
pub(crate) mod norms;
mod parts;
mod rope;
mod shards;
mod tokenizer_files;
mod windows;
pub(crate) mod write;

pub(crate) use generation::generation_stops;
