//! Named arrays of numbers in safetensors files: the only reader and the only writer of them here.
//!
//! [`SafetensorFiles`] opens a file by its header and reads one tensor at a time; [`write()`] makes a file of
//! [`NewTensor`]s, durably, and returns its checksum. Beneath both is the `safetensors` crate's [`Dtype`];
//! the header's check is this module's own, because its errors name the file and the tensor.

mod element;
mod files;
mod header;
mod write;

pub use ::safetensors::Dtype;
pub use element::{Element, NewTensor};
pub use files::SafetensorFiles;
pub use write::write;
pub(crate) use write::{Slot, write_header};

#[cfg(test)]
mod tests;
