//! Where a model's files are: in the folder that was named, or in a folder of the Hub's cache.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The folder with the model's config.json. For a model's folder in the cache of the Hub's client, this is
/// the snapshot that `refs/main` names, or the only one.
///
/// # Errors
/// `Kind` for a folder without config.json; `Io`.
pub(super) fn model_folder(path: &Path) -> Result<PathBuf> {
    if path.join("config.json").is_file() {
        return Ok(path.into());
    }
    let kind = |expected: &str, found: String| Error::Kind {
        path: path.into(),
        expected: expected.into(),
        found,
    };
    let snapshots = path.join("snapshots");
    if !snapshots.is_dir() {
        let cached = folders(path)?
            .into_iter()
            .filter(|name| name.starts_with("models--"));
        let cached: Vec<String> = cached.collect();
        return Err(if cached.is_empty() {
            kind("a model folder with a config.json", "a folder without".into())
        } else {
            let found = format!("a cache of the Hub with {}", cached.join(", "));
            kind("the folder of one model", found)
        });
    }
    let main = path.join("refs").join("main");
    let snapshot = if main.is_file() {
        let text = std::fs::read_to_string(&main).map_err(Error::io(&main, "read"))?;
        text.trim().to_owned()
    } else {
        let mut all = folders(&snapshots)?;
        match (all.pop(), all.is_empty()) {
            (Some(only), true) => only,
            (last, _) => {
                all.extend(last);
                let found = format!("snapshots {} and no refs/main that names one", all.join(", "));
                return Err(kind("a folder of the Hub's cache with one snapshot", found));
            }
        }
    };
    let folder = snapshots.join(&snapshot);
    let plain = !snapshot.is_empty() && Path::new(&snapshot).components().count() == 1;
    if plain && !snapshot.starts_with('.') && folder.join("config.json").is_file() {
        Ok(folder)
    } else {
        let found = format!("snapshots/{snapshot} without one");
        Err(kind("a snapshot of the Hub's cache with a config.json", found))
    }
}

/// Names of the folders in a folder, sorted.
fn folders(path: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Error::io(path, "read"))? {
        let entry = entry.map_err(Error::io(path, "read"))?;
        if entry.path().is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::fs::{create_dir_all, write};

    use super::*;

    #[test]
    fn a_cache_folder_leads_to_the_snapshot_that_refs_main_names() {
        let folder = tempfile::tempdir().unwrap();
        let cached = folder.path().join("models--org--name");
        for name in ["0a1b", "2c3d"] {
            let snapshot = cached.join("snapshots").join(name);
            create_dir_all(&snapshot).unwrap();
            write(snapshot.join("config.json"), "{}").unwrap();
        }
        let refused = |path: &Path, word: &str| {
            let error = model_folder(path);
            assert!(
                matches!(&error, Err(Error::Kind { found, .. }) if found.contains(word)),
                "{error:?}"
            );
        };
        refused(&cached, "0a1b, 2c3d");
        refused(folder.path(), "models--org--name");
        refused(&cached.join("snapshots"), "without");
        create_dir_all(cached.join("refs")).unwrap();
        write(cached.join("refs/main"), "2c3d\n").unwrap();
        assert_eq!(model_folder(&cached).unwrap(), cached.join("snapshots/2c3d"));
        for text in ["4e5f", "../..", "..", "", "/"] {
            write(cached.join("refs/main"), text).unwrap();
            refused(&cached, "without one");
        }
        std::fs::remove_file(cached.join("refs/main")).unwrap();
        std::fs::remove_dir_all(cached.join("snapshots/2c3d")).unwrap();
        assert_eq!(model_folder(&cached).unwrap(), cached.join("snapshots/0a1b"));
    }
}
