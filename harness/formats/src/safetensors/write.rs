//! The bytes of a safetensors file: header, then tensors from wide types to narrow ones.
//!
//! The format allows no padding between tensors, and readers view the bytes as numbers in place. Wide types
//! first keeps every tensor aligned to its own type.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use ::safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::NewTensor;
use crate::{Result, durable};

/// A tensor's entry in the header, without its offsets.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: u64,
}

impl Slot {
    pub(crate) fn of(tensor: &NewTensor) -> Self {
        Self {
            name: tensor.name.clone(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            bytes: tensor.bytes.len() as u64,
        }
    }
}

/// Writes the length and the header of a file whose tensors follow in this order. `metadata` are texts by
/// name.
pub(crate) fn write_header<'a>(
    out: &mut impl Write,
    metadata: &BTreeMap<String, String>,
    slots: impl Iterator<Item = &'a Slot>,
) -> io::Result<()> {
    let mut header = Map::new();
    let mut texts = json!(metadata);
    // transformers rejects files that do not state their framework
    texts["format"] = json!("pt");
    header.insert("__metadata__".into(), texts);
    let mut begin = 0;
    for slot in slots {
        let end = begin + slot.bytes;
        header.insert(
            slot.name.clone(),
            json!({"dtype": slot.dtype, "shape": slot.shape, "data_offsets": [begin, end]}),
        );
        begin = end;
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    // data begin at a multiple of 8
    text.resize(text.len().next_multiple_of(8), b' ');
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(&text)
}

/// Order of two tensors in a file, by type and name.
pub(super) fn in_order(a: (Dtype, &str), b: (Dtype, &str)) -> Ordering {
    let wide_first = b.0.bitsize().cmp(&a.0.bitsize());
    wide_first.then_with(|| a.1.cmp(b.1))
}

/// Writes a file atomically and returns its SHA-256 in hexadecimal. The same tensors give the same bytes in
/// any order. If two tensors have the same name, a reader finds only one.
///
/// # Errors
/// `Io` with the file's name.
pub fn write(path: &Path, mut tensors: Vec<NewTensor>) -> Result<String> {
    tensors.sort_by(|a, b| in_order((a.dtype, &a.name), (b.dtype, &b.name)));
    let slots: Vec<Slot> = tensors.iter().map(Slot::of).collect();
    durable::write_hashed(path, |file| {
        write_header(file, &BTreeMap::new(), slots.iter())?;
        tensors
            .iter()
            .try_for_each(|tensor| file.write_all(&tensor.bytes))
    })
}
