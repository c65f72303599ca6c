//! Numbers and times in words.

/// A number to four significant digits.
pub(super) fn number(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    let exponent = value.abs().log10().floor() as i32;
    if !(-4..7).contains(&exponent) {
        return format!("{value:.2e}");
    }
    let decimals = (3 - exponent).max(0) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// Seconds as a duration.
pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    if whole >= 3600 {
        format!("{} h {:02} min", whole / 3600, whole % 3600 / 60)
    } else if whole >= 100 {
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else {
        format!("{seconds:.1} s")
    }
}

/// A size in bytes.
pub(crate) fn bytes(bytes: u64) -> String {
    let bytes = bytes as f64;
    let units = [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, size)| bytes >= *size as f64) {
        Some((unit, size)) => format!("{} {unit}", number(bytes / *size as f64)),
        None => format!("{bytes} B"),
    }
}

/// A name of at most `most` characters: its end is kept, since folders differ there.
pub(super) fn short(name: &str, most: usize) -> String {
    let count = name.chars().count();
    if count <= most {
        return name.to_owned();
    }
    let end: String = name.chars().skip(count + 1 - most).collect();
    format!("…{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_four_digits_and_no_needless_zeros() {
        let cases = [
            (0.0, "0"),
            (12.5, "12.5"),
            (0.012_345, "0.01235"),
            (1234.5, "1234"),
            (21.632_11, "21.63"),
            (3.0, "3"),
            (1e-7, "1.00e-7"),
            (100.0, "100"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn times_sizes_and_names_are_short() {
        assert_eq!(
            [duration(1.25), duration(125.0), duration(7260.0)],
            ["1.2 s", "2 min 05 s", "2 h 01 min"]
        );
        assert_eq!(
            [bytes(512), bytes(1536), bytes(3 << 30)],
            ["512 B", "1.5 KiB", "3 GiB"]
        );
        assert_eq!(short("runs/one", 10), "runs/one");
        assert_eq!(short("runs/twenty-two", 10), "…wenty-two");
    }
}
