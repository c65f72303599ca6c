//! The GGUF container: metadata and tensor locations, without interpreting the metadata.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::BufReader;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::dequantize::TensorType;
use super::metadata::Metadata;
use super::reader::{Reader, TensorHeader};
use crate::{Error, Result};

/// First bytes of every GGUF file.
pub(crate) const MAGIC: &[u8; 4] = b"GGUF";

/// A tensor's location, type and shape.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TensorPlace {
    pub(super) kind: TensorType,
    /// row-major: the reverse of the file's order
    pub(super) shape: Vec<usize>,
    /// index in [`Container::files`]
    pub(super) file: usize,
    /// first byte, from the start of the file
    begin: u64,
    pub(super) bytes: u64,
}

impl TensorPlace {
    /// One of `count` matrices that lie one behind the other, of these many rows and columns each.
    pub(super) fn matrix(&self, index: usize, count: usize, shape: [usize; 2]) -> Self {
        let bytes = self.bytes / count as u64;
        Self {
            shape: shape.into(),
            begin: self.begin + index as u64 * bytes,
            bytes,
            ..*self
        }
    }
}

/// An opened file, or several that are the parts of one (see [`super::split`]).
#[derive(Debug)]
pub(super) struct Container {
    /// every part in order, with its path
    pub(super) files: Vec<(PathBuf, File)>,
    /// of the first part
    pub(super) metadata: BTreeMap<String, Metadata>,
    pub(super) tensors: BTreeMap<String, TensorPlace>,
}

impl Container {
    /// Reads one file's header and checks that all tensors lie inside the file and do not overlap.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let length = file.metadata().map_err(Error::io(path, "read"))?.len();
        let mut reader = Reader {
            path,
            input: BufReader::new(&file),
            position: 0,
            length,
        };
        let magic = reader.take::<4>("the magic bytes")?;
        if &magic != MAGIC {
            return Err(reader.header("a file that starts with GGUF", format!("{magic:?}")));
        }
        let version = reader.u32("the version")?;
        if version != 2 && version != 3 {
            let swapped = matches!(version.swap_bytes(), 1..=3);
            let note = if swapped { " (a big-endian file)" } else { "" };
            return Err(reader.header("GGUF version 2 or 3", format!("version {version}{note}")));
        }
        let tensor_count = reader.u64("the number of tensors")?;
        let metadata_count = reader.u64("the number of metadata fields")?;
        let mut metadata = BTreeMap::new();
        for _ in 0..metadata_count {
            let name = reader.text("a metadata field's name")?;
            let kind = reader.kind(&name)?;
            let value = reader.value(kind, &name, 0)?;
            if metadata.contains_key(&name) {
                return Err(reader.header("each metadata field once", format!("`{name}` twice")));
            }
            metadata.insert(name, value);
        }
        let mut headers = Vec::new();
        let mut names = HashSet::new();
        for _ in 0..tensor_count {
            let header = reader.tensor_header()?;
            if !names.insert(header.0.clone()) {
                return Err(reader.header("each tensor once", format!("`{}` twice", header.0)));
            }
            headers.push(header);
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(Metadata::Integer(value)) if *value > 0 && (*value as u64).is_power_of_two() => {
                *value as u64
            }
            Some(other) => {
                return Err(Error::Field {
                    path: path.into(),
                    field: "general.alignment".into(),
                    expected: "a power of two".into(),
                    found: other.describe(),
                });
            }
        };
        let position = reader.position;
        let data_start = position.checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
        let tensors = place_tensors(path, headers, data_start, alignment, length)?;
        Ok(Self {
            files: vec![(path.into(), file)],
            metadata,
            tensors,
        })
    }

    /// The first file, whose metadata hold for all.
    pub(super) fn path(&self) -> &Path {
        &self.files[0].0
    }

    /// The file that has a tensor.
    pub(super) fn path_of(&self, place: &TensorPlace) -> &Path {
        &self.files[place.file].0
    }

    /// A tensor's bytes as they are in the file.
    pub(super) fn read(&self, place: &TensorPlace) -> Result<Vec<u8>> {
        let mut bytes = vec![0; place.bytes as usize];
        let (path, file) = &self.files[place.file];
        file.read_exact_at(&mut bytes, place.begin)
            .map_err(Error::io(path, "read"))?;
        Ok(bytes)
    }
}

fn place_tensors(
    path: &Path,
    headers: Vec<TensorHeader>,
    data_start: u64,
    alignment: u64,
    length: u64,
) -> Result<BTreeMap<String, TensorPlace>> {
    let mut tensors = BTreeMap::new();
    for (name, kind, shape, offset) in headers {
        let begin = data_start.checked_add(offset);
        let wrong = |expected: String, bytes: u64| Error::Offsets {
            path: path.into(),
            tensor: name.clone(),
            expected,
            begin: offset,
            end: offset.saturating_add(bytes),
        };
        let row = *shape.last().expect("a tensor has 1 to 4 dimensions");
        let elements = shape
            .iter()
            .try_fold(1_usize, |product, &side| product.checked_mul(side));
        let bytes = elements
            .and_then(|elements| (elements / kind.block_len()).checked_mul(kind.block_bytes()))
            .ok_or_else(|| wrong(format!("a shape that fits in memory, not {shape:?}"), 0))?
            as u64;
        if row % kind.block_len() != 0 {
            let blocks = kind.block_len();
            return Err(wrong(
                format!("rows of a multiple of {blocks} elements for {kind:?}, not {row}"),
                bytes,
            ));
        }
        if offset % alignment != 0 {
            return Err(wrong(format!("to begin at a multiple of {alignment}"), bytes));
        }
        let end = begin.and_then(|begin| begin.checked_add(bytes));
        match (begin, end) {
            (Some(begin), Some(end)) if end <= length => {
                tensors.insert(
                    name,
                    TensorPlace {
                        kind,
                        shape,
                        file: 0,
                        begin,
                        bytes,
                    },
                );
            }
            _ => {
                return Err(Error::Truncated {
                    path: path.into(),
                    what: format!("tensor `{name}`"),
                    expected: end.unwrap_or(u64::MAX),
                    found: length,
                });
            }
        }
    }
    let mut order: Vec<(&String, &TensorPlace)> = tensors.iter().collect();
    order.sort_by_key(|(name, place)| (place.begin, *name));
    for pair in order.windows(2) {
        let [(before, first), (name, second)] = pair else {
            continue;
        };
        if first.begin + first.bytes > second.begin {
            return Err(Error::Offsets {
                path: path.into(),
                tensor: (*name).clone(),
                expected: format!("to begin after tensor `{before}` ends"),
                begin: second.begin,
                end: second.begin + second.bytes,
            });
        }
    }
    Ok(tensors)
}
