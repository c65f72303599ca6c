//! The launches of one block for one token, and a block over given hidden states by means of these.

use aqlm_vocabulary::{AqlmError, GatedMlp, RoutedMlp};
use cudarc::driver::sys;

use super::super::dispatch::has_clusters;
use super::super::error::During;
use super::super::{Buffer, Device, Result};
use super::block::{Block, Gated, MlpLayers, Routed};
use super::buffers::{Buffers, slots};
use super::group::{Group, part};
use super::model::{Model, Options};
use super::norms::{Added, Norm, Stream};
use super::rung::Rung;
use super::stage::Stage;
use super::{address, further, plan, run};

/// How the launches of a token are started.
pub(super) struct Step<'m> {
    device: &'m Device,
    options: &'m Options,
    rotations: &'m [[Buffer<f32>; 2]],
    stages: &'m dyn Fn(Stage) -> bool,
    pub(super) overlap: bool,
}

impl<'m> Step<'m> {
    pub(super) fn of(
        device: &'m Device,
        options: &'m Options,
        rotations: &'m [[Buffer<f32>; 2]],
        stages: &'m dyn Fn(Stage) -> bool,
    ) -> Self {
        Self {
            device,
            options,
            rotations,
            stages,
            overlap: options.rung >= Rung::Overlapped,
        }
    }

    /// Adds what is still to be added to the residual stream, and norms it.
    pub(super) fn norm(
        &self,
        width: usize,
        b: &Buffers,
        added: Option<&Added<'_>>,
        norm: Option<&Norm>,
    ) -> Result<()> {
        if !(self.stages)(Stage::Norm) {
            return Ok(());
        }
        let device = self.device;
        let stream = Stream {
            width,
            rows: 1,
            hidden: address(device, &b.hidden),
            delta: address(device, &b.delta),
            normed: address(device, &b.normed),
        };
        stream.start(device, added, norm, self.overlap)
    }

    /// Starts a block's launches, up to what its MLP adds to the residual stream; the next norm must add
    /// that. `before` is what the block's first norm must still add.
    pub(super) fn block<'b>(
        &self,
        block: &'b Block,
        b: &mut Buffers,
        before: Option<Added<'_>>,
    ) -> Result<Added<'b>> {
        let (device, overlap, stages) = (self.device, self.overlap, self.stages);
        let spec = &block.spec;
        let hidden = spec.hidden_size();
        self.norm(hidden, b, before.as_ref(), block.norms.before_attention.as_ref())?;
        if stages(Stage::Qkv) {
            block.qkv.step(device, &b.normed, &mut b.qkv, 0, overlap)?;
        }
        if stages(Stage::Attention) {
            self.attention(block, b)?;
        }
        if stages(Stage::Output) {
            block.output.step(device, &b.attended, &mut b.delta, 0, overlap)?;
        }
        let attended = added(block, &block.output, block.norms.after_attention.as_ref());
        self.norm(hidden, b, Some(&attended), block.norms.before_mlp.as_ref())?;
        match &block.mlp {
            MlpLayers::Dense(layers) => {
                if let Some(mlp) = spec.mlp.dense() {
                    self.gated(block, mlp, layers, b, 0)?;
                }
                Ok(added(block, &layers.down, block.norms.after_mlp.as_ref()))
            }
            MlpLayers::Routed(layers) => {
                if let Some(mlp) = spec.mlp.routed() {
                    self.routed(block, mlp, layers, b)?;
                }
                Ok(Added {
                    bias: None,
                    after: block.norms.after_mlp.as_ref(),
                    factor: spec.residual_scale,
                    slots: slots(spec),
                    shares: Some(address(device, &b.shares)),
                })
            }
        }
    }

    fn attention(&self, block: &Block, b: &Buffers) -> Result<()> {
        let (device, overlap) = (self.device, self.overlap);
        let spec = &block.spec.attention;
        let projected = [0, 1, 2].map(|index| part(device, &block.qkv, index, &b.qkv));
        let hidden = address(device, &b.hidden);
        let biases = biases(device, &block.qkv, hidden);
        let normed = block.norms.of_heads();
        if normed {
            let biases = block.qkv.has_bias().then_some(biases);
            block
                .norms
                .start_heads(device, &block.spec, 1, biases, projected, overlap)?;
        }
        let plan = plan::attention_step(
            spec,
            self.options.positions,
            block.qkv.has_bias() && !normed,
            device.target().multiprocessors as usize,
            has_clusters(device.compute()) && self.options.rung >= Rung::Dispatched,
        );
        let [cosines, sines] = tables(device, self.rotations, block, hidden);
        let mut pointers = vec![
            address(device, &block.keys),
            address(device, &block.values),
            cosines,
            sines,
        ];
        pointers.extend(biases);
        pointers.push(address(device, &b.state));
        pointers.extend(projected);
        pointers.push(address(device, &b.attended));
        run(device, &plan, &pointers, overlap)
    }

    /// A gated MLP, whose output goes to `delta` from element `at` on.
    fn gated(&self, block: &Block, mlp: &GatedMlp, layers: &Gated, b: &mut Buffers, at: usize) -> Result<()> {
        let (device, overlap, stages) = (self.device, self.overlap, self.stages);
        let group = &layers.gate_up;
        if stages(Stage::GateUp) {
            group.step(device, &b.normed, &mut b.gate_up, 0, overlap)?;
        }
        if stages(Stage::Swiglu) {
            let inner = block.spec.shape(mlp.down).1;
            let hidden = address(device, &b.hidden);
            let bias_or = |index| group.bias(index).map_or(hidden, |bias| address(device, bias));
            let pointers = [
                bias_or(0),
                bias_or(1),
                part(device, group, 0, &b.gate_up),
                part(device, group, 1, &b.gate_up),
                address(device, &b.activated),
            ];
            let plan = plan::gated(mlp.activation, inner, 1, [inner; 2], group.has_bias());
            run(device, &plan, &pointers, overlap)?;
        }
        if stages(Stage::Down) {
            layers
                .down
                .step(device, &b.activated, &mut b.delta, at, overlap)?;
        }
        Ok(())
    }

    /// The experts that the router chooses, and the shared one.
    fn routed(&self, block: &Block, mlp: &RoutedMlp, layers: &Routed, b: &mut Buffers) -> Result<()> {
        let (device, overlap, stages) = (self.device, self.overlap, self.stages);
        let spec = &block.spec;
        let (hidden, count) = (spec.hidden_size(), mlp.experts.len());
        if stages(Stage::Router) {
            let shared = mlp.shared.is_some();
            let scores = address(device, &b.scores);
            let pointers = [
                address(device, &layers.router),
                address(device, &b.normed),
                scores,
            ];
            let plan = plan::dense(count + usize::from(shared), hidden, 1, true);
            run(device, &plan, &pointers, overlap)?;
            let pointers = [scores, address(device, &b.experts), address(device, &b.shares)];
            let plan = plan::route(count, mlp.used, mlp.normalized, shared);
            run(device, &plan, &pointers, overlap)?;
        }
        if stages(Stage::GateUp) {
            layers
                .gate_up
                .step(device, &b.normed, &mut b.gate_up, &b.experts, overlap)?;
        }
        if stages(Stage::Swiglu) {
            // All experts have the first one's width and activation.
            let expert = &mlp.experts[0];
            let inner = spec.shape(expert.down).1;
            let outputs = address(device, &b.gate_up);
            let pointers = [
                outputs,
                outputs,
                further(outputs, layers.gate_up.offset(0)),
                further(outputs, layers.gate_up.offset(1)),
                address(device, &b.activated),
            ];
            let strides = [layers.gate_up.stride(); 2];
            let plan = plan::gated(expert.activation, inner, mlp.used, strides, false);
            run(device, &plan, &pointers, overlap)?;
        }
        if stages(Stage::Down) {
            layers
                .down
                .step(device, &b.activated, &mut b.delta, &b.experts, overlap)?;
        }
        match (&mlp.shared, &layers.shared) {
            (Some(shared), Some(layers)) => self.gated(block, &shared.mlp, layers, b, mlp.used * hidden),
            _ => Ok(()),
        }
    }
}

