//! Checkpoints in the layout that transformers and the `aqlm` package load.

use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::path::{Path, PathBuf};

use aqlm_vocabulary::{AqlmError, BlockWeights, LinearWeight, Scheme};
use ndarray::{Array1, Array2};
use serde::Serialize;
use serde_json::{Value, json};

use super::layout::{Slot, write_header};
use super::linear::{NewTensor, float_tensor, linear_tensors};
use super::{EMBEDDING, FINAL_NORM, LM_HEAD, Model, StorageType, TokenizerSource};
use crate::durable::Workspace;
use crate::{Error, Result};

/// Folder inside the output in which a checkpoint is put together.
const IN_PROGRESS: &str = ".checkpoint-in-progress";

const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// Files beside the weights that belong to a checkpoint and are copied as they are.
const COPIED: [&str; 9] = [
    "tokenizer.json",
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
];

/// How a checkpoint is written.
#[derive(Debug, Clone, PartialEq)]
pub struct WriteOptions {
    /// a shard is closed before it would grow beyond this many bytes of tensors; 5 GB as transformers does
    pub shard_bytes: u64,
    /// type of everything that is not quantized; `None` keeps each tensor's own, f16 for types not written
    /// here
    pub storage: Option<StorageType>,
    /// replace a checkpoint that is already in the folder
    pub replace: bool,
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self {
            shard_bytes: 5_000_000_000,
            storage: None,
            replace: false,
        }
    }
}

/// The weights outside of the blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct OuterWeights {
    /// [vocab, hidden]
    pub embedding: Array2<f32>,
    /// the RMSNorm before the head, `[hidden]`
    pub norm: Array1<f32>,
    /// [vocab, hidden]; not used where it is the embedding
    pub lm_head: Option<Array2<f32>>,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Written {
    /// file names, in the order in which they were put in place
    pub files: Vec<String>,
    /// bytes of all tensors
    pub bytes: u64,
    /// the scheme of the quantized layers; `None` when all are dense
    pub scheme: Option<Scheme>,
}

/// Writes a model whose blocks come from `blocks` and whose other weights come from `source`.
///
/// One block is in memory at a time. Files appear in `out` under their final names only when all of them are
/// complete and on the disk, config.json last: a folder without config.json is no checkpoint. `out` may hold
/// other files (a run folder does). Quantized layers are stored as codes (two's complement of B bits in int8
/// or int16), codebooks and scales (f16); codebooks and scales that are not on the f16 grid are rounded to
/// it.
///
/// # Errors
/// `Exists` when there is a checkpoint already and it was not to be replaced, or `out` is the source; `Layer`
/// when the quantized layers are not all of one scheme, which is all that the layout can say; `NotFinite`
/// when a value is beyond the range of its type; `Io`, for a full disk too; whatever `blocks` returns. After
/// an error nothing is left behind.
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

