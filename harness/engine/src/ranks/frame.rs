use std::io::{self, Read, Write};

/// What a frame says. On the wire: its number, the length of its bytes (8, little-endian), the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// the sender lives
    Beat = 0,
    /// a message of the policy
    Message = 1,
    /// the run has failed, with a [`Reason`](super::connections::Reason)
    Failed = 2,
    /// the sender has finished its work
    Done = 3,
}

/// Longest frame: more than any sum, and less than what noise would claim.
const LONGEST: u64 = 1 << 40;

pub(super) fn write(to: &mut impl Write, kind: Kind, bytes: &[u8]) -> io::Result<()> {
    let mut head = [0; 9];
    head[0] = kind as u8;
    head[1..].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
    to.write_all(&head)?;
    to.write_all(bytes)?;
    to.flush()
}

/// # Errors
/// `InvalidData` for bytes that are no frame, or a frame of more than `longest` bytes; what reading fails
/// with.
pub(super) fn read(from: &mut impl Read, longest: Option<u64>) -> io::Result<(Kind, Vec<u8>)> {
    let mut head = [0; 9];
    from.read_exact(&mut head)?;
    let [kind, length @ ..] = head;
    let kind = match kind {
        0 => Kind::Beat,
        1 => Kind::Message,
        2 => Kind::Failed,
        3 => Kind::Done,
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    let length = u64::from_le_bytes(length);
    if length > longest.unwrap_or(LONGEST) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length as usize];
    from.read_exact(&mut bytes)?;
    Ok((kind, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_and_noise_is_refused() {
        let mut bytes = Vec::new();
        write(&mut bytes, Kind::Message, b"abc").unwrap();
        write(&mut bytes, Kind::Done, b"").unwrap();
        let mut from = bytes.as_slice();
        assert_eq!(read(&mut from, None).unwrap(), (Kind::Message, b"abc".to_vec()));
        assert_eq!(read(&mut from, None).unwrap(), (Kind::Done, Vec::new()));
        assert!(read(&mut from, None).is_err());
        assert!(read(&mut bytes.as_slice(), Some(2)).is_err());
        assert!(read(&mut b"GET / HTTP/1.1\r\n".as_slice(), None).is_err());
        assert!(read(&mut [1; 9].as_slice(), None).is_err());
    }
}
