use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use aqlm_optimized::cpu::llama::Wanted;
use aqlm_optimized::cuda::quantizer::LayerProblem;
use aqlm_optimized::cuda::training::{
    Block, BlockGradient, BlockTuner, Decoded, Head, Hessian, Machine, ModelTuner, Precision, TeacherMemory,
    Trace, TuningMemory, parts, working_bytes,
};
use aqlm_optimized::cuda::{Buffer, Device};
use aqlm_vocabulary::{
    AdamDecay, AqlmError, ArchSpec, BlockWeights, ComparedPosition, LayerId, LayerSettings, ModelTuning,
    ModelWeights, QuantizedMatrix, Tuned,
};
use ndarray::{Array1, Array2};

use super::super::hidden_states::Bound;
use super::super::{BackendKind, CalibrationPrecision, Memory, TrainingPrecision};
use super::hidden::{CudaHidden, on_device};
use super::layers::CudaLayers;
use crate::ops::{
    BlockOps, DenseStates, GradientSums, LayerOps, ResidentTeacher, Squares, TrainOps, check_labels,
};
use crate::spectrum::Spectrum;
use aqlm_formats::Result;

/// Quantizes and trains on a GPU: products through cuBLAS, everything between them in f32, parameters in f64.
pub struct CudaMachine {
    machine: Arc<Machine>,
    layers: CudaLayers,
    /// device memory that hidden states leave free
    reserve: usize,
    /// memory bound for the hidden states that do not fit on the device
    bound: Option<Arc<Bound>>,
    /// of hidden states between blocks
    activations: CalibrationPrecision,
}

impl CudaMachine {
    /// Opens GPU number `device`, for sequences of at most `positions` tokens, with these precisions of
    /// calibration and of products of training. Where the process sees a single GPU, because a launcher has
    /// chosen for it, that is the one.
    ///
    /// # Errors
    /// `Unsupported` when heads are too wide for the device; `Device`, with a message that names what is
    /// missing.
    pub fn new(
        config: &ArchSpec,
        positions: usize,
        device: usize,
        precision: TrainingPrecision,
        activations: CalibrationPrecision,
    ) -> Result<Self> {
        let device = if Device::count() == 1 { 0 } else { device };
        let device = on_device(Device::open(device, None))?;
        let precision = match precision {
            TrainingPrecision::F32 => Precision::Single,
            TrainingPrecision::Mixed => Precision::Mixed,
            TrainingPrecision::Tf32 => Precision::Tf32,
            TrainingPrecision::Bf16 => Precision::Bf16,
        };
        Self::calibrating(Arc::new(device), config, positions, precision, activations)
    }

    /// On an open device, with products of this precision in training.
    ///
    /// # Errors
    /// As [`CudaMachine::new`].
    pub fn on(
        device: Arc<Device>,
        config: &ArchSpec,
        positions: usize,
        precision: Precision,
    ) -> Result<Self> {
        Self::calibrating(device, config, positions, precision, CalibrationPrecision::F32)
    }

    /// On an open device, with these precisions of products of training and of calibration.
    ///
    /// # Errors
    /// As [`CudaMachine::new`].
    pub fn calibrating(
        device: Arc<Device>,
        config: &ArchSpec,
        positions: usize,
        precision: Precision,
        activations: CalibrationPrecision,
    ) -> Result<Self> {
        let layers = CudaLayers::new(Arc::clone(&device))?;
        let machine = on_device(Machine::new(device, config, positions, precision))?;
        let calibration = match activations {
            CalibrationPrecision::F32 => Precision::Single,
            CalibrationPrecision::Bf16 => Precision::Bf16,
        };
        Ok(Self {
            machine: Arc::new(machine.calibrating(calibration)),
            layers,
            reserve: working_bytes(config, usize::MAX, positions),
            bound: None,
            activations,
        })
    }

