use aqlm_vocabulary::{BlockSpec, BlockWeights, Input};
use half::f16;

use super::super::{Buffer, Device, Result};
use super::group::{Group, Layout};
use super::narrowed;
use super::plan::padded_head;

/// One block's weights and its cache.
pub(super) struct Block {
    pub(super) spec: BlockSpec,
    pub(super) input_norm: Buffer<f16>,
    pub(super) post_norm: Buffer<f16>,
    /// queries, keys, values
    pub(super) qkv: Group,
    pub(super) output: Group,
    /// gate, up
    pub(super) gate_up: Group,
    pub(super) down: Group,
    /// [kv_heads, positions, padded head]
    pub(super) keys: Buffer<f16>,
    pub(super) values: Buffer<f16>,
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
        let norm = |values: &ndarray::Array1<f32>| -> Result<_> {
            Ok(device
                .upload(&narrowed(&values.to_vec(), "a norm")?)?
                .named("a norm"))
        };
        let cached = spec.attention.kv_heads * positions * padded_head(spec.attention.head_dim);
        Ok(Self {
            spec: spec.clone(),
            input_norm: norm(&weights.norms[0])?,
            post_norm: norm(&weights.norms[1])?,
            qkv: group(Input::Attention)?,
            output: group(Input::Attended)?,
            gate_up: group(Input::Mlp)?,
            down: group(Input::Activated)?,
            keys: device.zeros(cached)?.named("keys"),
            values: device.zeros(cached)?.named("values"),
        })
    }

    /// A copy of the block in memory of its own.
    pub(super) fn duplicate(&self) -> Result<Self> {
        Ok(Self {
            spec: self.spec.clone(),
            input_norm: self.input_norm.try_clone()?,
            post_norm: self.post_norm.try_clone()?,
            qkv: self.qkv.duplicate()?,
            output: self.output.duplicate()?,
            gate_up: self.gate_up.duplicate()?,
            down: self.down.duplicate()?,
            keys: self.keys.try_clone()?,
            values: self.values.try_clone()?,
        })
    }
}
