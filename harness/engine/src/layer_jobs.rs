//! Quantizes layers of a block, several at a time where the machine offers it.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::scope;

use aqlm_reference::{limit_db, rate_distortion_limit};
use aqlm_vocabulary::{
    BlockWeights, GradientSums, Initialization, LayerEvent, LayerId, LayerReport, LayerSettings,
    LinearWeight, QuantizedMatrix, StreamKey,
};

use crate::alternate::alternate;
use crate::ops::{BlockOps, LayerOps};
use crate::presets::{HessianKind, LayerObjective, QuantizeSettings};
use crate::runs::phases::{PhaseClock, PhaseSeconds};
use crate::runs::records::LayerSummary;
use crate::two_sided::alternate_two_sided;
use aqlm_formats::{Error, Result};

/// One layer to quantize.
pub(crate) struct Job<'a, M: BlockOps> {
    pub(crate) machine: &'a M,
    /// index of the block
    pub(crate) index: usize,
    pub(crate) block: &'a M::Block,
    /// for objectives that need them
    pub(crate) gradients: Option<&'a Gradients>,
    pub(crate) layer: LayerId,
    pub(crate) hessian: &'a M::Hessian,
    pub(crate) settings: &'a QuantizeSettings,
}

/// What happened to the job at this place.
pub(crate) enum JobEvent {
    /// a step of its alternation
    Step(usize, LayerEvent),
    /// it is done
    Done(usize, Box<Quantized>),
}

/// A layer after its alternation.
pub(crate) struct Quantized {
    matrix: QuantizedMatrix,
    report: LayerReport,
    /// of the matrix as it is stored
    relative_layer_error: f64,
    /// of this layer alone; other layers may have shared the machine
    pub(crate) phases: PhaseSeconds,
}

impl Quantized {
    /// The matrix and the layer's summary; `eigenvalues` are those of its H, if known, `own_tokens` those of
    /// an expert that has fewer than inputs.
    pub(crate) fn summarized(
        self,
        name: String,
        own_tokens: Option<usize>,
        eigenvalues: Option<&[f64]>,
    ) -> (QuantizedMatrix, LayerSummary) {
        let Self {
            matrix,
            report,
            relative_layer_error,
            phases,
        } = self;
        let bits = matrix.bits_per_parameter();
        let summary = LayerSummary {
            name,
            relative_layer_error,
            limit_db: eigenvalues.and_then(|eigenvalues| {
                let limit = rate_distortion_limit(eigenvalues, bits);
                let distance = limit_db(relative_layer_error, limit);
                distance.is_finite().then_some(distance)
            }),
            own_tokens,
            seconds: phases.total(),
            bits_per_parameter: bits,
            parameters: matrix.out_features() * matrix.in_features(),
            report,
        };
        (matrix, summary)
    }
}

