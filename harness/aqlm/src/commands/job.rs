use std::path::{Path, PathBuf};

use super::say;
use aqlm_engine::backends::{BackendKind, CalibrationPrecision, Memory, TrainingPrecision};
use aqlm_engine::ranks::Ranks;
use aqlm_formats::Result;
use aqlm_formats::model::{Model, embedded};
use aqlm_formats::texts::TokenStream;
use aqlm_formats::tokenizer::Tokenizer;

/// A model, and its name on the command line.
#[derive(Debug)]
pub(crate) struct NamedModel {
    pub(crate) name: String,
    pub(crate) model: Model,
}

impl NamedModel {
    /// Opens a model folder or file, or the embedded model if the path is its name and does not exist. Prints
    /// the model's warnings on standard error.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let model = if path.as_os_str() == embedded::NAME && !path.exists() {
            Model::embedded()
        } else {
            Model::open(path)
        }?;
        print_warnings(model.warnings());
        Ok(Self {
            name: path.display().to_string(),
            model,
        })
    }

    /// The model's tokenizer. Prints its warnings on standard error.
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer> {
        let tokenizer = self.model.tokenizer()?;
        print_warnings(tokenizer.warnings());
        Ok(tokenizer)
    }
}

fn print_warnings(warnings: &[String]) {
    for warning in warnings {
        say(format_args!("warning: {warning}"));
    }
}

/// Warns about sequences that are longer than those the model was made for; `option` set their length.
pub(crate) fn warn_of_length(option: &str, tokens: usize, model: &Model) {
    let longest = model.config().max_position_embeddings;
    if tokens > longest {
        say(format_args!(
            "warning: {option}: expected at most max_position_embeddings = {longest}, found {tokens}: the model was \
             not made for later positions"
        ));
    }
}

/// A run that makes one model from another: its inputs, its settings `S`, and its folder.
pub(crate) struct Job<'a, S> {
    /// the input model
    pub(crate) model: &'a Model,
    /// calibration or training text
    pub(crate) text: &'a TokenStream,
    /// everything else that decides the result
    pub(crate) settings: S,
    pub(crate) backend: BackendKind,
    /// of products of training on a GPU, if it was chosen
    pub(crate) precision: Option<TrainingPrecision>,
    /// of calibration on a GPU
    pub(crate) activations: CalibrationPrecision,
    /// bound on the memory of activations
    pub(crate) memory: Option<Memory>,
    /// run folder: the run's progress, and at the end its record
    pub(crate) folder: PathBuf,
    /// whether to continue the run in the folder
    pub(crate) resume: bool,
    /// the processes that do the run
    pub(crate) ranks: &'a dyn Ranks,
}
