use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use aqlm_optimized::cpu::SimdLevel;
use aqlm_optimized::cpu::llama::{
    self, Activations, Block, BlockGradients, BlockTuner, Head, KvCacheLayer, ModelTuner, Piece, Rotary,
    Sequences, Wanted, block_backward, block_decode_step, block_forward_continued, block_forward_traced,
    working_bytes,
};
use aqlm_optimized::cpu::quantizer::{Hessian, LayerProblem, Trial};
use aqlm_vocabulary::{
    AdamDecay, AqlmError, ArchSpec, BlockWeights, LayerId, LayerSettings, ModelTuning, ModelWeights,
    Position, QuantizedMatrix, StreamKey, Tuned, Update,
};
use half::bf16;
use ndarray::{Array1, Array2, Axis, s};

use super::hidden_states::{Bound, HiddenStates, require_finite};
use super::resident::StepOps;
use super::{BackendKind, Memory};
use crate::ops::{BlockOps, GradientSums, LayerOps, Squares, StepsOnHost, TrainOps, check_labels};
use crate::spectrum::Spectrum;
use aqlm_formats::{Error, Result};

/// Implements the traits with the optimized CPU code: f32 with rayon and SIMD.
#[derive(Debug)]
pub struct CpuBackend {
    config: ArchSpec,
    rotary: Rotary,
    /// memory bound for the hidden states that this backend creates
    bound: Option<Arc<Bound>>,
    activations: Activations,
}

impl CpuBackend {
    /// For sequences of at most `positions` tokens.
    ///
    /// # Errors
    /// Those of [`ArchSpec::check`].
    pub fn new(config: &ArchSpec, positions: usize) -> Result<Self> {
        config.check()?;
        Ok(Self {
            config: config.clone(),
            rotary: Rotary::of_model(config, positions),
            bound: None,
            activations: Activations::fitting(config, positions),
        })
    }

    /// # Errors
    /// `Shape` when the hidden states belong to another model, or are longer than the rotary tables.
    fn check(&self, hidden: &HiddenStates) -> Result<()> {
        let longest = hidden.lengths().into_iter().max().unwrap_or(0);
        let expected = [longest.min(self.rotary.positions()), self.config.hidden_size];
        let found = [longest, hidden.width()];
        if found == expected {
            return Ok(());
        }
        Err(AqlmError::Shape {
            what: "hidden states".into(),
            expected: expected.to_vec(),
            found: found.to_vec(),
        }
        .into())
    }

    /// The parts in which these sequences pass through a block, as indices from `first` on.
    fn parts_from(first: usize, lengths: &[usize]) -> impl Iterator<Item = Vec<usize>> + use<> {
        let shift = move |part: Range<usize>| part.map(|index| first + index).collect();
        llama::parts(lengths).into_iter().map(shift)
    }
}

/// Bytes of the bound that remain after the unavoidable `needed` bytes.
fn left(memory: Memory, needed: usize) -> Result<usize> {
    memory.bytes().checked_sub(needed).ok_or_else(|| {
        Error::argument(
            "memory",
            &format!("at least {needed} bytes, which the sequences that are computed together take"),
            memory.to_string(),
        )
    })
}

/// The steps of the alternation on the CPU.
#[derive(Debug, Clone, Copy)]
pub struct CpuLayers;

impl LayerOps for CpuLayers {
    type Problem = LayerProblem;
    type Trial = Trial;
    type Outer = Array2<f32>;

    fn problem(
        &self,
        weight: &Array2<f32>,
        hessian: &Array2<f64>,
        settings: &LayerSettings,
    ) -> Result<LayerProblem> {
        Ok(LayerProblem::new(weight, hessian, settings)?)
    }

    fn shape(&self, problem: &LayerProblem) -> (usize, usize) {
        problem.shape()
    }

    fn dead_inputs(&self, problem: &LayerProblem) -> usize {
        problem.dead_inputs()
    }

    fn initialize(&self, problem: &LayerProblem, settings: &LayerSettings, key: StreamKey) -> Result<Trial> {
        Ok(problem.initialize(settings, key)?)
    }

