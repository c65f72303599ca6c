use std::sync::Arc;

use aqlm_vocabulary::{AqlmError, ArchSpec, AttentionSpec, BlockWeights};
use cudarc::driver::{CudaGraph, sys};
use half::f16;

use super::super::error::During;
use super::super::{Blas, Buffer, CudaError, Device, Result};
use super::block::Block;
use super::buffers::{Buffers, Prompt};
use super::group::Layout;
use super::norms::Norm;
use super::rung::Rung;
use crate::cpu::llama::{Rotary, check_tokens};

/// Maximum rows of a prompt chunk: the batch for which the fused matmul kernels measured best.
const CHUNK: usize = 128;

/// The use that a model is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// positions that the cache holds
    pub positions: usize,
    /// whether prompts are processed in chunks of many rows, for which quantized layers are held in a second
    /// layout; otherwise token by token
    pub prompts: bool,
    /// how a token is computed
    pub rung: Rung,
}

/// Rejects a model that this module does not compute.
///
/// # Errors
/// `Unsupported` naming the part: heads wider than 256. Those of [`ArchSpec::check`].
pub fn require_decodable(arch: &ArchSpec) -> std::result::Result<(), AqlmError> {
    arch.check()?;
    arch.require_rms_norms_and_halves()?;
    let widest = arch.blocks.iter().map(|block| block.attention.head_dim).max();
    match widest.filter(|&width| width > MOST_HEAD) {
        Some(width) => Err(AqlmError::Unsupported(format!(
            "heads of {width} numbers on a GPU: at most {MOST_HEAD}"
        ))),
        None => Ok(()),
    }
}

/// Widest head of the attention kernels.
const MOST_HEAD: usize = 256;

/// A model whose blocks arrive one by one.
pub struct Builder<'d> {
    device: &'d Device,
    arch: ArchSpec,
    options: Options,
    layout: Layout,
    blocks: Vec<Block>,
    /// one block of each different rotation
    rotations: Vec<AttentionSpec>,
}

impl<'d> Builder<'d> {
    /// Starts with nothing on the device.
    ///
    /// # Errors
    /// `Aqlm` with the refusals of [`require_decodable`], and with `Argument` for zero positions.
    pub fn new(device: &'d Device, arch: &ArchSpec, options: Options) -> Result<Self> {
        require_decodable(arch)?;
        if options.positions == 0 {
            return Err(AqlmError::argument("positions", "at least 1", 0).into());
        }
        // Each row of a prompt has experts of its own, so such prompts go token by token.
        let routed = arch.blocks.iter().any(|block| block.mlp.routed().is_some());
        let prompt_rows = if options.prompts && !routed {
            CHUNK.min(options.positions.next_multiple_of(16))
        } else {
            0
        };
        Ok(Self {
            device,
            arch: arch.clone(),
            layout: Layout {
                prompt_rows,
                rung: options.rung,
            },
            options,
            blocks: Vec::new(),
            rotations: Vec::new(),
        })
    }

    /// Adds the next block.
    ///
    /// # Errors
    /// `Memory` when the block does not fit, `Aqlm` with `Shape` for one block too many or a shape that
    /// differs from the model's, `Aqlm` for numbers beyond f16, `Compile`, `Driver`.
    pub fn push(&mut self, weights: &BlockWeights) -> Result<()> {
        let Some(spec) = self.arch.blocks.get(self.blocks.len()) else {
            return Err(AqlmError::Shape {
                what: "blocks".into(),
                expected: vec![self.arch.blocks.len()],
                found: vec![self.blocks.len() + 1],
            }
            .into());
        };
        let rotation = rotation_of(&mut self.rotations, &spec.attention);
        let block = Block::new(
            self.device,
            spec,
            weights,
            self.options.positions,
            self.layout,
            rotation,
        );
        let block = self.placed(block)?;
        self.blocks.push(block);
        Ok(())
    }

