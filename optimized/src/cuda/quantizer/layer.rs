use std::sync::{Arc, Mutex, PoisonError};

use aqlm_vocabulary::{
    AqlmError, FeedbackSettings, GroupOrder, Initialization, LayerSettings, Position, QuantizedMatrix,
    StreamKey, Update,
};
use ndarray::Array2;

use super::beam_search::search;
use super::codebook_update::{Stop, update_trial};
use super::em_init::Blocks;
use super::factor::Factor;
use super::feedback_init;
use super::machine::{Machine, Precision};
use super::outer::Outer;
use super::problem::{Problem, Trial};
use super::row_search::{self, Errors, Found};
use super::two_sided;
use crate::cpu::quantizer::validate;
use crate::cuda::error::check_lengths;
use crate::cuda::{Device, Result};

/// Bytes that a layer's alternation takes for each weight, at most, with H and its factor.
pub const BYTES_A_WEIGHT: usize = 128;

/// Layers at the same time, at most: as many as a block of seven has.
const MOST_BESIDE: usize = 8;

/// Quantizes layers on one GPU. Everything runs on the device's stream.
#[derive(Clone)]
pub struct Layers {
    machine: Arc<Machine>,
    /// machines of the same GPU with streams of their own
    beside: Arc<Mutex<Vec<Arc<Machine>>>>,
}

impl Layers {
    /// On this device.
    ///
    /// # Errors
    /// `Absent` when cuBLAS is missing or cannot start.
    pub fn new(device: Arc<Device>) -> Result<Self> {
        Ok(Self {
            machine: Arc::new(Machine::new(device)?),
            beside: Arc::default(),
        })
    }

    /// Up to one of these for each of `layers` layers of at most `weights` numbers, each with a stream of its
    /// own; as many as fit a half of the free memory, and none if that is not two.
    ///
    /// # Errors
    /// `Driver`, `Absent`.
    pub fn beside(&self, layers: usize, weights: usize) -> Result<Vec<Self>> {
        let device = self.machine.device();
        let fitting = device.free_bytes()? / 2 / (weights * BYTES_A_WEIGHT).max(1);
        let count = layers.min(fitting).min(MOST_BESIDE);
        if count < 2 {
            return Ok(Vec::new());
        }
        let mut beside = self.beside.lock().unwrap_or_else(PoisonError::into_inner);
        while beside.len() < count {
            beside.push(Arc::new(Machine::new(Arc::new(device.beside()?))?));
        }
        let alone = |machine: &Arc<Machine>| Self {
            machine: Arc::clone(machine),
            beside: Arc::default(),
        };
        Ok(beside[..count].iter().map(alone).collect())
    }

    /// The weight is [out_features, in_features], H [in_features, in_features] and symmetric.
    ///
    /// # Errors
    /// As [`cpu::quantizer::LayerProblem::new`](crate::cpu::quantizer::LayerProblem::new); `Driver` when
    /// device memory is too small.
    pub fn problem(
        &self,
        weight: &Array2<f32>,
        hessian: &Array2<f64>,
        settings: &LayerSettings,
    ) -> Result<LayerProblem> {
        self.machine.device().bind()?;
        LayerProblem::new(&self.machine, weight, hessian, settings)
    }

    /// A symmetric H_O, [out_features, out_features], on the device.
    ///
    /// # Errors
    /// `Driver` when device memory is too small.
    pub fn outer(&self, outer: &Array2<f64>) -> Result<Outer> {
        self.machine.device().bind()?;
        Outer::new(&self.machine, outer)
    }

    /// Takes over the errors, of `width` inputs, of the accepted ones among `rows`.
    ///
    /// # Errors
    /// `Driver`.
    pub fn accept(
        &self,
        width: usize,
        errors: &mut Errors,
        found: &Errors,
        rows: &[usize],
        accepted: &[usize],
    ) -> Result<()> {
        row_search::accept(&self.machine, width, errors, found, rows, accepted)
    }

    /// Waits until the device has done everything that was asked of it.
    ///
    /// # Errors
    /// `Driver`, also when a kernel has failed.
    pub fn wait(&self) -> Result<()> {
        self.machine.wait()
    }
}

