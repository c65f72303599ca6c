//! Model folders as transformers and the `aqlm` package know them: names, shards, layers and writing.

pub mod block_file;
pub(crate) mod index;
pub(crate) mod linear;
pub(crate) mod names;
mod shards;
mod tokenizer_files;
pub(crate) mod write;
