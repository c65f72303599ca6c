//! Values of a GGUF file's metadata.

/// Types of metadata values, as numbered in the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
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
    pub(super) fn from_id(id: u32) -> Option<Self> {
        use Kind::{Array, Bool, F32, F64, I8, I16, I32, I64, Text, U8, U16, U32, U64};
        let kinds = [U8, I8, U16, I16, U32, I32, F32, Bool, Text, Array, U64, I64, F64];
        kinds.get(id as usize).copied()
    }

    /// Bytes of one value; `None` for types of variable length.
    pub(super) fn size(self) -> Option<u64> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::Text | Self::Array => None,
        }
    }
}

/// A metadata value. Arrays of numbers stay bytes, so that a file cannot make its reader allocate many times
/// the file's size.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Metadata {
    Integer(i64),
    Float(f64),
    /// separate from f64, so that the original decimal can be recovered
    Single(f32),
    Flag(bool),
    Text(String),
    Texts(Vec<String>),
    Numbers(Numbers),
    /// an array of arrays; unused here
    Nested,
}

/// An array of numbers.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Numbers {
    pub(super) kind: Kind,
    pub(super) bytes: Vec<u8>,
}

impl Numbers {
    /// The numbers as floats.
    pub(super) fn floats(&self) -> Vec<f64> {
        let size = self.kind.size().expect("numbers are of fixed size") as usize;
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

/// A number or flag; `bytes` has the length of its kind.
pub(super) fn scalar(kind: Kind, bytes: &[u8]) -> Metadata {
    let mut wide = [0; 8];
    let length = bytes.len().min(8);
    wide[..length].copy_from_slice(&bytes[..length]);
    let unsigned = u64::from_le_bytes(wide);
    match kind {
        Kind::U8 | Kind::U16 | Kind::U32 | Kind::I64 => Metadata::Integer(unsigned as i64),
        // sizes beyond i64 are always too large, and must not become negative
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