/// A layer to be quantized, and the steps of its alternation (paper algorithm 1, lines 4 to 12), on the
/// device.
///
/// Every step optimises under H with `settings.damping` x mean(diag H) added to its diagonal.
/// [`LayerProblem::loss`] uses H without damping.
pub struct LayerProblem {
    machine: Arc<Machine>,
    /// under the damped H
    problem: Problem,
    /// damped H_jj of every input group, if the initialization needs them
    blocks: Option<Blocks>,
    /// the factor of the damped H in this order of groups, likewise
    factor: Option<(GroupOrder, Factor)>,
    /// the damping's addition to the diagonal
    ridge: f64,
    /// tr(W H W^T) under H without damping
    norm: f64,
    dead_inputs: usize,
}

impl LayerProblem {
    fn new(
        machine: &Arc<Machine>,
        weight: &Array2<f32>,
        hessian: &Array2<f64>,
        settings: &LayerSettings,
    ) -> Result<Self> {
        validate(weight, hessian, settings.damping)?;
        let ridge = settings.damping * hessian.diag().sum() / hessian.nrows().max(1) as f64;
        let mut damped = hessian.as_standard_layout().into_owned();
        damped.diag_mut().mapv_inplace(|x| x + ridge);
        let on_device = machine.upload_rows(&damped, "H in f64")?;
        let problem = Problem::with(machine, weight, &damped, &on_device)?;
        let gi = settings.scheme.in_group_size;
        let (mut blocks, mut factor) = (None, None);
        match settings.init {
            Initialization::Residual => {}
            Initialization::Em { .. } => {
                settings.scheme.groups(weight.nrows(), weight.ncols())?;
                blocks = Some(Blocks::new(machine, &damped, gi)?);
            }
            Initialization::Feedback(FeedbackSettings { order, .. }) => {
                settings.scheme.groups(weight.nrows(), weight.ncols())?;
                factor = Some((order, Factor::new(machine, &damped, &on_device, gi, order)?));
            }
        }
        // The contribution of the damping is known and is subtracted.
        let norm = problem.norm(machine)? - ridge * machine.inner(&problem.weight, &problem.weight)?;
        Ok(Self {
            machine: Arc::clone(machine),
            problem,
            blocks,
            factor,
            ridge,
            norm,
            dead_inputs: hessian.diag().iter().filter(|&&x| x == 0.0).count(),
        })
    }

    /// (out_features, in_features).
    pub fn shape(&self) -> (usize, usize) {
        (self.problem.rows, self.problem.width)
    }

    /// Number of inputs that the calibration data never excite: zeros on the diagonal of H.
    pub fn dead_inputs(&self) -> usize {
        self.dead_inputs
    }

    /// Initial codes and codebooks, with the random numbers of `key`.
    ///
    /// # Errors
    /// `NotDivisible`; `NotPositiveDefinite` when H is indefinite; `Unsupported` for more hypotheses than
    /// the device can hold.
    pub fn initialize(&self, settings: &LayerSettings, key: StreamKey) -> Result<Trial> {
        let (machine, problem) = (&*self.machine, &self.problem);
        let other = |init: &str| {
            AqlmError::argument("init", "the initialization with which the layer was made", init)
        };
        let first = match settings.init {
            Initialization::Residual => {
                machine.initialize(&problem.weight, self.shape(), settings, key, |_, _| Ok(()))?
            }
            Initialization::Em { rounds } => {
                let blocks = self.blocks.as_ref().ok_or_else(|| other("em"))?;
                machine.initialize(
                    &problem.weight,
                    self.shape(),
                    settings,
                    key,
                    |clusters, residuals| blocks.refine(machine, clusters, residuals, rounds),
                )?
            }
            Initialization::Feedback(feedback) => {
                let factor = match &self.factor {
                    Some((order, factor)) if *order == feedback.order => factor,
                    _ => return Err(other("feedback").into()),
                };
                return feedback_init::initialize(machine, problem, factor, settings, &feedback, key);
            }
        };
        Trial::new(machine, problem, first)
    }

    /// Some rows with a target of their own, [rows, in_features], under the same damped H, which is shared.
    ///
    /// # Errors
    /// `Length` when the rows have another number of inputs; `Driver` when device memory is too small.
    pub fn retargeted(&self, target: &Array2<f32>) -> Result<Self> {
        let machine = &self.machine;
        let problem = self.problem.retargeted(machine, target)?;
        let norm = problem.norm(machine)? - self.ridge * machine.inner(&problem.weight, &problem.weight)?;
        Ok(Self {
            machine: Arc::clone(machine),
            problem,
            blocks: None,
            factor: None,
            ridge: self.ridge,
            norm,
            dead_inputs: self.dead_inputs,
        })
    }

