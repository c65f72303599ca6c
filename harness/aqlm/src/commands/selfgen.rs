use std::path::PathBuf;
use std::time::Instant;

use super::fetch::text_file;
use super::progress::Progress;
use super::{NamedModel, Output};
use aqlm_engine::backends::BackendKind;
use aqlm_engine::generate::Sampling;
use aqlm_engine::runs::records::SelfgenRecord;
use aqlm_engine::selfgen::{SelfText, Unfinished, prompts};
use aqlm_formats::texts::{TextFormat, check_documents_name, documents, write_documents};
use aqlm_formats::{Error, Result};

/// Most tokens of a text unless the user says otherwise.
const SEQLEN: usize = 512;

/// A model, and what it is to write.
#[derive(Debug)]
pub(crate) struct SelfgenJob {
    pub(crate) model: NamedModel,
    pub(crate) tokens: usize,
    /// most tokens of a text, if not the default
    pub(crate) seqlen: Option<usize>,
    pub(crate) sampling: Sampling,
    pub(crate) temperature: f64,
    pub(crate) top_p: f64,
    pub(crate) seed: u64,
    pub(crate) prompts: Option<PromptSource>,
    pub(crate) out: PathBuf,
    pub(crate) backend: BackendKind,
    /// whether to continue an unfinished run
    pub(crate) resume: bool,
}

/// A text whose documents begin with prompts.
#[derive(Debug)]
pub(crate) struct PromptSource {
    pub(crate) path: PathBuf,
    /// its format, if its name does not tell it
    pub(crate) format: Option<TextFormat>,
    /// tokens of a prompt
    pub(crate) tokens: usize,
}

pub(crate) fn run(job: &SelfgenJob, output: Output) -> Result<bool> {
    let record = selfgen(job)?;
    output.result(&record, || {
        format!(
            "{}: {} texts, {} tokens, {} texts ended by the model, {:.0} tokens per second\n",
            record.out.display(),
            record.texts,
            record.tokens,
            record.ended,
            record.tokens_per_second
        )
    })?;
    Ok(true)
}

/// Lets a model write a file of texts.
fn selfgen(job: &SelfgenJob) -> Result<SelfgenRecord> {
    check_documents_name(&job.out)?;
    if job.out.exists() {
        return Err(Error::Exists {
            path: job.out.clone(),
            what: "a file or folder, which is not overwritten".into(),
        });
    }
    let model = &job.model.model;
    let tokenizer = job.model.tokenizer()?;
    let prompts = match &job.prompts {
        Some(from) => {
            let path = text_file(&from.path)?;
            let documents = documents(&path, from.format)?;
            prompts(&documents, &path, &tokenizer, from.tokens)?
        }
        None => Vec::new(),
    };
    let prompt = prompts.iter().map(Vec::len).max().unwrap_or(1);
    let longest = model.config().max_position_embeddings;
    let seqlen = job.seqlen.unwrap_or(SEQLEN.min(longest.saturating_sub(prompt)));
    let positions = prompt.saturating_add(seqlen);
    if positions > longest {
        return Err(Error::argument(
            "--seqlen",
            &format!("prompt and text within the model's context of {longest}"),
            format!("{prompt} + {seqlen}"),
        ));
    }
    let text = SelfText {
        tokens: job.tokens,
        seqlen,
        sampling: job.sampling,
        seed: job.seed,
        prompts,
    };
    let partial = job.out.with_added_extension("unfinished");
    let mut unfinished = Unfinished::open(&partial, job.resume, &model.fingerprint()?, &text)?;
    let mut progress = Progress::new(job.tokens as u64);
    let machine = job.backend.models(model.config(), positions)?;
    let mut resident = machine.model(model, &mut |_| {})?;
    let started = Instant::now();
    let (mut tokens, mut kept) = (0, None);
    let written = text.write(resident.as_mut(), &tokenizer, &mut unfinished, &mut |new| {
        // the first number is that of the texts that were there
        kept.get_or_insert(new);
        tokens += new;
        progress.advance(new as u64);
        progress.heartbeat("selfgen");
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let texts = written.iter().map(|text| tokenizer.decode(&text.tokens, true));
    write_documents(&job.out, &texts.collect::<Result<Vec<_>>>()?)?;
    unfinished.remove()?;
    Ok(SelfgenRecord {
        model: job.model.name.clone(),
        out: job.out.clone(),
        texts: written.len(),
        tokens,
        ended: written.iter().filter(|text| text.ended).count(),
        seqlen,
        temperature: job.temperature,
        top_p: job.top_p,
        seed: job.seed,
        prompts: job.prompts.as_ref().map(|from| from.path.display().to_string()),
        seconds,
        tokens_per_second: (tokens - kept.unwrap_or(0)) as f64 / seconds.max(1e-9),
        backend: job.backend,
    })
}
