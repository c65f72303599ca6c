//! Models in and out: Hugging Face folders, GGUF files and the embedded model behind one type.

use std::io::Read;
use std::path::{Path, PathBuf};

use aqlm_vocabulary::{ArchSpec, BlockWeights, LayerId, Linear, ModelWeights, Scheme};
use ndarray::{Array1, Array2};

use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

pub mod block_file;
pub mod embedded;
mod fingerprint;
#[cfg(test)]
pub(crate) mod fixture;
mod gguf;
pub mod inventory;
mod layout;
mod linear;
mod rounding;
pub mod tensors;
pub mod write;

pub use crate::huggingface::config::{ModelConfig, StorageType};
pub use crate::huggingface::families::Family;
pub use inventory::Inventory;
use linear::{code_type, codebook_shape, read_linear, read_matrix, read_vector};
use tensors::{SafetensorFiles, TensorInfo, TensorSource};
pub use write::{OuterWeights, WriteOptions, Written, write_checkpoint, write_whole};

const EMBEDDING: &str = "model.embed_tokens.weight";
const FINAL_NORM: &str = "model.norm.weight";
const LM_HEAD: &str = "lm_head.weight";

/// Where the tokenizer comes from.
#[derive(Debug)]
enum TokenizerSource {
    Folder(PathBuf),
    Embedded,
    Gguf(gguf::GgufTokenizer),
}

/// A model that is opened but not read: weights are read when asked for, block by block.
///
/// Opening checks that each tensor the configuration needs is there with the right shape.
#[derive(Debug)]
pub struct Model {
    source: PathBuf,
    config: ModelConfig,
    tensors: Box<dyn TensorSource>,
    tokenizer: TokenizerSource,
}

