use aqlm_optimized::cpu::llama::token_losses;
use aqlm_optimized::cuda::llama::{self, Builder, Options, Rung, narrowed};
use aqlm_optimized::cuda::{CudaError, Device};
use aqlm_vocabulary::AqlmError;
use half::f16;
use ndarray::{Array1, Array2, ArrayView2, s};

use crate::ops::{ModelOps, ResidentModel, Session, Weights};
use aqlm_formats::Result;

/// The first GPU: products in f16, the rest in f32.
pub struct CudaBackend {
    device: Device,
    options: Options,
}

impl CudaBackend {
    /// Opens the device, for texts of at most `positions` tokens.
    ///
    /// # Errors
    /// `Device`, with a message that names what is missing.
    pub fn new(positions: usize) -> Result<Self> {
        Ok(Self {
            device: Device::open(0, None).map_err(AqlmError::from)?,
            options: Options {
                positions,
                prompts: true,
                rung: Rung::Joined,
            },
        })
    }
}

/// Copies a model to the device block by block; `progress` is called after each block.
///
/// # Errors
/// Unreadable tensors; numbers beyond f16; `Device` when device memory is too small, naming the tensor that
/// did not fit.
fn load<'d>(
    device: &'d Device,
    weights: &dyn Weights,
    options: Options,
    progress: &mut dyn FnMut(usize),
) -> Result<llama::Model<'d>> {
    let config = weights.config();
    let mut builder = Builder::new(device, config, options).map_err(AqlmError::from)?;
    for index in 0..config.blocks.len() {
        builder.push(&weights.block(index)?).map_err(AqlmError::from)?;
        progress(index);
    }
    let embedding = table(&weights.embedding()?, "the embedding").map_err(AqlmError::from)?;
    let head = if config.tied {
        None
    } else {
        Some(table(&weights.lm_head()?, "lm_head").map_err(AqlmError::from)?)
    };
    Ok(builder
        .finish(&embedding, &weights.final_norm()?.to_vec(), head.as_deref())
        .map_err(AqlmError::from)?)
}

/// Converts an f32 table to f16, row by row.
///
/// # Errors
/// `NotFinite` for a number beyond f16's range.
pub fn table(table: &Array2<f32>, what: &str) -> std::result::Result<Vec<f16>, CudaError> {
    match table.as_slice() {
        Some(rows) => narrowed(rows, what),
        None => narrowed(&table.iter().copied().collect::<Vec<_>>(), what),
    }
}

impl ModelOps for CudaBackend {
    fn model<'m>(
        &'m self,
        weights: &dyn Weights,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Box<dyn ResidentModel + 'm>> {
        Ok(Box::new(load(&self.device, weights, self.options, progress)?))
    }
}

impl ResidentModel for llama::Model<'_> {
    fn losses(&mut self, sequences: &[&[u32]]) -> Result<Vec<Array1<f64>>> {
        let vocab = self.arch().vocab_size;
        let of_sequence = |tokens: &&[u32]| {
            self.reset();
            losses(&self.forward(tokens).map_err(AqlmError::from)?, vocab, tokens)
        };
        sequences.iter().map(of_sequence).collect()
    }

    fn logits(&mut self, tokens: &[u32]) -> Result<Array2<f64>> {
        self.reset();
        let logits = self.forward(tokens).map_err(AqlmError::from)?;
        Ok(rows(&logits, self.arch().vocab_size, tokens)?.mapv(f64::from))
    }

    fn session(&mut self) -> Result<Box<dyn Session + '_>> {
        self.reset();
        // Writes position 0, which the prompt overwrites.
        self.prepare().map_err(AqlmError::from)?;
        Ok(Box::new(Text(self)))
    }
}

/// A text that the model reads from its first token.
struct Text<'s, 'd>(&'s mut llama::Model<'d>);

impl Session for Text<'_, '_> {
    fn prompt(&mut self, tokens: &[u32]) -> Result<Array1<f64>> {
        Ok(widened(&self.0.prompt(tokens).map_err(AqlmError::from)?))
    }

    fn next(&mut self, token: u32) -> Result<Array1<f64>> {
        Ok(widened(&self.0.step(token).map_err(AqlmError::from)?))
    }

    fn greedy(&mut self, token: u32, count: usize, each: &mut dyn FnMut(u32) -> bool) -> Result<bool> {
        self.0.greedy(token, count, each).map_err(AqlmError::from)?;
        Ok(true)
    }
}

fn widened(logits: &[f32]) -> Array1<f64> {
    logits.iter().map(|&logit| f64::from(logit)).collect()
}

/// Negative log-likelihood of each next token, from logits [tokens, vocab].
///
/// # Errors
/// `Shape` when the number of logits differs from that, `TokenOutOfRange` for a token id without a logit.
pub fn losses(logits: &[f32], vocab: usize, tokens: &[u32]) -> Result<Array1<f64>> {
    let predicting = tokens.len().saturating_sub(1);
    let logits = rows(logits, vocab, tokens)?;
    let targets = &tokens[tokens.len() - predicting..];
    Ok(token_losses(logits.slice(s![..predicting, ..]), targets)?)
}

/// Logits as [tokens, vocab].
fn rows<'a>(logits: &'a [f32], vocab: usize, tokens: &[u32]) -> Result<ArrayView2<'a, f32>> {
    let shape = (tokens.len(), vocab);
    Ok(
        ArrayView2::from_shape(shape, logits).map_err(|_| AqlmError::Shape {
            what: "logits".into(),
            expected: vec![tokens.len(), vocab],
            found: vec![logits.len()],
        })?,
    )
}
