use std::ops::Range;

use aqlm_vocabulary::AqlmError;
use ndarray::{Array3, ArrayView3, Axis, CowArray, Ix3, s};

/// Rows that go through a block together: enough for efficient products, few enough that their inner
/// activations (some twenty times the hidden state) leave memory for everything else.
const ROWS: usize = 4096;

/// Hidden states of sequences, in memory or on disk.
pub trait Sequences {
    /// Error of reading them, or of computing with them.
    type Error: From<AqlmError>;

    /// Tokens of each sequence.
    fn lengths(&self) -> Vec<usize>;

    /// Width of a hidden state.
    fn width(&self) -> usize;

    /// Reads the sequences `indices`, which have the same length, in that order: [indices, tokens, hidden].
    ///
    /// # Errors
    /// When they cannot be read, or differ in length.
    ///
    /// # Panics
    /// When an index is out of range.
    fn read(&self, indices: &[usize]) -> Result<CowArray<'_, f32, Ix3>, Self::Error>;
}

impl Sequences for ArrayView3<'_, f32> {
    type Error = AqlmError;

    fn lengths(&self) -> Vec<usize> {
        vec![self.dim().1; self.dim().0]
    }

    fn width(&self) -> usize {
        self.dim().2
    }

    fn read(&self, indices: &[usize]) -> Result<CowArray<'_, f32, Ix3>, AqlmError> {
        Ok(selected(self.view(), indices))
    }
}

/// The sequences `indices` of a resident array: a view if they are consecutive, else a copy.
pub fn selected<'a>(all: ArrayView3<'a, f32>, indices: &[usize]) -> CowArray<'a, f32, Ix3> {
    if indices.windows(2).all(|pair| pair[1] == pair[0] + 1) {
        let first = indices.first().copied().unwrap_or(0);
        return all.slice_move(s![first..first + indices.len(), .., ..]).into();
    }
    let copy: Array3<f32> = all.select(Axis(0), indices);
    copy.into()
}

/// Number of sequences of `tokens` tokens that go through a block together.
pub(super) fn sequences_at_once(tokens: usize) -> usize {
    (ROWS / tokens.max(1)).max(1)
}

/// Divides sequences of these lengths into parts that go through a block together: consecutive sequences of
/// equal length, up to some 4096 tokens.
pub fn parts(lengths: &[usize]) -> Vec<Range<usize>> {
    parts_of_rows(lengths, ROWS)
}

/// [`parts`] of up to `rows` tokens, for machines that need more of them for efficient products.
pub(crate) fn parts_of_rows(lengths: &[usize], rows: usize) -> Vec<Range<usize>> {
    let at_once = |tokens: usize| (rows / tokens.max(1)).max(1);
    let mut parts: Vec<Range<usize>> = Vec::new();
    for (index, &tokens) in lengths.iter().enumerate() {
        match parts.last_mut() {
            Some(part) if lengths[part.start] == tokens && part.len() < at_once(tokens) => {
                part.end = index + 1;
            }
            _ => parts.push(index..index + 1),
        }
    }
    parts
}
