use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;

use aqlm_formats::{Error, Result};

/// Locks a run folder for one process. The operating system releases the lock when the process ends, also
/// after a crash.
#[derive(Debug)]
pub(crate) struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// # Errors
    /// `Error::RunFolder` when another process holds the folder, `Error::Io` when the lock can't be made.
    pub(crate) fn take(folder: &Path) -> Result<Self> {
        let path = folder.join("run.lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(Error::io(&path, "write"))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(Error::RunFolder {
                path: folder.to_path_buf(),
                reason: "another process is working in it".into(),
            }),
            Err(TryLockError::Error(source)) => Err(Error::io(&path, "lock")(source)),
        }
    }
}