impl Model {
    /// Opens a Hugging Face folder or a GGUF file of the llama architecture.
    ///
    /// # Errors
    /// `Io`; `Kind` for anything else; the errors of [`ModelConfig::read`] and
    /// [`SafetensorFiles::open_folder`]; `Truncated`, `Header`, `Offsets`, `Field` and `Unsupported` for GGUF
    /// files; `MissingTensor`, `TensorShape`, `TensorType`, `UnexpectedTensor` and `Layer` when weights and
    /// configuration disagree.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let metadata = std::fs::metadata(path).map_err(Error::io(path, "open"))?;
        if !metadata.is_dir() {
            if !starts_with(path, gguf::MAGIC)? {
                return Err(Error::Kind {
                    path: path.into(),
                    expected: "a Hugging Face model folder or a GGUF file".into(),
                    found: "another file".into(),
                });
            }
            let gguf = gguf::open(path)?;
            return Self::assemble(
                path.into(),
                gguf.config,
                Box::new(gguf.tensors),
                TokenizerSource::Gguf(gguf.tokenizer),
            );
        }
        let config_path = path.join("config.json");
        if !config_path.is_file() {
            return Err(Error::Kind {
                path: path.into(),
                expected: "a model folder with a config.json".into(),
                found: "a folder without".into(),
            });
        }
        Self::assemble(
            path.into(),
            ModelConfig::read(&config_path)?,
            Box::new(SafetensorFiles::open_folder(path)?),
            TokenizerSource::Folder(path.into()),
        )
    }

    /// The model that is part of the program: see [`embedded`].
    ///
    /// # Errors
    /// Those of [`Model::open`], should the program have been built with damaged files.
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
        let model = Self {
            source,
            config,
            tensors,
            tokenizer,
        };
        model.check_tensors()?;
        Ok(model)
    }

    /// Presence and shape of everything that the accessors will read.
    fn check_tensors(&self) -> Result<()> {
        let config = self.config();
        let vocabulary = [config.vocab_size, config.hidden_size];
        self.tensors.expect(EMBEDDING, &vocabulary)?;
        self.tensors.expect(FINAL_NORM, &[config.hidden_size])?;
        if !config.tied {
            self.tensors.expect(LM_HEAD, &vocabulary)?;
        }
        for (block, spec) in config.blocks.iter().enumerate() {
            for norm in config.norm_names(block) {
                self.tensors.expect(&norm, &[config.hidden_size])?;
            }
            for layer in spec.layers() {
                self.check_layer(block, layer)?;
            }
        }
        Ok(())
    }

    fn check_layer(&self, block: usize, layer: LayerId) -> Result<()> {
        let name = self.config().layer_name(block, layer);
        let linear = self.config().blocks[block].linear(layer);
        let (out_features, in_features) = linear.shape;
        let unexpected = |info: TensorInfo, tensor: String, reason: &str| Error::UnexpectedTensor {
            path: info.path,
            tensor,
            reason: reason.into(),
        };
        let bias = format!("{name}.bias");
        match self.tensors.info(&bias) {
            Some(info) if !linear.bias => {
                return Err(unexpected(
                    info,
                    bias,
                    "as config.json announces no bias for this layer",
                ));
            }
            None if !linear.bias => {}
            _ => _ = self.tensors.expect(&bias, &[out_features])?,
        }
        let weight = format!("{name}.weight");
        let codes = format!("{name}.codes");
        let Some(info) = self.tensors.info(&codes) else {
            return self
                .tensors
                .expect(&weight, &[out_features, in_features])
                .map(|_| ());
        };
        let Some(scheme) = self.config.quantization else {
            return Err(unexpected(
                info,
                codes,
                "as config.json has no quantization_config",
            ));
        };
        if let Some(info) = self.tensors.info(&weight) {
            return Err(unexpected(info, weight, "as the layer has codes too"));
        }
        let (out_groups, in_groups) =
            scheme
                .groups(out_features, in_features)
                .map_err(|source| Error::Layer {
                    layer: format!("{}: {name}", self.source.display()),
                    source,
                })?;
        let found = self
            .tensors
            .expect(&codes, &[out_groups, in_groups, scheme.num_codebooks])?;
        let expected = format!("{:?}", code_type(scheme.nbits));
        if found.dtype != expected {
            return Err(Error::TensorType {
                path: found.path,
                tensor: codes,
                expected: format!("{expected} for codes of {} bits", scheme.nbits),
                found: found.dtype,
            });
        }
        self.tensors
            .expect(&format!("{name}.codebooks"), &codebook_shape(scheme))?;
        self.tensors
            .expect(&format!("{name}.scales"), &[out_groups, 1, 1, 1])?;
        Ok(())
    }

    /// The model as data: what decides the arithmetic.
    pub fn config(&self) -> &ArchSpec {
        &self.config.arch
    }

    /// Everything read from the configuration.
    pub fn details(&self) -> &ModelConfig {
        &self.config
    }

    /// The folder or file that was opened, or the embedded model's name in parentheses.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// The type that the embedding is stored in; f16 where the file's type is none of those written here.
    pub fn storage(&self) -> StorageType {
        self.storage_of(EMBEDDING)
    }

    fn storage_of(&self, tensor: &str) -> StorageType {
        match self.tensors.info(tensor).as_ref().map(|info| info.dtype.as_str()) {
            Some("BF16") => StorageType::BF16,
            Some("F32" | "F64") => StorageType::F32,
            _ => StorageType::F16,
        }
    }

    /// Scheme of a linear layer, when it is quantized.
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

    /// Token embeddings, one row of hidden_size a token.
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

    /// Weight of the RMSNorm after the last block, hidden_size elements.
    ///
    /// # Errors
    /// `NotFinite`, `TensorType`, `Io`.
    pub fn final_norm(&self) -> Result<Array1<f32>> {
        read_vector(self.tensors.as_ref(), FINAL_NORM, self.config().hidden_size)
    }

    /// Weight of the output layer, one row of hidden_size a token; the embedding when tied.
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

    /// The weights of one block, from 0.
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
        let [before_attention, before_mlp] = config.norm_names(block);
        Ok(BlockWeights {
            input_layernorm: read_vector(self.tensors.as_ref(), &before_attention, config.hidden_size)?,
            post_attention_layernorm: read_vector(self.tensors.as_ref(), &before_mlp, config.hidden_size)?,
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

    fn linear(&self, block: usize, layer: LayerId) -> Result<Linear> {
        let name = self.config().layer_name(block, layer);
        let spec = self.config().blocks[block].linear(layer);
        read_linear(
            self.tensors.as_ref(),
            &name,
            spec.shape,
            self.scheme_of(&name),
            spec.bias,
        )
    }

    /// The model's tokenizer.
    ///
    /// # Errors
    /// `Kind` when the folder has no tokenizer.json; `Tokenizer`, `Json` and `Field` when its files are
    /// wrong; `Vocabulary` when it has ids beyond the embedding.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let (bos, eos) = (self.config.bos, self.config.eos.clone());
        let tokenizer = match &self.tokenizer {
            TokenizerSource::Embedded => {
                Tokenizer::from_bytes(&self.source.join("tokenizer.json"), embedded::TOKENIZER)?
                    .with_markers(bos, eos)
            }
            TokenizerSource::Gguf(gguf) => gguf.build()?.with_markers(bos, eos),
            TokenizerSource::Folder(folder) => {
                let path = folder.join("tokenizer.json");
                if !path.is_file() {
                    let old = folder.join("tokenizer.model").is_file();
                    return Err(Error::Kind {
                        path: folder.clone(),
                        expected: "a tokenizer.json".into(),
                        found: if old {
                            "only SentencePiece's tokenizer.model"
                        } else {
                            "none"
                        }
                        .into(),
                    });
                }
                let tokenizer = Tokenizer::from_file(&path)?.with_markers(bos, eos);
                let config = folder.join("tokenizer_config.json");
                if config.is_file() {
                    let text = std::fs::read_to_string(&config).map_err(Error::io(&config, "read"))?;
                    tokenizer.with_tokenizer_config(&config, &text)?
                } else {
                    tokenizer
                }
            }
        };
        let rows = self.config().vocab_size;
        match tokenizer.largest_id() {
            Some((id, token)) if id as usize >= rows => Err(Error::Vocabulary {
                path: self.source.clone(),
                rows,
                id,
                token,
            }),
            _ => Ok(tokenizer),
        }
    }
}

