use std::cell::{OnceCell, RefCell};
use std::fmt::Write as _;
use std::path::PathBuf;

use super::estimate::with_error;
use super::progress::Progress;
use super::{NamedModel, Output};
use aqlm_engine::backends::BackendKind;
use aqlm_engine::divergence::{
    BaseWriter, Compared, Dense, DivergenceEvent, Kept, base_key, compare, statistics,
};
use aqlm_engine::protocol::EvaluationText;
use aqlm_engine::runs::records::{DivergenceRecord, DivergenceStatistics, Percentiles};
use aqlm_formats::base_files::BaseFile;
use aqlm_formats::{Error, Result};

/// A model, the dense model, and a text.
#[derive(Debug)]
pub(crate) struct DivergenceJob {
    pub(crate) model: NamedModel,
    /// may be absent where a base file is read
    pub(crate) dense: Option<NamedModel>,
    pub(crate) base: BaseUse,
    pub(crate) text: EvaluationText,
    pub(crate) backend: BackendKind,
    /// whether to measure the noise floor, where the backend can
    pub(crate) noise_floor: bool,
}

/// Where the dense model's log-probabilities are kept.
#[derive(Debug)]
pub(crate) enum BaseUse {
    /// nowhere
    Nowhere,
    /// they are read from this file
    Read(PathBuf),
    /// they are computed and saved to this file
    Save(PathBuf),
    /// they are read from a file of this folder, named by its key; computed and saved if there is none
    Folder(PathBuf),
}

pub(crate) fn run(job: &DivergenceJob, output: Output) -> Result<bool> {
    let record = divergence(job)?;
    output.result(&record, || in_words(&record))?;
    Ok(record.divergence.not_finite == 0)
}

/// Measures the divergence of a model from the dense model on a text.
fn divergence(job: &DivergenceJob) -> Result<DivergenceRecord> {
    let model = &job.model.model;
    let vocab = model.config().vocab_size;
    let dense = job.dense.as_ref().map(|dense| &dense.model);
    // The fingerprint reads the whole model, so it is computed once, and only for a base file that has one.
    let known = OnceCell::new();
    let fingerprint = || -> Result<Option<&String>> {
        match (known.get(), dense) {
            (None, Some(dense)) => {
                let computed = dense.fingerprint()?;
                Ok(Some(known.get_or_init(|| computed)))
            }
            (known, _) => Ok(known),
        }
    };
    let (read, save) = match &job.base {
        BaseUse::Nowhere => (None, None),
        BaseUse::Read(path) => (Some(path.clone()), None),
        BaseUse::Save(path) => (None, Some(path.clone())),
        BaseUse::Folder(folder) => {
            let model = fingerprint()?.expect("--bases requires --against");
            let key = base_key(model.clone(), &job.text, job.backend);
            let path = folder.join(key.file_name(&job.text.windows()));
            if path.is_file() {
                (Some(path), None)
            } else {
                std::fs::create_dir_all(folder).map_err(Error::io(folder, "make folder"))?;
                (None, Some(path))
            }
        }
    };
    let file = read.as_deref().map(BaseFile::open).transpose()?;
    let kept = match &file {
        None => None,
        Some(file) => {
            let model = match file {
                BaseFile::Lossless(_) => fingerprint()?,
                BaseFile::LlamaCpp(_) => None,
            };
            Some(Kept::new(file, &job.text, vocab, model.map(String::as_str))?)
        }
    };
    let floor = kept.as_ref().and_then(aqlm_engine::divergence::DenseRows::floor);
    let mut writer = match (&save, dense) {
        (Some(path), Some(_)) => {
            let model = fingerprint()?.expect("there is a dense model");
            let key = base_key(model.clone(), &job.text, job.backend);
            Some(BaseWriter::new(path, &key, job.backend, vocab, &job.text)?)
        }
        _ => None,
    };
    let noise_floor = job.noise_floor && dense.is_some() && job.backend != BackendKind::Cuda;
    let passes = 1 + usize::from(kept.is_none()) + usize::from(noise_floor);
    let source = match (kept, dense) {
        (Some(kept), dense) => Dense::File(kept, dense.map(|dense| dense as _)),
        (None, Some(dense)) => Dense::Model(dense, writer.as_mut()),
        (None, None) => {
            return Err(Error::argument(
                "--against",
                "the dense model, or --base",
                "neither",
            ));
        }
    };
    let steps = passes * model.config().blocks.len() + job.text.windows().len();
    let progress = RefCell::new(Progress::new(steps as u64));
    let advance = |event: DivergenceEvent| {
        let mut progress = progress.borrow_mut();
        progress.advance(1);
        progress.heartbeat(match event {
            DivergenceEvent::Block => "divergence: passing through blocks",
            DivergenceEvent::Window => "divergence: comparing windows",
        });
    };
    let Compared { model, noise } = compare(job.backend, &job.text, model, source, noise_floor, &advance)?;
    if let Some(writer) = writer {
        writer.finish()?;
    }
    Ok(DivergenceRecord {
        model: job.model.name.clone(),
        against: job.dense.as_ref().map(|dense| dense.name.clone()),
        base: read.map(|path| path.display().to_string()),
        data: job.text.path().display().to_string(),
        protocol: job.text.protocol(),
        ctx: job.text.ctx(),
        windows: job.text.windows().len(),
        backend: job.backend,
        floor,
        divergence: Box::new(statistics(&model)),
        noise_floor: noise.as_deref().map(statistics).map(Box::new),
    })
}

