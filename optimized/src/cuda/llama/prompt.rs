use aqlm_vocabulary::{AqlmError, NormSpec};
use half::f16;

use super::super::error::During;
use super::super::{Buffer, Result};
use super::block::Block;
use super::buffers::Prompt;
use super::group::Group;
use super::model::Model;
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
                self.block_of_chunk(p, block, before, chunk.len())?;
                before = Some(&block.down);
            }
            if wanted == Wanted::All {
                logits.extend(self.logits_of_chunk(p, before, 0, chunk.len())?);
            } else if left == 0 {
                logits = self.logits_of_chunk(p, before, chunk.len() - 1, chunk.len())?;
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
    /// the cache is shorter or the model is for single tokens; `Driver`, `Library`.
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
        let Some(mut prompt) = self.prompt.take() else {
            return Err(AqlmError::argument(
                "model",
                "one that was made for prompts",
                "one for single tokens",
            )
            .into());
        };
        let y = self.block_in_chunks(&mut prompt, block, x);
        self.prompt = Some(prompt);
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
            self.block_of_chunk(p, block, None, count)?;
            // The norm adds the block's last output to the residual stream. Its normalised output is unused.
            self.add_norm(p, self.arch.final_norm, &self.norm, Some(&block.down), count)?;
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
            &plan::embed(self.arch.hidden_size, p.rows),
            &pointers,
            false,
        )
    }

    /// Runs the block but leaves the addition of its last output to the residual stream to the next norm.
    /// `before` is the layer whose output the block's first norm must still add.
    fn block_of_chunk(
        &self,
        p: &mut Prompt,
        block: &Block,
        before: Option<&Group>,
        count: usize,
    ) -> Result<()> {
        self.add_norm(p, block.spec.norms[0].norm, &block.input_norm, before, count)?;
        let (device, position, rows) = (self.device, self.position, p.rows);
        let (attention, capacity) = (&block.spec.attention, self.options.positions);
        let blas = self.blas.as_ref();
        block.qkv.prompt(0, device, blas, &p.normed, &mut p.q, rows)?;
        block.qkv.prompt(1, device, blas, &p.normed, &mut p.k, rows)?;
        block.qkv.prompt(2, device, blas, &p.normed, &mut p.v, rows)?;
        // Without a bias the kernels read none, so any address will do.
        let none = address(device, &p.hidden);
        let bias = |group: &Group, index| group.bias(index).map_or(none, |bias| address(device, bias));
        let pointers = [
            address(device, &self.cosines),
            address(device, &self.sines),
            bias(&block.qkv, 0),
            bias(&block.qkv, 1),
            bias(&block.qkv, 2),
            address(device, &p.q),
            address(device, &p.k),
            address(device, &p.v),
            address(device, &block.keys),
            address(device, &block.values),
        ];
        let plan = plan::rope(attention, count, position, capacity, block.qkv.has_bias());
        run(device, &plan, &pointers, false)?;
        let pointers = [
            address(device, &block.keys),
            address(device, &block.values),
            address(device, &p.q),
            address(device, &p.attended),
        ];
        let plan = plan::attention(attention, count, position, capacity);
        run(device, &plan, &pointers, false)?;
        block
            .output
            .prompt(0, device, blas, &p.attended, &mut p.delta, rows)?;

        self.add_norm(
            p,
            block.spec.norms[1].norm,
            &block.post_norm,
            Some(&block.output),
            count,
        )?;
        let gate_up = &block.gate_up;
        gate_up.prompt(0, device, blas, &p.normed, &mut p.gate, rows)?;
        gate_up.prompt(1, device, blas, &p.normed, &mut p.up, rows)?;
        let pointers = [
            bias(gate_up, 0),
            bias(gate_up, 1),
            address(device, &p.gate),
            address(device, &p.up),
            address(device, &p.activated),
        ];
        let inner = block.spec.intermediate_size();
        let plan = plan::swiglu(inner, count, [inner; 2], gate_up.has_bias());
        run(device, &plan, &pointers, false)?;
        block
            .down
            .prompt(0, device, blas, &p.activated, &mut p.delta, rows)
    }

    /// Adds the previous layer's output to the residual stream and normalises the sum.
    fn add_norm(
        &self,
        p: &Prompt,
        norm: NormSpec,
        weight: &Buffer<f16>,
        before: Option<&Group>,
        count: usize,
    ) -> Result<()> {
        let device = self.device;
        let hidden = address(device, &p.hidden);
        let bias = before.and_then(|group| group.bias(0));
        let pointers = [
            address(device, weight),
            bias.map_or(hidden, |bias| address(device, bias)),
            address(device, &p.delta),
            hidden,
            address(device, &p.normed),
        ];
        let (width, eps) = (self.arch.hidden_size, norm.epsilon);
        let plan = plan::rms_norm(width, count, eps, before.is_some(), bias.is_some());
        run(device, &plan, &pointers, false)
    }

    /// Logits of rows `first` to `count` of the chunk.
    fn logits_of_chunk(
        &self,
        p: &mut Prompt,
        before: Option<&Group>,
        first: usize,
        count: usize,
    ) -> Result<Vec<f32>> {
        self.add_norm(p, self.arch.final_norm, &self.norm, before, count)?;
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
        device.download(&p.logits.slice(..rows * vocab))
    }
}