/// Whether a file begins with these bytes.
fn starts_with(path: &Path, magic: &[u8]) -> Result<bool> {
    let mut start = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(magic.len() as u64).read_to_end(&mut start))
        .map_err(Error::io(path, "read"))?;
    Ok(start == magic)
}

#[cfg(test)]
mod tests {
    use aqlm_vocabulary::LinearWeight;
    use aqlm_vocabulary::llama::{KEY, OUTPUT, QUERY};
    use half::f16;
    use safetensors::Dtype;
    use serde_json::json;

    use super::fixture::{Fixture, shared};
    use super::*;

    const Q0: &str = "model.layers.0.self_attn.q_proj";

    #[test]
    fn the_embedded_model_opens() {
        let model = Model::embedded().unwrap();
        assert_eq!(model.config().blocks.len(), 4);
        assert_eq!(model.embedding().unwrap().dim(), (2048, 256));
        assert_ne!(model.embedding().unwrap(), model.lm_head().unwrap());
        assert_eq!(model.final_norm().unwrap().len(), 256);
        assert_eq!(model.storage(), StorageType::F16);
        for block in 0..4 {
            let weights = model.block(block).unwrap();
            let shapes: Vec<_> = weights.layers.iter().map(|layer| layer.weight.shape()).collect();
            let (square, tall) = ((256, 256), (704, 256));
            assert_eq!(shapes, [square, square, square, square, tall, tall, (256, 704)]);
        }
        assert!(matches!(
            model.block(4),
            Err(Error::Block {
                blocks: 4,
                block: 4,
                ..
            })
        ));
    }

