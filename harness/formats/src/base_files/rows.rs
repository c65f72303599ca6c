use ndarray::ArrayView2;

use crate::{Error, Result};

/// Number of rows of a window of `length` tokens whose predictions are kept from position `first`. The last
/// position predicts a token beyond the window.
pub fn rows_of(length: usize, first: usize) -> usize {
    length.saturating_sub(first.saturating_add(1))
}

/// The rows that a file being written still lacks.
#[derive(Debug)]
pub(super) struct RowsLeft {
    rows: usize,
    vocab: usize,
}

impl RowsLeft {
    /// A file of `rows` rows for `vocab` tokens.
    pub(super) fn new(rows: usize, vocab: usize) -> Self {
        Self { rows, vocab }
    }

    /// Counts the rows of `logits`, [rows, vocab].
    ///
    /// # Errors
    /// `Internal` for more rows than are left, or another vocabulary.
    pub(super) fn take(&mut self, logits: &ArrayView2<'_, f64>) -> Result<()> {
        match self.rows.checked_sub(logits.nrows()) {
            Some(left) if logits.ncols() == self.vocab => {
                self.rows = left;
                Ok(())
            }
            _ => Err(Error::Internal(format!(
                "logits {:?} for {} rows of {} in a base file",
                logits.dim(),
                self.rows,
                self.vocab
            ))),
        }
    }

    /// # Errors
    /// `Internal` when rows are missing.
    pub(super) fn check_none(&self) -> Result<()> {
        if self.rows > 0 {
            return Err(Error::Internal(format!(
                "{} rows of a base file are missing",
                self.rows
            )));
        }
        Ok(())
    }
}