    /// The GPU and its kernels.
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// # Errors
    /// `Shape` when the hidden states belong to another model, or are longer than the rotary tables.
    fn check(&self, hidden: &CudaHidden) -> Result<()> {
        let longest = hidden.lengths().iter().copied().max().unwrap_or(0);
        let expected = [
            longest.min(self.machine.positions()),
            self.machine.arch().hidden_size,
        ];
        let found = [longest, hidden.width()];
        expect("hidden states", &expected, &found)
    }

    /// The parts in which these sequences pass through a block, as indices from `first` on.
    fn parts_from(first: usize, lengths: &[usize]) -> impl Iterator<Item = Vec<usize>> + use<> {
        let shift = move |part: Range<usize>| part.map(|index| first + index).collect();
        parts(lengths).into_iter().map(shift)
    }

    fn room(&self, lengths: &[usize], width: usize) -> Result<CudaHidden> {
        let bound = self.bound.as_ref();
        CudaHidden::new(
            &self.machine,
            lengths,
            width,
            self.activations,
            self.reserve,
            bound,
        )
    }

    /// A part of the hidden states behind the block, and what the block computed on the way.
    fn passed(
        &self,
        block: &Block,
        weights: &Decoded,
        hidden: &CudaHidden,
        part: &[usize],
    ) -> Result<(Buffer<f32>, Trace)> {
        let x = hidden.read(&self.machine, part)?;
        let tokens = hidden.lengths()[part[0]];
        let precision = self.machine.calibration();
        on_device(self.machine.forward(precision, block, weights, x, tokens))
    }

    /// For each of the sequences of `tokens` rows the sums of (a - b)^2 and of b^2.
    fn squares_of(
        &self,
        a: &Buffer<f32>,
        b: &Buffer<f32>,
        width: usize,
        tokens: usize,
    ) -> Result<Vec<Squares>> {
        let tokens = tokens.max(1);
        let (differences, norms) = on_device(self.machine.row_squares(a, b, width))?;
        let pairs = differences.chunks(tokens).zip(norms.chunks(tokens));
        let sums = pairs.map(|(differences, norms)| (differences.iter().sum(), norms.iter().sum()));
        Ok(sums.collect())
    }

    /// A part of tuning: its input and target rows, and the length of its sequences.
    fn pair(
        &self,
        inputs: &CudaHidden,
        targets: &CudaHidden,
        part: &[usize],
    ) -> Result<(Buffer<f32>, Buffer<f32>, usize)> {
        Ok((
            inputs.read(&self.machine, part)?,
            targets.read(&self.machine, part)?,
            inputs.lengths()[part[0]],
        ))
    }

    /// The parts of these sequences, if inputs and targets match.
    fn parts_of<'a>(
        &self,
        inputs: &CudaHidden,
        targets: &CudaHidden,
        sequences: &'a [usize],
    ) -> Result<Vec<&'a [usize]>> {
        self.check(inputs)?;
        self.check(targets)?;
        expect("fine-tuning targets", inputs.lengths(), targets.lengths())?;
        let lengths: Vec<usize> = sequences
            .iter()
            .map(|&sequence| inputs.lengths()[sequence])
            .collect();
        Ok(parts(&lengths).into_iter().map(|part| &sequences[part]).collect())
    }
}

fn expect(what: &str, expected: &[usize], found: &[usize]) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(AqlmError::Shape {
        what: what.into(),
        expected: expected.to_vec(),
        found: found.to_vec(),
    }
    .into())
}

impl BlockOps for CudaMachine {
    type Layers = CudaLayers;
    type Hidden = CudaHidden;
    type Block = Block;
    type Hessian = Hessian;
    type Head = Head;

    fn kind(&self) -> BackendKind {
        BackendKind::Cuda
    }

    fn device(&self) -> String {
        let name = self.machine.device().name();
        let name = name.unwrap_or_else(|error| format!("a GPU without a name ({error})"));
        let training = match self.machine.precision() {
            Precision::Single => "f32",
            Precision::Mixed => "f32, products of gradients in tf32",
            Precision::Tf32 => "f32, products of training in tf32",
            Precision::Bf16 => "f32, products of training in bf16",
        };
        match self.activations {
            CalibrationPrecision::F32 => format!("{name}, {training}"),
            CalibrationPrecision::Bf16 => format!("{name}, {training}, activations in bf16"),
        }
    }

