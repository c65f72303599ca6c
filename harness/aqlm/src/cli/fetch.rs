use std::path::PathBuf;

use super::Output;
use super::progress::Progress;
use aqlm_formats::Result;
use aqlm_formats::fetch::{FetchEvent, fetch};

/// Options of `aqlm fetch`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[arg(
        help = "A name this program knows (smollm2-135m), or a Hub id such as ORGANISATION/MODEL[@REVISION]"
    )]
    name: String,
    /// Folder to put it in [default: models/NAME]
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

pub(super) fn run(args: &Args, output: Output) -> Result<bool> {
    let mut bar: Option<(String, Progress, u64)> = None;
    let fetched = fetch(&args.name, args.to.as_deref(), &mut |event| match event {
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
    drop(bar);
    output.result(&fetched, || {
        format!("{} (from {})\n", fetched.path.display(), fetched.source)
    });
    Ok(true)
}
