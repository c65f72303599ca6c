//! Opens Hugging Face folders, GGUF files and the embedded model as one type.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use aqlm_vocabulary::{ArchSpec, BlockWeights, LayerId, Linear, ModelWeights, Scheme};
use ndarray::{Array1, Array2};

use crate::huggingface::index::open_folder;
use crate::huggingface::linear::{read_linear, read_matrix};
use crate::huggingface::names::{EMBEDDING, FINAL_NORM, LM_HEAD};
use crate::huggingface::norms::read_norm;
use crate::safetensors::SafetensorFiles;
use crate::tensors::{TensorInfo, TensorSource};
use crate::{Error, Result, gguf, stand_in};

mod check;
pub mod embedded;
mod fingerprint;
#[cfg(test)]
pub(crate) mod fixture;
pub mod inventory;
mod place;
mod renamed;
mod rounding;
mod tokenizer;

pub use crate::huggingface::block_file;
pub use crate::huggingface::config::{ModelConfig, StorageType};
pub use crate::huggingface::families::Family;
pub use crate::huggingface::write::{
    OuterWeights, WriteOptions, Written, keeps_bf16, write_checkpoint, write_dense, write_whole,
};
pub use inventory::{Inventory, LayerEntry, TensorEntry};
use renamed::under_usual_names;
pub(crate) use tokenizer::TokenizerSource;

/// A model that is opened but not read; weights are read block by block, on request.
///
/// Opening checks that every tensor required by the configuration exists with the right shape.
#[derive(Debug)]
pub struct Model {
    source: PathBuf,
    config: ModelConfig,
    tensors: Box<dyn TensorSource>,
    tokenizer: TokenizerSource,
}

