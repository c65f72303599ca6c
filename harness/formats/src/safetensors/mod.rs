//! Named arrays of numbers in safetensors files; all reading and writing of this format is here.
//!
//! [`SafetensorFiles`] opens a file by its header and reads one tensor at a time. [`write()`] writes a file
//! of [`NewTensor`]s durably and returns its checksum; [`PlacedTensors`] is the same file, written one tensor
//! at a time. All use the `safetensors` crate's [`Dtype`]. This module checks headers itself, so that errors
//! name the file and the tensor.

mod element;
mod files;
mod header;
mod placed;
mod write;

pub use ::safetensors::Dtype;
pub use element::{Element, NewTensor};
pub use files::SafetensorFiles;
pub use placed::{Place, PlacedTensors};
pub use write::write;
pub(crate) use write::{Slot, write_header};

#[cfg(test)]
mod tests;
