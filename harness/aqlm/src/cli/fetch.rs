use std::path::PathBuf;

/// Options of `aqlm fetch`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[arg(
        help = "A name this program knows (smollm2-135m), or a Hub id such as ORGANISATION/MODEL[@REVISION]"
    )]
    pub(super) name: String,
    /// Folder to put it in [default: models/NAME]
    #[arg(long, value_name = "DIR")]
    pub(super) to: Option<PathBuf>,
}
