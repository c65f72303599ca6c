use std::path::PathBuf;

use super::Output;
use super::progress::Progress;
use aqlm_engine::runs::records::FetchRecord;
use aqlm_formats::Result;
use aqlm_formats::fetch::{self, FetchEvent};

/// What to fetch.
#[derive(Debug)]
pub(crate) struct FetchRequest {
    /// a name that this program knows, or a Hub id
    pub(crate) name: String,
    /// the folder to put it in
    pub(crate) to: Option<PathBuf>,
}

pub(crate) fn run(request: &FetchRequest, output: Output) -> Result<bool> {
    let record = fetch(request)?;
    output.result(&record, || {
        format!("{} (from {})\n", record.path.display(), record.source)
    });
    Ok(true)
}

/// Fetches a model with progress on standard error.
fn fetch(request: &FetchRequest) -> Result<FetchRecord> {
    let mut bar: Option<(String, Progress, u64)> = None;
    let fetched = fetch::fetch(&request.name, request.to.as_deref(), &mut |event| match event {
        FetchEvent::Trying { source } => eprintln!("trying {source}"),
        FetchEvent::Converting => eprintln!("making a Hugging Face folder of the GGUF file"),
        FetchEvent::Failed { source, reason } => eprintln!("{source}: {reason}"),
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