    fn free_memory(&self) -> Result<Option<usize>> {
        Ok(Some(on_device(self.machine.device().free_bytes())?))
    }

    fn config(&self) -> &ArchSpec {
        self.machine.arch()
    }

    fn layers(&self) -> &CudaLayers {
        &self.layers
    }

    /// Hidden states are on the device while they fit there. The bound is for the others.
    fn bound_memory(&mut self, memory: Memory, spill: &Path, sequences: usize) -> Result<()> {
        self.reserve = working_bytes(self.config(), sequences, self.machine.positions());
        self.bound = Some(Bound::new(memory.bytes(), spill.to_path_buf()));
        Ok(())
    }

    fn embed(&self, embedding: &Array2<f32>, sequences: &[&[u32]]) -> Result<CudaHidden> {
        let lengths: Vec<usize> = sequences.iter().map(|tokens| tokens.len()).collect();
        let width = embedding.ncols();
        let table = on_device(self.machine.table(embedding, "the embedding"))?;
        let mut hidden = self.room(&lengths, width)?;
        for part in parts(&lengths) {
            let tokens: Vec<u32> = sequences[part.clone()].concat();
            let rows = on_device(self.machine.embed(&table, width, &tokens))?;
            hidden.write(&self.machine, part.start, &rows)?;
        }
        Ok(hidden)
    }

    fn lengths(&self, hidden: &CudaHidden) -> Vec<usize> {
        hidden.lengths().to_vec()
    }

    fn parts(&self, lengths: &[usize]) -> Vec<Range<usize>> {
        parts(lengths)
    }

    fn load_block(&self, index: usize, weights: &BlockWeights) -> Result<Block> {
        on_device(Block::new(&self.machine, &self.config().blocks[index], weights))
    }

    fn store_block(&self, block: &Block) -> Result<BlockWeights> {
        on_device(block.to_weights(&self.machine))
    }

    fn set_layer(&self, block: &mut Block, layer: LayerId, matrix: QuantizedMatrix) -> Result<()> {
        on_device(block.set_layer(&self.machine, layer, &matrix))
    }

    fn room_like(&self, hidden: &CudaHidden) -> Result<CudaHidden> {
        self.room(hidden.lengths(), hidden.width())
    }

    fn forward_into(
        &self,
        block: &Block,
        hidden: &CudaHidden,
        sequences: Range<usize>,
        outputs: &mut CudaHidden,
    ) -> Result<()> {
        self.check(hidden)?;
        let weights = on_device(block.decoded(&self.machine))?;
        for part in Self::parts_from(sequences.start, &hidden.lengths()[sequences]) {
            let y = self.passed(block, &weights, hidden, &part)?.0;
            outputs.write(&self.machine, part[0], &y)?;
        }
        Ok(())
    }

    /// Part by part, so that no third array of hidden states exists.
    fn forward_over(
        &self,
        block: &Block,
        hidden: &CudaHidden,
        mut targets: CudaHidden,
    ) -> Result<(CudaHidden, Vec<Squares>)> {
        self.check(hidden)?;
        expect("hidden states", targets.lengths(), hidden.lengths())?;
        let weights = on_device(block.decoded(&self.machine))?;
        let mut all = Vec::with_capacity(hidden.lengths().len());
        for part in Self::parts_from(0, hidden.lengths()) {
            let y = self.passed(block, &weights, hidden, &part)?.0;
            let target = targets.read(&self.machine, &part)?;
            targets.write(&self.machine, part[0], &y)?;
            let stored = targets.read(&self.machine, &part)?;
            all.extend(self.squares_of(&stored, &target, hidden.width(), hidden.lengths()[part[0]])?);
        }
        Ok((targets, all))
    }

