//! Unpacks gzip files of several members, as compressors that work in parallel write them, with zeros between
//! or after the members, as tapes and block devices add them.

use std::io::{Error, ErrorKind, Read, Result};

use flate2::bufread::GzDecoder;

/// First bytes of every gzip member.
const MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Whether these bytes are gzip's, which no UTF-8 text can begin with.
pub(super) fn is_packed(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// Unpacks all members.
///
/// # Errors
/// `UnexpectedEof`, `InvalidInput` and `InvalidData` for a member that is cut or damaged, and for anything
/// but members and zeros.
pub(super) fn unpack(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        if !is_packed(rest) {
            return Err(Error::new(
                ErrorKind::InvalidData,
                format!(
                    "expected another gzip member or zeros after byte {}, found {:#04x}",
                    bytes.len() - rest.len(),
                    rest[0]
                ),
            ));
        }
        let mut member = GzDecoder::new(rest);
        member.read_to_end(&mut out)?;
        rest = member.into_inner();
        let zeros = rest.iter().take_while(|&&byte| byte == 0).count();
        rest = &rest[zeros..];
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn member(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn members_follow_each_other_with_zeros_between_and_after() {
        let (a, b) = (member(b"once "), member(b"upon"));
        for zeros in [0, 1, 512] {
            let zeros = vec![0; zeros];
            let bytes = [&a[..], &zeros, &b, &zeros].concat();
            assert_eq!(unpack(&bytes).unwrap(), b"once upon");
        }
    }

    #[test]
    fn cut_members_and_other_bytes_are_refused() {
        let whole = member(&[b'x'; 1000]);
        for length in [1, 5, whole.len() / 2, whole.len() - 1] {
            assert!(unpack(&whole[..length]).is_err(), "{length}");
        }
        let error = unpack(&[&whole[..], b"\0\0more"].concat()).unwrap_err();
        assert!(error.to_string().contains("found 0x6d"), "{error}");
    }
}
