use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use aqlm_reference::linalg::product;
use aqlm_reference::llama::{
    self, Block, BlockTuner, KvCacheLayer, ModelTuner, Rotary, block_backward, block_decode_step,
    block_forward, block_forward_traced, norm,
};
use aqlm_reference::{
    Hessian, beam_search, check_layer, damped, dead_inputs, decode, em_init, feedback_init,
    relative_layer_error, residual_init, update,
};
use aqlm_vocabulary::{
    AdamDecay, AqlmError, ArchSpec, BlockWeights, Initialization, LayerId, LayerSettings, ModelTuning,
    ModelWeights, Position, QuantizedMatrix, StreamKey, Tuned, Update,
};
use half::bf16;
use ndarray::{Array1, Array2, Axis, concatenate, s};
use rayon::prelude::*;

use super::hidden_states::require_finite;
use super::resident::StepOps;
use super::{BackendKind, Memory};
use crate::ops::{BlockOps, GradientSums, LayerOps, Squares, StepsOnHost, TrainOps, check_labels};
use crate::spectrum::Spectrum;
use aqlm_formats::{Error, Result};

/// Implements the traits with the reference crate: everything on the host in f64, sequences in parallel.
#[derive(Debug)]
pub struct ReferenceBackend {
    config: ArchSpec,
    rotary: Rotary,
}

impl ReferenceBackend {
    /// For sequences of at most `positions` tokens.
    ///
    /// # Errors
    /// Those of [`ArchSpec::check`].
    pub fn new(config: &ArchSpec, positions: usize) -> Result<Self> {
        config.check()?;
        Ok(Self {
            config: config.clone(),
            rotary: Rotary::of_model(config, positions),
        })
    }
}

/// Final norm `[hidden]` and lm_head [vocab, hidden].
#[derive(Debug)]
pub struct ReferenceHead {
    norm: Array1<f64>,
    lm_head: Array2<f64>,
}

/// One layer with H, undamped and damped.
#[derive(Debug)]
pub struct ReferenceProblem {
    weight: Array2<f64>,
    hessian: Arc<Array2<f64>>,
    metric: Arc<Array2<f64>>,
}

impl ReferenceProblem {
    fn new(weight: Array2<f64>, hessian: Array2<f64>, settings: &LayerSettings) -> Result<Self> {
        check_layer(&weight, &hessian, settings.damping)?;
        Ok(Self {
            metric: Arc::new(damped(&hessian, settings.damping)),
            weight,
            hessian: Arc::new(hessian),
        })
    }
}

/// The steps of the alternation in f64.
#[derive(Debug, Clone, Copy)]
pub struct ReferenceLayers;

impl LayerOps for ReferenceLayers {
    type Problem = ReferenceProblem;
    type Trial = QuantizedMatrix;
    type Outer = Array2<f64>;

    fn problem(
        &self,
        weight: &Array2<f32>,
        hessian: &Array2<f64>,
        settings: &LayerSettings,
    ) -> Result<ReferenceProblem> {
        ReferenceProblem::new(weight.mapv(f64::from), hessian.clone(), settings)
    }

    fn shape(&self, problem: &ReferenceProblem) -> (usize, usize) {
        problem.weight.dim()
    }

    fn dead_inputs(&self, problem: &ReferenceProblem) -> usize {
        dead_inputs(&problem.hessian)
    }

    fn initialize(
        &self,
        problem: &ReferenceProblem,
        settings: &LayerSettings,
        key: StreamKey,
    ) -> Result<QuantizedMatrix> {
        Ok(match settings.init {
            Initialization::Residual => residual_init(&problem.weight, settings, key)?,
            Initialization::Em { rounds } => {
                em_init(&problem.weight, &problem.metric, settings, rounds, key)?
            }
            Initialization::Feedback(feedback) => {
                feedback_init(&problem.weight, &problem.metric, settings, &feedback, key)?
            }
        })
    }

    fn trial(&self, problem: &ReferenceProblem, matrix: QuantizedMatrix) -> Result<QuantizedMatrix> {
        let found = [matrix.out_features(), matrix.in_features()];
        if found == problem.weight.shape() {
            return Ok(matrix);
        }
        Err(AqlmError::Shape {
            what: "a quantized matrix".into(),
            expected: problem.weight.shape().to_vec(),
            found: found.to_vec(),
        }
        .into())
    }