    fn rounded_to_bf16(&self, mut hidden: CudaHidden) -> Result<CudaHidden> {
        for part in Self::parts_from(0, hidden.lengths()) {
            let mut rows = hidden.read(&self.machine, &part)?;
            on_device(self.machine.round_to_bf16(&mut rows))?;
            hidden.write(&self.machine, part[0], &rows)?;
        }
        Ok(hidden)
    }

    fn hessian(&self, block: &Block, layer: LayerId) -> Hessian {
        Hessian::new(&self.machine, block.spec().shape(layer).1)
    }

    fn add_to_hessians(
        &self,
        block: &Block,
        hidden: &CudaHidden,
        sequences: Range<usize>,
        layers: &[LayerId],
        hessians: &mut [Hessian],
        mut outputs: Option<&mut CudaHidden>,
    ) -> Result<()> {
        self.check(hidden)?;
        let weights = on_device(block.decoded(&self.machine))?;
        for part in Self::parts_from(sequences.start, &hidden.lengths()[sequences]) {
            let (y, trace) = self.passed(block, &weights, hidden, &part)?;
            if let Some(outputs) = &mut outputs {
                outputs.write(&self.machine, part[0], &y)?;
            }
            drop(y);
            for (hessian, &layer) in hessians.iter_mut().zip(layers) {
                on_device(hessian.add_rows(&trace.input(block.spec().linear(layer).reads)))?;
            }
        }
        Ok(())
    }

    fn workers(&self, layers: usize, weights: usize) -> Result<Vec<CudaLayers>> {
        self.layers.beside(layers, weights)
    }

    fn samples(&self, hessian: &Hessian) -> usize {
        hessian.samples()
    }

    fn add_mean_of(&self, hessian: &mut Hessian, pool: &Hessian, samples: usize) -> Result<()> {
        on_device(hessian.add_mean_of(pool, samples))
    }

    fn layer_problem(
        &self,
        layers: &CudaLayers,
        block: &Block,
        layer: LayerId,
        hessian: &Hessian,
        settings: &LayerSettings,
    ) -> Result<LayerProblem> {
        let weight = on_device(block.weight_on_host(&self.machine, layer))?;
        layers.problem(&weight, &on_device(hessian.mean())?, settings)
    }

    fn mean(&self, hessian: &Hessian) -> Result<Array2<f64>> {
        on_device(hessian.mean())
    }

    fn spectrum(&self, hessian: &Hessian) -> Result<Spectrum> {
        Ok(Spectrum::of(on_device(hessian.mean())?))
    }

    fn squares(&self, a: &CudaHidden, b: &CudaHidden) -> Result<Vec<Squares>> {
        expect("hidden states", b.lengths(), a.lengths())?;
        expect("width of hidden states", &[b.width()], &[a.width()])?;
        let mut all = Vec::with_capacity(b.lengths().len());
        for part in Self::parts_from(0, b.lengths()) {
            let rows = a.read(&self.machine, &part)?;
            let targets = b.read(&self.machine, &part)?;
            all.extend(self.squares_of(&rows, &targets, b.width(), b.lengths()[part[0]])?);
        }
        Ok(all)
    }

    fn largest(&self, hidden: &CudaHidden) -> Result<f64> {
        let mut largest = 0.0_f32;
        for part in Self::parts_from(0, hidden.lengths()) {
            let rows = hidden.read(&self.machine, &part)?;
            largest = largest.max(on_device(self.machine.largest(&rows, hidden.width()))?);
        }
        Ok(f64::from(largest))
    }

    fn load_head(&self, norm: &Array1<f32>, lm_head: &Array2<f32>) -> Result<Head> {
        on_device(Head::new(&self.machine, norm, lm_head))
    }

    fn head_input(&self, head: &Head, hidden: &CudaHidden, sequence: usize) -> Result<Array2<f32>> {
        let x = hidden.read(&self.machine, &[sequence])?;
        on_device(head.normed(&self.machine, &x))
    }

    fn logits(&self, head: &Head, hidden: &CudaHidden, sequence: usize) -> Result<Array2<f64>> {
        self.check(hidden)?;
        let x = hidden.read(&self.machine, &[sequence])?;
        Ok(on_device(head.logits(&self.machine, &x))?.mapv(f64::from))
    }

