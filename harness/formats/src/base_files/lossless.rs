//! The project's own base file: logits in safetensors, in the precision in which the backend computed them.
//!
//! `logits` [rows, vocab], F32 or F64, one row per scored position; their log-softmax is the
//! log-probabilities. `input_ids` `[tokens]` I32 and `window_lengths` `[windows]` I32 are the text. The
//! metadata say what the rows were computed from: see [`BaseKey`].

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use ndarray::{Array1, Array2, ArrayView2};

use super::rows::{RowsLeft, rows_of};
use crate::durable::{GrowingFile, sha256};
use crate::safetensors::{Dtype, Element, SafetensorFiles, Slot, write_header};
use crate::tensors::TensorSource;
use crate::{Error, Result};

/// The value of the metadata's `kind`.
const KIND: &str = "aqlm-base/1";

/// Number type of the logits: that of the backend's own arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// single precision: cpu and cuda
    F32,
    /// double precision: reference
    F64,
}

impl Precision {
    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F64 => Dtype::F64,
        }
    }
}

/// What the rows of a base file were computed from, other than the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseKey {
    /// the dense model's [fingerprint](crate::model::Model::fingerprint)
    pub model_sha256: String,
    /// name of the protocol that cut the text into windows
    pub protocol: String,
    /// tokens in a window; the last one may be shorter
    pub ctx: usize,
    /// position of each window whose prediction is the first to be kept
    pub first: usize,
    /// the backend that computed
    pub backend: String,
}

impl BaseKey {
    fn metadata(&self, ids_sha256: String) -> BTreeMap<String, String> {
        BTreeMap::from([
            ("kind".into(), KIND.into()),
            ("model_sha256".into(), self.model_sha256.clone()),
            ("ids_sha256".into(), ids_sha256),
            ("protocol".into(), self.protocol.clone()),
            ("ctx".into(), self.ctx.to_string()),
            ("first".into(), self.first.to_string()),
            ("backend".into(), self.backend.clone()),
        ])
    }

    /// A name for a file with this key and text: 32 hexadecimal digits and `.safetensors`.
    pub fn file_name(&self, windows: &[&[u32]]) -> String {
        let key = format!("{:?}", self.metadata(ids_sha256(windows)));
        format!("{}.safetensors", &sha256(key.as_bytes())[..32])
    }
}

/// SHA-256 of windows' token ids as little-endian u32, each window preceded by its length.
fn ids_sha256(windows: &[&[u32]]) -> String {
    let mut bytes = Vec::new();
    for window in windows {
        bytes.extend((window.len() as u32).to_le_bytes());
        window.iter().for_each(|id| bytes.extend(id.to_le_bytes()));
    }
    sha256(&bytes)
}

/// A file opened for reading; rows are read window by window.
#[derive(Debug)]
pub struct LosslessBase {
    files: SafetensorFiles,
    key: BaseKey,
    precision: Precision,
    vocab: usize,
    tokens: Vec<u32>,
    /// the token after the last one of each window
    ends: Vec<usize>,
}

impl LosslessBase {
    /// Reads everything but the logits.
    ///
    /// # Errors
    /// Those of [`SafetensorFiles::open_file`]; `MissingTensor`, `TensorType`; `Field` when a tensor's shape
    /// or the metadata disagree with the rest, or the token ids do not have their SHA-256.
    pub fn open(path: &Path) -> Result<Self> {
        let files = SafetensorFiles::open_file(path)?;
        let wrong = |field: &str, expected: String, found: String| Error::Field {
            path: path.into(),
            field: field.into(),
            expected,
            found,
        };
        let text = |field: &str| {
            let found = files.metadata(field).map(str::to_owned);
            found.ok_or_else(|| {
                wrong(
                    field,
                    "a text in the metadata of a base file".into(),
                    "nothing".into(),
                )
            })
        };
        let number = |field: &str| {
            let found = text(field)?;
            found
                .parse()
                .map_err(|_| wrong(field, "a whole number".into(), found))
        };
        let kind = text("kind")?;
        if kind != KIND {
            return Err(wrong("kind", KIND.into(), kind));
        }
        let key = BaseKey {
            model_sha256: text("model_sha256")?,
            protocol: text("protocol")?,
            ctx: number("ctx")?,
            first: number("first")?,
            backend: text("backend")?,
        };
        let ids: Array1<i32> = files.read("input_ids")?;
        let lengths: Array1<i32> = files.read("window_lengths")?;
        let total: i64 = lengths.iter().map(|&length| i64::from(length)).sum();
        if lengths.is_empty() || lengths.iter().any(|&length| length < 1) || total != ids.len() as i64 {
            return Err(wrong(
                "window_lengths",
                format!("lengths of at least 1 that add up to {}", ids.len()),
                format!("{} that add up to {total}", lengths.len()),
            ));
        }
        let ends: Vec<usize> = lengths
            .iter()
            .scan(0, |end, &length| {
                *end += length as usize;
                Some(*end)
            })
            .collect();
        let rows: usize = lengths
            .iter()
            .map(|&length| rows_of(length as usize, key.first))
            .sum();
        let info = files.info("logits").ok_or_else(|| Error::MissingTensor {
            path: path.into(),
            tensor: "logits".into(),
        })?;
        let precision = match info.dtype.as_str() {
            "F32" => Precision::F32,
            "F64" => Precision::F64,
            other => {
                return Err(Error::TensorType {
                    path: path.into(),
                    tensor: "logits".into(),
                    expected: "F32 or F64".into(),
                    found: other.into(),
                });
            }
        };
        let vocab = match info.shape[..] {
            [found, vocab] if found == rows && vocab > 0 => vocab,
            _ => {
                return Err(wrong(
                    "logits",
                    format!("shape [{rows}, vocab]"),
                    format!("shape {:?}", info.shape),
                ));
            }
        };
        if let Some(&id) = ids.iter().find(|&&id| id < 0 || id as usize >= vocab) {
            return Err(wrong("input_ids", format!("ids in 0..{vocab}"), id.to_string()));
        }
        let base = Self {
            files,
            key,
            precision,
            vocab,
            tokens: ids.iter().map(|&id| id as u32).collect(),
            ends,
        };
        let expected = ids_sha256(&base.windows());
        let found = base.files.metadata("ids_sha256").unwrap_or("nothing");
        if found == expected {
            Ok(base)
        } else {
            Err(wrong("ids_sha256", expected, found.into()))
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.files.path()
    }

    /// What the rows were computed from.
    pub fn key(&self) -> &BaseKey {
        &self.key
    }

    /// Number type of the logits.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Number of tokens of the vocabulary.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    fn start(&self, window: usize) -> usize {
        if window == 0 { 0 } else { self.ends[window - 1] }
    }

