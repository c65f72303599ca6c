use std::path::{Path, PathBuf};

use aqlm_engine::backends::{BackendKind, Memory};
use aqlm_formats::Result;
use aqlm_formats::model::{Model, embedded};
use aqlm_formats::texts::TokenStream;

/// A model and the name that it was asked for by.
#[derive(Debug)]
pub(crate) struct NamedModel {
    pub(crate) name: String,
    pub(crate) model: Model,
}

impl NamedModel {
    /// Opens a model folder or file; the embedded model by its name when there is no such path.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let model = if path.as_os_str() == embedded::NAME && !path.exists() {
            Model::embedded()
        } else {
            Model::open(path)
        }?;
        Ok(Self {
            name: path.display().to_string(),
            model,
        })
    }
}

/// A run that makes a model of another one: what it works on, with which settings `S`, and where.
#[derive(Debug)]
pub(crate) struct Job<'a, S> {
    /// the model that it starts from
    pub(crate) model: &'a Model,
    /// calibration or training text
    pub(crate) text: &'a TokenStream,
    /// everything else that decides the result
    pub(crate) settings: S,
    pub(crate) backend: BackendKind,
    /// bound on the memory of activations
    pub(crate) memory: Option<Memory>,
    /// run folder: what the run has done so far, and in the end its record
    pub(crate) folder: PathBuf,
    /// whether to go on with what the run folder holds
    pub(crate) resume: bool,
}