/// What a layer adds to the residual stream.
pub(super) fn added<'b>(block: &Block, layer: &'b Group, after: Option<&'b Norm>) -> Added<'b> {
    Added {
        bias: layer.bias(0),
        after,
        factor: block.spec.residual_scale,
        slots: 1,
        shares: None,
    }
}

/// The addresses of the biases of queries, keys and values. Without a bias kernels read none, and any address
/// will do.
pub(super) fn biases(device: &Device, qkv: &Group, none: sys::CUdeviceptr) -> [sys::CUdeviceptr; 3] {
    [0, 1, 2].map(|index| qkv.bias(index).map_or(none, |bias| address(device, bias)))
}

/// The addresses of a block's cosines and sines. Without a rotation kernels read none.
pub(super) fn tables(
    device: &Device,
    rotations: &[[Buffer<f32>; 2]],
    block: &Block,
    none: sys::CUdeviceptr,
) -> [sys::CUdeviceptr; 2] {
    match block.rotation {
        Some(index) => [0, 1].map(|of| address(device, &rotations[index][of])),
        None => [none; 2],
    }
}

impl Model<'_> {
    /// One block over rows [tokens, hidden] from the current position on, row by row, for models whose
    /// prompts do not go in chunks.
    pub(super) fn block_by_steps(&mut self, block: usize, x: &[f32]) -> Result<Vec<f32>> {
        let width = self.arch.hidden_size;
        let stream = self.device.stream().clone();
        let mut y = Vec::with_capacity(x.len());
        for row in x.chunks(width) {
            self.set_state(0, false)?;
            stream
                .memcpy_htod(row, &mut self.buffers.hidden)
                .during("copying hidden states to the device")?;
            let step = Step::of(self.device, &self.options, &self.rotations, &|_| true);
            let Some(block) = self.blocks.get(block) else {
                return Err(AqlmError::Internal("a block that the model lacks".into()).into());
            };
            let added = step.block(block, &mut self.buffers, None)?;
            // The norm adds the block's last output to the residual stream. Its normalised output is unused.
            step.norm(width, &self.buffers, Some(&added), Some(&self.norm))?;
            y.extend(self.device.download(&self.buffers.hidden)?);
            self.position += 1;
        }
        Ok(y)
    }
}
