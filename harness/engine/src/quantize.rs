use std::time::Instant;

use aqlm_vocabulary::{BlockSpec, BlockWeights, LinearWeight, StreamKey};

use crate::gauge::{Gauge, storable};
use crate::held::Held;
use crate::layer_jobs::Gradients;
use crate::ops::TrainOps;
use crate::pipeline_event::PipelineEvent;
use crate::ranks::{Ranks, agree, share};
use crate::rounds::{MOST_NUMBERS, Round, rounds};
use crate::runs::block_journal::{Journal, JournalEntry};
use crate::runs::phases::{PhaseClock, PhaseSeconds};
use crate::runs::records::{BlockReport, QuantizeReport};
use crate::runs::{MetricEvent, RunFolder};
use crate::sketch::Sketch;
use crate::targets::Targets;
use crate::{QuantizeSettings, tune_block};
use aqlm_formats::durable;
use aqlm_formats::model::{Model, block_file};
use aqlm_formats::{Error, Result};

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
/// `calibration` holds settings.sequences sequences of settings.seqlen tokens. Settings that need gradients
/// of the dense model come with their sketch.
///
/// Every rank calls this with the same arguments. The sequences of Hessians and of tuning and the layers of a
/// block are spread over the ranks. Only rank 0 writes to the folder; `observe` sees this rank's work.
///
/// # Errors
/// `Layer` naming a row whose scale f16 cannot hold, before the first block. Errors of the machine,
/// unreadable tensors of the model, a run folder that can't be written.
#[expect(
    clippy::too_many_arguments,
    reason = "a model, its text, what gradients say of it, and where the run lives"
)]
pub fn quantize<M: TrainOps>(
    machine: &M,
    model: &Model,
    calibration: &[&[u32]],
    settings: &QuantizeSettings,
    sketch: Option<&Sketch>,
    folder: &RunFolder,
    ranks: &dyn Ranks,
    observe: &mut dyn FnMut(PipelineEvent<'_>),
) -> Result<QuantizeReport> {
    let sketch = sketch.filter(|_| settings.needs_sketch());
    if sketch.is_none() && settings.needs_sketch() {
        return Err(Error::argument(
            "objective",
            "a sketch of gradients beside a sketched or two-sided one",
            "none",
        ));
    }
    let mut journal = if ranks.is_first() {
        let blocks = folder.path().join("blocks");
        std::fs::create_dir_all(&blocks).map_err(Error::io(&blocks, "make"))?;
        Some(Journal::open(folder.path())?)
    } else {
        None
    };
    let out_group_size = settings.layer.scheme.out_group_size;
    let mut gauges = Vec::new();
    for (index, spec) in model.config().blocks.iter().enumerate() {
        let weights = model.block(index)?;
        let gauge = Gauge::of(spec, &weights);
        storable(model.config(), index, &gauge.apply(weights)?, out_group_size)?;
        gauges.push(gauge);
    }
    let lengths: Vec<usize> = calibration.iter().map(|tokens| tokens.len()).collect();
    let training = settings.sequences - settings.validation;
    let held = if settings.finetune.epochs == 0 {
        Held::share(machine, lengths, training, ranks)
    } else {
        Held::all(machine, lengths, 0..training)
    };
    let largest_of = |hidden: &M::Hidden| -> Result<f64> {
        let own = machine.largest(hidden).map_err(|error| held.named(error))?;
        held.largest(own, ranks)
    };
    let mut hidden = machine.embed(&model.embedding()?, &held.of(calibration))?;
    let mut largest = largest_of(&hidden)?;
    let mut reports: Vec<BlockReport> = Vec::new();
    let parameters = |block: &BlockSpec| block.parameters() as u64;
    folder.metric(MetricEvent::Start {
        parameters: model.config().blocks.iter().map(parameters).collect(),
        finetune: settings.finetune.epochs > 0,
    })?;

    for (index, spec) in model.config().blocks.iter().enumerate() {
        let done = share(ranks, 0, || {
            journal
                .as_mut()
                .map_or(Ok(None), |journal| finished(folder, journal, index, observe))
        })?;
        if let Some(entry) = done {
            if !ranks.is_first() {
                check_finished(folder, &entry).map_err(|reason| Error::RunFolder {
                    path: folder.path().into(),
                    reason: format!("expected the run folder of rank 0, found another: {reason}"),
                })?;
            }
            let weights = block_file::read(&folder.block_path(index), spec)?;
            let block = machine.load_block(index, &weights)?;
            hidden = machine.block_forward(&block, &hidden)?;
            largest = largest.max(largest_of(&hidden)?);
            folder.metric(MetricEvent::Resumed { block: index })?;
            observe(PipelineEvent::BlockResumed(&entry.report));
            reports.push(entry.report);
            continue;
        }
        observe(PipelineEvent::BlockStarted { block: index });
        let (report, phases, next) = quantize_block(
            machine,
            model,
            index,
            &gauges[index],
            &held,
            &hidden,
            settings,
            sketch,
            folder,
            journal.as_mut(),
            ranks,
            observe,
        )?;
        hidden = next;
        largest = largest.max(largest_of(&hidden)?);
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

/// The journal's entry of a block that is finished and whole. Drops a damaged block and those after it from
/// the journal.
fn finished(
    folder: &RunFolder,
    journal: &mut Journal,
    index: usize,
    observe: &mut dyn FnMut(PipelineEvent<'_>),
) -> Result<Option<JournalEntry>> {
    let Some(entry) = journal.entries().get(index).cloned() else {
        return Ok(None);
    };
    match check_finished(folder, &entry) {
        Ok(()) => Ok(Some(entry)),
        Err(reason) => {
            observe(PipelineEvent::BlockDamaged { block: index, reason });
            journal.truncate(index)?;
            Ok(None)
        }
    }
}

/// A digest of a block's numbers, by which ranks compare what they computed.
fn fingerprint(weights: &BlockWeights) -> String {
    let mut bytes = Vec::new();
    let mut add = |values: &mut dyn Iterator<Item = f64>| {
        let part: Vec<u8> = values.flat_map(f64::to_le_bytes).collect();
        bytes.extend(durable::sha256(&part).into_bytes());
    };
    for norm in &weights.norms {
        add(&mut norm.iter().map(|&value| f64::from(value)));
    }
    for linear in &weights.layers {
        match &linear.weight {
            LinearWeight::Dense(weight) => add(&mut weight.iter().map(|&value| f64::from(value))),
            LinearWeight::Quantized(matrix) => {
                add(&mut matrix.codes().iter().map(|&code| f64::from(code)));
                add(&mut matrix.codebooks().iter().chain(matrix.scales()).copied());
            }
        }
    }
    durable::sha256(&bytes)
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
    held: &Held,
    inputs: &M::Hidden,
    settings: &QuantizeSettings,
    sketch: Option<&Sketch>,
    folder: &RunFolder,
    journal: Option<&mut Journal>,
    ranks: &dyn Ranks,
    observe: &mut dyn FnMut(PipelineEvent<'_>),
) -> Result<(BlockReport, PhaseSeconds, M::Hidden)> {
    let started = Instant::now();
    let mut clock = PhaseClock::start();
    let spec = &model.config().blocks[index];
    let weights = gauge.apply(model.block(index)?)?;
    let mut block = machine.load_block(index, &weights)?;
    let gradients = match sketch {
        Some(sketch) => Some(Gradients {
            means: sketch.block(index, spec)?,
            weights,
        }),
        None => None,
    };
    let mut targets = Targets::new(machine, inputs)?;
    let mut layers = Vec::with_capacity(spec.linears.len());
    for groups in rounds(spec, settings.true_sequential) {
        let round = Round {
            machine,
            index,
            block: &block,
            inputs,
            held,
            gradients: gradients.as_ref(),
            settings,
            folder,
            ranks,
            most_numbers: MOST_NUMBERS,
        };
        for (layer, matrix, summary) in round.quantize(&groups, &mut targets, &mut clock, observe)? {
            machine.set_layer(&mut block, layer, matrix)?;
            layers.push(summary);
        }
    }
    let targets = targets.into_outputs();
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
            ranks,
            &mut on_event,
        )?)
    };

    clock.book(|phases| &mut phases.finetuning);

    let rounded = model.rounded_for_storage(index, machine.store_block(&block)?)?;
    let weights = gauge.undo(model, index, &rounded)?.unwrap_or(rounded);
    drop(block);
    let block = machine.load_block(index, &weights)?;
    let (outputs, squares) = machine.forward_over(&block, inputs, targets)?;
    let (errors, norms): (Vec<f64>, Vec<f64>) = squares.into_iter().unzip();
    let error: f64 = held.gathered(errors, ranks)?.iter().sum();
    let norm: f64 = held.gathered(norms, ranks)?.iter().sum();
    let report = BlockReport {
        block: index,
        layers,
        finetune,
        relative_output_error: error / norm,
        seconds: started.elapsed().as_secs_f64(),
    };

    if ranks.size() > 1 {
        agree(
            ranks,
            &format!("weights of block {index}"),
            &fingerprint(&weights),
        )?;
    }
    if let Some(journal) = journal {
        let path = folder.block_path(index);
        let sha256 = block_file::write(&path, spec, &weights)?;
        journal.append(JournalEntry {
            block: index,
            file: RunFolder::block_file(index),
            sha256,
            report: report.clone(),
        })?;
    }
    clock.book(|phases| &mut phases.rest);
    Ok((report, clock.seconds(), outputs))
}
