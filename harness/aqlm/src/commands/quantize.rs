use std::path::Path;
use std::time::Duration;

use super::finetune::{self, tune};
use super::output::print;
use super::progress::{QuantizeProgress, SketchProgress};
use super::table::{Table, bytes};
use super::{Job, Output, say};
use aqlm_engine::backends::{CalibrationPrecision, OnMachine, TrainingPrecision};
use aqlm_engine::forecast::Forecast;
use aqlm_engine::ops::TrainOps;
use aqlm_engine::ranks::wait_for_first;
use aqlm_engine::runs::records::{self, QuantizeRecord};
use aqlm_engine::sketch::{Sketch, SketchEvent, sketch_sequences};
use aqlm_engine::{
    BlockReport, EndToEndReport, EndToEndSettings, QuantizeReport, QuantizeSettings, RunDescription,
    RunFolder, SketchSettings, publish,
};
use aqlm_formats::model::{Model, keeps_bf16};
use aqlm_formats::{Error, Result};

/// Subfolders of a run with end-to-end tuning: the model before the tuning, and the run that tunes it.
const BEFORE: &str = "block-tuned";
const AFTER: &str = "end-to-end";

pub(crate) fn run(
    job: &Job<'_, QuantizeSettings>,
    sketch: Option<&Path>,
    end_to_end: Option<&EndToEndSettings>,
    output: Output,
) -> Result<bool> {
    warn_of_lossy(job.model);
    let record = quantize(job, sketch, end_to_end)?;
    if !job.ranks.is_first() {
        return Ok(true);
    }
    output.result(&record, || {
        format!(
            "{}{}{}: {:.3} bits per parameter{}, {} -> {}, {:.1} s\n",
            summary(&record.blocks),
            record
                .end_to_end
                .as_ref()
                .map_or_else(String::new, finetune::summary),
            record.out,
            record.bits_per_parameter,
            record.limit_db.map_or_else(String::new, |distance| format!(
                ", {distance:.2} dB above their limit"
            )),
            bytes(record.bytes_before),
            bytes(record.bytes_after),
            record.seconds,
        )
    })?;
    Ok(true)
}

/// Warns about a source that has lost precision already.
fn warn_of_lossy(model: &Model) {
    let formats = Vec::from_iter(model.quantized_formats()).join(", ");
    if !formats.is_empty() {
        say(format_args!(
            "warning: {}: expected a dense model, found weights that are quantized already ({formats}): errors and \
             sizes are relative to these",
            model.source().display()
        ));
    }
}

/// Quantizes a model block by block, tunes it end to end if requested, and writes the record to the run
/// folder. `sketch` is the folder of the gradients' sketch, for settings that need one.
pub(super) fn quantize(
    job: &Job<'_, QuantizeSettings>,
    sketch: Option<&Path>,
    end_to_end: Option<&EndToEndSettings>,
) -> Result<QuantizeRecord> {
    let out = &job.folder;
    let Some(settings) = end_to_end else {
        let (report, _locked) = quantize_blocks(job, sketch, out)?;
        return recorded(job, report, None);
    };
    // rejects a text that is too short for this step before spending hours on blocks
    job.text
        .calibration_sequences(settings.seqlen, settings.sequences)?;
    let block_tuned = out.join(BEFORE);
    let (report, _locked) = quantize_blocks(job, sketch, &block_tuned)?;
    let whole = Job {
        model: &Model::open(&block_tuned)?,
        text: job.text,
        settings: settings.clone(),
        backend: job.backend,
        precision: job.precision,
        activations: job.activations,
        memory: job.memory,
        folder: out.join(AFTER),
        // the whole run has already decided whether it may continue
        resume: true,
        ranks: job.ranks,
    };
    let tuned = tune(&whole, Some(job.model), Duration::from_mins(1), None, out)?;
    recorded(job, report, Some(tuned))
}

/// Writes the record of a finished run to its folder.
fn recorded(
    job: &Job<'_, QuantizeSettings>,
    report: QuantizeReport,
    end_to_end: Option<EndToEndReport>,
) -> Result<QuantizeRecord> {
    let out = &job.folder;
    let bytes = [job.model.inventory().bytes, Model::open(out)?.inventory().bytes];
    let record = QuantizeRecord::new(report, end_to_end, bytes, out.display().to_string());
    if job.ranks.is_first() {
        records::write(&out.join(records::FILE), &record.clone().into())?;
    }
    Ok(record)
}

