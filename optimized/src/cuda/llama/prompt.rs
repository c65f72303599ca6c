use aqlm_vocabulary::{Activation, AqlmError};

use super::super::Result;
use super::super::error::During;
use super::block::{Block, Gated, MlpLayers};
use super::buffers::Prompt;
use super::model::Model;
use super::norms::{Added, Norm, Stream};
use super::stepped_block::{added, biases, tables};
use super::{address, further, plan, run};

/// Which logits of a prompt to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    All,
    Last,
}

impl Model<'_> {
    /// Reads tokens from the current position on and returns the logits of all of them, [tokens, vocab].
    ///
    /// # Errors
    /// `Aqlm` for a token without an embedding or a full cache, `Driver`, `Library`.
    pub fn forward(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        self.read(tokens, Wanted::All)
    }

    /// [`Model::forward`], but returns only the last token's logits, `[vocab]`.
    ///
    /// # Errors
    /// As [`Model::forward`]; `Aqlm` with `Shape` when there is no token.
    pub fn prompt(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        if tokens.is_empty() {
            return Err(AqlmError::Shape {
                what: "a prompt's tokens".into(),
                expected: vec![1],
                found: vec![0],
            }
            .into());
        }
        self.read(tokens, Wanted::Last)
    }

    fn read(&mut self, tokens: &[u32], wanted: Wanted) -> Result<Vec<f32>> {
        self.accept(tokens)?;
        // Taken out temporarily, so that the model's other parts can be borrowed beside it.
        if let Some(mut prompt) = self.prompt.take() {
            let logits = self.read_in_chunks(&mut prompt, tokens, wanted);
            self.prompt = Some(prompt);
            return logits;
        }
        let mut logits = Vec::new();
        for (index, &token) in tokens.iter().enumerate() {
            let row = self.step(token)?;
            if wanted == Wanted::All || index + 1 == tokens.len() {
                logits.extend(row);
            }
        }
        Ok(logits)
    }

    fn read_in_chunks(&mut self, p: &mut Prompt, tokens: &[u32], wanted: Wanted) -> Result<Vec<f32>> {
        let mut logits = Vec::new();
        let mut left = tokens.len();
        for chunk in tokens.chunks(p.rows) {
            left -= chunk.len();
            self.embed_chunk(p, chunk)?;
            let mut before = None;
            for block in &self.blocks {
                before = Some(self.block_of_chunk(p, block, before.as_ref(), chunk.len())?);
            }
            if wanted == Wanted::All {
                logits.extend(self.logits_of_chunk(p, before.as_ref(), 0, chunk.len())?);
            } else if left == 0 {
                logits = self.logits_of_chunk(p, before.as_ref(), chunk.len() - 1, chunk.len())?;
            }
            self.position += chunk.len();
        }
        Ok(logits)
    }

    /// Runs one block on given hidden states from position 0 on: from x [tokens, hidden] to the block's
    /// output. Discards the text read so far.
    ///
    /// # Errors
    /// `Aqlm` with `Shape` when x is not a whole number of rows or there is no such block, `Argument` when
    /// the cache is shorter; `Driver`, `Library`.
    pub fn block_forward(&mut self, block: usize, x: &[f32]) -> Result<Vec<f32>> {
        let width = self.arch.hidden_size;
        if block >= self.blocks.len() || !x.len().is_multiple_of(width) {
            return Err(AqlmError::Shape {
                what: "hidden states of a block".into(),
                expected: vec![self.blocks.len(), width],
                found: vec![block, x.len() % width],
            }
            .into());
        }
        self.position = 0;
        self.accept(&vec![0; x.len() / width])?;
        let y = match self.prompt.take() {
            Some(mut prompt) => {
                let y = self.block_in_chunks(&mut prompt, block, x);
                self.prompt = Some(prompt);
                y
            }
            None => self.block_by_steps(block, x),
        };
        self.position = 0;
        y
    }

    fn block_in_chunks(&mut self, p: &mut Prompt, block: usize, x: &[f32]) -> Result<Vec<f32>> {
        let width = self.arch.hidden_size;
        let stream = self.device.stream().clone();
        let mut y = Vec::with_capacity(x.len());
        for x in x.chunks(p.rows * width) {
            let count = x.len() / width;
            stream
                .memcpy_htod(x, &mut p.hidden.slice_mut(..x.len()))
                .during("copying hidden states to the device")?;
            let block = &self.blocks[block];
            let added = self.block_of_chunk(p, block, None, count)?;
            // The norm adds the block's last output to the residual stream. Its normalised output is unused.
            self.add_norm(p, Some(&self.norm), Some(&added), count)?;
            y.extend(self.device.download(&p.hidden.slice(..x.len()))?);
            self.position += count;
        }
        Ok(y)
    }

    fn embed_chunk(&self, p: &mut Prompt, tokens: &[u32]) -> Result<()> {
        let device = self.device;
        device
            .stream()
            .memcpy_htod(tokens, &mut p.tokens.slice_mut(..tokens.len()))
            .during("copying tokens to the device")?;
        let pointers = [
            address(device, &self.embedding),
            address(device, &p.tokens),
            address(device, &p.hidden),
        ];
        // All rows of the chunk: rows past the end hold whatever tokens were left there.
        run(
            device,
            &plan::embed_scaled(self.arch.hidden_size, p.rows, self.arch.embedding_scale),
            &pointers,
            false,
        )
    }

    /// Runs the block but leaves the addition of its last output to the residual stream to the next norm.
    /// `before` is what the block's first norm must still add.
    fn block_of_chunk<'b>(
        &self,
        p: &mut Prompt,
        block: &'b Block,
        before: Option<&Added<'_>>,
        count: usize,
    ) -> Result<Added<'b>> {
        let MlpLayers::Dense(mlp) = &block.mlp else {
            return Err(AqlmError::Internal("a prompt in chunks for a model with experts".into()).into());
        };
        self.add_norm(p, block.norms.before_attention.as_ref(), before, count)?;
        let (device, rows) = (self.device, p.rows);
        let blas = self.blas.as_ref();
        block.qkv.prompt(0, device, blas, &p.normed, &mut p.q, rows)?;
        block.qkv.prompt(1, device, blas, &p.normed, &mut p.k, rows)?;
        block.qkv.prompt(2, device, blas, &p.normed, &mut p.v, rows)?;
        self.attention_of_chunk(p, block, count)?;
        block
            .output
            .prompt(0, device, blas, &p.attended, &mut p.delta, rows)?;
        let attended = added(block, &block.output, block.norms.after_attention.as_ref());
        self.add_norm(p, block.norms.before_mlp.as_ref(), Some(&attended), count)?;
        self.mlp_of_chunk(p, block, mlp, count)?;
        Ok(added(block, &mlp.down, block.norms.after_mlp.as_ref()))
    }

    fn attention_of_chunk(&self, p: &Prompt, block: &Block, count: usize) -> Result<()> {
        let (device, position, capacity) = (self.device, self.position, self.options.positions);
        let attention = &block.spec.attention;
        let none = address(device, &p.hidden);
        let biases = biases(device, &block.qkv, none);
        let projected = [&p.q, &p.k, &p.v].map(|buffer| address(device, buffer));
        let normed = block.norms.of_heads();
        if normed {
            let biases = block.qkv.has_bias().then_some(biases);
            block
                .norms
                .start_heads(device, &block.spec, count, biases, projected, false)?;
        }
        let cache = [address(device, &block.keys), address(device, &block.values)];
        let mut pointers = tables(device, &self.rotations, block, none).to_vec();
        pointers.extend(biases);
        pointers.extend(projected);
        pointers.extend(cache);
        let bias = block.qkv.has_bias() && !normed;
        run(
            device,
            &plan::rope(attention, count, position, capacity, bias),
            &pointers,
            false,
        )?;
        let pointers = [cache[0], cache[1], projected[0], address(device, &p.attended)];
        let plan = plan::attention(attention, count, position, capacity);
        run(device, &plan, &pointers, false)
    }

    fn mlp_of_chunk(&self, p: &mut Prompt, block: &Block, mlp: &Gated, count: usize) -> Result<()> {
        let (device, rows, blas) = (self.device, p.rows, self.blas.as_ref());
        let gate_up = &mlp.gate_up;
        gate_up.prompt(0, device, blas, &p.normed, &mut p.gate, rows)?;
        gate_up.prompt(1, device, blas, &p.normed, &mut p.up, rows)?;
        let none = address(device, &p.hidden);
        let bias = |index| gate_up.bias(index).map_or(none, |bias| address(device, bias));
        let pointers = [
            bias(0),
            bias(1),
            address(device, &p.gate),
            address(device, &p.up),
            address(device, &p.activated),
        ];
        let inner = block.spec.intermediate_size();
        let activation = block
            .spec
            .mlp
            .dense()
            .map_or(Activation::Silu, |mlp| mlp.activation);
        let plan = plan::gated(activation, inner, count, [inner; 2], gate_up.has_bias());
        run(device, &plan, &pointers, false)?;
        mlp.down.prompt(0, device, blas, &p.activated, &mut p.delta, rows)
    }

    /// Adds to the residual stream what is still to be added, and norms the sum.
    fn add_norm(
        &self,
        p: &Prompt,
        norm: Option<&Norm>,
        added: Option<&Added<'_>>,
        count: usize,
    ) -> Result<()> {
        let device = self.device;
        let stream = Stream {
            width: self.arch.hidden_size,
            rows: count,
            hidden: address(device, &p.hidden),
            delta: address(device, &p.delta),
            normed: address(device, &p.normed),
        };
        stream.start(device, added, norm, false)
    }

    /// Logits of rows `first` to `count` of the chunk.
    fn logits_of_chunk(
        &self,
        p: &mut Prompt,
        before: Option<&Added<'_>>,
        first: usize,
        count: usize,
    ) -> Result<Vec<f32>> {
        self.add_norm(p, Some(&self.norm), before, count)?;
        let device = self.device;
        let (vocab, width) = (self.arch.vocab_size, self.arch.hidden_size);
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        let rows = count - first;
        match &self.blas {
            Some(blas) if rows > 1 => {
                let x = p.normed.slice(first * width..count * width);
                let mut y = p.logits.slice_mut(..rows * vocab);
                blas.start_wide(head, &x, &mut y, [vocab, width, rows])?;
            }
            _ => {
                let x = further(address(device, &p.normed), first * width);
                let pointers = [address(device, head), x, address(device, &p.logits)];
                run(device, &plan::dense(vocab, width, rows, true), &pointers, false)?;
            }
        }
        if let Some(plan) = plan::scale_logits(rows * vocab, self.arch.logits) {
            run(device, &plan, &[address(device, &p.logits)], false)?;
        }
        device.download(&p.logits.slice(..rows * vocab))
    }
}
