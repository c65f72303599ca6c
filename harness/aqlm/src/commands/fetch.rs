use std::path::{Path, PathBuf};

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
    let mut told = Told::default();
    let fetched = fetch::fetch(name, to, &mut |event| told.event(event))?;
    Ok(FetchRecord {
        path: fetched.path,
        source: fetched.source,
    })
}

/// The file of a text: of a data set, fetched if need be with progress on standard error, or else the path
/// itself.
pub(crate) fn text_file(path: &Path) -> Result<PathBuf> {
    let mut told = Told::default();
    let file = fetch::data_set(path, &mut |event| told.event(event))?;
    Ok(file.unwrap_or_else(|| path.to_path_buf()))
}

/// What standard error shows of a transfer.
#[derive(Default)]
struct Told {
    /// the file, its bar and the bytes that the bar shows
    bar: Option<(String, Progress, u64)>,
}

impl Told {
    fn event(&mut self, event: FetchEvent<'_>) {
        match event {
            FetchEvent::Trying { source } => say(format_args!("trying {source}")),
            FetchEvent::Converting => say("making a Hugging Face folder of the GGUF file"),
            FetchEvent::Failed { source, reason } => say(format_args!("{source}: {reason}")),
            FetchEvent::Bytes { file, done, total } => {
                if self.bar.as_ref().is_none_or(|(name, _, _)| name != file) {
                    self.bar = Some((file.to_owned(), Progress::new(total), 0));
                }
                if let Some((name, progress, shown)) = &mut self.bar {
                    progress.advance(done.saturating_sub(*shown));
                    *shown = done;
                    progress.message(name.clone());
                    progress.heartbeat(name);
                }
            }
        }
    }
}
