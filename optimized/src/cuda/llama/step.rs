use aqlm_vocabulary::NormSpec;
use cudarc::driver::{CudaGraph, sys};
use half::f16;

use super::super::dispatch::has_clusters;
use super::super::error::During;
use super::super::timing::{Timing, capture, time_graph};
use super::super::{Buffer, Device, Result};
use super::block::Block;
use super::group::{Group, part};
use super::model::Model;
use super::rung::Rung;
use super::{address, plan, run};

/// The stages of one token, in order; those from `Norm` to `Down` run once a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// the token's row of the embedding
    Embed,
    /// the residual stream and its norms
    Norm,
    /// queries, keys and values
    Qkv,
    /// rotation, cache and attention
    Attention,
    /// attention's output layer
    Output,
    /// gate and up
    GateUp,
    /// SwiGLU
    Swiglu,
    /// down
    Down,
    /// the logits
    Head,
    /// the choice of the next token
    Argmax,
}

impl Stage {
    /// All stages, in order.
    pub const ALL: [Self; 10] = [
        Self::Embed,
        Self::Norm,
        Self::Qkv,
        Self::Attention,
        Self::Output,
        Self::GateUp,
        Self::Swiglu,
        Self::Down,
        Self::Head,
        Self::Argmax,
    ];
}

