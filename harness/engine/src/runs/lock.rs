use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use aqlm_formats::{Error, Result};

/// Makes a file and locks it for this process; `None` if another process holds it. The operating system
/// releases the lock when the process ends, also after a crash.
fn locked(path: &Path) -> Result<Option<File>> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(Error::io(path, "write"))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(source)) => Err(Error::io(path, "lock")(source)),
    }
}

/// Locks a run folder for one process.
#[derive(Debug)]
pub(crate) struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// # Errors
    /// `Error::RunFolder` when another process holds the folder, `Error::Io` when the lock can't be made.
    pub(crate) fn take(folder: &Path) -> Result<Self> {
        let held = locked(&folder.join("run.lock"))?;
        held.map(|file| Self { _file: file })
            .ok_or_else(|| Error::RunFolder {
                path: folder.to_path_buf(),
                reason: "another process is working in it".into(),
            })
    }
}

/// Locks a file that grows, for one process. The lock is a file beside it, which goes with the lock.
#[derive(Debug)]
pub(crate) struct FileLock {
    path: PathBuf,
    _file: File,
}

impl FileLock {
    /// # Errors
    /// `Error::Exists` when another process holds the file, `Error::Io` when the lock can't be made.
    pub(crate) fn take(file: &Path) -> Result<Self> {
        let path = file.with_added_extension("lock");
        match locked(&path)? {
            Some(file) => Ok(Self { path, _file: file }),
            None => Err(Error::Exists {
                path,
                what: "the lock of another process that writes to that file".into(),
            }),
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // a failed cleanup must not hide the result
        let _ = std::fs::remove_file(&self.path);
    }
}
