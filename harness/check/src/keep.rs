//! Saves the operands of failing cases as safetensors, for debugging.

use std::path::{Path, PathBuf};

use aqlm_vocabulary::{LinearWeight, QuantizedMatrix};
use ndarray::{ArrayBase, Data, Dimension};

use crate::cases::{LayerData, LlamaData};
use aqlm_formats::safetensors::{self, Element, NewTensor};
use aqlm_formats::{Error, Result};

/// Named arrays.
#[derive(Debug, Default)]
pub(crate) struct Tensors(Vec<NewTensor>);

impl Tensors {
    /// An array under a name.
    pub(crate) fn array<T: Element, S: Data<Elem = T>, D: Dimension>(
        &mut self,
        name: &str,
        array: &ArrayBase<S, D>,
    ) {
        self.0.push(NewTensor::of(name, array));
    }

    /// Codes, codebooks and scales under the names of a checkpoint.
    pub(crate) fn matrix(&mut self, name: &str, matrix: &QuantizedMatrix) {
        self.array(&format!("{name}codes"), matrix.codes());
        self.array(&format!("{name}codebooks"), matrix.codebooks());
        self.array(&format!("{name}scales"), matrix.scales());
    }

    /// A layer's weight, Hessian and starting matrix.
    pub(crate) fn layer(&mut self, data: &LayerData) {
        self.array("weight", &data.weight);
        self.array("hessian", &data.hessian);
        self.matrix("", &data.matrix);
    }

    /// A model, its tokens, and a block's inputs and gradients.
    pub(crate) fn llama(&mut self, data: &LlamaData) {
        self.array("model.embed_tokens.weight", &data.embedding);
        self.array("model.norm.weight", &data.norm);
        self.array("lm_head.weight", &data.lm_head);
        self.array("x", &data.x);
        self.array("grad_y", &data.grad_y);
        for (index, tokens) in data.tokens.iter().enumerate() {
            self.array(&format!("tokens.{index}"), &ndarray::ArrayView1::from(tokens));
        }
        for index in 0..data.blocks.len() {
            self.block(data, index);
        }
    }

    fn block(&mut self, data: &LlamaData, index: usize) {
        let (arch, block) = (&data.config, &data.blocks[index]);
        for (name, norm) in arch.norm_names(index).iter().zip(&block.norms) {
            self.array(name, norm);
        }
        for id in arch.blocks[index].layers() {
            let name = arch.layer_name(index, id);
            let layer = block.layer(id);
            match &layer.weight {
                LinearWeight::Dense(weight) => self.array(&format!("{name}.weight"), weight),
                LinearWeight::Quantized(matrix) => self.matrix(&format!("{name}."), matrix),
            }
            if let Some(bias) = &layer.bias {
                self.array(&format!("{name}.bias"), bias);
            }
        }
    }

    /// Writes all arrays to `folder/CASE-ID/operands.safetensors`; returns the folder of the case.
    ///
    /// # Errors
    /// `Io` when the file can't be written.
    pub(crate) fn keep(self, folder: &Path, case: &str) -> Result<PathBuf> {
        let folder = folder.join(case);
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder, "create"))?;
        safetensors::write(&folder.join("operands.safetensors"), self.0)?;
        Ok(folder)
    }
}

/// Data of a case that can be saved.
pub(crate) trait Operands {
    /// Adds every array.
    fn add_to(&self, tensors: &mut Tensors);
}
