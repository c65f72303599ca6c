//! The sketch of a dense model's gradients (YAQA's sketch B, arXiv:2505.22988): for each layer the means of
//! G G^T and G^T G over gradients G of sequences, whose labels the model itself draws. It is computed once
//! for a model and a text, stored in a folder, and reused by every scheme.
//!
//! The folder holds one safetensors file a block, f32, and `sketch.json`, which is written last. Blocks are
//! in the quantizer's gauge (`gauge.rs`), so models that differ only by powers of two have one sketch.

use std::path::{Path, PathBuf};

use aqlm_formats::durable;
use aqlm_formats::model::Model;
use aqlm_formats::safetensors::{NewTensor, SafetensorFiles, write};
use aqlm_formats::{Error, Result};
use aqlm_vocabulary::{ArchSpec, BlockSpec, GradientSums, LayerId, Purpose, StreamKey};
use ndarray::{Array2, ArrayView1, Axis, Ix2};
use rand::RngExt;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::backend_kind::BackendKind;
use crate::gauge::Gauge;
use crate::ops::TrainOps;
use crate::presets::SketchSettings;

/// Tokens of a sequence whose gradient counts as one.
pub const SKETCH_TOKENS: usize = 256;

/// Name of the record in the folder.
const RECORD: &str = "sketch.json";

/// `sketch.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SketchRecord {
    /// version of the program
    version: String,
    /// SHA-256 of the model's files
    model_sha256: String,
    /// SHA-256 of the token ids of all sequences
    text_sha256: String,
    /// number of sequences
    sequences: usize,
    #[serde(flatten)]
    settings: SketchSettings,
    /// which backend computed
    backend: BackendKind,
    /// SHA-256 of each block's file
    blocks: Vec<String>,
}

/// What is known of a sketch before it is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SketchPlan {
    /// number of sequences
    pub sequences: usize,
    /// what it is made of
    pub settings: SketchSettings,
    /// bytes of hidden states and their gradients
    pub hidden_bytes: usize,
    /// bytes of one block's sums
    pub sum_bytes: usize,
    /// bytes of the folder
    pub stored_bytes: usize,
    /// multiply-adds of products of gradients and of passes through the blocks
    pub operations: f64,
}

/// Progress of a sketch.
#[derive(Debug)]
pub enum SketchEvent<'a> {
    /// before anything is computed
    Planned(&'a SketchPlan),
    /// a block's outputs are computed
    Forward {
        /// index of the block
        block: usize,
    },
    /// labels are drawn for one more sequence
    Drawn {
        /// number of sequences so far
        sequences: usize,
    },
    /// a block's sums are stored; blocks are done from the last to the first
    Stored {
        /// index of the block
        block: usize,
    },
}

/// A stored sketch.
#[derive(Debug)]
pub struct Sketch {
    folder: PathBuf,
    blocks: Vec<String>,
}

/// Cuts calibration sequences into the sketch's.
pub fn sketch_sequences<'t>(calibration: &[&'t [u32]], seqlen: usize) -> Vec<&'t [u32]> {
    let cut = |tokens: &&'t [u32]| tokens.chunks_exact(seqlen.clamp(1, tokens.len().max(1)));
    calibration.iter().flat_map(cut).collect()
}

impl Sketch {
    /// The sketch in `folder`, if one is there.
    ///
    /// # Errors
    /// `Field` naming what differs when the sketch belongs to another model, another text or other settings;
    /// `RunFolder` when the folder holds something else; `Io`, `Json`.
    pub fn open(
        folder: &Path,
        model: &Model,
        sequences: &[&[u32]],
        settings: SketchSettings,
    ) -> Result<Option<Self>> {
        let path = folder.join(RECORD);
        if !path.is_file() {
            check_free(folder)?;
            return Ok(None);
        }
        let text = std::fs::read(&path).map_err(Error::io(&path, "read"))?;
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(Error::json(&path, 1))?;
        let field = |field: String, expected: String, found: String| Error::Field {
            path: path.clone(),
            field,
            expected,
            found,
        };
        let found: SketchRecord = serde_path_to_error::deserialize(value).map_err(|error| {
            field(
                error.path().to_string(),
                "what a sketch of gradients has there".into(),
                error.inner().to_string(),
            )
        })?;
        let same = [
            ("model_sha256", model.fingerprint()?, found.model_sha256),
            ("text_sha256", hash(sequences), found.text_sha256),
            (
                "sequences",
                sequences.len().to_string(),
                found.sequences.to_string(),
            ),
            (
                "seqlen",
                settings.seqlen.to_string(),
                found.settings.seqlen.to_string(),
            ),
            (
                "draws",
                settings.draws.to_string(),
                found.settings.draws.to_string(),
            ),
            ("seed", settings.seed.to_string(), found.settings.seed.to_string()),
            (
                "blocks",
                model.config().blocks.len().to_string(),
                found.blocks.len().to_string(),
            ),
        ];
        for (name, expected, found) in same {
            if expected != found {
                let expected = format!("{expected}, as this run needs");
                return Err(field(name.into(), expected, found));
            }
        }
        Ok(Some(Self {
            folder: folder.into(),
            blocks: found.blocks,
        }))
    }

