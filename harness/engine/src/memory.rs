use std::fmt;
use std::str::FromStr;

/// A bound on memory in bytes, as in `512M`: a whole number with an optional suffix K, M, G or T. Each suffix
/// is 1024 times the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory(usize);

impl Memory {
    /// The bound.
    pub fn bytes(self) -> usize {
        self.0
    }
}

impl FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("expected a number of bytes above 0, as in 512M or 2G, found `{text}`");
        let (digits, unit) = match text.char_indices().next_back() {
            Some((at, unit)) if unit.is_ascii_alphabetic() => (&text[..at], Some(unit.to_ascii_uppercase())),
            _ => (text, None),
        };
        let shift = match unit {
            None => 0,
            Some('K') => 10,
            Some('M') => 20,
            Some('G') => 30,
            Some('T') => 40,
            Some(_) => return Err(refused()),
        };
        // `parse` would accept a sign.
        if !digits.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(refused());
        }
        digits
            .parse::<usize>()
            .ok()
            .and_then(|number| number.checked_mul(1 << shift))
            .filter(|&bytes| bytes > 0)
            .map(Self)
            .ok_or_else(refused)
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];
        match units.iter().find(|(_, shift)| self.0.is_multiple_of(1 << shift)) {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_printed() {
        for (text, bytes, printed) in [
            ("1", 1, "1"),
            ("1536", 1536, "1536"),
            ("4096", 4096, "4K"),
            ("512M", 512 << 20, "512M"),
            ("2g", 2 << 30, "2G"),
            ("3072M", 3 << 30, "3G"),
            ("1T", 1 << 40, "1T"),
        ] {
            let memory: Memory = text.parse().unwrap();
            assert_eq!((memory.bytes(), memory.to_string()), (bytes, printed.to_owned()));
        }
        for bad in [
            "",
            "0",
            "0G",
            "M",
            "-1",
            "+1",
            "1.5G",
            "1 G",
            "2GB",
            "2X",
            "99999999T",
            "1é",
        ] {
            let error = bad.parse::<Memory>().unwrap_err();
            assert!(error.contains(&format!("`{bad}`")), "{error}");
        }
    }
}