    fn trial(&self, problem: &LayerProblem, matrix: QuantizedMatrix) -> Result<Trial> {
        Ok(problem.trial(matrix)?)
    }

    fn update(&self, problem: &LayerProblem, trial: Trial, update: &Update) -> Result<Trial> {
        Ok(problem.update(trial, update)?)
    }

    fn search(&self, problem: &LayerProblem, trial: Trial, order: &[Position], beam: usize) -> Result<Trial> {
        Ok(problem.search(trial, order, beam)?)
    }

    fn loss(&self, problem: &LayerProblem, trial: &Trial) -> f64 {
        problem.loss(trial)
    }

    fn matrix(&self, _problem: &LayerProblem, trial: &Trial) -> Result<QuantizedMatrix> {
        Ok(trial.matrix().clone())
    }

    fn retargeted(&self, problem: &LayerProblem, target: &Array2<f32>) -> Result<LayerProblem> {
        Ok(problem.retargeted(target)?)
    }

    fn outer(&self, outer: &Array2<f64>) -> Result<Array2<f32>> {
        Ok(outer.mapv(|value| value as f32))
    }

    fn image(
        &self,
        problem: &LayerProblem,
        outer: Option<&Array2<f32>>,
        dense: &Array2<f64>,
    ) -> Result<Array2<f64>> {
        let image = problem.image(outer, &dense.mapv(|value| value as f32))?;
        Ok(image.mapv(f64::from))
    }
}

impl StepsOnHost for CpuLayers {}

impl BlockOps for CpuBackend {
    type Layers = CpuLayers;
    type Hidden = HiddenStates;
    type Block = Block;
    type Hessian = Hessian;
    type Head = Head;

    fn kind(&self) -> BackendKind {
        BackendKind::Cpu
    }

    fn device(&self) -> String {
        format!(
            "host, {} threads, f32, {}",
            rayon::current_num_threads(),
            SimdLevel::current()
        )
    }

    fn config(&self) -> &ArchSpec {
        &self.config
    }

    fn layers(&self) -> &CpuLayers {
        &CpuLayers
    }

    fn bound_memory(&mut self, memory: Memory, spill: &Path, sequences: usize) -> Result<()> {
        let working = working_bytes(&self.config, sequences, self.rotary.positions());
        self.bound = Some(Bound::new(left(memory, working)?, spill.to_path_buf()));
        Ok(())
    }

    fn embed(&self, embedding: &Array2<f32>, sequences: &[&[u32]]) -> Result<HiddenStates> {
        let lengths: Vec<usize> = sequences.iter().map(|tokens| tokens.len()).collect();
        let mut hidden = HiddenStates::new(&lengths, embedding.ncols(), self.bound.as_ref())?;
        for part in llama::parts(&lengths) {
            let tokens = &sequences[part.clone()];
            let states = llama::embed(embedding.view(), tokens, self.config.embedding_scale)?;
            hidden.write(part.start, &states.view())?;
        }
        Ok(hidden)
    }

    fn lengths(&self, hidden: &HiddenStates) -> Vec<usize> {
        hidden.lengths()
    }

    fn parts(&self, lengths: &[usize]) -> Vec<Range<usize>> {
        llama::parts(lengths)
    }

    fn load_block(&self, index: usize, weights: &BlockWeights) -> Result<Block> {
        Ok(Block::from_weights(&self.config.blocks[index], weights)?)
    }

    fn store_block(&self, block: &Block) -> Result<BlockWeights> {
        Ok(block.to_weights())
    }

    fn set_layer(&self, block: &mut Block, layer: LayerId, matrix: QuantizedMatrix) -> Result<()> {
        Ok(block.set_layer(layer, matrix)?)
    }

    fn room_like(&self, hidden: &HiddenStates) -> Result<HiddenStates> {
        HiddenStates::new(&hidden.lengths(), hidden.width(), self.bound.as_ref())
    }

    fn forward_into(
        &self,
        block: &Block,
        hidden: &HiddenStates,
        sequences: Range<usize>,
        outputs: &mut HiddenStates,
    ) -> Result<()> {
        self.check(hidden)?;
        for part in Self::parts_from(sequences.start, &hidden.lengths()[sequences]) {
            let x = hidden.read(&part)?;
            let (y, _) = block_forward_traced(block, &self.rotary, x.view());
            outputs.write(part[0], &y.view())?;
        }
        Ok(())
    }

