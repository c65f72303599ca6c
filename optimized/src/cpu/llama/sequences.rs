use std::ops::Range;

use aqlm_vocabulary::AqlmError;
use ndarray::{Array3, ArrayView3, Axis, CowArray, Ix3, s};

use super::forward::sequences_at_once;

/// Hidden states of sequences, wherever they lie: in memory, or beyond a bound on a disk.
pub trait Sequences {
    /// What reading them may fail with, beside what computing with them may.
    type Error: From<AqlmError>;

    /// Tokens of each sequence.
    fn lengths(&self) -> Vec<usize>;

    /// Numbers of a hidden state.
    fn width(&self) -> usize;

    /// Those of the sequences `indices`, which have the same length, in their order: [indices, tokens,
    /// hidden].
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

/// The sequences `indices` of a resident array: a view where they follow each other, else a copy.
pub fn selected<'a>(all: ArrayView3<'a, f32>, indices: &[usize]) -> CowArray<'a, f32, Ix3> {
    if indices.windows(2).all(|pair| pair[1] == pair[0] + 1) {
        let first = indices.first().copied().unwrap_or(0);
        return all.slice_move(s![first..first + indices.len(), .., ..]).into();
    }
    let copy: Array3<f32> = all.select(Axis(0), indices);
    copy.into()
}

/// Sequences of these lengths in parts that go through a block together: such as follow each other and are
/// equally long, up to some 4096 tokens.
pub fn parts(lengths: &[usize]) -> Vec<Range<usize>> {
    let mut parts: Vec<Range<usize>> = Vec::new();
    for (index, &tokens) in lengths.iter().enumerate() {
        match parts.last_mut() {
            Some(part) if lengths[part.start] == tokens && part.len() < sequences_at_once(tokens) => {
                part.end = index + 1;
            }
            _ => parts.push(index..index + 1),
        }
    }
    parts
}
