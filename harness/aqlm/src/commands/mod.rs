//! The program's commands, one per file. A use case is a function of a typed request, never of the command
//! line's own types, and returns a record. Commands call one another's use cases. `run` of each file prints
//! the record and returns whether the result is a success.

pub(crate) mod bench;
pub(crate) mod check;
pub(crate) mod decode_bench;
pub(crate) mod demo;
pub(crate) mod divergence;
mod estimate;
pub(crate) mod eval;
pub(crate) mod fetch;
pub(crate) mod finetune;
pub(crate) mod generate;
pub(crate) mod inspect;
mod job;
mod output;
pub(crate) mod paper_table;
mod progress;
pub(crate) mod quantize;
pub(crate) mod ranks;
pub(crate) mod report;
pub(crate) mod selfgen;
mod table;
pub(crate) mod tasks;
pub(crate) mod watch;

pub(crate) use job::{Job, NamedModel, warn_of_length};
pub(crate) use output::{Output, complain, print, say, wanted};
