use std::path::Path;

use super::progress::Progress;
use super::{Output, say};
use aqlm_engine::runs::records::FetchRecord;
use aqlm_formats::Result;
use aqlm_formats::fetch::{self, FetchEvent};

pub(crate) fn run(name: &str, to: Option<&Path>, output: Output) -> Result<bool> {
    let record = fetch(name, to)?;
    output.result(&record, || {
        format!("{} (from {})\n", record.path.display(), record.source)
    })?;
    Ok(true)
}

/// Fetches a model by its short name or its Hub id, with progress on standard error.
fn fetch(name: &str, to: Option<&Path>) -> Result<FetchRecord> {
    let mut bar: Option<(String, Progress, u64)> = None;
    let fetched = fetch::fetch(name, to, &mut |event| match event {
        FetchEvent::Trying { source } => say(format_args!("trying {source}")),
        FetchEvent::Converting => say("making a Hugging Face folder of the GGUF file"),
        FetchEvent::Failed { source, reason } => say(format_args!("{source}: {reason}")),
        FetchEvent::Bytes { file, done, total } => {
            if bar.as_ref().is_none_or(|(name, _, _)| name != file) {
                bar = Some((file.to_owned(), Progress::new(total), 0));
            }
            if let Some((name, progress, shown)) = &mut bar {
                progress.advance(done.saturating_sub(*shown));
                *shown = done;
                progress.message(name.clone());
                progress.heartbeat(name);
            }
        }
    })?;
    Ok(FetchRecord {
        path: fetched.path,
        source: fetched.source,
    })
}
