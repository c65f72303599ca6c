use aqlm_vocabulary::LogitSpec;
use cudarc::driver::{CudaGraph, sys};

use super::super::error::During;
use super::super::timing::{Timing, capture, time_graph};
use super::super::{Device, Result};
use super::block::{Block, Gated, MlpLayers, Routed};
use super::group::Group;
use super::model::Model;
use super::stage::Stage;
use super::stepped_block::Step;
use super::{address, plan, run};

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
            Stage::Attention => all(&|block| (1 + usize::from(block.norms.of_heads()), cached(block))),
            Stage::Output => all(&|block| group(&block.output)),
            Stage::Router => all(&|block| match &block.mlp {
                MlpLayers::Routed(layers) => (2, 2 * layers.router.len()),
                MlpLayers::Dense(_) => (0, 0),
            }),
            Stage::GateUp => all(&|block| {
                of_mlp(block, &|mlp| group(&mlp.gate_up), &|routed| {
                    (routed.gate_up.launches(), routed.gate_up.step_bytes())
                })
            }),
            Stage::Swiglu => all(&|block| {
                let inner = |slots: usize| (1, slots * 6 * block.spec.intermediate_size());
                let used = block.spec.mlp.routed().map_or(1, |mlp| mlp.used);
                of_mlp(block, &|_| inner(1), &|_| inner(used))
            }),
            Stage::Down => all(&|block| {
                of_mlp(block, &|mlp| group(&mlp.down), &|routed| {
                    (routed.down.launches(), routed.down.step_bytes())
                })
            }),
            Stage::Head => (
                1 + usize::from(self.arch.logits != LogitSpec::PLAIN),
                2 * vocab * hidden,
            ),
            Stage::Argmax => (1, 4 * vocab),
        }
    }

    pub(super) fn set_state(&mut self, token: u32, advance: bool) -> Result<()> {
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
        let step = Step::of(self.device, &self.options, &self.rotations, stages);
        let (device, overlap) = (self.device, step.overlap);
        let (arch, b) = (&self.arch, &mut self.buffers);
        let state = address(device, &b.state);
        let token = state + size_of::<u32>() as sys::CUdeviceptr;
        let embedding = address(device, &self.embedding);
        let hidden = address(device, &b.hidden);
        let width = arch.hidden_size;

        if stages(Stage::Embed) {
            run(
                device,
                &plan::embed_scaled(width, 1, arch.embedding_scale),
                &[embedding, token, hidden],
                overlap,
            )?;
        }
        let mut before = None;
        for block in &self.blocks {
            before = Some(step.block(block, b, before)?);
        }
        step.norm(arch.hidden_size, b, before.as_ref(), Some(&self.norm))?;
        if stages(Stage::Head) {
            let head = self.head.as_ref().map_or(embedding, |head| address(device, head));
            let logits = address(device, &b.logits);
            let pointers = [head, address(device, &b.normed), logits];
            run(
                device,
                &plan::dense(arch.vocab_size, width, 1, true),
                &pointers,
                overlap,
            )?;
            if let Some(plan) = plan::scale_logits(arch.vocab_size, arch.logits) {
                run(device, &plan, &[logits], overlap)?;
            }
        }
        if stages(Stage::Argmax) {
            let pointers = [address(device, &b.logits), address(device, &b.chosen), state];
            run(device, &plan::argmax(arch.vocab_size), &pointers, overlap)?;
        }
        Ok(())
    }
}

/// Launches and bytes of an MLP; for experts, those of the chosen ones and of the shared one.
fn of_mlp(
    block: &Block,
    gated: &dyn Fn(&Gated) -> (usize, usize),
    routed: &dyn Fn(&Routed) -> (usize, usize),
) -> (usize, usize) {
    match &block.mlp {
        MlpLayers::Dense(mlp) => gated(mlp),
        MlpLayers::Routed(mlp) => {
            let (chosen, shared) = (routed(mlp), mlp.shared.as_ref().map_or((0, 0), gated));
            (chosen.0 + shared.0, chosen.1 + shared.1)
        }
    }
}

fn launch(device: &Device, graph: Option<&CudaGraph>) -> Result<()> {
    device.note_start("a token's graph");
    graph.map_or(Ok(()), |graph| graph.launch().during("replaying a graph"))
}
