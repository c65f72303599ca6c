//! Writing a checkpoint's weights to one file or several shards.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::path::Path;

use serde_json::json;

use super::index::{INDEX, SINGLE, shard_name};
use crate::durable::{write_json, write_synced};
use crate::safetensors::{NewTensor, Slot, write_header};
use crate::{Error, Result};

/// Whether a file may be weights of an earlier checkpoint: `model.safetensors`, its shards, its index.
pub(super) fn is_weights_file(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        // our file names are all ASCII
        return false;
    };
    let shard = name.strip_prefix("model-").is_some_and(|rest| {
        let rest = rest
            .strip_suffix(".safetensors")
            .and_then(|rest| rest.split_once("-of-"));
        rest.is_some_and(|(a, b)| a.parse::<u32>().is_ok() && b.parse::<u32>().is_ok())
    });
    shard || name == SINGLE || name == INDEX
}

/// Accepts tensors in any order and writes them to shards, with at most one tensor in memory.
pub(super) struct ShardWriter<'a> {
    folder: &'a Path,
    limit: u64,
    open: Option<OpenShard>,
    /// tensors of each finished shard
    finished: Vec<Vec<String>>,
    bytes: u64,
}

/// A shard being written. Each element width has its own temporary file, because wide types come first in a
/// shard (see `layout`).
struct OpenShard {
    spools: [(BufWriter<File>, Vec<Slot>); 3],
    bytes: u64,
}

impl<'a> ShardWriter<'a> {
    pub(super) fn new(folder: &'a Path, limit: u64) -> Self {
        Self {
            folder,
            limit,
            open: None,
            finished: Vec::new(),
            bytes: 0,
        }
    }

    pub(super) fn push(&mut self, tensor: &NewTensor) -> Result<()> {
        let slot = Slot::of(tensor);
        let full = |shard: &OpenShard| shard.bytes > 0 && shard.bytes + slot.bytes > self.limit;
        if self.open.as_ref().is_some_and(full) {
            self.close()?;
        }
        let failed = Error::io(self.folder, "write");
        if self.open.is_none() {
            match OpenShard::new(self.folder) {
                Ok(shard) => self.open = Some(shard),
                Err(error) => return Err(failed(error)),
            }
        }
        if let Some(shard) = &mut self.open {
            let spool = match tensor.dtype.bitsize() {
                8 => &mut shard.spools[2],
                16 => &mut shard.spools[1],
                _ => &mut shard.spools[0],
            };
            spool.0.write_all(&tensor.bytes).map_err(failed)?;
            self.bytes += slot.bytes;
            shard.bytes += slot.bytes;
            spool.1.push(slot);
        }
        Ok(())
    }

    /// Writes the shard: header, then the temporary files.
    fn close(&mut self) -> Result<()> {
        let Some(mut shard) = self.open.take() else {
            return Ok(());
        };
        let path = self.folder.join(shard_file(self.finished.len()));
        let slots = shard.spools.iter().flat_map(|(_, slots)| slots);
        self.finished.push(slots.map(|slot| slot.name.clone()).collect());
        write_synced(&path, |file| {
            write_header(
                file,
                &BTreeMap::new(),
                shard.spools.iter().flat_map(|(_, slots)| slots),
            )?;
            for (spool, _) in &mut shard.spools {
                spool.flush()?;
                let spool = spool.get_mut();
                spool.rewind()?;
                io::copy(spool, file)?;
            }
            Ok(())
        })
    }

    /// Gives shards their final names and writes the index if there are several. Returns names and the bytes
    /// of all tensors.
    pub(super) fn finish(mut self) -> Result<(Vec<String>, u64)> {
        self.close()?;
        let total = self.finished.len();
        let mut files = Vec::new();
        let mut weight_map = serde_json::Map::new();
        for (index, tensors) in self.finished.iter().enumerate() {
            let name = if total == 1 {
                SINGLE.into()
            } else {
                shard_name(index + 1, total)
            };
            let to = self.folder.join(&name);
            std::fs::rename(self.folder.join(shard_file(index)), &to).map_err(Error::io(&to, "write"))?;
            for tensor in tensors {
                weight_map.insert(tensor.clone(), json!(name));
            }
            files.push(name);
        }
        if total > 1 {
            weight_map.sort_keys();
            let index = json!({"metadata": {"total_size": self.bytes}, "weight_map": weight_map});
            write_json(&self.folder.join(INDEX), &index)?;
            files.push(INDEX.into());
        }
        Ok((files, self.bytes))
    }
}

/// Name of a shard while the number of shards is unknown.
fn shard_file(index: usize) -> String {
    format!("shard-{index}")
}

impl OpenShard {
    fn new(folder: &Path) -> io::Result<Self> {
        // files without a name, which disappear when closed, also after a crash
        let spool = || -> io::Result<_> { Ok((BufWriter::new(tempfile::tempfile_in(folder)?), Vec::new())) };
        Ok(Self {
            spools: [spool()?, spool()?, spool()?],
            bytes: 0,
        })
    }
}