    fn token_losses(
        &self,
        head: &Head,
        hidden: &CudaHidden,
        sequences: &[&[u32]],
    ) -> Result<Vec<Array1<f64>>> {
        self.check(hidden)?;
        expect("targets", &[hidden.lengths().len()], &[sequences.len()])?;
        let mut all = Vec::with_capacity(sequences.len());
        for part in Self::parts_from(0, hidden.lengths()) {
            let x = hidden.read(&self.machine, &part)?;
            let tokens = hidden.lengths()[part[0]];
            // Each row's target is the token after it. The last row of a sequence has none: its own token
            // stands in, and the loss is dropped.
            let mut targets = Vec::with_capacity(part.len() * tokens);
            for &sequence in &part {
                let own = sequences[sequence];
                expect("tokens of a sequence", &[tokens.max(1)], &[own.len()])?;
                targets.extend_from_slice(&own[1..]);
                targets.push(own[own.len() - 1]);
            }
            let losses = on_device(head.losses(&self.machine, &x, &targets))?;
            all.extend(
                losses
                    .chunks(tokens)
                    .map(|losses| Array1::from(losses[..tokens - 1].to_vec())),
            );
        }
        Ok(all)
    }

    fn for_shape(&self, config: &ArchSpec, positions: usize) -> Result<Self> {
        let device = Arc::clone(self.machine.device());
        let precision = self.machine.precision();
        Self::calibrating(device, config, positions, precision, self.activations)
    }

    fn compare(
        &self,
        (head, hidden): (&Head, &CudaHidden),
        dense: &DenseStates<'_, Self>,
        sequence: usize,
        first: usize,
        tokens: &[u32],
    ) -> Result<Vec<ComparedPosition>> {
        self.check(hidden)?;
        dense.machine.check(dense.hidden)?;
        let x = hidden.read(&self.machine, &[sequence])?;
        let dense_x = dense.hidden.read(&dense.machine.machine, &[sequence])?;
        let of_dense: (&Machine, _) = (&dense.machine.machine, &dense_x);
        let compared = head.compare((&self.machine, &x), dense.head, of_dense, first, tokens);
        on_device(compared)
    }
}

impl TrainOps for CudaMachine {
    type BlockTuner = BlockTuner;
    type ModelTuner = ModelTuner;

    fn block_tuner(&self, block: &Block, tuned: Tuned, decay: AdamDecay) -> BlockTuner {
        BlockTuner::new(&self.machine, block, tuned, decay)
    }

    fn block_losses(
        &self,
        tuner: &BlockTuner,
        inputs: &CudaHidden,
        targets: &CudaHidden,
        sequences: &[usize],
    ) -> Result<Vec<f64>> {
        let mut losses = Vec::with_capacity(sequences.len());
        for part in self.parts_of(inputs, targets, sequences)? {
            let (x, goals, tokens) = self.pair(inputs, targets, part)?;
            losses.extend(on_device(tuner.losses(x, &goals, tokens))?);
        }
        Ok(losses)
    }

    fn block_accumulate(
        &self,
        tuner: &mut BlockTuner,
        inputs: &CudaHidden,
        targets: &CudaHidden,
        sequences: &[usize],
        scale: f64,
    ) -> Result<Vec<f64>> {
        let mut losses = Vec::with_capacity(sequences.len());
        for part in self.parts_of(inputs, targets, sequences)? {
            let (x, goals, tokens) = self.pair(inputs, targets, part)?;
            losses.extend(on_device(tuner.accumulate(x, &goals, tokens, scale))?);
        }
        Ok(losses)
    }

    fn label_gradients(&self, head: &Head, hidden: &CudaHidden, labels: &[Vec<u32>]) -> Result<CudaHidden> {
        self.check(hidden)?;
        let lengths = hidden.lengths();
        check_labels(lengths, labels)?;
        let mut gradients = self.room(lengths, hidden.width())?;
        for (sequence, labels) in labels.iter().enumerate() {
            let x = hidden.read(&self.machine, &[sequence])?;
            let gradient = on_device(head.label_gradient(&self.machine, &x, labels))?;
            gradients.write(&self.machine, sequence, &gradient)?;
        }
        Ok(gradients)
    }

