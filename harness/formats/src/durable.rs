//! Atomic writes: a file is written under a temporary name, flushed to the disk, then renamed. It is either
//! complete or absent.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// A file that is written piece by piece. Its name appears in the folder with [`GrowingFile::finish`];
/// without that call, nothing remains.
#[derive(Debug)]
pub struct GrowingFile {
    path: PathBuf,
    file: tempfile::NamedTempFile,
    buffered: BufWriter<File>,
}

impl GrowingFile {
    /// An empty file, not yet under its final name.
    ///
    /// # Errors
    /// `Io` with the final name.
    pub fn new(path: &Path) -> Result<Self> {
        let open = || -> std::io::Result<_> {
            let file = tempfile::Builder::new()
                .prefix(".writing-")
                .tempfile_in(folder_of(path))?;
            let buffered = BufWriter::new(file.reopen()?);
            Ok((file, buffered))
        };
        let (file, buffered) = open().map_err(Error::io(path, "write"))?;
        Ok(Self {
            path: path.into(),
            file,
            buffered,
        })
    }

    /// Appends whatever `fill` writes.
    ///
    /// # Errors
    /// `Io` with the final name; whatever `fill` returns.
    pub fn append(&mut self, fill: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>) -> Result<()> {
        fill(&mut self.buffered).map_err(Error::io(&self.path, "write"))
    }

    /// Flushes the file to the disk and gives it its final name.
    ///
    /// # Errors
    /// `Io` with the final name.
    pub fn finish(self) -> Result<()> {
        let Self {
            path,
            mut file,
            buffered,
        } = self;
        let finish = || -> std::io::Result<()> {
            buffered
                .into_inner()
                .map_err(std::io::IntoInnerError::into_error)?;
            readable_by_all(file.as_file_mut())?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|error| error.error)?;
            File::open(folder_of(&path))?.sync_all()
        };
        finish().map_err(Error::io(&path, "write"))
    }
}

/// A file whose bytes are written in any order. Its name appears in the folder with [`PlacedFile::finish`];
/// without that call, nothing remains.
#[derive(Debug)]
pub(crate) struct PlacedFile {
    path: PathBuf,
    file: tempfile::NamedTempFile,
}

impl PlacedFile {
    /// # Errors
    /// `Io` with the final name.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        let file = tempfile::Builder::new()
            .prefix(".writing-")
            .tempfile_in(folder_of(path))
            .map_err(Error::io(path, "write"))?;
        Ok(Self {
            path: path.into(),
            file,
        })
    }

    /// # Errors
    /// `Io` with the final name.
    pub(crate) fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        use std::os::unix::fs::FileExt as _;
        let file = self.file.as_file();
        file.write_all_at(bytes, offset)
            .map_err(Error::io(&self.path, "write"))
    }

    /// Flushes the file to the disk and gives it its final name. Returns its SHA-256 in hexadecimal, for
    /// which it is read once.
    ///
    /// # Errors
    /// `Io` with the final name.
    pub(crate) fn finish(self) -> Result<String> {
        let Self { path, mut file } = self;
        let sha256 = sha256_of_file(file.path())?;
        let finish = || -> std::io::Result<()> {
            readable_by_all(file.as_file_mut())?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|error| error.error)?;
            File::open(folder_of(&path))?.sync_all()
        };
        finish().map_err(Error::io(&path, "write"))?;
        Ok(sha256)
    }
}

/// Writes a file through `fill`. A crash or a full disk leaves the old file or none, never a partial one.
///
/// # Errors
/// `Io` with the file's final name; whatever `fill` returns.
pub fn write_file(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>) -> Result<()> {
    let mut file = GrowingFile::new(path)?;
    file.append(fill)?;
    file.finish()
}

/// [`write_file`]; returns the SHA-256 of the written bytes in lower-case hexadecimal.
///
/// # Errors
/// Those of [`write_file`].
pub(crate) fn write_hashed(
    path: &Path,
    fill: impl FnOnce(&mut Hashing<&mut BufWriter<File>>) -> std::io::Result<()>,
) -> Result<String> {
    let mut hasher = Sha256::new();
    write_file(path, |file| {
        fill(&mut Hashing {
            inner: file,
            hasher: &mut hasher,
        })
    })?;
    Ok(hexadecimal(&hasher.finalize()))
}

