use std::path::PathBuf;

use crate::commands::fetch::FetchRequest;

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

impl Args {
    pub(super) fn request(&self) -> FetchRequest {
        FetchRequest {
            name: self.name.clone(),
            to: self.to.clone(),
        }
    }
}
