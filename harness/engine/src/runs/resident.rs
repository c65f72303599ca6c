//! Main memory that this process occupies.

/// Bytes of main memory that this process occupies, now and at most so far. `None` where the system does not
/// tell, as outside of Linux.
pub(crate) fn resident_bytes() -> Option<(u64, u64)> {
    of_status(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// VmRSS and VmHWM of Linux's /proc/PID/status, which counts in units of 1024 bytes.
fn of_status(status: &str) -> Option<(u64, u64)> {
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let number = line.trim().strip_suffix("kB")?.trim();
        Some(number.parse::<u64>().ok()? * 1024)
    };
    Some((bytes("VmRSS:")?, bytes("VmHWM:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_numbers_are_read() {
        let status = "Name:\taqlm\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(of_status(status), Some((1 << 20, 2 << 20)));
        assert_eq!(of_status("Name:\taqlm\n"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_occupies_memory() {
        let (now, most) = resident_bytes().unwrap();
        assert!(now > 0 && most >= now, "{now} {most}");
    }
}
