//! The base file of llama.cpp's `llama-perplexity`, `_logits_`: log-probabilities in 16 bits.
//!
//! Little-endian: the 8 bytes `_logits_`; n_ctx u32, n_vocab i32, n_chunk i32; token ids i32 [n_chunk,
//! n_ctx]; then one row per scored position. Positions n_ctx / 2 to n_ctx - 2 of each chunk are scored. A row
//! is scale f32, minimum f32, and one u16 per token, padded to an even number of tokens. The log-probability
//! of a token is scale * q + minimum. Log-probabilities more than 16 nats below the row's largest are stored
//! as the minimum.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ndarray::{Array2, ArrayView1, ArrayView2, Axis};
use rayon::prelude::*;

use super::rows::{RowsLeft, rows_of};
use crate::durable::GrowingFile;
use crate::{Error, Result};

/// The file's first bytes.
pub(super) const MAGIC: &[u8] = b"_logits_";

/// Bytes before the token ids.
const HEADER: usize = MAGIC.len() + 3 * 4;

/// Largest distance of a stored log-probability from the row's largest, in nats.
const RANGE: f64 = 16.0;

/// The largest u16, which stands for the row's largest log-probability.
const STEPS: f64 = 65_535.0;

/// Position of a window of `ctx` tokens whose prediction is the first to be scored.
pub fn first_scored(ctx: usize) -> usize {
    ctx / 2
}

/// Bytes of a row.
fn row_bytes(vocab: usize) -> usize {
    8 + 2 * vocab.next_multiple_of(2)
}

/// A file opened for reading; rows are read window by window.
#[derive(Debug)]
pub struct LlamaCppBase {
    path: PathBuf,
    file: File,
    ctx: usize,
    vocab: usize,
    /// [windows, ctx]
    tokens: Vec<u32>,
}

