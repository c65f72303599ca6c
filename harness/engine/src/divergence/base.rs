use std::path::Path;

use ndarray::{Array2, ArrayView2, s};

use crate::backend_kind::BackendKind;
use crate::position::log_softmax;
use crate::protocol::{EvaluationText, Protocol};
use crate::window_logits::WindowLogits;
use aqlm_formats::base_files::{BaseFile, BaseKey, LlamaCppWriter, LosslessWriter, Precision};
use aqlm_formats::durable::sha256;
use aqlm_formats::{Error, Result};

/// llama.cpp's rule: tokens at or below this log-probability in the base file do not count in the divergence.
/// Its 16 bits reach no further down.
const LLAMA_CPP_FLOOR: f64 = -16.0;

/// Source of the dense model's log-probabilities.
pub trait DenseRows {
    /// Log-probabilities of one window's scored positions, [positions, vocab]. Windows are taken in order,
    /// each once.
    ///
    /// # Errors
    /// Those of reading or computing, and of saving.
    fn log_probabilities(&mut self, window: usize) -> Result<Array2<f64>>;

    /// Least log-probability of a token that counts in the divergence.
    fn floor(&self) -> Option<f64>;
}

/// What a base file of this model and text is known by.
pub fn base_key(model_sha256: String, text: &EvaluationText, backend: BackendKind) -> BaseKey {
    BaseKey {
        model_sha256,
        protocol: text.protocol().name().into(),
        ctx: text.ctx(),
        first: text.first_scored(),
        backend: backend.name().into(),
    }
}

/// The dense model's log-probabilities from a base file.
#[derive(Debug)]
pub struct Kept<'a>(&'a BaseFile);

impl<'a> Kept<'a> {
    /// Takes a base file that was made from the same text in the same way, by a model with this vocabulary.
    /// `model_sha256` is the dense model's fingerprint, where that model is given.
    ///
    /// # Errors
    /// `Field` with what differs.
    pub fn new(
        file: &'a BaseFile,
        text: &EvaluationText,
        vocab: usize,
        model_sha256: Option<&str>,
    ) -> Result<Self> {
        let same = |field: &str, expected: String, found: String| {
            if expected == found {
                return Ok(());
            }
            Err(Error::Field {
                path: file.path().into(),
                field: field.into(),
                expected,
                found,
            })
        };
        let protocol = text.protocol().name();
        match file {
            BaseFile::Lossless(base) => {
                let key = base.key();
                same("vocab", vocab.to_string(), base.vocab().to_string())?;
                same("protocol", protocol.into(), key.protocol.clone())?;
                same("ctx", text.ctx().to_string(), key.ctx.to_string())?;
                same("first", text.first_scored().to_string(), key.first.to_string())?;
                if let Some(model) = model_sha256 {
                    same("model_sha256", model.into(), key.model_sha256.clone())?;
                }
            }
            BaseFile::LlamaCpp(base) => {
                same("n_vocab", vocab.to_string(), base.vocab().to_string())?;
                same("protocol", protocol.into(), Protocol::LlamaCpp.name().into())?;
                same("n_ctx", text.ctx().to_string(), base.ctx().to_string())?;
            }
        }
        let (expected, found) = (text.windows(), file.windows());
        same("windows", expected.len().to_string(), found.len().to_string())?;
        for (window, (expected, found)) in expected.iter().zip(&found).enumerate() {
            same(
                &format!("length of window {window}"),
                expected.len().to_string(),
                found.len().to_string(),
            )?;
            if let Some(at) = expected
                .iter()
                .zip(*found)
                .position(|(ours, theirs)| ours != theirs)
            {
                return Err(Error::Field {
                    path: file.path().into(),
                    field: format!("token {at} of window {window}"),
                    expected: format!(
                        "{}, of the text with ids of SHA-256 {}",
                        expected[at],
                        digest(text)
                    ),
                    found: format!("{}, of another text", found[at]),
                });
            }
        }
        Ok(Self(file))
    }
}

