//! The weights of a model folder: one file, or shards and their index.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use crate::safetensors::SafetensorFiles;
use crate::{Error, Result, json};

/// File name of unsharded weights.
pub(crate) const SINGLE: &str = "model.safetensors";

/// File name of the index, which maps tensors to shards.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Name of the shard `number`, from 1.
pub(crate) fn shard_name(number: usize, total: usize) -> String {
    format!("model-{number:05}-of-{total:05}.safetensors")
}

/// A model folder: `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
///
/// # Errors
/// Those of one file; `Kind` when the folder has neither; `Field` and `Shard` for a bad index;
/// `MissingTensor` when a shard lacks a tensor that the index promises.
pub(crate) fn open_folder(folder: &Path) -> Result<SafetensorFiles> {
    let single = folder.join(SINGLE);
    if single.is_file() {
        return SafetensorFiles::open_file(&single);
    }
    let index = folder.join(INDEX);
    if index.is_file() {
        return open_index(folder, &index);
    }
    let mut other = None;
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder, "read"))? {
        let name = entry.map_err(Error::io(folder, "read"))?.file_name();
        let ending = Path::new(&name).extension();
        if ending.is_some_and(|ending| ["bin", "pt", "pth"].iter().any(|other| ending == *other)) {
            other = Some(name);
        }
    }
    Err(Error::Kind {
        path: folder.into(),
        expected: "model.safetensors or model.safetensors.index.json".into(),
        found: other.map_or_else(
            || "neither".into(),
            |name| {
                let name = name.display();
                format!("{name} (PyTorch's own format is not read: convert it to safetensors)")
            },
        ),
    })
}

/// The shards listed in an index, each with its tensors.
///
/// # Errors
/// `Io`, `Json`; `Field` when it is not a map to file names without folders.
pub(crate) fn shards(index: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let value = json::read(index)?;
    let map = value.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| Error::Field {
        path: index.into(),
        field: "weight_map".into(),
        expected: "an object of tensor names and file names".into(),
        found: "nothing of the kind".into(),
    })?;
    let mut by_shard: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, file) in map {
        let file = file.as_str().filter(|file| is_plain_file_name(file));
        let file = file.ok_or_else(|| Error::Field {
            path: index.into(),
            field: format!("weight_map.{tensor}"),
            expected: "a file name without folders".into(),
            found: map[tensor].to_string(),
        })?;
        by_shard.entry(file.into()).or_default().push(tensor.clone());
    }
    Ok(by_shard)
}

fn open_index(folder: &Path, index: &Path) -> Result<SafetensorFiles> {
    let by_shard = shards(index)?;
    refuse_unlisted_shards(folder, index, &by_shard.keys().map(String::as_str).collect())?;
    let mut files = SafetensorFiles::none(folder);
    for (file, tensors) in by_shard {
        let path = folder.join(&file);
        if path.is_file() {
            files.add(&path, &tensors)?;
        } else {
            // an error only when a tensor of the shard is needed
            files.add_absent(index, &file, tensors);
        }
    }
    Ok(files)
}

fn is_plain_file_name(name: &str) -> bool {
    !name.is_empty() && name != ".." && name != "." && !name.contains(['/', '\\', '\0'])
}