    fn rounded_to_bf16(&self, mut hidden: HiddenStates) -> Result<HiddenStates> {
        for sequence in 0..hidden.lengths().len() {
            let states = hidden.read(&[sequence])?;
            let rounded = states.mapv(|value| bf16::from_f32(value).to_f32());
            hidden.write(sequence, &rounded.view())?;
        }
        Ok(hidden)
    }

    fn hessian(&self, block: &Block, layer: LayerId) -> Hessian {
        Hessian::new(block.spec().shape(layer).1)
    }

    fn add_to_hessians(
        &self,
        block: &Block,
        hidden: &HiddenStates,
        sequences: Range<usize>,
        layers: &[LayerId],
        hessians: &mut [Hessian],
        mut outputs: Option<&mut HiddenStates>,
    ) -> Result<()> {
        self.check(hidden)?;
        for part in Self::parts_from(sequences.start, &hidden.lengths()[sequences]) {
            let x = hidden.read(&part)?;
            let (y, trace) = block_forward_traced(block, &self.rotary, x.view());
            for (hessian, &layer) in hessians.iter_mut().zip(layers) {
                hessian.add(trace.input(block.spec().linear(layer).reads))?;
            }
            if let Some(outputs) = &mut outputs {
                outputs.write(part[0], &y.view())?;
            }
        }
        Ok(())
    }

    fn samples(&self, hessian: &Hessian) -> usize {
        hessian.samples()
    }

    fn add_mean_of(&self, hessian: &mut Hessian, pool: &Hessian, samples: usize) -> Result<()> {
        Ok(hessian.add_mean_of(pool, samples)?)
    }

    fn layer_problem(
        &self,
        layers: &CpuLayers,
        block: &Block,
        layer: LayerId,
        hessian: &Hessian,
        settings: &LayerSettings,
    ) -> Result<LayerProblem> {
        layers.problem(block.weight(layer), &hessian.mean(), settings)
    }

    fn mean(&self, hessian: &Hessian) -> Result<Array2<f64>> {
        Ok(hessian.mean())
    }

    fn spectrum(&self, hessian: &Hessian) -> Result<Spectrum> {
        Ok(Spectrum::of(hessian.mean()))
    }

    fn squares(&self, a: &HiddenStates, b: &HiddenStates) -> Result<Vec<Squares>> {
        llama::squares_of_sequences(a, b)
    }

    fn largest(&self, hidden: &HiddenStates) -> Result<f64> {
        let mut largest = 0.0_f32;
        for sequence in 0..hidden.lengths().len() {
            for ((_, token, channel), x) in hidden.read(&[sequence])?.indexed_iter() {
                require_finite([sequence, token, channel], f64::from(*x))?;
                largest = largest.max(x.abs());
            }
        }
        Ok(f64::from(largest))
    }

    fn load_head(&self, norm: &Array1<f32>, lm_head: &Array2<f32>) -> Result<Head> {
        Ok(Head::new(&self.config, norm, lm_head)?)
    }

    fn head_input(&self, head: &Head, hidden: &HiddenStates, sequence: usize) -> Result<Array2<f32>> {
        let x = hidden.read(&[sequence])?;
        Ok(head.normed(x.index_axis(Axis(0), 0)))
    }

    fn logits(&self, head: &Head, hidden: &HiddenStates, sequence: usize) -> Result<Array2<f64>> {
        self.check(hidden)?;
        let x = hidden.read(&[sequence])?;
        Ok(head.logits(x.index_axis(Axis(0), 0)).mapv(f64::from))
    }

    fn logits_at(
        &self,
        head: &Head,
        hidden: &HiddenStates,
        positions: &[(usize, Range<usize>)],
    ) -> Result<Array2<f64>> {
        self.check(hidden)?;
        let count = positions.iter().map(|(_, positions)| positions.len()).sum();
        let mut rows = Array2::zeros((count, hidden.width()));
        let mut to = 0;
        for (sequence, positions) in positions {
            let x = hidden.read(&[*sequence])?;
            rows.slice_mut(s![to..to + positions.len(), ..])
                .assign(&x.slice(s![0, positions.clone(), ..]));
            to += positions.len();
        }
        Ok(head.logits(rows.view()).mapv(f64::from))
    }