impl Model<'_> {
    /// Compiles the kernels of a token and records its graphs. Otherwise the first tokens do this.
    ///
    /// # Errors
    /// As [`Model::step`].
    pub fn prepare(&mut self) -> Result<()> {
        // The token and its cache row do not matter: nothing has been read at this position.
        self.accept(&[0])?;
        self.prepare_greedy(0)?;
        self.prepare_scoring(0)
    }

    fn prepare_greedy(&mut self, token: u32) -> Result<()> {
        if self.greedy.is_none() {
            self.greedy = Some(self.captured(token, &|_| true)?);
        }
        Ok(())
    }

    fn prepare_scoring(&mut self, token: u32) -> Result<()> {
        if self.scoring.is_none() {
            self.scoring = Some(self.captured(token, &|stage| stage != Stage::Argmax)?);
        }
        Ok(())
    }

    /// Feeds one token and returns its logits, `[vocab]`.
    ///
    /// # Errors
    /// `Aqlm` for a token without an embedding or a full cache, `Driver`.
    pub fn step(&mut self, token: u32) -> Result<Vec<f32>> {
        self.accept(&[token])?;
        self.prepare_scoring(token)?;
        self.set_state(token, true)?;
        launch(self.device, self.scoring.as_ref())?;
        self.position += 1;
        self.device.download(&self.buffers.logits)
    }

    /// Feeds one token, and then up to `count - 1` more, each the likeliest after the previous one. All are
    /// chosen on the device. `each` receives every choice and returns whether to continue.
    ///
    /// # Errors
    /// As [`Model::step`].
    pub fn greedy(&mut self, token: u32, count: usize, each: &mut dyn FnMut(u32) -> bool) -> Result<()> {
        self.accept(&[token])?;
        self.prepare_greedy(token)?;
        self.set_state(token, true)?;
        for _ in 0..count {
            self.accept(&[token])?;
            launch(self.device, self.greedy.as_ref())?;
            let here = self.buffers.chosen.slice(self.position..=self.position);
            let mut chosen = [0];
            let stream = self.device.stream();
            stream
                .memcpy_dtoh(&here, &mut chosen)
                .during("copying a token to the host")?;
            stream.synchronize().during("waiting for a token")?;
            self.position += 1;
            if !each(chosen[0]) {
                break;
            }
        }
        Ok(())
    }

    /// Times one token, or some of its stages, repeatedly at the current position, which does not move.
    ///
    /// # Errors
    /// As [`Model::step`].
    pub fn time(&mut self, token: u32, replays: usize, stages: &dyn Fn(Stage) -> bool) -> Result<Timing> {
        self.accept(&[token])?;
        self.set_state(token, false)?;
        let device = self.device;
        // Kernels cannot be compiled during a capture.
        self.record(stages)?;
        time_graph(device, 1, replays, |_| self.record(stages))
    }

    /// The launches of a stage for one token, and the bytes that it reads: weights, and the part of the cache
    /// that `position` sees.
    pub fn work(&self, stage: Stage, position: usize) -> (usize, usize) {
        let all = |of: &dyn Fn(&Block) -> (usize, usize)| {
            self.blocks
                .iter()
                .map(of)
                .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
        };
        let group = |group: &Group| (group.launches(), group.step_bytes());
        let cached = |block: &Block| {
            let attention = &block.spec.attention;
            let seen = attention
                .window
                .map_or(position + 1, |window| window.min(position + 1));
            2 * 2 * seen * attention.kv_heads * plan::padded_head(attention.head_dim)
        };
        let (hidden, vocab) = (self.arch.hidden_size, self.arch.vocab_size);
        match stage {
            Stage::Embed => (1, 2 * hidden),
            // read: residual stream, a layer's output, the weight; written: residual stream, normed
            Stage::Norm => (
                2 * self.blocks.len() + 1,
                (2 * self.blocks.len() + 1) * 14 * hidden,
            ),
            Stage::Qkv => all(&|block| group(&block.qkv)),
            Stage::Attention => all(&|block| (1, cached(block))),
            Stage::Output => all(&|block| group(&block.output)),
            Stage::GateUp => all(&|block| group(&block.gate_up)),
            Stage::Swiglu => all(&|block| (1, 6 * block.spec.intermediate_size())),
            Stage::Down => all(&|block| group(&block.down)),
            Stage::Head => (1, 2 * vocab * hidden),
            Stage::Argmax => (1, 4 * vocab),
        }
    }

    fn set_state(&mut self, token: u32, advance: bool) -> Result<()> {
        let state = [self.position as u32, token, u32::from(advance), 0];
        let stream = self.device.stream();
        stream
            .memcpy_htod(&state, &mut self.buffers.state)
            .during("copying a token to the device")
    }

    /// The stages of one token as a graph. They also run once, at the current position, because kernels
    /// cannot be compiled during a capture.
    fn captured(&mut self, token: u32, stages: &dyn Fn(Stage) -> bool) -> Result<CudaGraph> {
        self.set_state(token, false)?;
        self.record(stages)?;
        let device = self.device;
        device
            .stream()
            .synchronize()
            .during("waiting for the first token")?;
        capture(device, 1, &mut |_| self.record(stages))
    }

    /// Starts the kernels of `stages` for one token on the stream.
    pub(super) fn record(&mut self, stages: &dyn Fn(Stage) -> bool) -> Result<()> {
        let Self {
            device,
            arch,
            options,
            embedding,
            blocks,
            norm,
            head,
            cosines,
            sines,
            buffers: b,
            ..
        } = self;
        let (device, overlap) = (*device, options.rung >= Rung::Overlapped);
        let at16 = |buffer: &Buffer<f16>| address(device, buffer);
        let at32 = |buffer: &Buffer<f32>| address(device, buffer);
        let hidden = at32(&b.hidden);
        let state = address(device, &b.state);
        let token = state + size_of::<u32>() as sys::CUdeviceptr;
        let bias_or = |group: &Group, index: usize| group.bias(index).map_or(hidden, at32);
        let width = arch.hidden_size;

        if stages(Stage::Embed) {
            run(
                device,
                &plan::embed(width, 1),
                &[at16(embedding), token, hidden],
                overlap,
            )?;
        }
        // The layer whose output must still be added to the residual stream.
        let mut before: Option<&Group> = None;
        let (delta, normed) = (at16(&b.delta), at16(&b.normed));
        let add_norm = |norm: NormSpec, weight: &Buffer<f16>, before: Option<&Group>| {
            if !stages(Stage::Norm) {
                return Ok(());
            }
            let bias = before.is_some_and(Group::has_bias);
            let plan = plan::rms_norm(width, 1, norm.epsilon, before.is_some(), bias);
            let bias = before.map_or(hidden, |group| bias_or(group, 0));
            run(
                device,
                &plan,
                &[at16(weight), bias, delta, hidden, normed],
                overlap,
            )
        };
        for block in &*blocks {
            let spec = &block.spec;
            add_norm(spec.norms[0].norm, &block.input_norm, before)?;
            if stages(Stage::Qkv) {
                block.qkv.step(device, &b.normed, &mut b.qkv, overlap)?;
            }
            if stages(Stage::Attention) {
                let plan = plan::attention_step(
                    &spec.attention,
                    options.positions,
                    block.qkv.has_bias(),
                    device.target().multiprocessors as usize,
                    has_clusters(device.compute()) && options.rung >= Rung::Dispatched,
                );
                let pointers = [
                    at16(&block.keys),
                    at16(&block.values),
                    at32(cosines),
                    at32(sines),
                    bias_or(&block.qkv, 0),
                    bias_or(&block.qkv, 1),
                    bias_or(&block.qkv, 2),
                    state,
                    part(device, &block.qkv, 0, &b.qkv),
                    part(device, &block.qkv, 1, &b.qkv),
                    part(device, &block.qkv, 2, &b.qkv),
                    at16(&b.attended),
                ];
                run(device, &plan, &pointers, overlap)?;
            }
            if stages(Stage::Output) {
                block.output.step(device, &b.attended, &mut b.delta, overlap)?;
            }
            add_norm(spec.norms[1].norm, &block.post_norm, Some(&block.output))?;
            if stages(Stage::GateUp) {
                block.gate_up.step(device, &b.normed, &mut b.gate_up, overlap)?;
            }
            if stages(Stage::Swiglu) {
                let inner = spec.intermediate_size();
                let pointers = [
                    bias_or(&block.gate_up, 0),
                    bias_or(&block.gate_up, 1),
                    part(device, &block.gate_up, 0, &b.gate_up),
                    part(device, &block.gate_up, 1, &b.gate_up),
                    at16(&b.activated),
                ];
                let plan = plan::swiglu(inner, 1, [inner; 2], block.gate_up.has_bias());
                run(device, &plan, &pointers, overlap)?;
            }
            if stages(Stage::Down) {
                block.down.step(device, &b.activated, &mut b.delta, overlap)?;
            }
            before = Some(&block.down);
        }
        add_norm(arch.final_norm, norm, before)?;
        if stages(Stage::Head) {
            let pointers = [at16(head.as_ref().unwrap_or(embedding)), normed, at32(&b.logits)];
            run(
                device,
                &plan::dense(arch.vocab_size, width, 1, true),
                &pointers,
                overlap,
            )?;
        }
        if stages(Stage::Argmax) {
            let pointers = [at32(&b.logits), address(device, &b.chosen), state];
            run(device, &plan::argmax(arch.vocab_size), &pointers, overlap)?;
        }
        Ok(())
    }
}

fn launch(device: &Device, graph: Option<&CudaGraph>) -> Result<()> {
    device.note_start("a token's graph");
    graph.map_or(Ok(()), |graph| graph.launch().during("replaying a graph"))
}