/// Rejects shards of the same set (`NAME-00001-of-00003.safetensors`) that are in the folder but not in the
/// index.
fn refuse_unlisted_shards(folder: &Path, index: &Path, listed: &BTreeSet<&str>) -> Result<()> {
    let set_of = |name: &str| -> Option<(String, String)> {
        let stem = name.strip_suffix(".safetensors")?;
        let (front, total) = stem.rsplit_once("-of-")?;
        let (set, number) = front.rsplit_once('-')?;
        number.parse::<u32>().ok()?;
        Some((set.into(), total.into()))
    };
    let sets: BTreeSet<_> = listed.iter().filter_map(|name| set_of(name)).collect();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder, "read"))? {
        let name = entry.map_err(Error::io(folder, "read"))?.file_name();
        let Some(name) = name.to_str() else { continue };
        if !listed.contains(name) && set_of(name).is_some_and(|set| sets.contains(&set)) {
            return Err(Error::Shard {
                index: index.into(),
                shard: name.into(),
                reason: "is in the folder, but expected tensors of it in weight_map, found none".into(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::safetensors::{NewTensor, write};
    use crate::tensors::TensorSource;

    /// A folder with one shard of tensors a and b, and an index with this text.
    fn indexed(index: &str) -> (tempfile::TempDir, Result<SafetensorFiles>) {
        let folder = tempfile::tempdir().unwrap();
        let tensors = ["a", "b"].map(|name| NewTensor::new(name, &[2], [0.5_f32, 1.0]));
        write(&folder.path().join(shard_name(1, 2)), tensors.into()).unwrap();
        std::fs::write(folder.path().join(INDEX), index).unwrap();
        let result = open_folder(folder.path());
        (folder, result)
    }

    #[test]
    fn an_index_says_which_shard_has_a_tensor() {
        let index = r#"{"weight_map":{"a":"model-00001-of-00002.safetensors"}}"#;
        let (_folder, tensors) = indexed(index);
        assert_eq!(tensors.unwrap().names(), ["a"]);
    }

    #[test]
    fn a_listed_shard_that_is_absent_is_named_when_its_tensor_is_needed() {
        let index = r#"{"weight_map":{"a":"model-00001-of-00002.safetensors","c":"model-00002-of-00002.safetensors"}}"#;
        let (_folder, files) = indexed(index);
        let files = files.unwrap();
        files.expect("a", &[2]).unwrap();
        let absent = |result: Result<()>| {
            matches!(result, Err(Error::Shard { shard, reason, .. })
                if shard == "model-00002-of-00002.safetensors" && reason.contains("`c`"))
        };
        assert!(absent(files.expect("c", &[2]).map(|_| ())));
        assert!(absent(files.read_floats("c").map(|_| ())));
    }

    #[test]
    fn a_shard_that_the_index_forgets_is_named() {
        let (folder, result) = indexed(r#"{"weight_map":{"a":"model-00001-of-00002.safetensors"}}"#);
        assert!(result.is_ok());
        let forgotten = folder.path().join("model-00002-of-00002.safetensors");
        std::fs::write(forgotten, b"").unwrap();
        let result = open_folder(folder.path());
        assert!(
            matches!(result, Err(Error::Shard { shard, .. }) if shard == "model-00002-of-00002.safetensors")
        );
    }

    #[test]
    fn a_tensor_that_its_shard_lacks_is_named() {
        let (_folder, result) = indexed(r#"{"weight_map":{"c":"model-00001-of-00002.safetensors"}}"#);
        assert!(matches!(result, Err(Error::MissingTensor { tensor, path })
            if tensor == "c" && path.ends_with("model-00001-of-00002.safetensors")));
    }

    #[test]
    fn an_index_cannot_point_out_of_its_folder() {
        for target in ["\"../model.safetensors\"", "\"/etc/passwd\"", "3", "\"\""] {
            let (_folder, result) = indexed(&format!(r#"{{"weight_map":{{"a":{target}}}}}"#));
            assert!(
                matches!(result, Err(Error::Field { field, .. }) if field == "weight_map.a"),
                "{target}"
            );
        }
        let (_folder, result) = indexed("{}");
        assert!(matches!(result, Err(Error::Field { field, .. }) if field == "weight_map"));
    }

    #[test]
    fn a_folder_without_weights_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(open_folder(folder.path()), Err(Error::Kind { .. })));
        std::fs::write(folder.path().join("pytorch_model.bin"), b"").unwrap();
        let result = open_folder(folder.path());
        assert!(matches!(result, Err(Error::Kind { found, .. }) if found.contains("pytorch_model.bin")));
    }
}
