use std::path::{Path, PathBuf};

use super::vector_file::VectorFile;
use super::vector_options::VectorOptions;
use super::whole_model::{self, logits_limit, refused};
use super::{CaseRow, Comparison, Outcome, largest};
use aqlm_formats::Result;
use aqlm_formats::model::Model;

/// transformers computes in f32, and its logits carry the corresponding noise.
const LOGITS_NMSE: f64 = 1e-9;
/// In nats: the same noise after log-softmax.
const TOKEN_LOSS: f64 = 1e-4;

/// Compares whole models with `NAME.safetensors`, which contains input_ids, nll and optionally logits.
pub(super) fn check(
    files: &[PathBuf],
    options: &VectorOptions,
    progress: &mut dyn FnMut(&CaseRow),
) -> Result<Vec<CaseRow>> {
    let models = Models::new(&options.models, files);
    let mut rows = Vec::new();
    for path in files {
        let name = vector_name(path);
        if !options.wants("model_forward", &name) {
            continue;
        }
        let row = match models.get(&name) {
            Some(model) => match check_one(&name, path, model, options) {
                Ok(row) => row,
                Err(error) => refused("model_forward", &name, options.backend, error)?,
            },
            None => CaseRow::without(
                "model_forward",
                &name,
                &options.backend.to_string(),
                Outcome::Waived,
                format!("no model of that name was given; --model {name}=PATH names one"),
            ),
        };
        progress(&row);
        rows.push(row);
    }
    Ok(rows)
}

/// All models under the given paths, `NAME=PATH` aside. A path is a model or a folder of several models.
fn model_paths(given: &[PathBuf]) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for path in given {
        if path.is_dir() && !path.join("config.json").is_file() {
            let entries = std::fs::read_dir(path)
                .into_iter()
                .flatten()
                .filter_map(|entry| Some(entry.ok()?.path()));
            let mut inside: Vec<PathBuf> = entries
                .filter(|entry| {
                    entry.join("config.json").is_file() || entry.extension().is_some_and(|ext| ext == "gguf")
                })
                .collect();
            inside.sort();
            // A folder around a single GGUF file, as `aqlm fetch` creates it, is identified by the folder's
            // name.
            if inside.len() == 1 && inside[0].is_file() {
                paths.push(path.clone());
            } else {
                paths.append(&mut inside);
            }
        } else {
            paths.push(path.clone());
        }
    }
    paths
}

/// The name by which a model is paired with a vector file: that of its folder or file, without the `-hf` of a
/// converted model's folder.
fn model_name(path: &Path) -> String {
    let name = if path.is_dir() {
        path.file_name()
    } else {
        path.file_stem()
    };
    let name = name.unwrap_or_default().to_string_lossy();
    name.strip_suffix("-hf").unwrap_or(&name).to_owned()
}

/// The vector file that a model is for, if the command line says so: `NAME=PATH`. A path that exists is a
/// path.
fn named(given: &Path) -> Option<(String, PathBuf)> {
    let text = given.to_str().filter(|_| !given.exists())?;
    let (name, path) = text.split_once('=')?;
    Some((name.to_owned(), PathBuf::from(path)))
}

/// The models that were given, by the names of their vector files.
struct Models {
    paths: Vec<(String, PathBuf)>,
}

impl Models {
    /// One model and one vector file belong together whatever their names are.
    fn new(given: &[PathBuf], files: &[PathBuf]) -> Self {
        let mut paths = Vec::new();
        for given in given {
            match named(given) {
                Some(pair) => paths.push(pair),
                None => paths.extend(
                    model_paths(std::slice::from_ref(given))
                        .into_iter()
                        .map(|path| (model_name(&path), path)),
                ),
            }
        }
        if let ([file], [(name, _)]) = (files, &mut paths[..]) {
            *name = vector_name(file);
        }
        Self { paths }
    }

    fn get(&self, name: &str) -> Option<&Path> {
        let pair = self.paths.iter().find(|(model, _)| model == name);
        pair.map(|(_, path)| path.as_path())
    }
}

