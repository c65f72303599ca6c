//! Writes checkpoints in the layout that transformers and the `aqlm` package load.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use aqlm_vocabulary::{
    AqlmError, ArchSpec, BlockSpec, BlockWeights, LinearWeight, Rope, RopeScaling, Scheme,
};
use ndarray::{Array1, Array2};
use serde::Serialize;
use serde_json::{Value, json};

use super::linear::{float_tensor, linear_tensors};
use super::names::{EMBEDDING, FINAL_NORM, LM_HEAD};
use super::norms::norm_tensors;
use super::shards::{ShardWriter, is_weights_file};
use super::tokenizer_files::tokenizer_files;
use super::{experts, rope};
use crate::durable::{Workspace, write_json};
use crate::model::{Model, StorageType};
use crate::{Error, Result};

/// Folder inside the output in which a checkpoint is assembled.
const IN_PROGRESS: &str = ".checkpoint-in-progress";

/// Options for writing a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct WriteOptions {
    /// maximum bytes of tensors per shard; a shard is closed before it would exceed them; 5 GB as in
    /// transformers
    pub shard_bytes: u64,
    /// type of everything that is not quantized; `None` keeps each tensor's own type, or f16 for types that
    /// are not written here
    pub storage: Option<StorageType>,
    /// whether to replace an existing checkpoint in the folder
    pub replace: bool,
    /// the largest absolute value among the hidden states that were seen; 0 if unknown. It decides in which
    /// type readers compute, see [`keeps_bf16`]
    pub largest_hidden_state: f64,
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self {
            shard_bytes: 5_000_000_000,
            storage: None,
            replace: false,
            largest_hidden_state: 0.0,
        }
    }
}

/// The weights outside the blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct OuterWeights {
    /// [vocab, hidden]
    pub embedding: Array2<f32>,
    /// the RMSNorm before the head, `[hidden]`
    pub norm: Array1<f32>,
    /// [vocab, hidden]; unused when tied to the embedding
    pub lm_head: Option<Array2<f32>>,
}

/// Result of writing a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Written {
    /// file names, in the order in which they were moved into place
    pub files: Vec<String>,
    /// bytes of all tensors
    pub bytes: u64,
    /// the scheme of the quantized layers; `None` when all are dense
    pub scheme: Option<Scheme>,
}

/// Writes a model with blocks from `blocks` and all other weights from `source`.
///
/// One block is in memory at a time. Files get their final names in `out` only after all of them are complete
/// and on the disk, config.json last: a folder without config.json is not a checkpoint. `out` may hold other
/// files, as a run folder does. Quantized layers are stored as codes (two's complement of B bits in int8 or
/// int16), codebooks and scales (f16). Codebooks and scales that are not exact in f16 are rounded.
///
/// # Errors
/// `Exists` when a checkpoint exists and `options.replace` is not set, or `out` is the source. `Layer` when
/// the quantized layers do not all have one scheme, because the layout can only express one. `NotFinite` when
/// a value is beyond the range of its type. `Io`, also for a full disk. Errors of `blocks`. After an error no
/// file is left behind.
pub fn write_checkpoint(
    out: &Path,
    source: &Model,
    blocks: impl FnMut(usize) -> Result<BlockWeights>,
    options: &WriteOptions,
) -> Result<Written> {
    let outer = OuterWeights {
        embedding: source.embedding()?,
        norm: source.final_norm()?,
        lm_head: None,
    };
    write_whole(out, source, blocks, outer, options)
}

