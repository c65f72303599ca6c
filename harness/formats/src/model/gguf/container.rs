//! The GGUF container: metadata and the places of tensors. Nothing of what the metadata mean.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::dequantize::TensorType;
use crate::{Error, Result};

/// First bytes of every GGUF file.
pub(crate) const MAGIC: &[u8; 4] = b"GGUF";

/// Arrays inside arrays are legal; deeper than this they are an attack on the stack.
const DEEPEST_ARRAY: usize = 4;

/// Types of metadata values, as numbered in the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    fn from_id(id: u32) -> Option<Self> {
        use Kind::{Array, Bool, F32, F64, I8, I16, I32, I64, Text, U8, U16, U32, U64};
        let kinds = [U8, I8, U16, I16, U32, I32, F32, Bool, Text, Array, U64, I64, F64];
        kinds.get(id as usize).copied()
    }

    /// Bytes of one value; `None` for those of varying length.
    fn size(self) -> Option<u64> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::Text | Self::Array => None,
        }
    }
}

/// A metadata value. Arrays of numbers stay bytes, so that a file cannot make its reader use many times its
/// own size.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Metadata {
    Integer(i64),
    Float(f64),
    /// kept apart from f64, so that the decimal that was meant can be recovered
    Single(f32),
    Flag(bool),
    Text(String),
    Texts(Vec<String>),
    Numbers(Numbers),
    /// arrays of arrays, which nothing here uses
    Nested,
}

/// An array of numbers.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Numbers {
    kind: Kind,
    bytes: Vec<u8>,
}

impl Numbers {
    /// The numbers as floats.
    pub(super) fn floats(&self) -> Vec<f64> {
        let size = self.kind.size().unwrap_or(1) as usize;
        self.bytes
            .chunks_exact(size)
            .map(|bytes| match scalar(self.kind, bytes) {
                Metadata::Integer(value) => value as f64,
                Metadata::Float(value) => value,
                Metadata::Single(value) => f64::from(value),
                _ => f64::NAN,
            })
            .collect()
    }
}

impl Metadata {
    /// For error messages.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Integer(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Single(value) => value.to_string(),
            Self::Flag(value) => value.to_string(),
            Self::Text(value) => format!("{value:?}"),
            Self::Texts(list) => format!("a list of {} texts", list.len()),
            Self::Numbers(list) => format!("a list of {} numbers", list.floats().len()),
            Self::Nested => "a list of lists".into(),
        }
    }
}

/// Where a tensor is and what it holds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TensorPlace {
    pub(super) kind: TensorType,
    /// row-major: the reverse of the file's order
    pub(super) shape: Vec<usize>,
    /// first byte, from the start of the file
    begin: u64,
    pub(super) bytes: u64,
}

/// An opened file.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) path: PathBuf,
    file: File,
    pub(super) metadata: BTreeMap<String, Metadata>,
    pub(super) tensors: BTreeMap<String, TensorPlace>,
}

impl Container {
    /// Reads the header and checks that all tensors lie inside the file without overlapping.
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
            path: path.into(),
            file,
            metadata,
            tensors,
        })
    }

    /// A tensor's bytes as they are in the file.
    pub(super) fn read(&self, place: &TensorPlace) -> Result<Vec<u8>> {
        let mut bytes = vec![0; place.bytes as usize];
        self.file
            .read_exact_at(&mut bytes, place.begin)
            .map_err(Error::io(&self.path, "read"))?;
        Ok(bytes)
    }
}

type TensorHeader = (String, TensorType, Vec<usize>, u64);

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
        let row = shape.last().copied().unwrap_or(1);
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

/// Reads forward and knows how much is left, so that no length is believed that the file cannot hold.
struct Reader<'a> {
    path: &'a Path,
    input: BufReader<&'a File>,
    position: u64,
    length: u64,
}

