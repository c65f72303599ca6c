//! The function called by every fuzz target.
//!
//! ```text
//! cargo +nightly fuzz run gguf harness/tools/fuzz/corpus/gguf harness/tools/fuzz/seeds/gguf \
//!     -- -runs=1000000 -max_len=4096 -malloc_limit_mb=64
//! ```

use std::sync::OnceLock;

use aqlm_engine::hostile::JOURNAL;
use aqlm_formats::hostile::TARGETS;
use tempfile::TempDir;

/// Reads the bytes as a file of the kind `name`. The file is in a folder that lives as long as the process,
/// in memory if the machine has such a folder.
///
/// # Panics
/// When `name` is not a target, or the folder cannot be created.
pub fn read(name: &str, bytes: &[u8]) {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let memory = std::path::Path::new("/dev/shm");
        let made = if memory.is_dir() {
            tempfile::tempdir_in(memory)
        } else {
            tempfile::tempdir()
        };
        made.expect("a temporary folder")
    });
    let mut targets = TARGETS.iter().chain([&JOURNAL]);
    let target = targets.find(|target| target.name == name).expect("a target of this name");
    (target.read)(bytes, folder.path());
}