    /// Adds a copy of the last block, in memory of its own, to build a model of a given size for speed
    /// measurements. It has the window and the rotation of the next block, which must not differ otherwise.
    ///
    /// # Errors
    /// `Memory` when it does not fit, `Aqlm` with `Argument` for a block that differs, `Driver`.
    pub fn repeat(&mut self) -> Result<()> {
        if let Some(block) = self.blocks.last() {
            let spec = self.arch.blocks.get(self.blocks.len()).unwrap_or(&block.spec);
            let mut alike = spec.clone();
            alike.attention.window = block.spec.attention.window;
            alike.attention.rotary.clone_from(&block.spec.attention.rotary);
            if alike != block.spec {
                return Err(AqlmError::argument(
                    "block to repeat",
                    "one that differs from the next at most in window and rotation",
                    "another",
                )
                .into());
            }
            let rotation = rotation_of(&mut self.rotations, &spec.attention);
            let block = block.duplicate(spec, rotation);
            let block = self.placed(block)?;
            self.blocks.push(block);
        }
        Ok(())
    }

    /// Adds the number of the block to a memory error.
    fn placed<T>(&self, result: Result<T>) -> Result<T> {
        let what = format!("block {} of {}", self.blocks.len() + 1, self.arch.blocks.len());
        in_memory(self.device, &what, result)
    }

    /// Adds embedding [vocab, hidden], final norm `[hidden]` and head [vocab, hidden]. With `None` the
    /// embedding serves as the head.
    ///
    /// # Errors
    /// `Aqlm` with `Shape` when the number of blocks or a table's size differs from the configuration,
    /// `Memory`, `Driver`.
    pub fn finish(self, embedding: &[f16], norm: &[f32], head: Option<&[f16]>) -> Result<Model<'d>> {
        let (device, arch) = (self.device, &self.arch);
        let table = [arch.vocab_size * arch.hidden_size];
        for (what, expected, found) in [
            ("blocks", [arch.blocks.len()], self.blocks.len()),
            ("embedding", table, embedding.len()),
            ("norm", [arch.hidden_size], norm.len()),
            ("lm_head", table, head.map_or(table[0], <[f16]>::len)),
        ] {
            if expected[0] != found {
                return Err(AqlmError::Shape {
                    what: what.into(),
                    expected: expected.to_vec(),
                    found: vec![found],
                }
                .into());
            }
        }
        let fits = |result| in_memory(device, "the embedding and the head", result);
        let embedding = fits(device.upload(embedding))?;
        let head = head.map(|head| fits(device.upload(head))).transpose()?;
        let norm = Norm::new(device, arch.final_norm, norm)?;
        let tables = |spec: &AttentionSpec| -> Result<[Buffer<f32>; 2]> {
            let rotary = Rotary::new(spec, self.options.positions);
            let (cosines, sines) = rotary.tables();
            Ok([
                device.upload(cosines)?.named("cosines"),
                device.upload(sines)?.named("sines"),
            ])
        };
        let rotations = self.rotations.iter().map(tables).collect::<Result<Vec<_>>>()?;
        let buffers = Buffers::new(device, arch, &self.blocks, self.options.positions)?;
        let prompt = (self.layout.prompt_rows > 0)
            .then(|| Prompt::new(device, arch, self.layout.prompt_rows))
            .transpose();
        let prompt = in_memory(device, "the buffers of a prompt", prompt)?;
        let blas = match prompt.as_ref().map(|_| Blas::new(device)) {
            // Without cuBLAS the dense products of prompts use the kernel for single rows.
            None | Some(Err(CudaError::Absent(_))) => None,
            Some(blas) => Some(Arc::new(blas?)),
        };
        Ok(Model {
            device,
            arch: self.arch,
            options: self.options,
            embedding,
            blocks: self.blocks,
            norm,
            head,
            rotations,
            buffers,
            prompt,
            blas,
            greedy: None,
            scoring: None,
            position: 0,
        })
    }
}