/// [`write_checkpoint`] with embedding, final norm and head of another origin than `source` too, of its
/// shapes; without a head that is the source's.
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
        for (name, norm) in config
            .norm_names(block)
            .into_iter()
            .zip([&weights.input_layernorm, &weights.post_attention_layernorm])
        {
            shards.push(&whole(&name, &mut norm.iter().copied(), vec![norm.len()])?)?;
            plan.skip(&name);
        }
        for layer in spec.layers() {
            let name = config.layer_name(block, layer);
            let linear = weights.layer(layer);
            match &linear.weight {
                LinearWeight::Dense(_) => {
                    plan.skip(&format!("{name}.weight"));
                    plan.skip(&name);
                }
                LinearWeight::Quantized(matrix) => plan.quantized(&name, matrix.scheme)?,
            }
            for tensor in &linear_tensors(out, &name, linear, &storage)? {
                shards.push(tensor)?;
            }
        }
    }
    shards.push(&whole(FINAL_NORM, &mut norm.iter().copied(), vec![norm.len()])?)?;
    plan.skip(FINAL_NORM);
    if !config.tied {
        let head = match lm_head {
            Some(head) => head,
            None => source.lm_head()?,
        };
        shards.push(&whole(LM_HEAD, &mut head.iter().copied(), vec![rows, width])?)?;
    }
    // listed for a tied head too: transformers 4 looks for the parameter's name, 5 for the module's
    plan.skip(LM_HEAD);
    plan.skip("lm_head");

    let (mut files, bytes) = shards.finish()?;
    files.extend(tokenizer_files(workspace.path(), source)?);
    let storage_name = match (options.storage, plan.scheme) {
        (Some(storage), _) => storage,
        // transformers would load f16 codebooks as bf16 and lose three bits of each
        (None, Some(_)) if source.storage() == StorageType::BF16 => StorageType::F16,
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

/// Writes a model with all its layers dense, as the source has them: a GGUF file becomes a Hugging Face
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
                    source: AqlmError::Unsupported(format!(
                        "expected a dense layer, found one quantized as {}",
                        matrix.scheme
                    )),
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

/// What config.json says about quantization.
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
                source: AqlmError::Unsupported(format!(
                    "a checkpoint has one scheme: expected {other} as in the layers before, found {scheme}"
                )),
            }),
            _ => Ok(()),
        }
    }

    fn config(&self, source: &Model, storage: StorageType) -> Value {
        let mut config = source.details().raw.clone();
        for key in ["quantization_config", "dtype", "torch_dtype"] {
            config.remove(key);
        }
        config
            .entry("architectures")
            .or_insert_with(|| json!([source.details().family.architecture]));
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

/// Copies the tokenizer's files, or makes them where the source is no folder. Returns their names.
fn tokenizer_files(to: &Path, source: &Model) -> Result<Vec<String>> {
    let mut files = Vec::new();
    if let TokenizerSource::Folder(folder) = &source.tokenizer {
        for name in COPIED {
            let from = folder.join(name);
            if from.is_file() {
                let bytes = std::fs::read(&from).map_err(Error::io(&from, "read"))?;
                write_synced(&to.join(name), |file| file.write_all(&bytes))?;
                files.push(name.into());
            }
        }
        // Without this file transformers guesses by the model's type, one generation of it adding BOS to
        // every text.
        let has = |name: &str| files.iter().any(|file| file == name);
        if has("tokenizer.json") && !has(TOKENIZER_CONFIG) {
            let config = source
                .tokenizer()?
                .config_json(source.config().max_position_embeddings);
            write_json(&to.join(TOKENIZER_CONFIG), &config)?;
            files.push(TOKENIZER_CONFIG.into());
        }
        return Ok(files);
    }
    let tokenizer = source.tokenizer()?;
    let text = tokenizer.to_json()?;
    write_synced(&to.join("tokenizer.json"), |file| file.write_all(text.as_bytes()))?;
    write_json(
        &to.join(TOKENIZER_CONFIG),
        &tokenizer.config_json(source.config().max_position_embeddings),
    )?;
    Ok(vec!["tokenizer.json".into(), TOKENIZER_CONFIG.into()])
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_synced(path, |file| {
        serde_json::to_writer_pretty(&mut *file, value).map_err(io::Error::from)?;
        file.write_all(b"\n")
    })
}

/// Writes a file of the workspace and waits until it is on the disk.
fn write_synced(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<()> {
    let write = || {
        let mut file = BufWriter::new(File::create(path)?);
        fill(&mut file)?;
        file.into_inner()
            .map_err(io::IntoInnerError::into_error)?
            .sync_all()
    };
    write().map_err(Error::io(path, "write"))
}

/// Moves finished files to where they belong. A checkpoint that was there stops being one first.
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

/// Weights that an earlier checkpoint may have left: `model.safetensors`, its shards, its index.
fn is_weights_file(path: &Path) -> bool {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let shard = name.strip_prefix("model-").is_some_and(|rest| {
        let rest = rest
            .strip_suffix(".safetensors")
            .and_then(|rest| rest.split_once("-of-"));
        rest.is_some_and(|(a, b)| a.parse::<u32>().is_ok() && b.parse::<u32>().is_ok())
    });
    shard || name == "model.safetensors" || name == "model.safetensors.index.json"
}

/// Takes tensors in any order and makes shards of them, with no more than one tensor in memory.
struct ShardWriter<'a> {
    folder: &'a Path,
    limit: u64,
    open: Option<OpenShard>,
    /// tensors of each finished shard
    finished: Vec<Vec<String>>,
    bytes: u64,
}

/// Tensors wait in one temporary file for each width, since wide types come first in a shard (see `layout`).
struct OpenShard {
    spools: [(BufWriter<File>, Vec<Slot>); 3],
    bytes: u64,
}

impl<'a> ShardWriter<'a> {
    fn new(folder: &'a Path, limit: u64) -> Self {
        Self {
            folder,
            limit,
            open: None,
            finished: Vec::new(),
            bytes: 0,
        }
    }

    fn push(&mut self, tensor: &NewTensor) -> Result<()> {
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

    /// Puts header and spools together.
    fn close(&mut self) -> Result<()> {
        let Some(mut shard) = self.open.take() else {
            return Ok(());
        };
        let path = self.folder.join(shard_file(self.finished.len()));
        let slots = shard.spools.iter().flat_map(|(_, slots)| slots);
        self.finished.push(slots.map(|slot| slot.name.clone()).collect());
        write_synced(&path, |file| {
            write_header(file, shard.spools.iter().flat_map(|(_, slots)| slots))?;
            for (spool, _) in &mut shard.spools {
                spool.flush()?;
                let spool = spool.get_mut();
                spool.rewind()?;
                io::copy(spool, file)?;
            }
            Ok(())
        })
    }

    /// Gives shards their names and writes the index where there are several. Returns names and bytes of
    /// tensors.
    fn finish(mut self) -> Result<(Vec<String>, u64)> {
        self.close()?;
        let total = self.finished.len();
        let mut files = Vec::new();
        let mut weight_map = serde_json::Map::new();
        for (index, tensors) in self.finished.iter().enumerate() {
            let name = if total == 1 {
                "model.safetensors".into()
            } else {
                format!("model-{:05}-of-{total:05}.safetensors", index + 1)
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
            let name = "model.safetensors.index.json";
            write_json(&self.folder.join(name), &index)?;
            files.push(name.into());
        }
        Ok((files, self.bytes))
    }
}

/// Name of a shard while it is not known how many there will be.
fn shard_file(index: usize) -> String {
    format!("shard-{index}")
}

impl OpenShard {
    fn new(folder: &Path) -> io::Result<Self> {
        // files without a name: gone when closed, whatever happens
        let spool = || -> io::Result<_> { Ok((BufWriter::new(tempfile::tempfile_in(folder)?), Vec::new())) };
        Ok(Self {
            spools: [spool()?, spool()?, spool()?],
            bytes: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use aqlm_vocabulary::QuantizedMatrix;
    use aqlm_vocabulary::llama::QUERY;
    use ndarray::{Array1, Array3, Array4};
    use proptest::prelude::*;

    use super::super::fixture::{Fixture, shared};
    use super::*;
    use crate::model::tensors::{SafetensorFiles, TensorSource};

    fn assert_same(a: &Model, b: &Model) {
        assert_eq!(a.config(), b.config());
        assert_eq!(a.embedding().unwrap(), b.embedding().unwrap());
        assert_eq!(a.final_norm().unwrap(), b.final_norm().unwrap());
        assert_eq!(a.lm_head().unwrap(), b.lm_head().unwrap());
        for block in 0..a.config().blocks.len() {
            assert_eq!(a.block(block).unwrap(), b.block(block).unwrap());
        }
    }

    fn rewrite(source: &Model, out: &Path, options: &WriteOptions) -> Result<Written> {
        write_checkpoint(out, source, |block| source.block(block), options)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

        /// Any scheme that fits, any shard size: what is read equals what was written.
        #[test]
        fn a_quantized_model_round_trips(
            nbits in 1_u32..=16, num in 1_usize..4, out_group in 1_usize..3, shard_bytes in 1_u64..4000
        ) {
            let scheme = Scheme::with_out_group(num, nbits, 4, out_group).unwrap();
            let fixture = Fixture::quantized(scheme);
            let source = Model::open(fixture.write()).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let out = folder.path().join("out");
            let options = WriteOptions { shard_bytes, ..WriteOptions::default() };
            let written = rewrite(&source, &out, &options).unwrap();
            prop_assert_eq!(written.scheme, Some(scheme));
            assert_same(&Model::open(&out).unwrap(), &source);
        }
    }

    #[test]
    fn shards_are_listed_and_small() {
        let source = Model::embedded().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let limit = 2_000_000;
        let options = WriteOptions {
            shard_bytes: limit,
            ..WriteOptions::default()
        };
        let written = rewrite(&source, folder.path(), &options).unwrap();
        assert_eq!(written.bytes, 2 * 4_262_144);
        let shards = written.files.iter().filter(|name| name.contains("-of-")).count() as u64;
        assert!(shards >= written.bytes.div_ceil(limit), "{:?}", written.files);
        assert!(written.files.contains(&"model.safetensors.index.json".into()));
        for name in written
            .files
            .iter()
            .filter(|name| is_weights_file(Path::new(name)) && !name.contains("index"))
        {
            let size = std::fs::metadata(folder.path().join(name)).unwrap().len();
            assert!(size < limit + 10_000, "{name} has {size} bytes");
        }
        assert_same(&Model::open(folder.path()).unwrap(), &source);
        // another write of fewer shards leaves none of the old ones
        let options = WriteOptions {
            replace: true,
            ..WriteOptions::default()
        };
        rewrite(&source, folder.path(), &options).unwrap();
        let mut names: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(
            names,
            [
                "config.json",
                "model.safetensors",
                "tokenizer.json",
                "tokenizer_config.json"
            ]
        );
    }

    #[test]
    fn a_folder_without_tokenizer_config_gets_one_that_keeps_the_tokens() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/tiny-stories-4m");
        assert!(!golden.join(TOKENIZER_CONFIG).exists());
        let source = Model::open(golden).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let written = rewrite(&source, folder.path(), &WriteOptions::default()).unwrap();
        assert!(written.files.contains(&TOKENIZER_CONFIG.into()));
        let (before, after) = (
            source.tokenizer().unwrap(),
            Model::open(folder.path()).unwrap().tokenizer().unwrap(),
        );
        assert_eq!((after.bos(), after.eos()), (before.bos(), before.eos()));
        let text = "Once upon a time, there was a car.";
        assert_eq!(
            after.encode(text, true).unwrap(),
            before.encode(text, true).unwrap()
        );
    }

    /// Readers view a tensor's bytes as numbers in place, and three int8 codes before an f16 would misalign
    /// it.
    #[test]
    fn every_tensor_is_aligned_to_its_type() {
        let mut fixture = Fixture::quantized(Scheme::new(1, 2, 4).unwrap());
        let norm = "model.layers.0.input_layernorm.weight";
        let (dtype, _, bytes) = fixture.tensors.get_mut(norm).unwrap();
        *dtype = safetensors::Dtype::F32;
        *bytes = [0.5_f32; 8].map(f32::to_le_bytes).concat();
        let source = Model::open(fixture.write()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        rewrite(&source, folder.path(), &WriteOptions::default()).unwrap();
        let bytes = std::fs::read(folder.path().join("model.safetensors")).unwrap();
        let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!((header + 8) % 8, 0);
        for (name, info) in metadata.tensors() {
            assert_eq!(info.data_offsets.0 % (info.dtype.bitsize() / 8), 0, "{name}");
        }
        let tensors = SafetensorFiles::open_folder(folder.path()).unwrap();
        assert_eq!(tensors.info(norm).unwrap().dtype, "F32");
    }

    #[test]
    fn config_keeps_the_sources_fields_and_says_what_is_quantized() {
        let mut fixture = Fixture::dense();
        fixture.config["dtype"] = json!("bfloat16");
        let source = Model::open(fixture.write()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let scheme = Scheme::new(1, 2, 4).unwrap();
        let blocks = |block| {
            let mut weights = source.block(block)?;
            if block == 1 {
                weights.layer_mut(QUERY).weight = quantized(scheme, 0.5);
            }
            Ok(weights)
        };
        write_checkpoint(folder.path(), &source, blocks, &WriteOptions::default()).unwrap();
        let text = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
        let config: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(config["custom"], "kept");
        assert_eq!(config["torch_dtype"], "float16");
        assert_eq!(config.get("dtype"), None);
        assert_eq!(config["architectures"], json!(["LlamaForCausalLM"]));
        let quantization = &config["quantization_config"];
        assert_eq!(quantization["quant_method"], "aqlm");
        assert_eq!(quantization["nbits_per_codebook"], 2);
        let listed: Vec<&str> = quantization["linear_weights_not_to_quantize"]
            .as_array()
            .unwrap()
            .iter()
            .map(|name| name.as_str().unwrap())
            .collect();
        for name in [
            "model.embed_tokens.weight",
            "lm_head.weight",
            "lm_head",
            "model.norm.weight",
            "model.layers.1.input_layernorm.weight",
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.self_attn.q_proj",
        ] {
            assert!(listed.contains(&name), "{name}");
        }
        assert!(
            !listed
                .iter()
                .any(|name| name.starts_with("model.layers.1.self_attn.q_proj"))
        );
        let written = Model::open(folder.path()).unwrap();
        assert_eq!(written.block(0).unwrap(), source.block(0).unwrap());
        assert_eq!(written.inventory().layers[7].scheme, Some(scheme));
    }

    fn quantized(scheme: Scheme, entry: f64) -> LinearWeight {
        let codebooks = Array4::from_elem((1, scheme.codebook_size(), 1, scheme.in_group_size), entry);
        let codes = Array3::zeros((8, 8 / scheme.in_group_size, 1));
        LinearWeight::Quantized(QuantizedMatrix::new(scheme, codes, codebooks, Array1::ones(8)).unwrap())
    }

    #[test]
    fn errors_leave_nothing_behind() {
        let fixture = Fixture::dense();
        let source = Model::open(fixture.write()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let with = |weight: fn(usize) -> LinearWeight| {
            let blocks = |block| {
                let mut weights = source.block(block)?;
                weights.layer_mut(QUERY).weight = weight(block);
                Ok(weights)
            };
            write_checkpoint(&out, &source, blocks, &WriteOptions::default())
        };
        let mixed = with(|block| quantized(Scheme::new(1, 2 + block as u32, 4).unwrap(), 0.5));
        assert!(
            matches!(mixed, Err(Error::Layer { layer, .. }) if layer == "model.layers.1.self_attn.q_proj")
        );
        assert!(!out.exists());
        let too_large = with(|_| quantized(Scheme::new(1, 2, 4).unwrap(), 1e6));
        assert!(matches!(too_large, Err(Error::NotFinite { tensor, .. })
            if tensor == "model.layers.0.self_attn.q_proj.codebooks"));
        assert!(!out.exists());
    }

    #[test]
    fn a_checkpoint_is_replaced_only_when_asked() {
        let fixture = Fixture::dense();
        let source = Model::open(fixture.write()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        rewrite(&source, folder.path(), &WriteOptions::default()).unwrap();
        let again = rewrite(&source, folder.path(), &WriteOptions::default());
        assert!(matches!(again, Err(Error::Exists { .. })));
        let replace = WriteOptions {
            replace: true,
            ..WriteOptions::default()
        };
        rewrite(&source, folder.path(), &replace).unwrap();
        // never over the files that are being read
        assert!(matches!(
            rewrite(&source, source.source(), &replace),
            Err(Error::Exists { .. })
        ));
        assert!(Model::open(source.source()).is_ok());
    }

    #[test]
    fn the_same_model_gives_the_same_bytes() {
        let source = Model::embedded().unwrap();
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [a, b] = folders.each_ref().map(|folder| {
            let written = rewrite(&source, folder.path(), &WriteOptions::default()).unwrap();
            let read = |name: &String| std::fs::read(folder.path().join(name)).unwrap();
            (
                written.files.clone(),
                written.files.iter().map(read).collect::<Vec<_>>(),
            )
        });
        assert!(a == b);
        // and the tokenizer that was generated is the embedded one
        let written = Model::open(folders[0].path()).unwrap().tokenizer().unwrap();
        let embedded = source.tokenizer().unwrap();
        let text = "Once upon a time, 12 café\n";
        assert_eq!(
            written.encode(text, true).unwrap(),
            embedded.encode(text, true).unwrap()
        );
        assert_eq!(
            (written.bos(), written.stops()),
            (embedded.bos(), embedded.stops())
        );
    }

    #[test]
    fn storage_can_be_chosen() {
        let source = Model::embedded().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let options = WriteOptions {
            storage: Some(StorageType::F32),
            ..WriteOptions::default()
        };
        write_dense(folder.path(), &source, &options).unwrap();
        let written = Model::open(folder.path()).unwrap();
        assert_eq!(
            (written.storage(), written.details().storage),
            (StorageType::F32, Some(StorageType::F32))
        );
        assert_same(&written, &source);
    }

    #[test]
    fn checkpoints_of_the_official_engine_survive_rewriting() {
        let Some(folder) = shared("peer/aqlm-hf") else {
            return;
        };
        for entry in std::fs::read_dir(folder).unwrap() {
            let source = Model::open(entry.unwrap().path()).unwrap();
            let folder = tempfile::tempdir().unwrap();
            rewrite(&source, folder.path(), &WriteOptions::default()).unwrap();
            assert_same(&Model::open(folder.path()).unwrap(), &source);
            let read = |folder: &Path| {
                let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
                serde_json::from_str::<Value>(&text).unwrap()
            };
            let (ours, theirs) = (read(folder.path()), read(source.source()));
            let mut names = [&ours, &theirs].map(|config| {
                let list = &config["quantization_config"]["linear_weights_not_to_quantize"];
                let names = list.as_array().unwrap().iter();
                names
                    .map(|name| name.as_str().unwrap().to_owned())
                    .collect::<Vec<_>>()
            });
            for names in &mut names {
                names.sort();
            }
            assert_eq!(names[0], names[1]);
            assert!(write_dense(&folder.path().join("dense"), &source, &WriteOptions::default()).is_err());
        }
    }
}
