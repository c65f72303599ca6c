//! The only writers to standard output and standard error. Neither panics: a reader may close a pipe early,
//! and a disk may be full.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use aqlm_engine::Record;
use aqlm_formats::{Error, Result};

/// Where results go: one JSON document, or text, on standard output. Messages and progress go to standard
/// error.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) json: bool,
}

impl Output {
    /// Prints the record or the text, as requested.
    ///
    /// # Errors
    /// `Io` when the result is lost for another reason than a reader that wants no more.
    pub(super) fn result<R: Clone + Into<Record>>(
        self,
        record: &R,
        text: impl FnOnce() -> String,
    ) -> Result<()> {
        let text = if self.json {
            format!("{}\n", record.clone().into().to_json())
        } else {
            text()
        };
        print(&text).map(|_| ())
    }
}

/// Writes to standard output. Returns false when the other end of a pipe is closed, as by `head`: nobody
/// reads what would follow.
///
/// # Errors
/// `Io` for any other reason, for example a full disk.
pub(crate) fn print(text: &str) -> Result<bool> {
    wanted(write(&mut io::stdout().lock(), text))
}

fn write(out: &mut impl Write, text: &str) -> io::Result<()> {
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Whether what was written is still wanted.
///
/// # Errors
/// As [`print()`].
pub(crate) fn wanted(written: io::Result<()>) -> Result<bool> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::io("standard output", "write")(error)),
    }
}

/// Whether this process prints nothing but errors.
static ONLY_ERRORS: AtomicBool = AtomicBool::new(false);

/// Whether this process does not even print errors.
static SILENT: AtomicBool = AtomicBool::new(false);

/// From now on this process prints nothing but errors: it is one of several, and another one prints the rest.
pub(super) fn only_errors() {
    ONLY_ERRORS.store(true, Ordering::Relaxed);
}

/// From now on this process prints nothing at all: another one of this terminal says why it ends.
pub(super) fn be_silent() {
    only_errors();
    SILENT.store(true, Ordering::Relaxed);
}

/// Whether this process prints progress and notes.
pub(super) fn talks() -> bool {
    !ONLY_ERRORS.load(Ordering::Relaxed)
}

/// Writes a note to standard error, unless another process writes the same one.
pub(crate) fn say(line: impl Display) {
    if talks() {
        complain(line);
    }
}

/// Writes a line to standard error. A message that cannot be written is lost: there is no other place to say
/// so.
pub(crate) fn complain(line: impl Display) {
    if SILENT.load(Ordering::Relaxed) {
        return;
    }
    let _ = writeln!(io::stderr().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Failing(ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_no_error_and_a_full_disk_is() {
        assert!(wanted(write(&mut Vec::new(), "text")).unwrap());
        assert!(!wanted(write(&mut Failing(ErrorKind::BrokenPipe), "text")).unwrap());
        let error = wanted(write(&mut Failing(ErrorKind::StorageFull), "text")).unwrap_err();
        assert!(
            error.to_string().starts_with("standard output: cannot write: "),
            "{error}"
        );
    }
}
