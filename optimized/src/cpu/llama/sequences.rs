use aqlm_vocabulary::AqlmError;
use ndarray::{Array3, ArrayView3, Axis, CowArray, Ix3, s};

/// Rows that go through a block together: enough to keep products efficient, few enough that their inner
/// activations (some twenty times the hidden state) stay out of the way of everything else in memory.
const ROWS: usize = 4096;

/// Hidden states of sequences of equal length, in memory or on a disk.
pub trait Sequences {
    /// Error of reading them, or of computing with them.
    type Error: From<AqlmError>;

    /// (sequences, tokens, hidden).
    fn dim(&self) -> (usize, usize, usize);

    /// Reads the sequences `indices`, in that order: [indices, tokens, hidden].
    ///
    /// # Errors
    /// When they cannot be read.
    ///
    /// # Panics
    /// When an index is out of range.
    fn read(&self, indices: &[usize]) -> Result<CowArray<'_, f32, Ix3>, Self::Error>;
}

impl Sequences for ArrayView3<'_, f32> {
    type Error = AqlmError;

    fn dim(&self) -> (usize, usize, usize) {
        self.dim()
    }

    fn read(&self, indices: &[usize]) -> Result<CowArray<'_, f32, Ix3>, AqlmError> {
        Ok(selected(self.view(), indices))
    }
}

/// The sequences `indices` of a resident array: a view where they follow each other, else a copy.
pub fn selected<'a>(all: ArrayView3<'a, f32>, indices: &[usize]) -> CowArray<'a, f32, Ix3> {
    if indices.windows(2).all(|pair| pair[1] == pair[0] + 1) {
        let first = indices.first().copied().unwrap_or(0);
        return all.slice_move(s![first..first + indices.len(), .., ..]).into();
    }
    let copy: Array3<f32> = all.select(Axis(0), indices);
    copy.into()
}

/// Sequences of `tokens` tokens that go through a block together.
pub(super) fn sequences_at_once(tokens: usize) -> usize {
    (ROWS / tokens.max(1)).max(1)
}

/// The sequences in parts that go through a block together.
pub fn parts(sequences: std::ops::Range<usize>, tokens: usize) -> impl Iterator<Item = Vec<usize>> {
    let at_once = sequences_at_once(tokens);
    let end = sequences.end;
    sequences
        .step_by(at_once)
        .map(move |first| (first..end.min(first + at_once)).collect())
}