fn in_words(record: &DivergenceRecord) -> String {
    let dense = [&record.against, &record.base].into_iter().flatten().next();
    let DivergenceStatistics {
        positions,
        not_finite,
        kl,
        kl_percentiles,
        same_top,
        delta_p,
        delta_p_percentiles,
        delta_p_rms,
        perplexity,
        dense_perplexity,
        ln_ratio,
        loss_correlation,
        buckets,
    } = record.divergence.as_ref();
    let mut text = format!(
        "{} against {} on {}: {positions} positions ({} windows of {}, protocol {})\n",
        record.model,
        dense.map_or("the dense model", String::as_str),
        record.data,
        record.windows,
        record.ctx,
        record.protocol.name(),
    );
    let mut line = |name: &str, words: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<24}{words}");
    };
    if *not_finite > 0 {
        line("NOT FINITE", format!("{not_finite} positions, left out below"));
    }
    line("mean KL", format!("{} nats", with_error(kl, 1.0, 6)));
    line("KL percentiles", percentiles(kl_percentiles, 1.0));
    line("same top token", format!("{} %", with_error(same_top, 100.0, 3)));
    line(
        "mean, RMS change of p",
        format!(
            "{} %, {} %",
            with_error(delta_p, 100.0, 3),
            with_error(delta_p_rms, 100.0, 3)
        ),
    );
    line("percentiles, %", percentiles(delta_p_percentiles, 100.0));
    line(
        "perplexity",
        format!(
            "{}, dense {}",
            with_error(perplexity, 1.0, 6),
            with_error(dense_perplexity, 1.0, 6)
        ),
    );
    line(
        "ln(perplexity ratio)",
        if loss_correlation.is_nan() {
            with_error(ln_ratio, 1.0, 6)
        } else {
            format!(
                "{} (paired; correlation of losses {:.2} %)",
                with_error(ln_ratio, 1.0, 6),
                100.0 * loss_correlation
            )
        },
    );
    if let Some(noise) = &record.noise_floor {
        line(
            "noise floor (bf16)",
            format!(
                "mean KL {} nats, same top token {:.3} %",
                with_error(&noise.kl, 1.0, 6),
                100.0 * noise.same_top.value
            ),
        );
    } else {
        line("noise floor (bf16)", "not measured".into());
    }
    line(
        "dense top probability",
        "positions    mean KL   same top token".into(),
    );
    for bucket in buckets {
        line(
            &format!("  {} to {}", bucket.from, bucket.to),
            format!(
                "{:>9}  {:>9.6}   {:.3} %",
                bucket.positions,
                bucket.kl.value,
                100.0 * bucket.same_top.value
            ),
        );
    }
    text
}

fn percentiles(of: &Percentiles, unit: f64) -> String {
    let named = [
        ("max", of.maximum),
        ("99.9", of.p99_9),
        ("99", of.p99),
        ("95", of.p95),
        ("90", of.p90),
        ("median", of.median),
        ("10", of.p10),
        ("5", of.p5),
        ("1", of.p1),
        ("0.1", of.p0_1),
        ("min", of.minimum),
    ];
    let words = named.map(|(name, value)| format!("{name} {:.6}", unit * value));
    words.join(", ")
}
