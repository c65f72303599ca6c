//! Whole models on the first GPU.

use std::path::Path;

use aqlm_optimized::cuda::llama::{self, Builder, Options, narrowed};
use aqlm_optimized::cuda::{CudaError, Device};
use aqlm_vocabulary::AqlmError;
use half::f16;
use ndarray::{Array1, Array2};

use crate::generate::Writer;
use aqlm_formats::Result;
use aqlm_formats::model::Model;

/// Opens the first GPU; kernels come from `kernels` if a folder is given.
///
/// # Errors
/// `Device` that says what is missing.
pub fn open(kernels: Option<&Path>) -> Result<Device> {
    Ok(Device::open(0, kernels).map_err(AqlmError::from)?)
}

/// Puts a model on the device, one block after the other; `progress` hears of each.
///
/// # Errors
/// Unreadable tensors; numbers beyond f16; `Device` when memory is too small, naming what did not fit.
pub fn load<'d>(
    device: &'d Device,
    model: &Model,
    options: Options,
    progress: &mut dyn FnMut(usize),
) -> Result<llama::Model<'d>> {
    let config = model.config();
    let mut builder = Builder::new(device, config, options).map_err(AqlmError::from)?;
    for index in 0..config.blocks.len() {
        builder.push(&model.block(index)?).map_err(AqlmError::from)?;
        progress(index);
    }
    let embedding = table(&model.embedding()?, "the embedding").map_err(AqlmError::from)?;
    let head = if config.tied {
        None
    } else {
        Some(table(&model.lm_head()?, "lm_head").map_err(AqlmError::from)?)
    };
    Ok(builder
        .finish(&embedding, &model.final_norm()?.to_vec(), head.as_deref())
        .map_err(AqlmError::from)?)
}

/// A table of f32 in f16, row after row.
///
/// # Errors
/// `NotFinite` for a number beyond f16's range.
pub fn table(table: &Array2<f32>, what: &str) -> std::result::Result<Vec<f16>, CudaError> {
    match table.as_slice() {
        Some(rows) => narrowed(rows, what),
        None => narrowed(&table.iter().copied().collect::<Vec<_>>(), what),
    }
}

impl Writer for llama::Model<'_> {
    fn prompt(&mut self, tokens: &[u32]) -> Result<Array1<f64>> {
        self.reset();
        // At position 0, which the prompt overwrites.
        self.prepare().map_err(AqlmError::from)?;
        Ok(widened(
            &llama::Model::prompt(self, tokens).map_err(AqlmError::from)?,
        ))
    }

    fn next(&mut self, token: u32) -> Result<Array1<f64>> {
        Ok(widened(&self.step(token).map_err(AqlmError::from)?))
    }

    fn likeliest(
        &mut self,
        token: u32,
        count: usize,
        each: &mut dyn FnMut(u32) -> bool,
    ) -> Result<Option<()>> {
        Ok(Some(self.greedy(token, count, each).map_err(AqlmError::from)?))
    }
}

fn widened(logits: &[f32]) -> Array1<f64> {
    logits.iter().map(|&logit| f64::from(logit)).collect()
}