    /// The windows' token ids.
    pub fn windows(&self) -> Vec<&[u32]> {
        (0..self.ends.len())
            .map(|window| &self.tokens[self.start(window)..self.ends[window]])
            .collect()
    }

    /// Logits of one window's scored positions, [length - 1 - first, vocab].
    ///
    /// # Errors
    /// `Io`.
    ///
    /// # Panics
    /// For a window that the file does not have.
    pub fn logits(&self, window: usize) -> Result<Array2<f64>> {
        let rows = |window: usize| rows_of(self.ends[window] - self.start(window), self.key.first);
        let start: usize = (0..window).map(rows).sum();
        let range = start..start + rows(window);
        match self.precision {
            Precision::F32 => Ok(self.files.read_rows::<f32>("logits", range)?.mapv(f64::from)),
            Precision::F64 => self.files.read_rows("logits", range),
        }
    }
}

/// A file being written, window by window.
#[derive(Debug)]
pub struct LosslessWriter {
    file: GrowingFile,
    precision: Precision,
    rows_left: RowsLeft,
    /// the tensors after the logits
    rest: Vec<u8>,
}

impl LosslessWriter {
    /// A file for these windows.
    ///
    /// # Errors
    /// `Io`.
    pub fn new(
        path: &Path,
        key: &BaseKey,
        precision: Precision,
        vocab: usize,
        windows: &[&[u32]],
    ) -> Result<Self> {
        let rows = windows
            .iter()
            .map(|window| rows_of(window.len(), key.first))
            .sum();
        let tokens: usize = windows.iter().map(|window| window.len()).sum();
        let slot = |name: &str, dtype: Dtype, shape: Vec<usize>| Slot {
            name: name.into(),
            dtype,
            bytes: shape.iter().map(|&side| side as u64).product::<u64>() * (dtype.bitsize() / 8) as u64,
            shape,
        };
        // The widest type comes first, so that every tensor is aligned.
        let slots = [
            slot("logits", precision.dtype(), vec![rows, vocab]),
            slot("input_ids", Dtype::I32, vec![tokens]),
            slot("window_lengths", Dtype::I32, vec![windows.len()]),
        ];
        let mut rest = Vec::with_capacity(4 * (tokens + windows.len()));
        windows
            .iter()
            .copied()
            .flatten()
            .for_each(|&id| (id as i32).append(&mut rest));
        for window in windows {
            (window.len() as i32).append(&mut rest);
        }
        let mut file = GrowingFile::new(path)?;
        file.append(|file| write_header(file, &key.metadata(ids_sha256(windows)), slots.iter()))?;
        Ok(Self {
            file,
            precision,
            rows_left: RowsLeft::new(rows, vocab),
            rest,
        })
    }

    /// Appends the logits of the next window's scored positions, [rows, vocab].
    ///
    /// # Errors
    /// `Io`; `Internal` for more rows than the windows have, or another vocabulary.
    pub fn push(&mut self, logits: &ArrayView2<'_, f64>) -> Result<()> {
        self.rows_left.take(logits)?;
        let precision = self.precision;
        self.file.append(|file| {
            let mut bytes = Vec::new();
            for row in logits.outer_iter() {
                bytes.clear();
                for &logit in row {
                    match precision {
                        Precision::F32 => (logit as f32).append(&mut bytes),
                        Precision::F64 => logit.append(&mut bytes),
                    }
                }
                file.write_all(&bytes)?;
            }
            Ok(())
        })
    }

    /// Writes the rest and gives the complete file its name.
    ///
    /// # Errors
    /// `Io`; `Internal` when rows are missing.
    pub fn finish(mut self) -> Result<()> {
        self.rows_left.check_none()?;
        self.file.append(|file| file.write_all(&self.rest))?;
        self.file.finish()
    }
}