    /// D H under the damped H for D [rows, in_features], or H_O D H with an H_O [rows, rows] of
    /// [`Layers::outer`].
    ///
    /// # Errors
    /// `Length` when the rows have another number of inputs, or H_O does not fit them; `Driver`, `Library`.
    pub fn image(&self, outer: Option<&Outer>, dense: &Array2<f32>) -> Result<Array2<f32>> {
        let (rows, width) = dense.dim();
        check_lengths(&[("inputs of rows", self.problem.width, width)])?;
        let machine = &self.machine;
        let dense = machine.upload_rows(dense, "rows")?;
        let image = self.problem.image(machine, outer, &dense, Precision::Full)?;
        machine.download_rows(&image, rows, width)
    }

    /// Codebooks and scales updated for a matrix's codes under tr(H_O E H E^T), only as far as the
    /// alternation benefits. The loss does not rise.
    ///
    /// # Errors
    /// `Argument` for an update by Adam, `NotPositiveDefinite` when H is indefinite, `Shape` and `Length`
    /// when matrix or H_O do not fit.
    pub fn update_two_sided(
        &self,
        outer: &Outer,
        matrix: &QuantizedMatrix,
        update: &Update,
    ) -> Result<QuantizedMatrix> {
        self.problem.check(matrix)?;
        two_sided::update(&self.machine, &self.problem, outer, matrix, update)
    }

    /// tr(H_O E H E^T) of a quantized matrix, E = W - Q, under the damped H.
    ///
    /// # Errors
    /// `Shape` and `Length` when matrix or H_O do not fit; `Driver`, `Library`.
    pub fn loss_two_sided(&self, outer: &Outer, matrix: &QuantizedMatrix) -> Result<f64> {
        self.problem.check(matrix)?;
        let machine = &self.machine;
        Ok(Trial::under(
            machine,
            &self.problem,
            Some(outer),
            machine.upload_matrix(matrix)?,
        )?
        .loss)
    }

    /// E of a quantized matrix.
    ///
    /// # Errors
    /// `Shape` when its shape differs from the layer's.
    pub fn errors(&self, matrix: &QuantizedMatrix) -> Result<Errors> {
        self.problem.check(matrix)?;
        row_search::errors(&self.machine, &self.problem, matrix)
    }

    /// What `rows` of the matrix, whose errors are `errors`, find in one sweep over `order`, each as if it
    /// were the only one to move.
    ///
    /// # Errors
    /// As [`LayerProblem::search`]; `Length` when H_O does not fit.
    pub fn propose(
        &self,
        outer: &Outer,
        from: (&Errors, &QuantizedMatrix, &[usize]),
        order: &[Position],
        beam: usize,
    ) -> Result<Found> {
        row_search::propose(&self.machine, &self.problem, outer, from, order, beam)
    }

    /// A trial of a quantized matrix from any source.
    ///
    /// # Errors
    /// `Shape` when its shape differs from the layer's.
    pub fn trial(&self, matrix: &QuantizedMatrix) -> Result<Trial> {
        self.problem.check(matrix)?;
        Trial::new(&self.machine, &self.problem, self.machine.upload_matrix(matrix)?)
    }

    /// The trial with codebooks and scales updated for its codes, only as far as the alternation benefits.
    ///
    /// # Errors
    /// `NotPositiveDefinite` when H is indefinite, `NotFinite` when Adam's parameters overflow.
    pub fn update(&self, trial: Trial, update: &Update) -> Result<Trial> {
        update_trial(&self.machine, &self.problem, trial, update, Stop::ALTERNATION)
    }

    /// The trial with the codes found by one sweep of beam search over `order`.
    ///
    /// # Errors
    /// `Argument` for a beam of 0 or an order with positions outside the matrix.
    pub fn search(&self, trial: Trial, order: &[Position], beam: usize) -> Result<Trial> {
        let matrix = search(&self.machine, &self.problem, trial, order, beam)?;
        Trial::new(&self.machine, &self.problem, matrix)
    }

    /// The relative layer error, tr((W-Q) H (W-Q)^T) / tr(W H W^T) under H without damping; 0 when both are
    /// zero.
    pub fn loss(&self, trial: &Trial) -> f64 {
        let error = (trial.loss - self.ridge * trial.square).max(0.0);
        if error == 0.0 { 0.0 } else { error / self.norm }
    }

    /// The quantized matrix, copied to the host.
    ///
    /// # Errors
    /// `Driver`.
    pub fn matrix(&self, trial: &Trial) -> Result<QuantizedMatrix> {
        self.machine.download_matrix(&trial.matrix)
    }
}