/// Forwards bytes to a writer and hashes them.
pub(crate) struct Hashing<'h, W> {
    inner: W,
    hasher: &'h mut Sha256,
}

impl<W: Write> Write for Hashing<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

/// Writes a file of a [`Workspace`] and waits until it is on the disk. A crash may leave a partial file.
pub(crate) fn write_synced(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> Result<()> {
    let write = || {
        let mut file = BufWriter::new(File::create(path)?);
        fill(&mut file)?;
        file.into_inner()
            .map_err(std::io::IntoInnerError::into_error)?
            .sync_all()
    };
    write().map_err(Error::io(path, "write"))
}

/// [`write_synced`] of a JSON document.
pub(crate) fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_synced(path, |file| {
        serde_json::to_writer_pretty(&mut *file, value).map_err(std::io::Error::from)?;
        file.write_all(b"\n")
    })
}

/// Temporary files are private to their owner; results get the usual permissions.
fn readable_by_all(file: &mut File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

/// The parent folder of a path; `.` for a bare file name.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// A working folder inside another; dropping it deletes it and its contents.
#[derive(Debug)]
pub(crate) struct Workspace {
    path: PathBuf,
    /// the outer folder, if it was created for this workspace
    made: Option<PathBuf>,
}

impl Workspace {
    /// Creates `outer` if necessary, and an empty `name` in it. Contents left by a crash are deleted.
    pub(crate) fn new(outer: &Path, name: &str) -> Result<Self> {
        let existed = outer.exists();
        std::fs::create_dir_all(outer).map_err(Error::io(outer, "make folder"))?;
        let path = outer.join(name);
        if path.exists() {
            std::fs::remove_dir_all(&path).map_err(Error::io(&path, "remove"))?;
        }
        std::fs::create_dir(&path).map_err(Error::io(&path, "make folder"))?;
        Ok(Self {
            path,
            made: (!existed).then(|| outer.to_path_buf()),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // a failure cannot be handled here; the next start removes the rest
        let _ = std::fs::remove_dir_all(&self.path);
        if let Some(outer) = &self.made {
            // removes the outer folder only if empty: a folder with results stays
            let _ = std::fs::remove_dir(outer);
        }
    }
}

/// SHA-256 of bytes, in lower-case hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

/// SHA-256 of a file, read piece by piece, in lower-case hexadecimal.
///
/// # Errors
/// `Io`.
pub fn sha256_of_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path, "open"))?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        let length = file.read(&mut piece).map_err(Error::io(path, "read"))?;
        if length == 0 {
            return Ok(hexadecimal(&hasher.finalize()));
        }
        hasher.update(&piece[..length]);
    }
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes every text");
        text
    })
}

/// Writes text to a file, durably.
///
/// # Errors
/// `Io`.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    write_file(path, |file| file.write_all(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write_text(&path, "old").unwrap();
        let result = write_file(&path, |file| {
            file.write_all(b"half")?;
            Err(std::io::Error::from(std::io::ErrorKind::StorageFull))
        });
        assert!(matches!(result, Err(Error::Io { action: "write", source, .. })
            if source.kind() == std::io::ErrorKind::StorageFull));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_workspace_takes_an_empty_outer_folder_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let outer = folder.path().join("out");
        let workspace = Workspace::new(&outer, ".work").unwrap();
        std::fs::write(workspace.path().join("part"), "x").unwrap();
        drop(workspace);
        assert!(!outer.exists());
        let workspace = Workspace::new(&outer, ".work").unwrap();
        std::fs::write(outer.join("result"), "x").unwrap();
        drop(workspace);
        assert!(outer.join("result").exists() && !outer.join(".work").exists());
    }

    #[test]
    fn checksums_are_sha256() {
        // FIPS 180-2, appendix B.1
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(b"abc"), expected);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        write_text(&path, "abc").unwrap();
        assert_eq!(sha256_of_file(&path).unwrap(), expected);
    }
}
