//! Texts with names of their own: data sets on the Hub, kept in a cache.

use std::path::{Path, PathBuf};

use hf_hub::RepoType;

use super::event::{FetchEvent, report};
use super::hub::Hub;
use super::place::put_in_place;
use super::{IN_PROGRESS, hub};
use crate::texts::documents;
use crate::{Error, Result, durable};

/// A text of the field's protocols.
#[derive(Debug)]
struct DataSet {
    name: &'static str,
    /// data set of the Hub
    repository: &'static str,
    /// the file with its rows
    file: &'static str,
    /// what stands between the rows of a text that is one stream; `None` for a file of documents
    between: Option<&'static str>,
}

/// WikiText-2 as the GPTQ line of papers reads it: the rows of wikitext-2-raw-v1, joined by blank lines. C4
/// as it does: one shard's documents.
const DATA_SETS: [DataSet; 5] = [
    wikitext2(
        "wikitext2:train",
        "wikitext-2-raw-v1/train-00000-of-00001.parquet",
    ),
    wikitext2(
        "wikitext2:validation",
        "wikitext-2-raw-v1/validation-00000-of-00001.parquet",
    ),
    wikitext2("wikitext2:test", "wikitext-2-raw-v1/test-00000-of-00001.parquet"),
    c4("c4:train", "en/c4-train.00000-of-01024.json.gz"),
    c4("c4:validation", "en/c4-validation.00000-of-00008.json.gz"),
];

const fn wikitext2(name: &'static str, file: &'static str) -> DataSet {
    DataSet {
        name,
        repository: "Salesforce/wikitext",
        file,
        between: Some("\n\n"),
    }
}

const fn c4(name: &'static str, file: &'static str) -> DataSet {
    DataSet {
        name,
        repository: "allenai/c4",
        file,
        between: None,
    }
}

/// Names that [`data_set`] accepts.
pub fn data_set_names() -> impl Iterator<Item = &'static str> {
    DATA_SETS.iter().map(|set| set.name)
}

