//! Small files that stand where a large one is expected: pointers of git-lfs and pages of web servers.

use std::path::Path;

use crate::{Error, Result};

/// How many bytes from a file's start are enough to recognise a stand-in.
pub(crate) const START: usize = 512;

/// Rejects a file whose first bytes show that it is a stand-in for the file that was meant.
///
/// # Errors
/// `Kind`, with the way to get the file itself.
pub(crate) fn refuse(path: &Path, start: &[u8], expected: &str) -> Result<()> {
    let text = String::from_utf8_lossy(&start[..start.len().min(START)]);
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let begins = |with: &str| {
        let head = text.as_bytes().get(..with.len());
        head.is_some_and(|head| head.eq_ignore_ascii_case(with.as_bytes()))
    };
    // the older name of git-lfs, which its pointers may still carry, is hawser
    let pointer = begins("version https://git-lfs") || begins("version https://hawser");
    let found = if pointer {
        "a git-lfs pointer to it: run `git lfs pull` in its repository"
    } else if begins("<!doctype") || begins("<html") {
        "an HTML page, as a web server sends in place of a file: download the file again"
    } else {
        return Ok(());
    };
    Err(Error::Kind {
        path: path.into(),
        expected: expected.into(),
        found: found.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_and_pages_are_named_and_other_files_pass() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n";
        let page = b"\xef\xbb\xbf \n<!DOCTYPE html><html><title>404</title>";
        for (start, word) in [
            (pointer.as_slice(), "git lfs pull"),
            (page, "HTML"),
            (b"<HTML>", "HTML"),
        ] {
            let refused = refuse(Path::new("model.safetensors"), start, "a safetensors file");
            assert!(matches!(refused, Err(Error::Kind { found, .. }) if found.contains(word)));
        }
        for start in [b"{}".as_slice(), b"", b"GGUF", b"<h", b"\xff\xfe\x00"] {
            refuse(Path::new("config.json"), start, "JSON").unwrap();
        }
    }
}