/// The number of a block's rotation among those of a model, to which it is added if it is new; `None` if it
/// has none.
fn rotation_of(rotations: &mut Vec<AttentionSpec>, spec: &AttentionSpec) -> Option<usize> {
    spec.rotary.as_ref().filter(|_| spec.rotated > 0)?;
    let same = |other: &AttentionSpec| other.rotary == spec.rotary && other.rotated == spec.rotated;
    let found = rotations.iter().position(same);
    Some(found.unwrap_or_else(|| {
        rotations.push(spec.clone());
        rotations.len() - 1
    }))
}

/// Turns the driver's out-of-memory error into one that names what did not fit.
fn in_memory<T>(device: &Device, what: &str, result: Result<T>) -> Result<T> {
    match result {
        Err(CudaError::Driver { error, .. }) if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
            Err(CudaError::Memory {
                what: what.to_owned(),
                free: device.free_bytes()?,
            })
        }
        other => other,
    }
}

/// A model resident on the device, and the text read so far.
pub struct Model<'d> {
    pub(super) device: &'d Device,
    pub(super) arch: ArchSpec,
    pub(super) options: Options,
    /// [vocab, hidden]
    pub(super) embedding: Buffer<f16>,
    pub(super) blocks: Vec<Block>,
    pub(super) norm: Norm,
    /// [vocab, hidden]; `None` if the embedding serves as the head
    pub(super) head: Option<Buffer<f16>>,
    /// cosines and sines of each rotation, both [positions, rotated / 2]
    pub(super) rotations: Vec<[Buffer<f32>; 2]>,
    pub(super) buffers: Buffers,
    pub(super) prompt: Option<Prompt>,
    pub(super) blas: Option<Arc<Blas>>,
    /// one token with the choice of the next
    pub(super) greedy: Option<CudaGraph>,
    /// one token up to its logits
    pub(super) scoring: Option<CudaGraph>,
    /// position of the next token
    pub(super) position: usize,
}

impl Model<'_> {
    /// The model's shape.
    pub fn arch(&self) -> &ArchSpec {
        &self.arch
    }

    /// The position of the next token.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Forgets the text.
    pub fn reset(&mut self) {
        self.position = 0;
    }

    /// Checks the tokens, and that the cache has room for them.
    pub(super) fn accept(&self, tokens: &[u32]) -> Result<()> {
        check_tokens(tokens, self.arch.vocab_size)?;
        if self.position + tokens.len() > self.options.positions {
            return Err(AqlmError::argument(
                "tokens in the cache",
                format!("at most its {} positions", self.options.positions),
                self.position + tokens.len(),
            )
            .into());
        }
        Ok(())
    }

    /// For measurements: fills every block's cache with these numbers, repeated, as if a text had been read
    /// up to `position`.
    ///
    /// # Errors
    /// `Aqlm` with `Argument` when the cache ends before `position` or the pattern is empty, `Driver`.
    pub fn pretend(&mut self, position: usize, pattern: &[f16]) -> Result<()> {
        if position >= self.options.positions || pattern.is_empty() {
            return Err(AqlmError::argument(
                "position and length of a pattern",
                format!("a position below {} and a pattern", self.options.positions),
                format!("{position} and {}", pattern.len()),
            )
            .into());
        }
        let stream = self.device.stream();
        if let Some(first) = self.blocks.first_mut() {
            let values: Vec<f16> = pattern.iter().copied().cycle().take(first.keys.len()).collect();
            stream
                .memcpy_htod(&values, &mut first.keys)
                .during("filling a cache")?;
        }
        for index in 0..self.blocks.len() {
            let (before, rest) = self.blocks.split_at_mut(index);
            let Some((block, _)) = rest.split_first_mut() else {
                break;
            };
            let keys = before.first().map_or(&block.keys, |first| &first.keys);
            stream
                .memcpy_dtod(keys, &mut block.values)
                .during("filling a cache")?;
            if let Some(first) = before.first() {
                stream
                    .memcpy_dtod(&first.keys, &mut block.keys)
                    .during("filling a cache")?;
            }
        }
        self.position = position;
        Ok(())
    }
}
