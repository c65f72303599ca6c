use aqlm_vocabulary::{BlockSpec, BlockWeights, Input};
use cudarc::driver::CudaSlice;
use half::f16;

use super::super::error::During;
use super::super::{Device, Result};
use super::group::{Group, Layout};
use super::narrowed;
use super::plan::padded_head;

/// One block's weights and its cache.
pub(super) struct Block {
    pub(super) spec: BlockSpec,
    pub(super) input_norm: CudaSlice<f16>,
    pub(super) post_norm: CudaSlice<f16>,
    /// queries, keys, values
    pub(super) qkv: Group,
    pub(super) output: Group,
    /// gate, up
    pub(super) gate_up: Group,
    pub(super) down: Group,
    /// [kv_heads, positions, padded head]
    pub(super) keys: CudaSlice<f16>,
    pub(super) values: CudaSlice<f16>,
}

impl Block {
    pub(super) fn new(
        device: &Device,
        spec: &BlockSpec,
        weights: &BlockWeights,
        positions: usize,
        layout: Layout,
    ) -> Result<Self> {
        spec.check_weights(weights)?;
        let group = |read| {
            let linears: Vec<_> = spec
                .readers(read)
                .into_iter()
                .map(|layer| weights.layer(layer))
                .collect();
            Group::new(device, &linears, layout)
        };
        let norm = |values: &ndarray::Array1<f32>| device.upload(&narrowed(&values.to_vec(), "a norm")?);
        let cached = spec.attention.kv_heads * positions * padded_head(spec.attention.head_dim);
        Ok(Self {
            spec: spec.clone(),
            input_norm: norm(&weights.input_layernorm)?,
            post_norm: norm(&weights.post_attention_layernorm)?,
            qkv: group(Input::Attention)?,
            output: group(Input::Attended)?,
            gate_up: group(Input::Mlp)?,
            down: group(Input::Activated)?,
            keys: device.zeros(cached)?,
            values: device.zeros(cached)?,
        })
    }

    /// The same block in memory of its own.
    pub(super) fn duplicate(&self) -> Result<Self> {
        let copy = |buffer: &CudaSlice<f16>| buffer.try_clone().during("copying a block");
        Ok(Self {
            spec: self.spec.clone(),
            input_norm: copy(&self.input_norm)?,
            post_norm: copy(&self.post_norm)?,
            qkv: self.qkv.duplicate()?,
            output: self.output.duplicate()?,
            gate_up: self.gate_up.duplicate()?,
            down: self.down.duplicate()?,
            keys: copy(&self.keys)?,
            values: copy(&self.values)?,
        })
    }
}