/// Quantizes block by block with progress on standard error and writes the checkpoint to `out`. Also returns
/// the run folder, which stays locked as long as that value lives.
fn quantize_blocks(
    job: &Job<'_, QuantizeSettings>,
    sketch: Option<&Path>,
    out: &Path,
) -> Result<(QuantizeReport, RunFolder)> {
    let settings = &job.settings;
    let sequences = job
        .text
        .calibration_sequences(settings.seqlen, settings.sequences)?;
    let blocks = Blocks {
        job,
        sequences: &sequences,
        sketch,
        out,
    };
    job.backend.run(job.model.config(), settings.seqlen, blocks)
}

/// Prints what a run takes, and whether the memory suffices.
pub(crate) fn plan(job: &Job<'_, QuantizeSettings>) -> Result<bool> {
    let (config, seqlen) = (job.model.config(), job.settings.seqlen);
    job.backend.run(config, seqlen, Plan { job })?;
    Ok(true)
}

struct Plan<'a> {
    job: &'a Job<'a, QuantizeSettings>,
}

impl OnMachine for Plan<'_> {
    type Output = ();

    fn device(&self) -> usize {
        self.job.ranks.local_rank()
    }

    fn on<M: TrainOps>(self, machine: M) -> Result<()> {
        let Some(forecast) = forecast(&machine, self.job)? else {
            return Ok(());
        };
        print(&format!("{forecast}\n"))?;
        forecast.check(host_memory(self.job))
    }
}

/// The precision of training that a job has chosen, or the default one.
fn precision(job: &Job<'_, QuantizeSettings>) -> TrainingPrecision {
    job.precision.unwrap_or(TrainingPrecision::Mixed)
}

/// What the job takes on a machine with memory of its own.
fn forecast<M: TrainOps>(machine: &M, job: &Job<'_, QuantizeSettings>) -> Result<Option<Forecast>> {
    let of = |free| {
        Forecast::of(
            job.model.config(),
            &job.settings,
            job.activations,
            precision(job),
            free,
        )
    };
    Ok(machine.free_memory()?.map(of))
}

/// Bytes of memory that the host can give, if that is known and hidden states are not bound to less.
fn host_memory(job: &Job<'_, QuantizeSettings>) -> Option<usize> {
    if job.memory.is_some() {
        return None;
    }
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// The job that [`quantize_blocks`] runs on a machine.
struct Blocks<'a> {
    job: &'a Job<'a, QuantizeSettings>,
    sequences: &'a [&'a [u32]],
    /// folder of the gradients' sketch
    sketch: Option<&'a Path>,
    out: &'a Path,
}

impl OnMachine for Blocks<'_> {
    type Output = (QuantizeReport, RunFolder);

    fn precision(&self) -> TrainingPrecision {
        precision(self.job)
    }

    fn activations(&self) -> CalibrationPrecision {
        self.job.activations
    }

    fn device(&self) -> usize {
        self.job.ranks.local_rank()
    }

    fn on<M: TrainOps>(self, mut machine: M) -> Result<Self::Output> {
        let Self {
            job,
            sequences,
            sketch,
            out,
        } = self;
        let settings = &job.settings;
        if let Some(forecast) = forecast(&machine, job)? {
            say(format_args!("{forecast}"));
            forecast.check(host_memory(job))?;
        }
        if let Some(memory) = job.memory {
            machine.bound_memory(memory, &job.folder, settings.sequences)?;
        }
        let description = RunDescription::new(
            job.model,
            job.text.path(),
            sequences,
            settings,
            machine.kind(),
            machine.device(),
        )?;
        let wanted = match (sketch, settings.sketch) {
            (Some(folder), Some(of)) => Some(WantedSketch::open(job, sequences, of, folder)?),
            _ => None,
        };
        let folder = RunFolder::open_on(job.ranks, &job.folder, &description, job.resume)?;
        let sketch = wanted
            .map(|wanted| wanted.found_or_computed(&machine, job))
            .transpose()?;
        let mut progress = QuantizeProgress::new(job.model.config(), settings);
        let report = aqlm_engine::quantize(
            &machine,
            job.model,
            sequences,
            settings,
            sketch.as_ref(),
            &folder,
            job.ranks,
            &mut |event| {
                progress.event(&event);
            },
        )?;
        drop(progress);
        let largest = report.largest_hidden_state;
        if job.ranks.is_first() {
            publish(job.model, &folder, out, largest)?;
        }
        wait_for_first(job.ranks)?;
        if keeps_bf16(job.model, largest) {
            say(format_args!(
                "note: hidden states reach {largest:.3e}, and f16 ends at 65504: config.json keeps bfloat16, in which \
                 readers lose three bits of each codebook entry"
            ));
        }
        Ok((report, folder))
    }
}

