//! What the program does, one command a file. A use case is a function of a typed request, never of the
//! command line's own types, and its answer is a record; commands call one another's use cases. `run` of each
//! file prints the record and says whether the answer is yes.

pub(crate) mod bench;
pub(crate) mod check;
pub(crate) mod decode_bench;
pub(crate) mod demo;
pub(crate) mod eval;
pub(crate) mod fetch;
pub(crate) mod finetune;
pub(crate) mod generate;
pub(crate) mod inspect;
mod job;
mod output;
mod progress;
pub(crate) mod quantize;
mod table;

pub(crate) use job::{Job, NamedModel};
pub(crate) use output::Output;
