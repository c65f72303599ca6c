//! Sizes of a parquet column's pages, read from the headers before anything is unpacked. A header may claim
//! any size, and the library allocates what it claims.
//!
//! Headers are structs in Thrift's compact protocol: field 2 is the unpacked size, field 3 the size in the
//! file.

/// Thrift's types of fields, as numbered in the protocol.
const STOP: u8 = 0;
const TRUE: u8 = 1;
const FALSE: u8 = 2;
const BYTE: u8 = 3;
const I16: u8 = 4;
const I32: u8 = 5;
const I64: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const STRUCT: u8 = 12;

/// Maximum nesting of structs and lists; page headers nest three deep.
const DEEPEST: usize = 8;

/// Sum of the unpacked sizes of all pages of a column chunk. `None` if a header cannot be read.
pub(super) fn unpacked_size(mut chunk: &[u8]) -> Option<u64> {
    let mut total = 0_u64;
    while !chunk.is_empty() {
        let mut cursor = Cursor(chunk);
        let sizes = cursor.page_sizes()?;
        total = total.checked_add(u64::try_from(sizes.0?).ok()?)?;
        chunk = cursor.0.get(usize::try_from(sizes.1?).ok()?..)?;
    }
    Some(total)
}

/// The bytes not yet read.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn skip_bytes(&mut self, count: u64) -> Option<()> {
        self.0 = self.0.get(usize::try_from(count).ok()?..)?;
        Some(())
    }

    /// A number in groups of 7 bits, lowest first.
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Some(value);
            }
        }
        None
    }

    /// A signed number: 0, -1, 1, -2 and so on.
    fn zigzag(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// The next field's number and type; at the struct's end, the type is `STOP`.
    fn field(&mut self, before: i64) -> Option<(i64, u8)> {
        let head = self.byte()?;
        let kind = head & 15;
        let number = match head >> 4 {
            _ if kind == STOP => before,
            0 => self.zigzag()?,
            step => before.checked_add(i64::from(step))?,
        };
        Some((number, kind))
    }

    /// Fields 2 and 3 of the struct that begins here.
    fn page_sizes(&mut self) -> Option<(Option<i64>, Option<i64>)> {
        let (mut unpacked, mut packed) = (None, None);
        let mut number = 0;
        loop {
            let (next, kind) = self.field(number)?;
            number = next;
            match (number, kind) {
                (_, STOP) => return Some((unpacked, packed)),
                (2, I32) => unpacked = Some(self.zigzag()?),
                (3, I32) => packed = Some(self.zigzag()?),
                _ => self.skip(kind, 0)?,
            }
        }
    }

    /// Skips a field's value.
    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        if depth > DEEPEST {
            return None;
        }
        match kind {
            TRUE | FALSE => Some(()),
            BYTE => self.skip_bytes(1),
            I16 | I32 | I64 => self.varint().map(|_| ()),
            DOUBLE => self.skip_bytes(8),
            BINARY => {
                let length = self.varint()?;
                self.skip_bytes(length)
            }
            LIST | SET => {
                let head = self.byte()?;
                let count = match head >> 4 {
                    15 => self.varint()?,
                    count => u64::from(count),
                };
                for _ in 0..count {
                    match head & 15 {
                        // a flag in a list is a byte
                        TRUE | FALSE => self.skip_bytes(1)?,
                        kind => self.skip(kind, depth + 1)?,
                    }
                }
                Some(())
            }
            STRUCT => {
                let mut number = 0;
                loop {
                    let (next, kind) = self.field(number)?;
                    if kind == STOP {
                        return Some(());
                    }
                    number = next;
                    self.skip(kind, depth + 1)?;
                }
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with a type, both sizes, and a struct with a flag, a text and a list of numbers.
    fn header(unpacked: u8, packed: u8) -> Vec<u8> {
        let numbers = [2, 5, 200, 1];
        [
            &[0x15, 0, 0x15, 2 * unpacked, 0x15, 2 * packed][..],
            &[0x2c, 0x11, 0x18, 2, b'h', b'i', 0x19, 0x35],
            &numbers,
            &[0, 0],
        ]
        .concat()
    }

    #[test]
    fn sizes_are_added_over_all_pages() {
        let mut chunk = header(40, 3);
        chunk.extend([7; 3]);
        chunk.extend(header(2, 0));
        assert_eq!(unpacked_size(&chunk), Some(42));
        assert_eq!(unpacked_size(&[]), Some(0));
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let chunk = header(40, 3);
        // the page's three bytes are missing, or more
        for length in 1..=chunk.len() {
            assert_eq!(unpacked_size(&chunk[..length]), None, "{length}");
        }
        // a negative size, no size, structs without an end
        assert_eq!(unpacked_size(&[0x25, 3, 0x15, 0, 0]), None);
        assert_eq!(unpacked_size(&[0x15, 0, 0]), None);
        assert_eq!(unpacked_size(&[0x1c; 100]), None);
    }
}
