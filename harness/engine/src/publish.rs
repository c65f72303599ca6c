use std::path::Path;

use crate::RunFolder;
use aqlm_formats::Result;
use aqlm_formats::model::{Model, WriteOptions, Written, block_file, write_checkpoint};

/// Writes a checkpoint from a run's finished blocks into `out`, usually the run folder itself: the folder
/// then is the model. `largest_hidden_state` is that of the run's report; it decides in which type
/// config.json has readers compute.
///
/// # Errors
/// A block file that can't be read, a checkpoint that can't be written.
pub fn publish(model: &Model, folder: &RunFolder, out: &Path, largest_hidden_state: f64) -> Result<Written> {
    let block = |index: usize| block_file::read(&folder.block_path(index), &model.config().blocks[index]);
    // When a complete run is resumed, this writes the same bytes again.
    write_checkpoint(
        out,
        model,
        block,
        &WriteOptions {
            replace: true,
            largest_hidden_state,
            ..WriteOptions::default()
        },
    )
}