impl Model {
    /// Opens a Hugging Face folder, a model's folder in the cache of the Hub's client, or a GGUF file. Of a
    /// model in several GGUF files, any part opens the whole.
    ///
    /// # Errors
    /// `Io`; `Kind` for anything else; the errors of [`ModelConfig::read`] and of opening a folder's weights;
    /// `Truncated`, `Header`, `Offsets`, `Field` and `Unsupported` for GGUF files; `MissingTensor`,
    /// `TensorShape`, `TensorType`, `UnexpectedTensor` and `Layer` when weights and configuration disagree.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let metadata = std::fs::metadata(path).map_err(Error::io(path, "open"))?;
        if !metadata.is_dir() {
            refuse_other_files(path)?;
            let gguf = gguf::open(path)?;
            return Self::assemble(
                path.into(),
                gguf.config,
                Box::new(gguf.tensors),
                TokenizerSource::Gguf(gguf.tokenizer),
            );
        }
        let folder = place::model_folder(path)?;
        let config = ModelConfig::read(&folder.join("config.json"))?;
        let tensors = under_usual_names(Box::new(open_folder(&folder)?), config.arch.tied);
        Self::assemble(folder.clone(), config, tensors, TokenizerSource::Folder(folder))
    }

    /// The model embedded in the program: see [`embedded`].
    ///
    /// # Errors
    /// Those of [`Model::open`], if the program was built with damaged files.
    pub fn embedded() -> Result<Self> {
        let source = PathBuf::from(format!("(embedded) {}", embedded::NAME));
        Self::assemble(
            source.clone(),
            ModelConfig::from_text(&source.join("config.json"), embedded::CONFIG)?,
            Box::new(SafetensorFiles::from_static(
                &source.join("model.safetensors"),
                embedded::WEIGHTS,
            )?),
            TokenizerSource::Embedded,
        )
    }

    fn assemble(
        source: PathBuf,
        config: ModelConfig,
        tensors: Box<dyn TensorSource>,
        tokenizer: TokenizerSource,
    ) -> Result<Self> {
        let mut model = Self {
            source,
            config,
            tensors,
            tokenizer,
        };
        model.settle_head()?;
        model.check_tensors()?;
        let unread = model.unread_tensors();
        model.config.warnings.extend(unread);
        Ok(model)
    }

    /// What the reader of a result should know about the model's files: fields and tensors that were not
    /// read, and rules on which releases of transformers disagree. Each text names the file and the field or
    /// tensor.
    pub fn warnings(&self) -> &[String] {
        &self.config.warnings
    }

    /// The model as data: everything that decides the arithmetic.
    pub fn config(&self) -> &ArchSpec {
        &self.config.arch
    }

    /// Everything read from the configuration.
    pub fn details(&self) -> &ModelConfig {
        &self.config
    }

    /// The opened folder or file, or the embedded model's name in parentheses.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// The type of the stored embedding; f16 if the file's type is not written here.
    pub fn storage(&self) -> StorageType {
        self.storage_of(EMBEDDING)
    }

    pub(crate) fn storage_of(&self, tensor: &str) -> StorageType {
        match self.tensors.info(tensor).as_ref().map(|info| info.dtype.as_str()) {
            Some("BF16") => StorageType::BF16,
            Some("F32" | "F64") => StorageType::F32,
            _ => StorageType::F16,
        }
    }

    /// All tensors by name, with their type, shape and size.
    fn listed(&self) -> BTreeMap<String, TensorInfo> {
        let info = |name: &str| self.tensors.info(name).expect("a name that the source listed");
        let names = self.tensors.names().into_iter();
        names.map(|name| (name.clone(), info(&name))).collect()
    }

    /// Scheme of a linear layer; `None` if not quantized.
    fn scheme_of(&self, layer: &str) -> Option<Scheme> {
        self.tensors.info(&format!("{layer}.codes"))?;
        self.config.quantization
    }

    /// Whether any linear layer is quantized.
    pub fn is_quantized(&self) -> bool {
        let config = self.config();
        config.blocks.iter().enumerate().any(|(block, spec)| {
            spec.layers()
                .any(|layer| self.scheme_of(&config.layer_name(block, layer)).is_some())
        })
    }

    /// Token embeddings, one row of hidden_size per token.
    ///
    /// # Errors
    /// `NotFinite`, `TensorType`, `Io`.
    pub fn embedding(&self) -> Result<Array2<f32>> {
        let config = self.config();
        read_matrix(
            self.tensors.as_ref(),
            EMBEDDING,
            (config.vocab_size, config.hidden_size),
        )
    }

    /// Parameters of the norm after the last block: hidden_size weights, then as many biases if it has some.
    ///
    /// # Errors
    /// `NotFinite`, `TensorType`, `Io`.
    pub fn final_norm(&self) -> Result<Array1<f32>> {
        let config = self.config();
        read_norm(
            self.tensors.as_ref(),
            FINAL_NORM,
            config.final_norm,
            config.hidden_size,
        )
    }

    /// Weight of the output layer, one row of hidden_size per token; the embedding if tied.
    ///
    /// # Errors
    /// `NotFinite`, `TensorType`, `Io`.
    pub fn lm_head(&self) -> Result<Array2<f32>> {
        let config = self.config();
        if config.tied {
            return self.embedding();
        }
        read_matrix(
            self.tensors.as_ref(),
            LM_HEAD,
            (config.vocab_size, config.hidden_size),
        )
    }

    /// The weights of one block; blocks are numbered from 0.
    ///
    /// # Errors
    /// `Block` when there is no such block; `NotFinite`, `CodeOutOfRange`, `TensorType`, `Io`.
    pub fn block(&self, block: usize) -> Result<BlockWeights> {
        let config = self.config();
        let Some(spec) = config.blocks.get(block) else {
            return Err(Error::Block {
                path: self.source.clone(),
                blocks: config.blocks.len(),
                block,
            });
        };
        let norms = config.norm_names(block).into_iter().zip(&spec.norms);
        Ok(BlockWeights {
            norms: norms
                .map(|(name, norm)| read_norm(self.tensors.as_ref(), &name, norm.norm, norm.width))
                .collect::<Result<_>>()?,
            layers: spec
                .layers()
                .map(|layer| self.linear(block, layer))
                .collect::<Result<_>>()?,
        })
    }

    /// All weights at once.
    ///
    /// # Errors
    /// Those of [`Model::embedding`] and [`Model::block`].
    pub fn weights(&self) -> Result<ModelWeights> {
        let tied = self.config().tied;
        Ok(ModelWeights {
            embedding: self.embedding()?,
            blocks: (0..self.config().blocks.len())
                .map(|block| self.block(block))
                .collect::<Result<_>>()?,
            norm: self.final_norm()?,
            lm_head: (!tied).then(|| self.lm_head()).transpose()?,
        })
    }

    /// One linear layer of a block; blocks are numbered from 0.
    ///
    /// # Errors
    /// Those of [`Model::block`].
    pub fn linear(&self, block: usize, layer: LayerId) -> Result<Linear> {
        let config = self.config();
        let Some(of_block) = config.blocks.get(block) else {
            return Err(Error::Block {
                path: self.source.clone(),
                blocks: config.blocks.len(),
                block,
            });
        };
        let name = config.layer_name(block, layer);
        let spec = of_block.linear(layer);
        read_linear(
            self.tensors.as_ref(),
            &name,
            spec.shape,
            self.scheme_of(&name),
            spec.bias,
        )
    }
}

/// Rejects a file that is not GGUF.
fn refuse_other_files(path: &Path) -> Result<()> {
    let expected = "a Hugging Face model folder or a GGUF file";
    let mut start = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(stand_in::START as u64).read_to_end(&mut start))
        .map_err(Error::io(path, "read"))?;
    if start.starts_with(gguf::MAGIC) {
        return Ok(());
    }
    stand_in::refuse(path, &start, expected)?;
    let of_folder = path
        .parent()
        .is_some_and(|folder| folder.join("config.json").is_file());
    Err(Error::Kind {
        path: path.into(),
        expected: expected.into(),
        found: if of_folder {
            "a file inside a model folder: name the folder"
        } else {
            "another file"
        }
        .into(),
    })
}

#[cfg(test)]
mod tests;