/// [`write_checkpoint`], with embedding, final norm and head also passed in, in the shapes of `source`.
/// Without a head, the head of `source` is written.
///
/// # Errors
/// Those of [`write_checkpoint`].
pub fn write_whole(
    out: &Path,
    source: &Model,
    mut blocks: impl FnMut(usize) -> Result<BlockWeights>,
    outer: OuterWeights,
    options: &WriteOptions,
) -> Result<Written> {
    refuse_existing(out, source, options.replace)?;
    let workspace = Workspace::new(out, IN_PROGRESS)?;
    let mut shards = ShardWriter::new(workspace.path(), options.shard_bytes);
    let storage = |name: &str, _: &[f32]| options.storage.unwrap_or_else(|| source.storage_of(name));
    let mut plan = Plan::default();
    let config = source.config();

    let OuterWeights {
        embedding,
        norm,
        lm_head,
    } = outer;
    let (rows, width) = embedding.dim();
    let whole = |name: &str, values: &mut dyn Iterator<Item = f32>, shape: Vec<usize>| {
        let values: Vec<f32> = values.collect();
        float_tensor(out, name.into(), shape, &values, &storage)
    };
    shards.push(&whole(
        EMBEDDING,
        &mut embedding.iter().copied(),
        vec![rows, width],
    )?)?;
    drop(embedding);
    plan.skip(EMBEDDING);
    for (block, spec) in config.blocks.iter().enumerate() {
        let weights = blocks(block)?;
        let names = config.norm_names(block).into_iter().zip(&spec.norms);
        for ((name, spec), parameters) in names.zip(&weights.norms) {
            for (name, values) in norm_tensors(&name, spec.norm, parameters) {
                let length = values.len();
                shards.push(&whole(&name, &mut values.into_iter(), vec![length])?)?;
                plan.skip(&name);
            }
        }
        for layer in spec.layers() {
            let name = config.layer_name(block, layer);
            let linear = weights.layer(layer);
            match &linear.weight {
                LinearWeight::Dense(_) => {
                    plan.skip(&format!("{name}.weight"));
                    plan.skip(&name);
                }
                LinearWeight::Quantized(matrix) => plan.quantized(&name, matrix.scheme())?,
            }
            for tensor in &linear_tensors(out, &name, linear, &storage)? {
                shards.push(tensor)?;
            }
        }
    }
    for (name, values) in norm_tensors(FINAL_NORM, config.final_norm, &norm) {
        let length = values.len();
        shards.push(&whole(&name, &mut values.into_iter(), vec![length])?)?;
        plan.skip(&name);
    }
    if !config.tied {
        let head = match lm_head {
            Some(head) => head,
            None => source.lm_head()?,
        };
        shards.push(&whole(LM_HEAD, &mut head.iter().copied(), vec![rows, width])?)?;
    }
    // also listed for a tied head: transformers 4 looks for the parameter's name, 5 for the module's
    plan.skip(LM_HEAD);
    plan.skip("lm_head");

    let (mut files, bytes) = shards.finish()?;
    files.extend(tokenizer_files(workspace.path(), source)?);
    let storage_name = match (options.storage, plan.scheme) {
        (Some(storage), _) => storage,
        (None, Some(_))
            if source.storage() == StorageType::BF16 && !keeps_bf16(source, options.largest_hidden_state) =>
        {
            StorageType::F16
        }
        (None, _) => source.storage(),
    };
    write_json(
        &workspace.path().join("config.json"),
        &plan.config(source, storage_name),
    )?;
    files.push("config.json".into());
    put_in_place(out, &workspace, &files)?;
    Ok(Written {
        files,
        bytes,
        scheme: plan.scheme,
    })
}

/// Whether the config.json of a quantized bf16 model keeps naming bf16 as the type to compute in.
///
/// It names f16 otherwise, since transformers would load f16 codebooks as bf16 and lose three bits of each.
/// But hidden states beyond f16's range become infinite in f16, which is worse.
pub fn keeps_bf16(source: &Model, largest_hidden_state: f64) -> bool {
    if source.storage() != StorageType::BF16 {
        return false;
    }
    let raw = &source.details().raw;
    let named = ["torch_dtype", "dtype"].map(|key| raw.get(key).and_then(Value::as_str));
    // the quantized source's own states decided it
    let decided = source.is_quantized() && named.contains(&Some(StorageType::BF16.name()));
    decided || largest_hidden_state > half::f16::MAX.to_f64()
}

/// Writes a model with all layers dense, as in the source. This converts a GGUF file to a Hugging Face
/// folder.
///
/// # Errors
/// Those of [`write_checkpoint`]; `Layer` when a layer of the source is quantized.
pub fn write_dense(out: &Path, source: &Model, options: &WriteOptions) -> Result<Written> {
    let dense = |block| {
        let weights = source.block(block)?;
        for layer in source.config().blocks[block].layers() {
            if let LinearWeight::Quantized(matrix) = &weights.layer(layer).weight {
                return Err(Error::Layer {
                    layer: source.config().layer_name(block, layer),
                    source: AqlmError::argument(
                        "layer",
                        "a dense one",
                        format!("one quantized as {}", matrix.scheme()),
                    ),
                });
            }
        }
        Ok(weights)
    };
    write_checkpoint(out, source, dense, options)
}