impl LlamaCppBase {
    /// Reads the header and the token ids.
    ///
    /// # Errors
    /// `Io`; `Truncated`; `Header` for another kind of file or one with bytes after the last row; `Field` for
    /// a number or token id that cannot be right.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let length = file.metadata().map_err(Error::io(path, "read"))?.len();
        let truncated = |what: &str, expected: u64| Error::Truncated {
            path: path.into(),
            what: what.into(),
            expected,
            found: length,
        };
        let bad_header = |expected: String, found: String| Error::Header {
            path: path.into(),
            expected,
            found,
        };
        let mut header = [0; HEADER];
        if length < HEADER as u64 {
            return Err(truncated("the header", HEADER as u64));
        }
        file.read_exact_at(&mut header, 0)
            .map_err(Error::io(path, "read"))?;
        let (magic, numbers) = header.split_at(MAGIC.len());
        let (numbers, _) = numbers.as_chunks();
        if magic != MAGIC {
            return Err(bad_header(
                "`_logits_`".into(),
                format!("{:?}", magic.escape_ascii().to_string()),
            ));
        }
        let number = |index: usize, field: &str, least: i32| {
            let value = i32::from_le_bytes(numbers[index]);
            // a window of two tokens has no scored position
            if value >= least {
                return Ok(value as usize);
            }
            Err(Error::Field {
                path: path.into(),
                field: field.into(),
                expected: format!("{least} or more"),
                found: value.to_string(),
            })
        };
        let (ctx, vocab, chunks) = (
            number(0, "n_ctx", 3)?,
            number(1, "n_vocab", 1)?,
            number(2, "n_chunk", 1)?,
        );
        let chunk = ctx as u64 * 4 + rows_of(ctx, first_scored(ctx)) as u64 * row_bytes(vocab) as u64;
        let end = chunk
            .checked_mul(chunks as u64)
            .and_then(|bytes| bytes.checked_add(HEADER as u64));
        let Some(end) = end else {
            return Err(bad_header(
                "rows that fit in a file".into(),
                format!("{chunks} chunks of {ctx} with {vocab} tokens"),
            ));
        };
        if length < end {
            return Err(truncated("the rows", end));
        }
        if length > end {
            return Err(bad_header(
                format!("rows that fill the file's {length} bytes"),
                format!("rows that end at byte {end}"),
            ));
        }
        let mut bytes = vec![0; chunks * ctx * 4];
        file.read_exact_at(&mut bytes, HEADER as u64)
            .map_err(Error::io(path, "read"))?;
        let (ids, _) = bytes.as_chunks();
        let tokens: Vec<u32> = ids.iter().map(|&id| u32::from_le_bytes(id)).collect();
        if let Some(at) = tokens.iter().position(|&id| id as usize >= vocab) {
            return Err(Error::Field {
                path: path.into(),
                field: format!("token {} of chunk {}", at % ctx, at / ctx),
                expected: format!("an id in 0..{vocab}"),
                found: (tokens[at] as i32).to_string(),
            });
        }
        Ok(Self {
            path: path.into(),
            file,
            ctx,
            vocab,
            tokens,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tokens in a window.
    pub fn ctx(&self) -> usize {
        self.ctx
    }

    /// Number of tokens of the vocabulary.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// The windows' token ids, before the first of each is replaced by BOS.
    pub fn windows(&self) -> Vec<&[u32]> {
        self.tokens.chunks_exact(self.ctx).collect()
    }

    /// Log-probabilities of one window's scored positions, [ctx - 1 - ctx / 2, vocab].
    ///
    /// # Errors
    /// `Io`.
    ///
    /// # Panics
    /// For a window that the file does not have.
    pub fn log_probabilities(&self, window: usize) -> Result<Array2<f64>> {
        assert!(window < self.tokens.len() / self.ctx, "window {window}");
        let rows = rows_of(self.ctx, first_scored(self.ctx));
        let row = row_bytes(self.vocab);
        let mut bytes = vec![0; rows * row];
        let start = HEADER + self.tokens.len() * 4;
        self.file
            .read_exact_at(&mut bytes, start as u64 + (window * rows * row) as u64)
            .map_err(Error::io(&self.path, "read"))?;
        let mut values = Array2::zeros((rows, self.vocab));
        values
            .axis_iter_mut(Axis(0))
            .into_par_iter()
            .zip(bytes.par_chunks_exact(row))
            .for_each(|(mut values, row)| {
                let (numbers, steps) = row.split_at(8);
                let (numbers, _) = numbers.as_chunks();
                let [scale, minimum] = [numbers[0], numbers[1]].map(f32::from_le_bytes).map(f64::from);
                let (steps, _) = steps.as_chunks();
                for (value, &q) in values.iter_mut().zip(steps) {
                    *value = scale * f64::from(u16::from_le_bytes(q)) + minimum;
                }
            });
        Ok(values)
    }
}

/// A file being written, window by window.
#[derive(Debug)]
pub struct LlamaCppWriter {
    file: GrowingFile,
    rows_left: RowsLeft,
}

impl LlamaCppWriter {
    /// A file for these windows, which must be of equal length, before their first tokens are replaced by
    /// BOS.
    ///
    /// # Errors
    /// `Argument` for windows of different length or of fewer than three tokens, or too many for the format;
    /// `Io`.
    pub fn new(path: &Path, vocab: usize, windows: &[&[u32]]) -> Result<Self> {
        let ctx = windows.first().map_or(0, |window| window.len());
        let equal = windows.iter().all(|window| window.len() == ctx);
        let fits = [ctx, vocab, windows.len()].map(i32::try_from);
        let ([Ok(n_ctx), Ok(n_vocab), Ok(n_chunk)], true, true) = (fits, equal, ctx >= 3) else {
            return Err(Error::argument(
                "windows of a llama.cpp base file",
                "windows of one length, three tokens or more",
                format!("{} of {ctx} and other lengths", windows.len()),
            ));
        };
        let mut file = GrowingFile::new(path)?;
        file.append(|file| {
            file.write_all(MAGIC)?;
            for number in [n_ctx, n_vocab, n_chunk] {
                file.write_all(&number.to_le_bytes())?;
            }
            windows
                .iter()
                .copied()
                .flatten()
                .try_for_each(|id| file.write_all(&id.to_le_bytes()))
        })?;
        Ok(Self {
            file,
            rows_left: RowsLeft::new(windows.len() * rows_of(ctx, first_scored(ctx)), vocab),
        })
    }

    /// Appends the rows of the next window, from logits of its scored positions, [rows, vocab].
    ///
    /// # Errors
    /// `Io`; `Internal` for more rows than the windows have, or another vocabulary.
    pub fn push(&mut self, logits: &ArrayView2<'_, f64>) -> Result<()> {
        self.rows_left.take(logits)?;
        let rows: Vec<Vec<u8>> = logits
            .axis_iter(Axis(0))
            .into_par_iter()
            .map(|row| encoded(&row))
            .collect();
        self.file
            .append(|file| rows.iter().try_for_each(|row| file.write_all(row)))
    }

    /// Gives the complete file its name.
    ///
    /// # Errors
    /// `Io`; `Internal` when rows are missing.
    pub fn finish(self) -> Result<()> {
        self.rows_left.check_none()?;
        self.file.finish()
    }
}

/// The bytes of a row. A row without finite log-probabilities has scale and minimum NaN.
fn encoded(logits: &ArrayView1<'_, f64>) -> Vec<u8> {
    let largest = logits.fold(f64::NEG_INFINITY, |most, &logit| most.max(logit));
    let smallest = logits.fold(f64::INFINITY, |least, &logit| least.min(logit));
    let smallest = smallest.max(largest - RANGE);
    let sum: f64 = logits.iter().map(|logit| (logit - largest).exp()).sum();
    let mut scale = ((largest - smallest) / STEPS) as f32;
    let mut minimum = (smallest - largest - sum.ln()) as f32;
    if !scale.is_finite() || !minimum.is_finite() {
        (scale, minimum) = (f32::NAN, f32::NAN);
    }
    let mut bytes = Vec::with_capacity(row_bytes(logits.len()));
    bytes.extend(scale.to_le_bytes());
    bytes.extend(minimum.to_le_bytes());
    for &logit in logits {
        let q = if scale > 0.0 && logit > smallest {
            ((logit - smallest) / f64::from(scale))
                .round_ties_even()
                .min(STEPS) as u16
        } else {
            0
        };
        bytes.extend(q.to_le_bytes());
    }
    bytes.resize(row_bytes(logits.len()), 0);
    bytes
}
