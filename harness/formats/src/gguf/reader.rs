use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use super::dequantize::TensorType;
use super::metadata::{Kind, Metadata, Numbers, scalar};
use crate::{Error, Result};

/// Maximum nesting of arrays. Nested arrays are legal, but deeper ones are an attack on the stack.
const DEEPEST_ARRAY: usize = 4;

/// A tensor's name, type, shape and offset.
pub(super) type TensorHeader = (String, TensorType, Vec<usize>, u64);

/// Reads forward and tracks how many bytes are left. It rejects any length that the file cannot hold.
pub(super) struct Reader<'a> {
    pub(super) path: &'a Path,
    pub(super) input: BufReader<&'a File>,
    pub(super) position: u64,
    pub(super) length: u64,
}

impl Reader<'_> {
    pub(super) fn header(&self, expected: &str, found: String) -> Error {
        Error::Header {
            path: self.path.into(),
            expected: expected.into(),
            found,
        }
    }

    /// Checks that at least `bytes` more bytes are left.
    pub(super) fn need(&self, bytes: u64, what: &str) -> Result<()> {
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

    pub(super) fn bytes(&mut self, count: u64, what: &str) -> Result<Vec<u8>> {
        self.need(count, what)?;
        let mut bytes = vec![0; count as usize];
        self.input
            .read_exact(&mut bytes)
            .map_err(Error::io(self.path, "read"))?;
        self.position += count;
        Ok(bytes)
    }

    pub(super) fn take<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        self.need(N as u64, what)?;
        let mut bytes = [0; N];
        self.input
            .read_exact(&mut bytes)
            .map_err(Error::io(self.path, "read"))?;
        self.position += N as u64;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take(what)?))
    }

    pub(super) fn text(&mut self, what: &str) -> Result<String> {
        let length = self.u64(what)?;
        let bytes = self.bytes(length, what)?;
        String::from_utf8(bytes).map_err(|error| {
            self.header(
                "UTF-8",
                format!("{what} with byte {:?}", error.utf8_error().valid_up_to()),
            )
        })
    }

    pub(super) fn kind(&mut self, field: &str) -> Result<Kind> {
        let id = self.u32(field)?;
        Kind::from_id(id)
            .ok_or_else(|| self.header("a metadata type of 0 to 12", format!("{id} for `{field}`")))
    }

    pub(super) fn value(&mut self, kind: Kind, field: &str, depth: usize) -> Result<Metadata> {
        match (kind, kind.size()) {
            (Kind::Array, _) => self.array(field, depth),
            (_, Some(size)) => Ok(scalar(kind, &self.bytes(size, field)?)),
            (_, None) => Ok(Metadata::Text(self.text(field)?)),
        }
    }

    pub(super) fn array(&mut self, field: &str, depth: usize) -> Result<Metadata> {
        let kind = self.kind(field)?;
        let count = self.u64(field)?;
        if let Some(size) = kind.size() {
            let bytes = self.bytes(count.saturating_mul(size), field)?;
            return Ok(Metadata::Numbers(Numbers { kind, bytes }));
        }
        // a text takes at least 8 bytes, an array 12; an impossible count fails here, before any allocation
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

    pub(super) fn tensor_header(&mut self) -> Result<TensorHeader> {
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