fn refuse_existing(out: &Path, source: &Model, replace: bool) -> Result<()> {
    let exists = |what: &str| Error::Exists {
        path: out.into(),
        what: what.into(),
    };
    if out.join("config.json").exists() && !replace {
        return Err(exists("checkpoint (config.json)"));
    }
    let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if same(out, source.source()) {
        return Err(exists("model that is being read"));
    }
    Ok(())
}

/// The quantization section of config.json.
#[derive(Debug, Default)]
struct Plan {
    scheme: Option<Scheme>,
    not_quantized: Vec<String>,
}

impl Plan {
    fn skip(&mut self, name: &str) {
        self.not_quantized.push(name.into());
    }

    fn quantized(&mut self, layer: &str, scheme: Scheme) -> Result<()> {
        match self.scheme.replace(scheme) {
            Some(other) if other != scheme => Err(Error::Layer {
                layer: layer.into(),
                source: AqlmError::argument(
                    "scheme",
                    format!("{other} as in the layers before: a checkpoint has one"),
                    scheme,
                ),
            }),
            _ => Ok(()),
        }
    }

    fn config(&self, source: &Model, storage: StorageType) -> Value {
        let mut config = source.details().raw.clone();
        for key in ["quantization_config", "dtype", "torch_dtype"] {
            config.remove(key);
        }
        let details = source.details();
        let class = json!([details.family.architecture]);
        if details.is_legacy() {
            // what transformers itself needs to read the model, without the code that came with it
            config.remove("aqlm");
            config.remove("auto_map");
            config.insert("architectures".into(), class);
        } else {
            config.entry("architectures").or_insert(class);
        }
        config.insert("model_type".into(), json!(details.family.name));
        config.insert("tie_word_embeddings".into(), json!(details.arch.tied));
        if let Some(rotary) = common_rotation(&details.arch).filter(|_| !details.family.rotates_by_type()) {
            rope::write(&mut config, rotary);
        }
        experts::write_count(&mut config, &details.arch);
        config.insert("torch_dtype".into(), json!(storage.name()));
        if let Some(scheme) = self.scheme {
            let quantization = json!({
                "quant_method": "aqlm",
                "in_group_size": scheme.in_group_size,
                "out_group_size": scheme.out_group_size,
                "num_codebooks": scheme.num_codebooks,
                "nbits_per_codebook": scheme.nbits,
                "linear_weights_not_to_quantize": self.not_quantized,
            });
            config.insert("quantization_config".into(), quantization);
        }
        Value::Object(config)
    }
}

/// The rotation of whole heads that all blocks have, and that every release of transformers reads alike; a
/// configuration with others is written as it was read.
fn common_rotation(arch: &ArchSpec) -> Option<&Rope> {
    let attention = arch.attention();
    let rotary = attention.rotary.as_ref()?;
    let same = |block: &BlockSpec| {
        block
            .attention
            .rotary
            .as_ref()
            .is_none_or(|other| other == rotary)
    };
    let simple =
        attention.rotated == attention.head_dim && !matches!(rotary.scaling, RopeScaling::Long { .. });
    (simple && arch.blocks.iter().all(same)).then_some(rotary)
}

/// Moves finished files into place. First makes an existing checkpoint incomplete by removing its
/// config.json.
fn put_in_place(out: &Path, workspace: &Workspace, files: &[String]) -> Result<()> {
    let remove = |path: PathBuf| match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(&path, "remove")(error)),
        _ => Ok(()),
    };
    remove(out.join("config.json"))?;
    for entry in std::fs::read_dir(out).map_err(Error::io(out, "read"))? {
        let path = entry.map_err(Error::io(out, "read"))?.path();
        if is_weights_file(&path) {
            remove(path)?;
        }
    }
    for name in files {
        let to = out.join(name);
        std::fs::rename(workspace.path().join(name), &to).map_err(Error::io(&to, "write"))?;
    }
    File::open(out)
        .and_then(|folder| folder.sync_all())
        .map_err(Error::io(out, "write"))
}

#[cfg(test)]
mod tests;
