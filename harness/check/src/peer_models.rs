use std::path::{Path, PathBuf};

use super::vector_file::VectorFile;
use super::vector_options::VectorOptions;
use super::{CaseRow, Comparison, Outcome, largest, whole_model};
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
    let models = model_paths(&options.models);
    let mut rows = Vec::new();
    for path in files {
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if !options.wants("model_forward", &name) {
            continue;
        }
        let file = VectorFile::open(path)?;
        let row = match model_for(&name, &file, files, &models)? {
            Some(model) => check_one(&name, &file, &model, options)?,
            None => CaseRow::without(
                "model_forward",
                &name,
                &options.backend.to_string(),
                Outcome::Waived,
                "no model of that name was given",
            ),
        };
        progress(&row);
        rows.push(row);
    }
    Ok(rows)
}

/// All models under the given paths. A path is a model or a folder of several models.
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

fn simplified(name: &str) -> String {
    name.chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|c| c.to_ascii_lowercase())
        .collect()
}

/// Whether the name of a model's file begins with that of a vector file, or the reverse: `stories260K-hf` and
/// `stories260K`, `smollm2-135m` and `smollm2-135m-wikitext2`.
fn names_match(model: &Path, name: &str) -> bool {
    let model = simplified(&model.file_stem().unwrap_or_default().to_string_lossy());
    let name = simplified(name);
    !model.is_empty() && (model.starts_with(&name) || name.starts_with(&model))
}

/// The model whose name matches. If no model matches any of the files by name, the first model whose
/// vocabulary fits.
fn model_for(name: &str, file: &VectorFile, files: &[PathBuf], models: &[PathBuf]) -> Result<Option<Model>> {
    if let Some(path) = models.iter().find(|path| names_match(path, name)) {
        return Model::open(path).map(Some);
    }
    let any_named = files.iter().any(|file| {
        let name = file
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        models.iter().any(|model| names_match(model, &name))
    });
    if any_named {
        return Ok(None);
    }
    let width = if file.has("logits") {
        file.array("logits")?.shape().last().copied()
    } else {
        None
    };
    let largest = file
        .sequences("input_ids")?
        .into_iter()
        .flatten()
        .max()
        .unwrap_or(0) as usize;
    for path in models {
        let model = Model::open(path)?;
        let vocab = model.config().vocab_size;
        if width.map_or(largest < vocab, |width| width == vocab) {
            return Ok(Some(model));
        }
    }
    Ok(None)
}

fn check_one(name: &str, file: &VectorFile, model: &Model, options: &VectorOptions) -> Result<CaseRow> {
    let with_logits = file.has("logits");
    let found = whole_model::run(options.backend, model, &file.sequences("input_ids")?, with_logits)?;
    let mut comparisons = Vec::new();
    if with_logits {
        comparisons.push(whole_model::compare_logits(
            &found,
            &file.array("logits")?,
            LOGITS_NMSE,
        ));
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
            TOKEN_LOSS,
        ));
    }
    Ok(CaseRow::compared(
        "model_forward",
        name,
        &options.backend.to_string(),
        comparisons,
    ))
}