    fn update(
        &self,
        problem: &ReferenceProblem,
        trial: QuantizedMatrix,
        settings: &Update,
    ) -> Result<QuantizedMatrix> {
        Ok(update(&problem.weight, &problem.metric, &trial, settings)?)
    }

    fn search(
        &self,
        problem: &ReferenceProblem,
        trial: QuantizedMatrix,
        order: &[Position],
        beam: usize,
    ) -> Result<QuantizedMatrix> {
        let codes = beam_search(&problem.weight, &problem.metric, &trial, order, beam)?;
        Ok(trial.with_codes(codes)?)
    }

    fn loss(&self, problem: &ReferenceProblem, trial: &QuantizedMatrix) -> f64 {
        relative_layer_error(&problem.weight, &decode(trial), &problem.hessian)
    }

    fn matrix(&self, _problem: &Self::Problem, trial: &QuantizedMatrix) -> Result<QuantizedMatrix> {
        Ok(trial.clone())
    }

    fn retargeted(&self, problem: &ReferenceProblem, target: &Array2<f32>) -> Result<ReferenceProblem> {
        expect_inputs(target.ncols(), problem.weight.ncols())?;
        Ok(ReferenceProblem {
            weight: target.mapv(f64::from),
            hessian: Arc::clone(&problem.hessian),
            metric: Arc::clone(&problem.metric),
        })
    }

    fn outer(&self, outer: &Array2<f64>) -> Result<Array2<f64>> {
        Ok(outer.clone())
    }

    fn image(
        &self,
        problem: &ReferenceProblem,
        outer: Option<&Array2<f64>>,
        dense: &Array2<f64>,
    ) -> Result<Array2<f64>> {
        expect_inputs(dense.ncols(), problem.weight.ncols())?;
        let image = product(dense.view(), problem.metric.view());
        Ok(match outer {
            Some(outer) => product(outer.view(), image.view()),
            None => image,
        })
    }
}

impl StepsOnHost for ReferenceLayers {}

/// # Errors
/// `Shape` when rows have another number of inputs than the layer.
fn expect_inputs(found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(AqlmError::Shape {
        what: "inputs of rows".into(),
        expected: vec![expected],
        found: vec![found],
    }
    .into())
}

impl BlockOps for ReferenceBackend {
    type Layers = ReferenceLayers;
    type Hidden = Vec<Array2<f64>>;
    type Block = Block;
    type Hessian = Hessian;
    type Head = ReferenceHead;

    fn kind(&self) -> BackendKind {
        BackendKind::Reference
    }

    fn device(&self) -> String {
        format!("host, {} threads, f64", rayon::current_num_threads())
    }

    fn config(&self) -> &ArchSpec {
        &self.config
    }

    fn layers(&self) -> &ReferenceLayers {
        &ReferenceLayers
    }

    fn bound_memory(&mut self, memory: Memory, _spill: &Path, _sequences: usize) -> Result<()> {
        Err(Error::argument(
            "memory",
            "no bound with the reference backend, which keeps everything in memory as the cpu backend need not",
            memory.bytes().to_string(),
        ))
    }

    fn embed(&self, embedding: &Array2<f32>, sequences: &[&[u32]]) -> Result<Self::Hidden> {
        sequences
            .iter()
            .map(|tokens| {
                Ok(llama::embed(
                    embedding.view(),
                    tokens,
                    self.config.embedding_scale,
                )?)
            })
            .collect()
    }

    fn lengths(&self, hidden: &Self::Hidden) -> Vec<usize> {
        hidden.iter().map(Array2::nrows).collect()
    }