fn vector_name(file: &Path) -> String {
    file.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn check_one(name: &str, file: &Path, model: &Path, options: &VectorOptions) -> Result<CaseRow> {
    let file = VectorFile::open(file)?;
    let model = Model::open(model)?;
    let limit = logits_limit(options.backend, model.config(), LOGITS_NMSE);
    let with_logits = file.has("logits");
    let found = whole_model::run(
        options.backend,
        &model,
        &file.sequences("input_ids")?,
        with_logits,
    )?;
    let mut comparisons = Vec::new();
    if with_logits {
        comparisons.push(whole_model::compare_logits(&found, &file.array("logits")?, limit));
    }
    if file.has("nll") {
        let expected = file.array("nll")?;
        let losses: Vec<f64> = found.losses.iter().flatten().copied().collect();
        let worst = if losses.len() == expected.len() {
            largest(losses.iter().zip(&expected).map(|(a, b)| (a - b).abs()))
        } else {
            f64::NAN
        };
        comparisons.push(Comparison::new(
            "token losses, largest difference",
            worst,
            // logits are about 10 in size, and the largest of thousands of errors is some four deviations
            TOKEN_LOSS + 40.0 * (limit - LOGITS_NMSE).max(0.0).sqrt(),
        ));
    }
    Ok(CaseRow::compared(
        "model_forward",
        name,
        &options.backend.to_string(),
        comparisons,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_pair_exactly() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["x", "y-hf", "z.gguf-folder"] {
            let path = folder.path().join(name);
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("config.json"), "{}").unwrap();
        }
        let files = ["x-small.safetensors", "x.safetensors", "y.safetensors"].map(PathBuf::from);
        let models = Models::new(&[folder.path().into()], &files);
        assert_eq!(models.get("x"), Some(folder.path().join("x").as_path()));
        assert_eq!(models.get("y"), Some(folder.path().join("y-hf").as_path()));
        for name in ["x-small", "X", "z", "", "y-hf"] {
            assert_eq!(models.get(name), None, "{name}");
        }
        let given = [PathBuf::from("x-small=elsewhere/x"), folder.path().join("x")];
        let models = Models::new(&given, &files);
        assert_eq!(models.get("x-small"), Some(Path::new("elsewhere/x")));
        assert_eq!(models.get("x"), Some(given[1].as_path()));
        // one of each are a pair
        let models = Models::new(&given[1..], &files[..1]);
        assert_eq!(models.get("x-small"), Some(given[1].as_path()));
    }

    #[test]
    fn a_refused_model_gets_a_row_and_the_others_are_compared() {
        let folder = tempfile::tempdir().unwrap();
        let mut given = Vec::new();
        for (name, config) in [("absent", None), ("family", Some(r#"{"model_type": "mamba"}"#))] {
            let path = folder.path().join(name);
            if let Some(config) = config {
                std::fs::create_dir(&path).unwrap();
                std::fs::write(path.join("config.json"), config).unwrap();
            }
            given.push(path);
        }
        let files = ["absent", "family", "other"].map(|name| {
            let path = folder.path().join(format!("{name}.safetensors"));
            let ids = aqlm_formats::safetensors::NewTensor::new("input_ids", &[1, 2], [1_i32, 2]);
            aqlm_formats::safetensors::write(&path, vec![ids]).unwrap();
            path
        });
        let options = VectorOptions {
            backend: aqlm_engine::backends::BackendKind::Cpu,
            op: None,
            case: None,
            models: given,
        };
        let rows = check(&files, &options, &mut |_| ()).unwrap();
        let outcomes: Vec<Outcome> = rows.iter().map(|row| row.outcome).collect();
        assert_eq!(outcomes, [Outcome::Fail, Outcome::Unsupported, Outcome::Waived]);
        for (row, word) in rows.iter().zip(["absent", "mamba", "--model other=PATH"]) {
            let reason = row.reason.as_deref().unwrap_or_default();
            assert!(reason.contains(word), "{reason}");
        }
    }
}
