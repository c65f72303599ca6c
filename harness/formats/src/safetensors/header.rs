//! The header of a safetensors file, read and checked before any tensor.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use ::safetensors::Dtype;
use serde::Deserialize;
use serde_json::Value;

use crate::{Error, Result, stand_in};

/// Maximum length of a header in the safetensors format, in bytes.
const LONGEST_HEADER: u64 = 100_000_000;

/// A tensor's entry in the header.
#[derive(Debug, Deserialize)]
pub(super) struct Entry {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// first byte and one past the last, counted from the end of the header
    pub(super) data_offsets: (u64, u64),
}

/// A header: entries by tensor name.
#[derive(Debug)]
pub(super) struct Header {
    /// offset of the first tensor's first byte
    pub(super) data_start: u64,
    pub(super) entries: BTreeMap<String, Entry>,
    /// texts by name; values of other types are left out
    pub(super) metadata: BTreeMap<String, String>,
}

/// Reads and checks a header. The tensors' bytes must tile the rest of the file, whose total size is `length`
/// bytes.
pub(super) fn read_header(path: &Path, reader: &mut impl Read, length: u64) -> Result<Header> {
    let truncated = |what: &str, expected: u64| Error::Truncated {
        path: path.into(),
        what: what.into(),
        expected,
        found: length,
    };
    if length < 8 {
        return Err(truncated("the header's length", 8));
    }
    let mut header_length = [0; 8];
    reader
        .read_exact(&mut header_length)
        .map_err(Error::io(path, "read"))?;
    let header_length = u64::from_le_bytes(header_length);
    if header_length > LONGEST_HEADER {
        // the first eight bytes of a text are such a length
        let mut start = header_length.to_le_bytes().to_vec();
        let rest = reader
            .take((stand_in::START - start.len()) as u64)
            .read_to_end(&mut start);
        rest.map_err(Error::io(path, "read"))?;
        stand_in::refuse(path, &start, "a safetensors file")?;
        return Err(Error::Header {
            path: path.into(),
            expected: format!("a safetensors header of at most {LONGEST_HEADER} bytes"),
            found: format!("a length of {header_length}"),
        });
    }
    let data_start = 8 + header_length;
    if length < data_start {
        return Err(truncated("the header", data_start));
    }
    let mut header = vec![0; header_length as usize];
    reader.read_exact(&mut header).map_err(Error::io(path, "read"))?;
    let bad_header = |found: String| Error::Header {
        path: path.into(),
        expected: "safetensors' JSON of names, types, shapes and offsets".into(),
        found,
    };
    let values: BTreeMap<String, Value> =
        serde_json::from_slice(&header).map_err(|error| bad_header(error.to_string()))?;
    let mut entries = BTreeMap::new();
    let mut metadata = BTreeMap::new();
    for (name, value) in values {
        if name == "__metadata__" {
            let texts = value.as_object().into_iter().flatten();
            metadata.extend(texts.filter_map(|(name, text)| Some((name.clone(), text.as_str()?.to_owned()))));
            continue;
        }
        let entry: Entry =
            serde_json::from_value(value).map_err(|error| bad_header(format!("tensor `{name}`: {error}")))?;
        entries.insert(name, entry);
    }
    check_offsets(path, &entries, length, data_start)?;
    Ok(Header {
        data_start,
        entries,
        metadata,
    })
}

fn check_offsets(path: &Path, entries: &BTreeMap<String, Entry>, length: u64, data_start: u64) -> Result<()> {
    let mut order: Vec<(&String, &Entry)> = entries.iter().collect();
    order.sort_by_key(|(name, entry)| (entry.data_offsets, *name));
    let mut next = 0;
    for (name, entry) in order {
        let (begin, end) = entry.data_offsets;
        let wrong = |expected: String| Error::Offsets {
            path: path.into(),
            tensor: name.clone(),
            expected,
            begin,
            end,
        };
        if begin != next {
            let problem = if begin < next {
                "it overlaps"
            } else {
                "there is a gap after"
            };
            return Err(wrong(format!(
                "to begin at byte {next} ({problem} the tensor before)"
            )));
        }
        let bits = entry
            .shape
            .iter()
            .try_fold(entry.dtype.bitsize() as u64, |product, &side| {
                product.checked_mul(side as u64)
            });
        match bits {
            Some(bits) if bits % 8 == 0 && end.checked_sub(begin) == Some(bits / 8) => {}
            Some(bits) => {
                let shape = &entry.shape;
                return Err(wrong(format!(
                    "{} bytes for {:?} {shape:?}",
                    bits / 8,
                    entry.dtype
                )));
            }
            None => {
                return Err(wrong(format!(
                    "a shape that fits in memory, not {:?}",
                    entry.shape
                )));
            }
        }
        next = end;
    }
    let needed = data_start.saturating_add(next);
    match length.cmp(&needed) {
        std::cmp::Ordering::Less => Err(Error::Truncated {
            path: path.into(),
            what: "the tensors".into(),
            expected: needed,
            found: length,
        }),
        std::cmp::Ordering::Greater => Err(Error::Header {
            path: path.into(),
            expected: format!("tensors that fill the file's {length} bytes"),
            found: format!("tensors that end at byte {needed}"),
        }),
        std::cmp::Ordering::Equal => Ok(()),
    }
}