impl Reader<'_> {
    fn header(&self, expected: &str, found: String) -> Error {
        Error::Header {
            path: self.path.into(),
            expected: expected.into(),
            found,
        }
    }

    /// Makes sure that so many more bytes are there.
    fn need(&self, bytes: u64, what: &str) -> Result<()> {
        if bytes <= self.length - self.position {
            return Ok(());
        }
        Err(Error::Truncated {
            path: self.path.into(),
            what: what.into(),
            expected: self.position.saturating_add(bytes),
            found: self.length,
        })
    }

    fn bytes(&mut self, count: u64, what: &str) -> Result<Vec<u8>> {
        self.need(count, what)?;
        let mut bytes = vec![0; count as usize];
        self.input
            .read_exact(&mut bytes)
            .map_err(Error::io(self.path, "read"))?;
        self.position += count;
        Ok(bytes)
    }

    fn take<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        self.need(N as u64, what)?;
        let mut bytes = [0; N];
        self.input
            .read_exact(&mut bytes)
            .map_err(Error::io(self.path, "read"))?;
        self.position += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take(what)?))
    }

    fn text(&mut self, what: &str) -> Result<String> {
        let length = self.u64(what)?;
        let bytes = self.bytes(length, what)?;
        String::from_utf8(bytes).map_err(|error| {
            self.header(
                "UTF-8",
                format!("{what} with byte {:?}", error.utf8_error().valid_up_to()),
            )
        })
    }

    fn kind(&mut self, field: &str) -> Result<Kind> {
        let id = self.u32(field)?;
        Kind::from_id(id)
            .ok_or_else(|| self.header("a metadata type of 0 to 12", format!("{id} for `{field}`")))
    }

    fn value(&mut self, kind: Kind, field: &str, depth: usize) -> Result<Metadata> {
        match kind {
            Kind::Text => Ok(Metadata::Text(self.text(field)?)),
            Kind::Array => self.array(field, depth),
            _ => {
                let bytes = self.bytes(kind.size().unwrap_or(0), field)?;
                Ok(scalar(kind, &bytes))
            }
        }
    }

    fn array(&mut self, field: &str, depth: usize) -> Result<Metadata> {
        let kind = self.kind(field)?;
        let count = self.u64(field)?;
        if let Some(size) = kind.size() {
            let bytes = self.bytes(count.saturating_mul(size), field)?;
            return Ok(Metadata::Numbers(Numbers { kind, bytes }));
        }
        // a text takes 8 bytes at least, an array 12: too large a count fails here, before anything is stored
        self.need(count.saturating_mul(8), field)?;
        if kind == Kind::Text {
            let mut texts = Vec::new();
            for _ in 0..count {
                texts.push(self.text(field)?);
            }
            return Ok(Metadata::Texts(texts));
        }
        if depth == DEEPEST_ARRAY {
            return Err(self.header("arrays nested a few levels deep", format!("more in `{field}`")));
        }
        for _ in 0..count {
            self.array(field, depth + 1)?;
        }
        Ok(Metadata::Nested)
    }

    fn tensor_header(&mut self) -> Result<TensorHeader> {
        let name = self.text("a tensor's name")?;
        let dimensions = self.u32(&name)?;
        if !(1..=4).contains(&dimensions) {
            return Err(self.header(
                "tensors of 1 to 4 dimensions",
                format!("{dimensions} for `{name}`"),
            ));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.push(self.u64(&name)? as usize);
        }
        shape.reverse();
        let id = self.u32(&name)?;
        let kind = TensorType::from_id(id).map_err(|found| Error::TensorType {
            path: self.path.into(),
            tensor: name.clone(),
            expected: TensorType::NAMES.into(),
            found,
        })?;
        let offset = self.u64(&name)?;
        Ok((name, kind, shape, offset))
    }
}

/// A number or flag of its kind's length.
fn scalar(kind: Kind, bytes: &[u8]) -> Metadata {
    let mut wide = [0; 8];
    let length = bytes.len().min(8);
    wide[..length].copy_from_slice(&bytes[..length]);
    let unsigned = u64::from_le_bytes(wide);
    match kind {
        Kind::U8 | Kind::U16 | Kind::U32 | Kind::I64 => Metadata::Integer(unsigned as i64),
        // beyond i64 is beyond every size anyway, and must not turn negative
        Kind::U64 => Metadata::Integer(i64::try_from(unsigned).unwrap_or(i64::MAX)),
        Kind::I8 => Metadata::Integer(i64::from(unsigned as u8 as i8)),
        Kind::I16 => Metadata::Integer(i64::from(unsigned as u16 as i16)),
        Kind::I32 => Metadata::Integer(i64::from(unsigned as u32 as i32)),
        Kind::F32 => Metadata::Single(f32::from_bits(unsigned as u32)),
        Kind::F64 => Metadata::Float(f64::from_bits(unsigned)),
        Kind::Bool => Metadata::Flag(unsigned != 0),
        Kind::Text | Kind::Array => Metadata::Nested,
    }
}