/// The sketch of gradients that a run needs, and what its folder holds.
struct WantedSketch<'a> {
    folder: &'a Path,
    settings: SketchSettings,
    sequences: Vec<&'a [u32]>,
    found: Option<Sketch>,
}

impl<'a> WantedSketch<'a> {
    /// Looks into the folder, before anything is written anywhere.
    fn open(
        job: &Job<'_, QuantizeSettings>,
        sequences: &[&'a [u32]],
        settings: SketchSettings,
        folder: &'a Path,
    ) -> Result<Self> {
        let training = &sequences[..job.settings.sequences - job.settings.validation];
        let sequences = sketch_sequences(training, settings.seqlen);
        let found = Sketch::open(folder, job.model, &sequences, settings)?;
        if found.is_none() && job.ranks.size() > 1 {
            return Err(Error::argument(
                "--sketch",
                "a finished sketch where several processes share the run; one process computes it",
                folder.display().to_string(),
            ));
        }
        Ok(Self {
            folder,
            settings,
            sequences,
            found,
        })
    }

    fn found_or_computed<M: TrainOps>(self, machine: &M, job: &Job<'_, QuantizeSettings>) -> Result<Sketch> {
        if let Some(sketch) = self.found {
            say(format_args!("gradients: the sketch in {}", self.folder.display()));
            return Ok(sketch);
        }
        let mut progress = SketchProgress::new(job.model.config().blocks.len(), self.sequences.len());
        let mut observe = |event: SketchEvent<'_>| progress.event(&event);
        Sketch::compute(
            machine,
            job.model,
            &self.sequences,
            self.settings,
            self.folder,
            &mut observe,
        )
    }
}

/// One row per block: the error of each layer, their distance from the limit, and the block's error after
/// fine-tuning.
pub(super) fn summary(blocks: &[BlockReport]) -> String {
    let mut table = Table::new([
        "block", "q", "k", "v", "o", "gate", "up", "down", "dB", "output", "seconds",
    ]);
    for block in blocks {
        let error = |index: usize| match errors_of(block, index) {
            errors if errors.is_empty() => String::new(),
            errors => format!("{:.4}", errors.iter().sum::<f64>() / errors.len() as f64),
        };
        table.row([
            block.block.to_string(),
            error(0),
            error(1),
            error(2),
            error(3),
            error(4),
            error(5),
            error(6),
            above_limit(block).map_or_else(String::new, |distance| format!("{distance:.2}")),
            format!("{:.4}", block.relative_output_error),
            format!("{:.1}", block.seconds),
        ]);
    }
    format!(
        "relative layer errors, their mean distance from the rate-distortion limit at the layers' bits, and the \
         error of the block's output after fine-tuning\n{}{}",
        table.render(),
        scarce(blocks)
    )
}

/// The errors of the layers in a column of the summary. The layers of experts share columns.
fn errors_of(block: &BlockReport, column: usize) -> Vec<f64> {
    const OF_EXPERTS: [[&str; 2]; 3] = [[".gate_proj", ".w1"], [".up_proj", ".w3"], [".down_proj", ".w2"]];
    let has_experts = block.layers.iter().any(|layer| layer.name.contains(".experts."));
    let in_column = |(index, name): (usize, &str)| match column.checked_sub(4) {
        Some(part) if has_experts => OF_EXPERTS[part].iter().any(|end| name.ends_with(end)),
        _ => index == column,
    };
    let layers = block.layers.iter().enumerate();
    layers
        .filter(|(index, layer)| in_column((*index, &layer.name)))
        .map(|(_, layer)| layer.relative_layer_error)
        .collect()
}

/// Most layers that [`scarce`] names; the record has all.
const NAMED: usize = 12;

/// Names the layers of experts that met fewer calibration tokens than they have inputs.
fn scarce(blocks: &[BlockReport]) -> String {
    let layers = blocks.iter().flat_map(|block| &block.layers);
    let named: Vec<String> = layers
        .filter_map(|layer| Some(format!("{} ({})", layer.name, layer.own_tokens?)))
        .collect();
    if named.is_empty() {
        return String::new();
    }
    let more = match named.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "{} layers of experts with fewer calibration tokens (in brackets) than inputs; their Hessians were \
         completed with the mean of all experts of their block: {}{more}\n",
        named.len(),
        named[..named.len().min(NAMED)].join(", ")
    )
}

/// Mean of a block's distances from the limit, weighted by weights; `None` unless every layer has one.
fn above_limit(block: &BlockReport) -> Option<f64> {
    let parameters: usize = block.layers.iter().map(|layer| layer.parameters).sum();
    block
        .layers
        .iter()
        .map(|layer| Some(layer.limit_db? * layer.parameters as f64 / parameters as f64))
        .sum()
}