/// Runs the jobs that are there. `observe` learns of every step and result, in the order in which they
/// happen; an error that it returns ends the run.
///
/// A layer's result depends on its job alone, so neither the number of workers nor the order changes a byte.
///
/// # Errors
/// `Layer` for a layer whose codebooks or scales f16 cannot hold. Errors of the machine and of `observe`. Of
/// several jobs that fail at once, the first one's.
pub(crate) fn run_jobs<M: BlockOps>(
    machine: &M,
    jobs: &[Option<Job<'_, M>>],
    observe: &mut dyn FnMut(JobEvent) -> Result<()>,
) -> Result<()> {
    let weights = |&place: &usize| jobs[place].as_ref().map_or(0, Job::weights);
    let mut waiting: Vec<usize> = (0..jobs.len()).filter(|&place| jobs[place].is_some()).collect();
    let largest = waiting.iter().map(weights).max().unwrap_or(0);
    let workers = machine.workers(waiting.len(), largest)?;
    if workers.len() < 2 {
        for place in waiting {
            let Some(job) = &jobs[place] else { continue };
            let mut events = Ok(());
            let done = job.quantize(machine.layers(), &mut |event| {
                if events.is_ok() {
                    events = observe(JobEvent::Step(place, event));
                }
            })?;
            events?;
            observe(JobEvent::Done(place, Box::new(done)))?;
        }
        return Ok(());
    }
    // The largest last: they are taken from the end, and the small ones fill the gaps at the end.
    waiting.sort_by_key(weights);
    let waiting = Mutex::new(waiting);
    let mut failed: Option<(usize, Error)> = None;
    scope(|scope| {
        let (sender, events) = channel();
        for layers in &workers {
            let sender = sender.clone();
            let waiting = &waiting;
            scope.spawn(move || work(layers, jobs, waiting, &sender));
        }
        drop(sender);
        for (place, event) in events {
            let result = event.and_then(&mut *observe);
            if let Err(error) = result {
                // The others finish the layer at hand and take no more.
                waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
                if failed.as_ref().is_none_or(|(first, _)| place < *first) {
                    failed = Some((place, error));
                }
            }
        }
    });
    failed.map_or(Ok(()), |(_, error)| Err(error))
}

/// Takes jobs until none is left.
fn work<M: BlockOps>(
    layers: &M::Layers,
    jobs: &[Option<Job<'_, M>>],
    waiting: &Mutex<Vec<usize>>,
    events: &Sender<(usize, Result<JobEvent>)>,
) {
    loop {
        let place = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let Some(place) = place else { return };
        let Some(job) = &jobs[place] else { continue };
        // The receiver lives until all workers have ended.
        let tell = |event| events.send((place, event)).expect("someone listens");
        let done = job.quantize(layers, &mut |event| tell(Ok(JobEvent::Step(place, event))));
        tell(done.map(|done| JobEvent::Done(place, Box::new(done))));
    }
}

impl<M: BlockOps> Job<'_, M> {
    fn weights(&self) -> usize {
        let (rows, columns) = self.machine.config().blocks[self.index].linear(self.layer).shape;
        rows * columns
    }

    fn quantize(&self, layers: &M::Layers, observe: &mut dyn FnMut(LayerEvent)) -> Result<Quantized> {
        let key = StreamKey {
            seed: self.settings.seed,
            block: self.index,
            layer: Some(self.layer),
        };
        let mut clock = PhaseClock::start();
        let mut on_event = |event| {
            clock.book(|phases| match event {
                LayerEvent::Initialized { .. } => &mut phases.initialisation,
                LayerEvent::Updated { .. } => &mut phases.codebook_update,
                LayerEvent::Searched { .. } => &mut phases.beam_search,
            });
            observe(event);
        };
        let settings = &self.settings.layer;
        let problem_of = |settings: &LayerSettings| {
            let (block, layer, hessian) = (self.block, self.layer, self.hessian);
            self.machine
                .layer_problem(layers, block, layer, hessian, settings)
        };
        let (matrix, report, problem) = match self.gradients {
            None => {
                let problem = problem_of(settings)?;
                let (matrix, report) = alternate(layers, &problem, settings, key, &mut on_event)?;
                (matrix, report, problem)
            }
            Some(gradients) => {
                let of = (self.layer, self.hessian);
                let (matrix, report) =
                    gradients.quantize(self.machine, layers, of, self.settings, key, &mut on_event)?;
                // Only its loss is wanted, which needs no factor of H.
                let plain = LayerSettings {
                    init: Initialization::Residual,
                    ..settings.clone()
                };
                (matrix, report, problem_of(&plain)?)
            }
        };
        let stored = matrix.rounded_to_f16().map_err(|source| Error::Layer {
            layer: self.machine.config().layer_name(self.index, self.layer),
            source,
        })?;
        let stored = layers.trial(&problem, stored)?;
        let relative_layer_error = layers.loss(&problem, &stored);
        drop((stored, problem));
        clock.book(|phases| &mut phases.rest);
        Ok(Quantized {
            matrix,
            report,
            relative_layer_error,
            phases: clock.seconds(),
        })
    }
}

/// The dense weights of a block and the means of their gradients, in the order of its spec.
pub(crate) struct Gradients {
    pub(crate) weights: BlockWeights,
    pub(crate) means: Vec<GradientSums>,
}

impl Gradients {
    /// Quantizes one layer by an objective that knows the gradients. `hessian` is the plain H.
    fn quantize<M: BlockOps>(
        &self,
        machine: &M,
        layers: &M::Layers,
        (layer, hessian): (LayerId, &M::Hessian),
        settings: &QuantizeSettings,
        key: StreamKey,
        observe: &mut dyn FnMut(LayerEvent),
    ) -> Result<(QuantizedMatrix, LayerReport)> {
        let LinearWeight::Dense(weight) = &self.weights.layer(layer).weight else {
            return Err(Error::Internal("a layer with gradients that is not dense".into()));
        };
        let GradientSums { outer, inner } = &self.means[layer.index()];
        let plain;
        let hessian = match settings.hessian {
            HessianKind::Plain => {
                plain = machine.mean(hessian)?;
                &plain
            }
            HessianKind::Sketched => inner,
        };
        let (settings, objective) = (&settings.layer, settings.objective);
        let problem = layers.problem(weight, hessian, settings)?;
        match objective {
            LayerObjective::OneSided => alternate(layers, &problem, settings, key, observe),
            LayerObjective::TwoSided => {
                alternate_two_sided(layers, &problem, (weight, hessian, outer), settings, key, observe)
            }
        }
    }
}
