use std::ops::Range;
use std::time::Instant;

use aqlm_reference::{limit_db, rate_distortion_limit};
use aqlm_vocabulary::{AqlmError, BlockSpec, FinetuneEvent, LayerEvent, LayerId, StreamKey};

use crate::alternate::alternate;
use crate::gauge::{Gauge, storable};
use crate::ops::{Alone, BlockOps, LayerOps, PartSums, Ranks, TrainOps, joined};
use crate::runs::block_journal::{Journal, JournalEntry};
use crate::runs::phases::{PhaseClock, PhaseSeconds};
use crate::runs::records::{BlockReport, LARGEST_SPECTRUM, LayerSummary, QuantizeReport};
use crate::runs::{MetricEvent, RunFolder};
use crate::spectrum::Spectrum;
use crate::{QuantizeSettings, tune_block};
use aqlm_formats::durable;
use aqlm_formats::model::{Model, block_file};
use aqlm_formats::{Error, Result};

/// Progress of the pipeline, for an observer.
#[derive(Debug)]
pub enum PipelineEvent<'a> {
    /// a block of an earlier attempt was reused from the run folder
    BlockResumed(&'a BlockReport),
    /// a block in the run folder does not match the journal's checksum; that block and all later ones are
    /// quantized again
    BlockDamaged {
        /// index of the block
        block: usize,
        /// file and what is wrong with it
        reason: String,
    },
    /// a block begins
    BlockStarted {
        /// index of the block
        block: usize,
    },
    /// something happened inside a layer
    Layer {
        /// index of the block
        block: usize,
        /// which layer, `q_proj` for example
        layer: &'a str,
        /// the event
        event: LayerEvent,
    },
    /// a layer is done
    LayerDone(&'a LayerSummary),
    /// something happened in fine-tuning
    Finetune {
        /// index of the block
        block: usize,
        /// the event
        event: FinetuneEvent,
    },
    /// a block is done, stored and in the journal
    BlockDone(&'a BlockReport),
}

/// Quantizes every block of a model into `folder` and leaves the finished blocks there; the caller writes the
/// checkpoint from them.
///
/// Blocks are quantized in order. A block's inputs come from the already quantized prefix; its targets are
/// the unquantized block's outputs on the same inputs. Each finished block is rounded to the checkpoint's
/// precision, stored, and read back before it feeds the next one. A resumed run therefore sees exactly the
/// same numbers as an uninterrupted one.
///
/// Models that differ only by powers of two between norms and the layers behind them, or between layers that
/// follow one another, end with the same codes.
///
/// `calibration` holds settings.sequences sequences of settings.seqlen tokens.
///
/// # Errors
/// `Layer` naming a row whose scale f16 cannot hold, before the first block. Errors of the machine,
/// unreadable tensors of the model, a run folder that can't be written.
pub fn quantize<M: TrainOps>(
    machine: &M,
    model: &Model,
    calibration: &[&[u32]],
    settings: &QuantizeSettings,
    folder: &RunFolder,
    observe: &mut dyn FnMut(PipelineEvent<'_>),
) -> Result<QuantizeReport> {
    let blocks = folder.path().join("blocks");
    std::fs::create_dir_all(&blocks).map_err(Error::io(&blocks, "make"))?;
    let mut journal = Journal::open(folder.path())?;
    let out_group_size = settings.layer.scheme.out_group_size;
    let mut gauges = Vec::new();
    for (index, spec) in model.config().blocks.iter().enumerate() {
        let weights = model.block(index)?;
        let gauge = Gauge::of(spec, &weights);
        storable(model.config(), index, &gauge.apply(weights)?, out_group_size)?;
        gauges.push(gauge);
    }
    let mut hidden = machine.embed(&model.embedding()?, calibration)?;
    let mut largest = machine.largest(&hidden)?;
    let mut reports: Vec<BlockReport> = Vec::new();
    let parameters = |block: &BlockSpec| block.parameters() as u64;
    folder.metric(MetricEvent::Start {
        parameters: model.config().blocks.iter().map(parameters).collect(),
        finetune: settings.finetune.epochs > 0,
    })?;

    for (index, spec) in model.config().blocks.iter().enumerate() {
        if let Some(entry) = journal.entries().get(index).cloned() {
            match check_finished(folder, &entry) {
                Ok(()) => {
                    let weights = block_file::read(&folder.block_path(index), spec)?;
                    let block = machine.load_block(index, &weights)?;
                    hidden = machine.block_forward(&block, &hidden)?;
                    largest = largest.max(machine.largest(&hidden)?);
                    folder.metric(MetricEvent::Resumed { block: index })?;
                    observe(PipelineEvent::BlockResumed(&entry.report));
                    reports.push(entry.report);
                    continue;
                }
                Err(reason) => {
                    observe(PipelineEvent::BlockDamaged { block: index, reason });
                    journal.truncate(index)?;
                }
            }
        }
        observe(PipelineEvent::BlockStarted { block: index });
        let (report, phases, next) = quantize_block(
            machine,
            model,
            index,
            &gauges[index],
            &hidden,
            settings,
            folder,
            &mut journal,
            observe,
        )?;
        hidden = next;
        largest = largest.max(machine.largest(&hidden)?);
        folder.metric(MetricEvent::Block {
            report: report.clone(),
            phases: Some(phases),
        })?;
        observe(PipelineEvent::BlockDone(&report));
        reports.push(report);
    }

    let layers = || reports.iter().flat_map(|block| &block.layers);
    let parameters: usize = layers().map(|layer| layer.parameters).sum();
    let bits: f64 = layers()
        .map(|layer| layer.bits_per_parameter * layer.parameters as f64)
        .sum();
    Ok(QuantizeReport {
        scheme: settings.layer.scheme,
        bits_per_parameter: bits / parameters as f64,
        limit_db: layers()
            .map(|layer| Some(layer.limit_db? * layer.parameters as f64 / parameters as f64))
            .sum(),
        seconds: reports.iter().map(|block| block.seconds).sum(),
        blocks: reports,
        largest_hidden_state: largest,
    })
}

/// H of the inputs of each of `layers`, over the given sequences only, all from one pass through the block.
///
/// # Errors
/// Errors of the machine.
pub fn hessians<M: BlockOps>(
    machine: &M,
    block: &M::Block,
    hidden: &M::Hidden,
    sequences: Range<usize>,
    layers: &[LayerId],
    ranks: &impl Ranks,
) -> Result<Vec<M::Hessian>> {
    let mut hessians = Sums(
        layers
            .iter()
            .map(|&layer| machine.hessian(block, layer))
            .collect(),
    );
    let parts = machine.parts(&machine.lengths(hidden)[sequences.clone()]);
    ranks.sum_in_order(&mut hessians, parts.len(), &mut |hessians, part| {
        let part = joined(&parts, part);
        let part = sequences.start + part.start..sequences.start + part.end;
        machine.add_to_hessians(block, hidden, part, layers, &mut hessians.0)
    })?;
    Ok(hessians.0)
}

/// The Hessians of several layers, accumulated in one pass.
struct Sums<H>(Vec<H>);

impl<H: PartSums> PartSums for Sums<H> {
    /// The sums of each Hessian, preceded by their count.
    fn take(&mut self) -> Vec<f64> {
        let with_number = |hessian: &mut H| {
            let sums = hessian.take();
            std::iter::once(sums.len() as f64).chain(sums)
        };
        self.0.iter_mut().flat_map(with_number).collect()
    }

    fn add(&mut self, sums: &[f64]) -> aqlm_vocabulary::Result<()> {
        let mut rest = sums;
        let layers = self.0.len();
        for (done, hessian) in self.0.iter_mut().enumerate() {
            let whole = rest
                .split_first()
                .and_then(|(&number, after)| after.split_at_checked(number as usize));
            let (of_this, after) = whole.ok_or_else(|| AqlmError::Shape {
                what: "sums of Hessians".into(),
                expected: vec![layers],
                found: vec![done],
            })?;
            hessian.add(of_this)?;
            rest = after;
        }
        Ok(())
    }
}

/// Checks that a block listed in the journal exists unchanged; otherwise returns what is wrong with the file.
fn check_finished(folder: &RunFolder, entry: &JournalEntry) -> std::result::Result<(), String> {
    let path = folder.block_path(entry.block);
    let found = durable::sha256_of_file(&path).map_err(|error| error.to_string())?;
    if found == entry.sha256 {
        Ok(())
    } else {
        Err(format!(
            "{}: expected SHA-256 {}, found {found}",
            path.display(),
            entry.sha256
        ))
    }
}

#[expect(
    clippy::too_many_arguments,
    reason = "the state of the loop above, split off to keep it readable"
)]
fn quantize_block<M: TrainOps>(
    machine: &M,
    model: &Model,
    index: usize,
    gauge: &Gauge,
    inputs: &M::Hidden,
    settings: &QuantizeSettings,
    folder: &RunFolder,
    journal: &mut Journal,
    observe: &mut dyn FnMut(PipelineEvent<'_>),
) -> Result<(BlockReport, PhaseSeconds, M::Hidden)> {
    let started = Instant::now();
    let mut clock = PhaseClock::start();
    let spec = &model.config().blocks[index];
    let mut block = machine.load_block(index, &gauge.apply(model.block(index)?)?)?;
    let targets = machine.block_forward(&block, inputs)?;

    // Layers with the same input share a Hessian. Without --true-sequential, one pass over the unquantized
    // block serves all groups. With --true-sequential, each group sees activations of the block in which all
    // earlier groups are quantized.
    let groups = spec.groups();
    let training = 0..settings.sequences - settings.validation;
    let firsts: Vec<LayerId> = groups.iter().map(|group| group[0]).collect();
    clock.book(|phases| &mut phases.rest);
    let mut shared = if settings.true_sequential {
        Vec::new()
    } else {
        hessians(machine, &block, inputs, training.clone(), &firsts, &Alone)?
    };
    clock.book(|phases| &mut phases.hessians);
    let spectrum = |group: &[LayerId], hessian: &M::Hessian| {
        let known = spec.linear(group[0]).shape.1 <= LARGEST_SPECTRUM;
        known.then(|| machine.spectrum(hessian)).transpose()
    };
    // All start before the first layer, so that the last layers seldom wait for theirs.
    let mut spectra = groups
        .iter()
        .zip(&shared)
        .map(|(group, hessian)| spectrum(group, hessian))
        .collect::<Result<Vec<_>>>()?;

    let mut layers = Vec::with_capacity(spec.linears.len());
    for (group_index, group) in groups.iter().enumerate() {
        if settings.true_sequential {
            shared = hessians(machine, &block, inputs, training.clone(), &group[..1], &Alone)?;
            spectra.push(spectrum(group, &shared[0])?);
            clock.book(|phases| &mut phases.hessians);
        }
        let hessian = &shared[if settings.true_sequential { 0 } else { group_index }];
        for &layer in group {
            let layer_started = Instant::now();
            let key = StreamKey {
                seed: settings.seed,
                block: index,
                layer: Some(layer),
            };
            clock.book(|phases| &mut phases.rest);
            let mut on_event = |event| {
                clock.book(|phases| match event {
                    LayerEvent::Initialized { .. } => &mut phases.initialisation,
                    LayerEvent::Updated { .. } => &mut phases.codebook_update,
                    LayerEvent::Searched { .. } => &mut phases.beam_search,
                });
                observe(PipelineEvent::Layer {
                    block: index,
                    layer: spec.linear(layer).short_name(),
                    event,
                });
            };
            let problem = machine.layer_problem(&block, layer, hessian, &settings.layer)?;
            let (matrix, report) =
                alternate(machine.layers(), &problem, &settings.layer, key, &mut on_event)?;
            let name = model.config().layer_name(index, layer);
            let stored = matrix.rounded_to_f16().map_err(|source| Error::Layer {
                layer: name.clone(),
                source,
            })?;
            let stored = machine.layers().trial(&problem, stored)?;
            let relative_layer_error = machine.layers().loss(&problem, &stored);
            drop(problem);
            let eigenvalues = spectra[group_index].as_mut().map(Spectrum::eigenvalues);
            let summary = LayerSummary {
                name,
                relative_layer_error,
                limit_db: eigenvalues.transpose()?.and_then(|eigenvalues| {
                    let limit = rate_distortion_limit(eigenvalues, matrix.bits_per_parameter());
                    let distance = limit_db(relative_layer_error, limit);
                    distance.is_finite().then_some(distance)
                }),
                seconds: layer_started.elapsed().as_secs_f64(),
                bits_per_parameter: matrix.bits_per_parameter(),
                parameters: matrix.out_features() * matrix.in_features(),
                report,
            };
            machine.set_layer(&mut block, layer, matrix)?;
            folder.metric(MetricEvent::Layer {
                summary: summary.clone(),
            })?;
            observe(PipelineEvent::LayerDone(&summary));
            layers.push(summary);
        }
    }
    drop(shared);
    clock.book(|phases| &mut phases.rest);

    let finetune = if settings.finetune.epochs == 0 {
        None
    } else {
        let key = StreamKey {
            seed: settings.seed,
            block: index,
            layer: None,
        };
        let mut on_event = |event| observe(PipelineEvent::Finetune { block: index, event });
        Some(tune_block(
            machine,
            &mut block,
            inputs,
            &targets,
            settings.validation,
            &settings.finetune,
            key,
            &Alone,
            &mut on_event,
        )?)
    };

    clock.book(|phases| &mut phases.finetuning);

    let rounded = model.rounded_for_storage(index, machine.store_block(&block)?)?;
    let weights = gauge.undo(model, index, &rounded)?.unwrap_or(rounded);
    drop(block);
    let block = machine.load_block(index, &weights)?;
    let outputs = machine.block_forward(&block, inputs)?;
    let (error, norm) = machine.mean_squares(&outputs, &targets)?;
    let report = BlockReport {
        block: index,
        layers,
        finetune,
        relative_output_error: error / norm,
        seconds: started.elapsed().as_secs_f64(),
    };

    let path = folder.block_path(index);
    let sha256 = block_file::write(&path, spec, &weights)?;
    journal.append(JournalEntry {
        block: index,
        file: RunFolder::block_file(index),
        sha256,
        report: report.clone(),
    })?;
    clock.book(|phases| &mut phases.rest);
    Ok((report, clock.seconds(), outputs))
}