    #[test]
    fn a_folder_and_the_embedded_files_give_the_same_model() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/tiny-stories-4m");
        let (folder, embedded) = (Model::open(folder).unwrap(), Model::embedded().unwrap());
        assert_eq!(folder.config(), embedded.config());
        assert_eq!(folder.block(3).unwrap(), embedded.block(3).unwrap());
        assert_eq!(folder.lm_head().unwrap(), embedded.lm_head().unwrap());
        let text = "Once upon a time";
        let ids = |model: &Model| model.tokenizer().unwrap().encode(text, true).unwrap();
        assert_eq!(ids(&folder), ids(&embedded));
    }

    #[test]
    fn a_tied_head_is_the_embedding() {
        let mut fixture = Fixture::dense();
        fixture.config["tie_word_embeddings"] = json!(true);
        fixture.tensors.remove("lm_head.weight");
        let model = Model::open(fixture.write()).unwrap();
        assert_eq!(model.lm_head().unwrap(), model.embedding().unwrap());
    }

    #[test]
    fn codes_are_read_from_twos_complement() {
        for (scheme, code_bytes) in [("2x3g4", [0xfc_u8, 0xff, 0x03]), ("1x8g4", [0x80, 0xff, 0x7f])] {
            let mut fixture = Fixture::quantized(scheme.parse().unwrap());
            fixture.damage(&format!("{Q0}.codes"), 0, &code_bytes);
            let block = Model::open(fixture.write()).unwrap().block(0).unwrap();
            let LinearWeight::Quantized(matrix) = &block.layer(QUERY).weight else {
                panic!("a dense layer")
            };
            let size = matrix.scheme.codebook_size() as u16;
            let codes: Vec<u16> = matrix.codes.iter().copied().take(3).collect();
            assert_eq!(codes, [size / 2, size - 1, size / 2 - 1]);
        }
    }

    #[test]
    fn codes_beyond_their_bits_are_named() {
        let mut fixture = Fixture::quantized("2x3g4".parse().unwrap());
        fixture.damage(&format!("{Q0}.codes"), 5, &[4]);
        let result = Model::open(fixture.write()).unwrap().block(0);
        assert!(
            matches!(result, Err(Error::CodeOutOfRange { tensor, element: 5, low: -4, high: 4, found: 4, .. })
                if tensor == format!("{Q0}.codes"))
        );
    }

    #[test]
    fn codes_of_another_type_are_refused() {
        let mut fixture = Fixture::quantized("1x3g4".parse().unwrap());
        let (dtype, _, bytes) = fixture.tensors.get_mut(&format!("{Q0}.codes")).unwrap();
        *dtype = Dtype::I16;
        bytes.extend(vec![0; bytes.len()]);
        let result = Model::open(fixture.write());
        assert!(matches!(result, Err(Error::TensorType { expected, .. }) if expected.starts_with("I8")));
    }

    #[test]
    fn codes_without_a_quantization_config_are_refused() {
        let mut fixture = Fixture::quantized("1x3g4".parse().unwrap());
        fixture.config["quantization_config"] = json!(null);
        let result = Model::open(fixture.write());
        assert!(
            matches!(result, Err(Error::UnexpectedTensor { tensor, .. }) if tensor == format!("{Q0}.codes"))
        );
    }

    #[test]
    fn a_layer_with_both_codes_and_a_weight_is_refused() {
        let mut fixture = Fixture::quantized("1x3g4".parse().unwrap());
        fixture.put_halves(&format!("{Q0}.weight"), &[8, 8]);
        let result = Model::open(fixture.write());
        assert!(
            matches!(result, Err(Error::UnexpectedTensor { tensor, .. }) if tensor == format!("{Q0}.weight"))
        );
    }

    #[test]
    fn a_group_size_that_does_not_divide_names_the_layer() {
        let mut fixture = Fixture::quantized("1x3g4".parse().unwrap());
        fixture.config["quantization_config"]["in_group_size"] = json!(3);
        let result = Model::open(fixture.write());
        assert!(matches!(result, Err(Error::Layer { layer, .. }) if layer.contains(Q0)));
    }

    #[test]
    fn missing_tensors_are_named() {
        for name in [
            "model.embed_tokens.weight",
            "lm_head.weight",
            "model.layers.1.mlp.down_proj.weight",
        ] {
            let mut fixture = Fixture::dense();
            fixture.tensors.remove(name);
            let result = Model::open(fixture.write());
            assert!(matches!(result, Err(Error::MissingTensor { tensor, .. }) if tensor == name));
        }
    }

    #[test]
    fn shapes_that_contradict_the_configuration_are_named() {
        let mut fixture = Fixture::dense();
        fixture.config["intermediate_size"] = json!(16);
        let result = Model::open(fixture.write());
        assert!(
            matches!(result, Err(Error::TensorShape { tensor, expected, found, .. })
            if tensor == "model.layers.0.mlp.gate_proj.weight" && expected == [16, 8] && found == [12, 8])
        );
    }

    #[test]
    fn biases_are_read_when_announced_and_refused_otherwise() {
        let mut fixture = Fixture::dense();
        fixture.put_halves(&format!("{Q0}.bias"), &[8]);
        let result = Model::open(fixture.write());
        assert!(
            matches!(result, Err(Error::UnexpectedTensor { tensor, .. }) if tensor == format!("{Q0}.bias"))
        );

        fixture.config["model_type"] = json!("qwen2");
        for block in 0..2 {
            for (layer, length) in [("q", 8), ("k", 4), ("v", 4)] {
                let name = format!("model.layers.{block}.self_attn.{layer}_proj.bias");
                fixture.put_halves(&name, &[length]);
            }
        }
        let block = Model::open(fixture.write()).unwrap().block(1).unwrap();
        assert_eq!(block.layer(KEY).bias.as_ref().unwrap().len(), 4);
        assert_eq!(block.layer(OUTPUT).bias, None);
    }

    #[test]
    fn weights_that_are_not_finite_are_named() {
        let mut fixture = Fixture::dense();
        fixture.damage(&format!("{Q0}.weight"), 2 * 9, &f16::NAN.to_le_bytes());
        let result = Model::open(fixture.write()).unwrap().block(0);
        assert!(
            matches!(result, Err(Error::NotFinite { tensor, element: 9, .. }) if tensor == format!("{Q0}.weight"))
        );
    }

    #[test]
    fn a_tokenizer_larger_than_the_embedding_is_refused() {
        let fixture = Fixture::dense();
        let folder = fixture.write();
        std::fs::write(folder.join("tokenizer.json"), embedded::TOKENIZER).unwrap();
        let result = Model::open(folder).unwrap().tokenizer();
        assert!(matches!(
            result,
            Err(Error::Vocabulary {
                rows: 6,
                id: 2047,
                ..
            })
        ));
    }

    #[test]
    fn paths_that_are_no_models_are_refused() {
        assert!(matches!(Model::open("no/such/model"), Err(Error::Io { .. })));
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Model::open(folder.path()), Err(Error::Kind { .. })));
        let fixture = Fixture::dense();
        let file = fixture.write().join("model.safetensors");
        assert!(matches!(Model::open(file), Err(Error::Kind { .. })));
        let result = Model::open(fixture.write()).unwrap().tokenizer();
        assert!(matches!(result, Err(Error::Kind { expected, .. }) if expected.contains("tokenizer.json")));
    }

    #[test]
    fn real_models_open() {
        for (name, blocks, tied) in [
            ("models/tiny-stories-4m", 4, false),
            ("models/babyllama105-hf", 5, true),
            ("models/stories260K-hf", 5, true),
        ] {
            let Some(folder) = shared(name) else { continue };
            let model = Model::open(folder).unwrap();
            assert_eq!(model.config().blocks.len(), blocks);
            assert_eq!(model.config().tied, tied);
            for block in 0..blocks {
                model.block(block).unwrap();
            }
            assert!(model.tokenizer().unwrap().vocab_size() <= model.config().vocab_size);
        }
    }

    #[test]
    fn checkpoints_of_the_official_engine_open() {
        let Some(folder) = shared("peer/aqlm-hf") else {
            return;
        };
        let mut seen = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let folder = entry.unwrap().path();
            let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
            let scheme: Scheme = name.rsplit('-').next().unwrap().parse().unwrap();
            let model = Model::open(&folder).unwrap();
            for block in 0..model.config().blocks.len() {
                for layer in &model.block(block).unwrap().layers {
                    assert!(
                        matches!(&layer.weight, LinearWeight::Quantized(matrix) if matrix.scheme == scheme)
                    );
                }
            }
            let inventory = model.inventory();
            assert!(inventory.layers.iter().all(|layer| layer.scheme == Some(scheme)));
            seen += 1;
        }
        assert!(seen > 0);
    }
}