    /// Computes the sketch into `folder`: forward through all blocks, labels drawn for every sequence, and
    /// back through all blocks, one block's sums in memory at a time.
    ///
    /// The labels of sequence i come from the stream of (seed, i), draw after draw.
    ///
    /// # Errors
    /// Errors of the machine; `Io`; those of reading the model.
    pub fn compute<M: TrainOps>(
        machine: &M,
        model: &Model,
        sequences: &[&[u32]],
        settings: SketchSettings,
        folder: &Path,
        observe: &mut dyn FnMut(SketchEvent<'_>),
    ) -> Result<Self> {
        let plan = SketchPlan::new(model.config(), sequences, settings);
        observe(SketchEvent::Planned(&plan));
        std::fs::create_dir_all(folder).map_err(Error::io(folder, "make"))?;
        let count = model.config().blocks.len();
        let block = |index: usize| {
            let (spec, weights) = (&model.config().blocks[index], model.block(index)?);
            let gauge = Gauge::of(spec, &weights);
            machine.load_block(index, &gauge.apply(weights)?)
        };
        let mut inputs = Vec::with_capacity(count);
        let mut hidden = machine.embed(&model.embedding()?, sequences)?;
        for index in 0..count {
            let next = machine.block_forward(&block(index)?, &hidden)?;
            inputs.push(std::mem::replace(&mut hidden, next));
            observe(SketchEvent::Forward { block: index });
        }
        machine.largest(&hidden)?;
        let head = machine.load_head(&model.final_norm()?, &model.lm_head()?)?;
        let mut labels: Vec<Vec<Vec<u32>>> = vec![Vec::with_capacity(sequences.len()); settings.draws];
        for sequence in 0..sequences.len() {
            let logits = machine.logits(&head, &hidden, sequence)?;
            let key = StreamKey {
                seed: settings.seed,
                block: sequence,
                layer: None,
            };
            let mut stream = key.stream(Purpose::Labels);
            for labels in &mut labels {
                let chances: Vec<f64> = (0..logits.nrows()).map(|_| stream.random()).collect();
                labels.push(drawn(&logits, &chances));
            }
            observe(SketchEvent::Drawn {
                sequences: sequence + 1,
            });
        }
        let mut gradients = labels
            .iter()
            .map(|labels| machine.label_gradients(&head, &hidden, labels))
            .collect::<Result<Vec<_>>>()?;
        drop((hidden, head, labels));
        let terms = (sequences.len() * settings.draws).max(1) as f64;
        let mut blocks = vec![String::new(); count];
        for (index, inputs) in inputs.into_iter().enumerate().rev() {
            let (next, sums) = machine.block_sketch(&block(index)?, &inputs, &gradients)?;
            gradients = next;
            let spec = &model.config().blocks[index];
            blocks[index] = write(&block_path(folder, index), tensors(spec, &sums, terms))?;
            observe(SketchEvent::Stored { block: index });
        }
        let record = SketchRecord {
            version: env!("CARGO_PKG_VERSION").into(),
            model_sha256: model.fingerprint()?,
            text_sha256: hash(sequences),
            sequences: sequences.len(),
            settings,
            backend: machine.kind(),
            blocks,
        };
        let text = serde_json::to_string_pretty(&record)
            .map_err(|error| Error::Internal(format!("the record of a sketch that is no JSON: {error}")))?;
        durable::write_text(&folder.join(RECORD), &text)?;
        Ok(Self {
            folder: folder.into(),
            blocks: record.blocks,
        })
    }

    /// The means of a block's layers, in the order of its spec.
    ///
    /// # Errors
    /// `Digest` when the file is not the one that was written; `MissingTensor`, `TensorShape`, `Io`.
    pub(crate) fn block(&self, index: usize, spec: &BlockSpec) -> Result<Vec<GradientSums>> {
        let path = block_path(&self.folder, index);
        let file = SafetensorFiles::open_checked(&path, &self.blocks[index])?;
        let read = |layer: LayerId, side: &str, size: usize| -> Result<Array2<f64>> {
            let tensor = tensor_name(spec, layer, side);
            let found = file.read::<f32, Ix2>(&tensor)?;
            if found.dim() == (size, size) {
                return Ok(found.mapv(f64::from));
            }
            Err(Error::TensorShape {
                path: path.clone(),
                tensor,
                expected: vec![size, size],
                found: found.shape().to_vec(),
            })
        };
        spec.layers()
            .map(|layer| {
                let (out, inputs) = spec.shape(layer);
                Ok(GradientSums {
                    outer: read(layer, "outer", out)?,
                    inner: read(layer, "inner", inputs)?,
                })
            })
            .collect()
    }
}

impl SketchPlan {
    fn new(arch: &ArchSpec, sequences: &[&[u32]], settings: SketchSettings) -> Self {
        let tokens: usize = sequences.iter().map(|tokens| tokens.len()).sum();
        let states = arch.blocks.len() + 1 + 2 * settings.draws;
        let gradients = (sequences.len() * settings.draws) as f64;
        let (mut operations, mut most, mut all) = (0.0, 0, 0);
        for spec in &arch.blocks {
            let mut numbers = 0;
            for layer in spec.layers() {
                let (out, inputs) = spec.shape(layer);
                numbers += out * out + inputs * inputs;
                let weights = (out * inputs) as f64;
                // two products of gradients; a gradient and its way back; two ways forward
                operations += gradients * weights * (out + inputs) as f64
                    + weights * tokens as f64 * (2 + 2 * settings.draws) as f64;
            }
            most = most.max(numbers);
            all += numbers;
        }
        Self {
            sequences: sequences.len(),
            settings,
            hidden_bytes: states * tokens * arch.hidden_size * size_of::<f32>(),
            sum_bytes: most * size_of::<f64>(),
            stored_bytes: all * size_of::<f32>(),
            operations,
        }
    }
}

/// One label a row of logits, given a number in 0..1 for each: the first token at which the sum of
/// probabilities exceeds it.
fn drawn(logits: &Array2<f64>, chances: &[f64]) -> Vec<u32> {
    let one = |(row, chance): (ArrayView1<'_, f64>, &f64)| {
        let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let whole: f64 = row.iter().map(|logit| (logit - top).exp()).sum();
        let (mut sum, mut last) = (0.0, 0);
        for (token, logit) in row.iter().enumerate() {
            let part = (logit - top).exp();
            if part > 0.0 {
                last = token;
            }
            sum += part;
            if sum > chance * whole {
                break;
            }
        }
        last as u32
    };
    logits
        .axis_iter(Axis(0))
        .into_par_iter()
        .zip(chances)
        .map(one)
        .collect()
}

fn hash(sequences: &[&[u32]]) -> String {
    let bytes: Vec<u8> = sequences
        .iter()
        .copied()
        .flatten()
        .flat_map(|token| token.to_le_bytes())
        .collect();
    durable::sha256(&bytes)
}

fn block_path(folder: &Path, index: usize) -> PathBuf {
    folder.join(format!("block_{index:04}.safetensors"))
}

fn tensor_name(spec: &BlockSpec, layer: LayerId, side: &str) -> String {
    format!("{}.{side}", spec.linear(layer).name)
}

fn tensors(spec: &BlockSpec, sums: &[GradientSums], terms: f64) -> Vec<NewTensor> {
    let mean = |name: String, sum: &Array2<f64>| NewTensor::of(name, &sum.mapv(|x| (x / terms) as f32));
    let both = |(layer, sums): (LayerId, &GradientSums)| {
        [
            mean(tensor_name(spec, layer, "outer"), &sums.outer),
            mean(tensor_name(spec, layer, "inner"), &sums.inner),
        ]
    };
    spec.layers().zip(sums).flat_map(both).collect()
}

/// Refuses a folder that holds anything but the blocks of a sketch that was not finished.
fn check_free(folder: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::io(folder, "read")(source)),
    };
    for entry in entries {
        let name = entry.map_err(Error::io(folder, "read"))?.file_name();
        let name = name.to_string_lossy();
        let block = name.starts_with("block_") && name.ends_with(".safetensors");
        if !block {
            return Err(Error::RunFolder {
                path: folder.into(),
                reason: format!("expected a sketch of gradients or an empty folder, found {name}"),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_follow_their_probabilities() {
        let logits = ndarray::array![
            [0.0_f64.ln(), 0.25_f64.ln(), 0.75_f64.ln()],
            [5.0, -900.0, -900.0]
        ];
        let at = |chance| drawn(&logits, &[chance, chance]);
        assert_eq!(at(0.0), [1, 0]);
        assert_eq!(at(0.2499), [1, 0]);
        assert_eq!(at(0.2501), [2, 0]);
        assert_eq!(at(1.0 - f64::EPSILON), [2, 0]);
    }

    #[test]
    fn sequences_are_cut_and_short_ones_kept() {
        let tokens: Vec<u32> = (0..10).collect();
        let cut = sketch_sequences(&[&tokens, &tokens[..3]], 4);
        assert_eq!(cut, [&tokens[..4], &tokens[4..8], &tokens[..3]]);
    }
}
