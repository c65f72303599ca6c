use std::fs::File;
use std::path::Path;

use crate::{Error, Result, durable};

/// Renames a complete file to its final name, after its bytes are on the disk.
pub(super) fn put_in_place(from: &Path, to: &Path) -> Result<()> {
    File::open(from)
        .and_then(|file| file.sync_all())
        .and_then(|()| std::fs::rename(from, to))
        .and_then(|()| File::open(durable::folder_of(to))?.sync_all())
        .map_err(Error::io(to, "write"))
}