    fn parts(&self, lengths: &[usize]) -> Vec<Range<usize>> {
        (0..lengths.len()).map(|index| index..index + 1).collect()
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

    fn room_like(&self, hidden: &Self::Hidden) -> Result<Self::Hidden> {
        Ok(hidden.iter().map(|x| Array2::zeros(x.dim())).collect())
    }

    fn forward_into(
        &self,
        block: &Block,
        hidden: &Self::Hidden,
        sequences: Range<usize>,
        outputs: &mut Self::Hidden,
    ) -> Result<()> {
        let (hidden, outputs) = (&hidden[sequences.clone()], &mut outputs[sequences]);
        let pairs = hidden.par_iter().zip(outputs);
        pairs.for_each(|(x, y)| *y = block_forward(block, &self.rotary, x.view()));
        Ok(())
    }

    /// Computes a shared beginning again for every sequence that continues it.
    fn rounded_to_bf16(&self, mut hidden: Self::Hidden) -> Result<Self::Hidden> {
        for states in &mut hidden {
            states.mapv_inplace(|value| bf16::from_f64(value).to_f64());
        }
        Ok(hidden)
    }

    fn hessian(&self, block: &Block, layer: LayerId) -> Hessian {
        Hessian::new(block.spec().shape(layer).1)
    }

    fn add_to_hessians(
        &self,
        block: &Block,
        hidden: &Self::Hidden,
        sequences: Range<usize>,
        layers: &[LayerId],
        hessians: &mut [Hessian],
        mut outputs: Option<&mut Self::Hidden>,
    ) -> Result<()> {
        // One wave of sequences at a time, because their traces dominate memory. Adding traces in order keeps
        // the sums independent of the number of threads.
        let mut first = sequences.start;
        for wave in hidden[sequences].chunks(rayon::current_num_threads().max(1)) {
            let (passed, traces): (Vec<_>, Vec<_>) = wave
                .par_iter()
                .map(|x| block_forward_traced(block, &self.rotary, x.view()))
                .unzip();
            if let Some(outputs) = &mut outputs {
                for (output, y) in outputs[first..].iter_mut().zip(passed) {
                    *output = y;
                }
            }
            first += wave.len();
            hessians
                .par_iter_mut()
                .zip(layers)
                .try_for_each(|(hessian, &layer)| {
                    traces
                        .iter()
                        .try_for_each(|trace| hessian.add(trace.input(block.spec().linear(layer).reads)))
                })?;
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
        _: &ReferenceLayers,
        block: &Block,
        layer: LayerId,
        hessian: &Hessian,
        settings: &LayerSettings,
    ) -> Result<ReferenceProblem> {
        ReferenceProblem::new(block.weight(layer).clone(), hessian.mean(), settings)
    }

    fn mean(&self, hessian: &Hessian) -> Result<Array2<f64>> {
        Ok(hessian.mean())
    }

    fn spectrum(&self, hessian: &Hessian) -> Result<Spectrum> {
        Ok(Spectrum::of(hessian.mean()))
    }

    fn squares(&self, a: &Self::Hidden, b: &Self::Hidden) -> Result<Vec<Squares>> {
        let of_sequence = |(a, b): (&Array2<f64>, &Array2<f64>)| {
            let (mut difference, mut norm) = (0.0, 0.0);
            for (a, b) in a.iter().zip(b) {
                difference += (a - b) * (a - b);
                norm += b * b;
            }
            (difference, norm)
        };
        Ok(a.iter().zip(b).map(of_sequence).collect())
    }

    fn largest(&self, hidden: &Self::Hidden) -> Result<f64> {
        let mut largest = 0.0_f64;
        for (sequence, states) in hidden.iter().enumerate() {
            for ((token, channel), &x) in states.indexed_iter() {
                require_finite([sequence, token, channel], x)?;
                largest = largest.max(x.abs());
            }
        }
        Ok(largest)
    }

    fn load_head(&self, norm: &Array1<f32>, lm_head: &Array2<f32>) -> Result<ReferenceHead> {
        Ok(ReferenceHead {
            norm: norm.mapv(f64::from),
            lm_head: lm_head.mapv(f64::from),
        })
    }

    fn head_input(
        &self,
        head: &ReferenceHead,
        hidden: &Self::Hidden,
        sequence: usize,
    ) -> Result<Array2<f32>> {
        let x = hidden[sequence].view();
        let normed = norm(self.config.final_norm, x, head.norm.view());
        Ok(normed.mapv(|value| value as f32))
    }

    fn logits(&self, head: &ReferenceHead, hidden: &Self::Hidden, sequence: usize) -> Result<Array2<f64>> {
        Ok(llama::logits(
            &self.config,
            &head.norm,
            head.lm_head.view(),
            hidden[sequence].view(),
        ))
    }

    fn token_losses(
        &self,
        head: &ReferenceHead,
        hidden: &Self::Hidden,
        sequences: &[&[u32]],
    ) -> Result<Vec<Array1<f64>>> {
        let losses = hidden.par_iter().zip(sequences).map(|(x, tokens)| {
            let predicting = x.slice(s![..tokens.len() - 1, ..]);
            let logits = llama::logits(&self.config, &head.norm, head.lm_head.view(), predicting);
            Ok(llama::token_losses(logits.view(), &tokens[1..])?)
        });
        losses.collect()
    }
    fn for_shape(&self, config: &ArchSpec, positions: usize) -> Result<Self> {
        Self::new(config, positions)
    }
}

impl TrainOps for ReferenceBackend {
    type BlockTuner = BlockTuner;
    type ModelTuner = ModelTuner;

    fn block_tuner(&self, block: &Block, tuned: Tuned, decay: AdamDecay) -> BlockTuner {
        BlockTuner::new(block, tuned, decay)
    }

    fn block_losses(
        &self,
        tuner: &BlockTuner,
        inputs: &Self::Hidden,
        targets: &Self::Hidden,
        sequences: &[usize],
    ) -> Result<Vec<f64>> {
        Ok(tuner.losses(&self.rotary, inputs, targets, sequences)?)
    }

    fn block_accumulate(
        &self,
        tuner: &mut BlockTuner,
        inputs: &Self::Hidden,
        targets: &Self::Hidden,
        sequences: &[usize],
        scale: f64,
    ) -> Result<Vec<f64>> {
        Ok(tuner.accumulate(&self.rotary, inputs, targets, sequences, scale)?)
    }

    fn label_gradients(
        &self,
        head: &ReferenceHead,
        hidden: &Self::Hidden,
        labels: &[Vec<u32>],
    ) -> Result<Self::Hidden> {
        check_labels(&self.lengths(hidden), labels)?;
        let gradient = |(x, labels): (&Array2<f64>, &Vec<u32>)| {
            Ok(llama::label_gradient(
                &self.config,
                &head.norm,
                head.lm_head.view(),
                x.view(),
                labels,
            )?)
        };
        hidden.par_iter().zip(labels).map(gradient).collect()
    }

    fn block_sketch(
        &self,
        block: &Block,
        inputs: &Self::Hidden,
        gradients: &[Self::Hidden],
    ) -> Result<(Vec<Self::Hidden>, Vec<GradientSums>)> {
        let spec = block.spec();
        let mut sums: Vec<GradientSums> = spec
            .layers()
            .map(|layer| GradientSums::zeros(spec.shape(layer)))
            .collect();
        let mut results = vec![Vec::with_capacity(inputs.len()); gradients.len()];
        for (sequence, x) in inputs.iter().enumerate() {
            let (_, trace) = block_forward_traced(block, &self.rotary, x.view());
            for (gradients, results) in gradients.iter().zip(&mut results) {
                let back = block_backward(block, &self.rotary, &trace, gradients[sequence].view());
                for (sums, weight) in sums.iter_mut().zip(&back.layers) {
                    sums.outer += &product(weight.view(), weight.t());
                    sums.inner += &product(weight.t(), weight.view());
                }
                results.push(back.x);
            }
        }
        Ok((results, sums))
    }

    fn bound_tuning_memory(&mut self, memory: Memory, spill: &Path, batch: usize) -> Result<()> {
        self.bound_memory(memory, spill, batch)
    }

    fn model_tuner(&self, weights: &ModelWeights, tuning: &ModelTuning) -> Result<ModelTuner> {
        Ok(ModelTuner::new(&self.config, weights, tuning)?)
    }
}

impl StepOps for ReferenceBackend {
    type Cache = KvCacheLayer;

    fn block_forward_continued(
        &self,
        block: &Block,
        hidden: &Self::Hidden,
        stems: &[Option<usize>],
    ) -> Result<Self::Hidden> {
        let of = hidden.par_iter().zip(stems).map(|(x, stem)| match stem {
            None => block_forward(block, &self.rotary, x.view()),
            Some(stem) => {
                let whole = concatenate![Axis(0), hidden[*stem].view(), x.view()];
                let y = block_forward(block, &self.rotary, whole.view());
                y.slice_move(s![hidden[*stem].nrows().., ..])
            }
        });
        Ok(of.collect())
    }

    fn new_cache(&self, block: &Block) -> KvCacheLayer {
        KvCacheLayer::new(&block.spec().attention, self.rotary.positions())
    }

    fn decode_step(
        &self,
        blocks: &[Block],
        head: &ReferenceHead,
        caches: &mut [KvCacheLayer],
        embedding_row: &Array1<f32>,
        position: usize,
    ) -> Result<Array1<f64>> {
        let mut row = self.config.embedding_scale * embedding_row.mapv(f64::from);
        for (block, cache) in blocks.iter().zip(caches) {
            row = block_decode_step(block, &self.rotary, cache, row.view(), position);
        }
        let row = row.insert_axis(ndarray::Axis(0));
        let logits = llama::logits(&self.config, &head.norm, head.lm_head.view(), row.view());
        Ok(logits.row(0).to_owned())
    }
}