    fn token_losses(
        &self,
        head: &Head,
        hidden: &HiddenStates,
        sequences: &[&[u32]],
    ) -> Result<Vec<Array1<f64>>> {
        self.check(hidden)?;
        let lengths = hidden.lengths();
        if sequences.len() != lengths.len() {
            return Err(AqlmError::Shape {
                what: "targets".into(),
                expected: vec![lengths.len()],
                found: vec![sequences.len()],
            }
            .into());
        }
        let mut losses = Vec::with_capacity(lengths.len());
        for part in Self::parts_from(0, &lengths) {
            let x = hidden.read(&part)?;
            let tokens: Vec<&[u32]> = part.iter().map(|&index| sequences[index]).collect();
            losses.extend(head.token_losses(x.view(), &tokens)?);
        }
        Ok(losses)
    }
    fn for_shape(&self, config: &ArchSpec, positions: usize) -> Result<Self> {
        Self::new(config, positions)
    }
}

impl TrainOps for CpuBackend {
    type BlockTuner = BlockTuner;
    type ModelTuner = ModelTuner;

    fn block_tuner(&self, block: &Block, tuned: Tuned, decay: AdamDecay) -> BlockTuner {
        BlockTuner::new(block, tuned, decay)
    }

    fn block_losses(
        &self,
        tuner: &BlockTuner,
        inputs: &HiddenStates,
        targets: &HiddenStates,
        sequences: &[usize],
    ) -> Result<Vec<f64>> {
        tuner.losses(&self.rotary, inputs, targets, sequences)
    }

    fn block_accumulate(
        &self,
        tuner: &mut BlockTuner,
        inputs: &HiddenStates,
        targets: &HiddenStates,
        sequences: &[usize],
        scale: f64,
    ) -> Result<Vec<f64>> {
        tuner.accumulate(&self.rotary, inputs, targets, sequences, scale)
    }

    fn label_gradients(
        &self,
        head: &Head,
        hidden: &HiddenStates,
        labels: &[Vec<u32>],
    ) -> Result<HiddenStates> {
        self.check(hidden)?;
        let lengths = hidden.lengths();
        check_labels(&lengths, labels)?;
        let mut gradients = HiddenStates::new(&lengths, hidden.width(), self.bound.as_ref())?;
        for (sequence, labels) in labels.iter().enumerate() {
            let x = hidden.read(&[sequence])?;
            let gradient = head.label_gradient(x.index_axis(Axis(0), 0), labels)?;
            gradients.write(sequence, &gradient.view().insert_axis(Axis(0)))?;
        }
        Ok(gradients)
    }

    fn block_sketch(
        &self,
        block: &Block,
        inputs: &HiddenStates,
        gradients: &[HiddenStates],
    ) -> Result<(Vec<HiddenStates>, Vec<GradientSums>)> {
        self.check(inputs)?;
        let (lengths, width) = (inputs.lengths(), inputs.width());
        let new = |_| HiddenStates::new(&lengths, width, self.bound.as_ref());
        let mut results = (0..gradients.len()).map(new).collect::<Result<Vec<_>>>()?;
        let mut sums: Vec<[Hessian; 2]> = block
            .spec()
            .layers()
            .map(|layer| {
                let (out, inputs) = block.spec().shape(layer);
                [Hessian::new(out), Hessian::new(inputs)]
            })
            .collect();
        let wanted = Wanted {
            biases: false,
            norms: false,
            ..Wanted::all(block.spec())
        };
        for sequence in 0..lengths.len() {
            let x = inputs.read(&[sequence])?;
            let (_, trace) = block_forward_traced(block, &self.rotary, x.view());
            drop(x);
            for (gradients, results) in gradients.iter().zip(&mut results) {
                let grad = gradients.read(&[sequence])?;
                let mut of_block = BlockGradients::zeros(block, &wanted);
                let back = block_backward(block, &self.rotary, &trace, grad.view(), &wanted, &mut of_block);
                drop(grad);
                if let Some(back) = back {
                    results.write(sequence, &back.view())?;
                }
                for ([outer, inner], weight) in sums.iter_mut().zip(of_block.weights) {
                    let weight = weight.expect("the gradient of every weight is wanted");
                    outer.add(weight.t())?;
                    inner.add(weight.view())?;
                }
            }
        }
        let host = |[outer, inner]: [Hessian; 2]| GradientSums {
            outer: outer.mean() * outer.samples() as f64,
            inner: inner.mean() * inner.samples() as f64,
        };
        Ok((results, sums.into_iter().map(host).collect()))
    }