fn digest(text: &EvaluationText) -> String {
    let ids: Vec<u8> = text
        .windows()
        .concat()
        .iter()
        .flat_map(|id| id.to_le_bytes())
        .collect();
    sha256(&ids)
}

impl DenseRows for Kept<'_> {
    fn log_probabilities(&mut self, window: usize) -> Result<Array2<f64>> {
        match self.0 {
            BaseFile::Lossless(base) => {
                let mut logits = base.logits(window)?;
                log_softmax(&mut logits);
                Ok(logits)
            }
            BaseFile::LlamaCpp(base) => base.log_probabilities(window),
        }
    }

    fn floor(&self) -> Option<f64> {
        match self.0 {
            BaseFile::Lossless(_) => None,
            BaseFile::LlamaCpp(_) => Some(LLAMA_CPP_FLOOR),
        }
    }
}

/// The dense model's log-probabilities as it computes them, saved on the way if a base file is wanted.
pub struct Computed<'a> {
    /// the dense model's logits
    pub logits: &'a mut dyn WindowLogits,
    /// first position of a window that counts
    pub first: usize,
    /// the base file
    pub save: Option<&'a mut BaseWriter>,
}

impl DenseRows for Computed<'_> {
    fn log_probabilities(&mut self, window: usize) -> Result<Array2<f64>> {
        let mut logits = scored(self.logits.logits(window)?, self.first);
        if let Some(file) = &mut self.save {
            file.push(&logits.view())?;
        }
        log_softmax(&mut logits);
        Ok(logits)
    }

    fn floor(&self) -> Option<f64> {
        None
    }
}

/// The rows of logits whose predictions count.
pub(super) fn scored(mut logits: Array2<f64>, first: usize) -> Array2<f64> {
    let end = logits.nrows().saturating_sub(1);
    logits.slice_collapse(s![first.min(end)..end, ..]);
    logits
}

/// A base file being written; its name decides its format.
#[derive(Debug)]
pub enum BaseWriter {
    /// logits as computed
    Lossless(LosslessWriter),
    /// log-probabilities in 16 bits
    LlamaCpp(LlamaCppWriter),
}

impl BaseWriter {
    /// A name that ends in `.safetensors` makes the lossless form, every other name llama.cpp's.
    ///
    /// # Errors
    /// `Argument` when llama.cpp's form is wanted for a text of another protocol; `Io`.
    pub fn new(
        path: &Path,
        key: &BaseKey,
        backend: BackendKind,
        vocab: usize,
        text: &EvaluationText,
    ) -> Result<Self> {
        let windows = text.windows();
        if path.extension().is_some_and(|ending| ending == "safetensors") {
            let precision = match backend {
                BackendKind::Reference => Precision::F64,
                BackendKind::Cpu | BackendKind::Cuda => Precision::F32,
            };
            return LosslessWriter::new(path, key, precision, vocab, &windows).map(Self::Lossless);
        }
        if text.protocol() != Protocol::LlamaCpp {
            return Err(Error::argument(
                "save_base",
                "a name ending in .safetensors, or --protocol llama-cpp for llama.cpp's own format",
                format!("{} with protocol {}", path.display(), text.protocol().name()),
            ));
        }
        LlamaCppWriter::new(path, vocab, &windows).map(Self::LlamaCpp)
    }

    /// Appends the logits of the next window's scored positions, [positions, vocab].
    ///
    /// # Errors
    /// `Io`; `Internal` for rows that do not fit.
    pub fn push(&mut self, logits: &ArrayView2<'_, f64>) -> Result<()> {
        match self {
            Self::Lossless(file) => file.push(logits),
            Self::LlamaCpp(file) => file.push(logits),
        }
    }

    /// Gives the complete file its name.
    ///
    /// # Errors
    /// `Io`; `Internal` when rows are missing.
    pub fn finish(self) -> Result<()> {
        match self {
            Self::Lossless(file) => file.finish(),
            Self::LlamaCpp(file) => file.finish(),
        }
    }
}
