use std::path::Path;

use crate::RunFolder;
use aqlm_formats::Result;
use aqlm_formats::model::{Model, WriteOptions, Written, block_file, write_checkpoint};

/// Writes a checkpoint from a run's finished blocks into `out`, usually the run folder itself: the folder
/// then is the model.
///
/// # Errors
/// A block file that can't be read, a checkpoint that can't be written.
pub fn publish(model: &Model, folder: &RunFolder, out: &Path) -> Result<Written> {
    let block = |index: usize| block_file::read(&folder.block_path(index), &model.config().blocks[index]);
    // When a complete run is resumed, this writes the same bytes again.
    write_checkpoint(
        out,
        model,
        block,
        &WriteOptions {
            replace: true,
            ..WriteOptions::default()
        },
    )
}