    /// Activations are kept if they fit in memory, else recomputed.
    fn bound_tuning_memory(&mut self, memory: Memory, spill: &Path, batch: usize) -> Result<()> {
        let positions = self.rotary.positions();
        let bytes = |activations: Activations| activations.bytes(&self.config, batch, positions);
        let least = left(memory, bytes(Activations::Recompute))?;
        self.activations = if bytes(Activations::Keep) <= memory.bytes() {
            Activations::fitting(&self.config, positions)
        } else {
            Activations::Recompute
        };
        // The teacher's hidden states are computed before training begins. That pass needs as much memory
        // inside a block as training.
        self.bound = Some(Bound::new(least, spill.to_path_buf()));
        Ok(())
    }

    fn model_tuner(&self, weights: &ModelWeights, tuning: &ModelTuning) -> Result<ModelTuner> {
        Ok(ModelTuner::new(
            &self.config,
            self.rotary.positions(),
            weights,
            tuning,
            self.activations,
        )?)
    }
}

impl StepOps for CpuBackend {
    type Cache = KvCacheLayer;

    fn block_forward_continued(
        &self,
        block: &Block,
        hidden: &HiddenStates,
        stems: &[Option<usize>],
    ) -> Result<HiddenStates> {
        let lengths = hidden.lengths();
        let tokens = |index: usize| lengths[index] + stems[index].map_or(0, |stem| lengths[stem]);
        let longest = (0..lengths.len()).map(tokens).max().unwrap_or(0);
        if longest > self.rotary.positions() {
            return Err(AqlmError::argument(
                "tokens of a sequence",
                format!("at most {}", self.rotary.positions()),
                longest,
            )
            .into());
        }
        let rows = lengths.iter().scan(0, |end, tokens| {
            *end += tokens;
            Some(*end - tokens..*end)
        });
        let rows: Vec<Range<usize>> = rows.collect();
        let of = |(index, stem): (usize, &Option<usize>)| Piece {
            rows: rows[index].clone(),
            stem: stem.map_or(0..0, |stem| rows[stem].clone()),
        };
        let pieces: Vec<Piece> = stems.iter().enumerate().map(of).collect();
        let mut x = Array2::zeros((lengths.iter().sum(), hidden.width()));
        for (index, rows) in rows.iter().enumerate() {
            let states = hidden.read(&[index])?;
            x.slice_mut(s![rows.clone(), ..])
                .assign(&states.index_axis(Axis(0), 0));
        }
        let y = block_forward_continued(block, &self.rotary, x.view(), &pieces);
        let mut outputs = HiddenStates::new(&lengths, hidden.width(), self.bound.as_ref())?;
        for (index, rows) in rows.into_iter().enumerate() {
            outputs.write(index, &y.slice(s![rows, ..]).insert_axis(Axis(0)))?;
        }
        Ok(outputs)
    }

    fn new_cache(&self, _block: &Block) -> KvCacheLayer {
        KvCacheLayer::new()
    }

    fn decode_step(
        &self,
        blocks: &[Block],
        head: &Head,
        caches: &mut [KvCacheLayer],
        embedding_row: &Array1<f32>,
        position: usize,
    ) -> Result<Array1<f64>> {
        let mut row = embedding_row.clone();
        if self.config.embedding_scale != 1.0 {
            row *= self.config.embedding_scale as f32;
        }
        for (block, cache) in blocks.iter().zip(caches) {
            row = block_decode_step(block, &self.rotary, cache, row.view(), position)?;
        }
        Ok(head.logits_of_row(row.view()).mapv(f64::from))
    }
}