    fn block_sketch(
        &self,
        block: &Block,
        inputs: &CudaHidden,
        gradients: &[CudaHidden],
    ) -> Result<(Vec<CudaHidden>, Vec<GradientSums>)> {
        self.check(inputs)?;
        let (machine, lengths, spec) = (&self.machine, inputs.lengths(), block.spec());
        let new = |_| self.room(lengths, inputs.width());
        let mut results = (0..gradients.len()).map(new).collect::<Result<Vec<_>>>()?;
        let mut sums: Vec<[Hessian; 2]> = spec
            .layers()
            .map(|layer| {
                let (out, inputs) = spec.shape(layer);
                [Hessian::new(machine, out), Hessian::new(machine, inputs)]
            })
            .collect();
        let wanted = Wanted {
            biases: false,
            norms: false,
            ..Wanted::all(spec)
        };
        let weights = on_device(block.decoded(machine))?;
        for (sequence, &tokens) in lengths.iter().enumerate() {
            let x = inputs.read(machine, &[sequence])?;
            let passed = machine.forward(Precision::Single, block, &weights, x, tokens);
            let (_, trace) = on_device(passed)?;
            for (gradients, results) in gradients.iter().zip(&mut results) {
                let grad = gradients.read(machine, &[sequence])?;
                let mut sink = |gradient: BlockGradient| {
                    if let BlockGradient::Weight(layer, weight) = gradient {
                        let [outer, inner] = &mut sums[layer.index()];
                        outer.add_gradient(&weight, true)?;
                        inner.add_gradient(&weight, false)?;
                    }
                    Ok(())
                };
                let back = machine.backward(
                    Precision::Single,
                    block,
                    &weights,
                    &trace,
                    grad,
                    &wanted,
                    &mut sink,
                );
                if let Some(back) = on_device(back)? {
                    results.write(machine, sequence, &back)?;
                }
            }
        }
        let host = |[outer, inner]: [Hessian; 2]| {
            Ok(GradientSums {
                outer: on_device(outer.mean())? * outer.samples() as f64,
                inner: on_device(inner.mean())? * inner.samples() as f64,
            })
        };
        Ok((results, sums.into_iter().map(host).collect::<Result<_>>()?))
    }

    /// Activations are kept on the device if they fit there, else computed anew. The bound is for the hidden
    /// states of a teacher that do not fit on the device.
    fn bound_tuning_memory(&mut self, memory: Memory, spill: &Path, batch: usize) -> Result<()> {
        self.bound_memory(memory, spill, batch)
    }

    fn check_tuning(&self, tuning: &ModelTuning) -> Result<()> {
        on_device(self.machine.check_tuning(tuning))
    }

    fn tuning_memory(
        &self,
        weights: &dyn Fn() -> Result<ModelWeights>,
        tuning: &ModelTuning,
        teacher: ResidentTeacher,
        batch: usize,
    ) -> Result<Option<String>> {
        let teacher = match teacher {
            ResidentTeacher::Nothing => TeacherMemory::Nothing,
            ResidentTeacher::Head => TeacherMemory::Head,
            ResidentTeacher::Whole => TeacherMemory::Whole,
        };
        let weights = weights()?;
        on_device(self.machine.check_codes(&weights, tuning))?;
        let shape = [batch, self.machine.positions()];
        let memory = TuningMemory::of(self.config(), &weights, tuning, teacher, shape);
        let free = on_device(self.machine.check_memory(&memory))?;
        let gib = free as f64 / f64::from(1 << 30);
        Ok(Some(format!(
            "device memory: {memory} of {gib:.2} GiB that are free"
        )))
    }

    fn model_tuner(&self, weights: &ModelWeights, tuning: &ModelTuning) -> Result<ModelTuner> {
        on_device(ModelTuner::new(&self.machine, weights, tuning))
    }
}