/// The file of a data set, or `None` for a path that names none. A file of that name in the current folder
/// comes first.
///
/// A file lies in the cache, `aqlm/data` below the user's folder for caches, beside its SHA-256. The first
/// call downloads it from the Hub, which [`Hub::from_env`] configures. Rows that belong together become one
/// text file, so a data set is read by the same code as a file of one's own.
///
/// # Errors
/// `Kind` for a name like theirs that is none of them and no file; `Fetch` when the file is neither in the
/// cache nor on the Hub; `Digest` when it is not the one that was downloaded; `Io`; errors of reading its
/// rows.
pub fn data_set(path: &Path, observe: &mut dyn FnMut(FetchEvent<'_>)) -> Result<Option<PathBuf>> {
    if path.exists() {
        return Ok(None);
    }
    let Some(set) = DATA_SETS.iter().find(|set| path.as_os_str() == set.name) else {
        let family = path
            .to_str()
            .and_then(|name| name.split_once(':'))
            .map(|(family, _)| family);
        if let Some(family) = family
            && data_set_names().any(|name| name.split(':').next() == Some(family))
        {
            return Err(Error::Kind {
                path: path.into(),
                expected: format!(
                    "a file, or one of {}",
                    data_set_names().collect::<Vec<_>>().join(", ")
                ),
                found: "neither".into(),
            });
        }
        return Ok(None);
    };
    let cache = dirs::cache_dir().ok_or_else(|| Error::Fetch {
        name: set.name.into(),
        tried: vec!["no folder for caches: set HOME or XDG_CACHE_HOME".into()],
    })?;
    data_set_through(set, &cache.join("aqlm").join("data"), &Hub::from_env()?, observe).map(Some)
}

fn data_set_through(
    set: &DataSet,
    cache: &Path,
    hub: &Hub,
    observe: &mut dyn FnMut(FetchEvent<'_>),
) -> Result<PathBuf> {
    let file = cache.join(set.file_name());
    let digest = cache.join(format!("{}.sha256", set.file_name()));
    if file.is_file() {
        let expected = std::fs::read_to_string(&digest).map_err(Error::io(&digest, "read"))?;
        let found = durable::sha256_of_file(&file)?;
        if found != expected.trim() {
            return Err(Error::Digest {
                path: file,
                what: "sha256",
                expected: expected.trim().into(),
                found,
            });
        }
        return Ok(file);
    }
    let waiting = cache.join(IN_PROGRESS);
    std::fs::create_dir_all(&waiting).map_err(Error::io(&waiting, "make folder"))?;
    let source = format!("the Hub (data set {})", set.repository);
    observe(FetchEvent::Trying { source: &source });
    let found = hub
        .download(
            RepoType::Dataset,
            set.repository,
            "main",
            set.file,
            &waiting,
            observe,
        )
        .map_err(|reason| Error::Fetch {
            name: set.name.into(),
            tried: vec![report(&source, &reason, observe)],
        });
    let made = found.and_then(|rows| {
        let whole = waiting.join("text");
        match set.between {
            None => std::fs::copy(&rows, &whole)
                .map(drop)
                .map_err(Error::io(&whole, "write"))?,
            Some(between) => {
                let rows = put_beside(&rows, &waiting, set.file)?;
                let text = documents(&rows, None)?.join(between);
                std::fs::write(&whole, text).map_err(Error::io(&whole, "write"))?;
            }
        }
        let sha256 = durable::sha256_of_file(&whole)?;
        durable::write_text(&digest, &format!("{sha256}\n"))?;
        put_in_place(&whole, &file)
    });
    if made.is_ok() || !hub::is_resumable(&waiting) {
        // a failed cleanup must not hide the result
        let _ = std::fs::remove_dir_all(&waiting);
    }
    if made.is_err() {
        // only folders that are empty go
        let _ = std::fs::remove_dir(cache);
    }
    made.map(|()| file)
}

/// A copy of a download under its own name, whose ending tells the format: the Hub's cache names contents by
/// their digest.
fn put_beside(download: &Path, waiting: &Path, file: &str) -> Result<PathBuf> {
    let name = Path::new(file).file_name().unwrap_or(file.as_ref());
    let named = waiting.join(name);
    std::fs::copy(download, &named).map_err(Error::io(&named, "write"))?;
    Ok(named)
}

impl DataSet {
    /// `wikitext2-test.txt`, `c4-validation.json.gz`.
    fn file_name(&self) -> String {
        let ending = if self.between.is_some() { "txt" } else { "json.gz" };
        format!("{}.{ending}", self.name.replace(':', "-"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::server::{Site, serve};
    use super::*;

    const SMALL: DataSet = DataSet {
        name: "small:test",
        repository: "someone/tiny",
        file: "rows/test.jsonl",
        between: Some("\n\n"),
    };

    fn site(rows: &str) -> Site {
        Site {
            files: [(SMALL.file.to_owned(), rows.as_bytes().to_vec())].into(),
            ..Site::default()
        }
    }

    #[test]
    fn rows_become_a_text_that_is_kept_and_checked() {
        let cache = tempfile::tempdir().unwrap();
        let (endpoint, seen) = serve(site(
            "{\"text\": \"one\\n\"}\n{\"text\": \"\"}\n{\"text\": \"two\"}\n",
        ));
        let of = |hub: &Hub| data_set_through(&SMALL, cache.path(), hub, &mut |_| ());
        let file = of(&Hub::at(endpoint)).unwrap();
        assert_eq!(file.file_name().unwrap(), "small-test.txt");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "one\n\n\n\n\ntwo");
        let asked = seen.lock().unwrap();
        assert!(
            asked
                .iter()
                .any(|line| line == "/datasets/someone/tiny/resolve/main/rows/test.jsonl"),
            "{asked:?}"
        );
        assert!(!cache.path().join(IN_PROGRESS).exists());
        // the second time nothing is asked
        assert_eq!(of(&Hub::offline()).unwrap(), file);
        std::fs::write(&file, "something else").unwrap();
        assert!(matches!(of(&Hub::offline()), Err(Error::Digest { .. })));
    }

    #[test]
    fn a_data_set_that_is_nowhere_leaves_nothing() {
        let cache = tempfile::tempdir().unwrap();
        let result = data_set_through(&SMALL, cache.path(), &Hub::offline(), &mut |_| ());
        assert!(matches!(result, Err(Error::Fetch { tried, .. }) if tried[0].contains("HF_HUB_OFFLINE")));
        assert!(!cache.path().exists());
    }

    #[test]
    fn a_path_is_no_data_set() {
        assert_eq!(data_set(Path::new("wikitext2"), &mut |_| ()).unwrap(), None);
        let misspelt = data_set(Path::new("c4:test"), &mut |_| ());
        assert!(matches!(misspelt, Err(Error::Kind { expected, .. }) if expected.contains("c4:validation")));
        assert_eq!(data_set_names().count(), DATA_SETS.len());
    }
}
