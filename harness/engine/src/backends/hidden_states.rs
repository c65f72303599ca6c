use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aqlm_optimized::cpu::llama::Sequences;
use aqlm_vocabulary::AqlmError;
use ndarray::{Array3, ArrayView3, CowArray, Ix3};

use aqlm_formats::{Error, Result};

/// # Errors
/// `NotFinite` with the place (sequence, token, channel) of a number of the hidden states that is not finite.
pub(super) fn require_finite(place: [usize; 3], value: f64) -> Result<()> {
    if value.is_finite() {
        return Ok(());
    }
    Err(AqlmError::NotFinite {
        what: "hidden states (sequence, token, channel)".into(),
        index: place.to_vec(),
        value,
    }
    .into())
}

/// Bound on the total memory of all hidden states, and the folder for those that exceed the bound.
#[derive(Debug)]
pub(super) struct Bound {
    /// bytes
    bytes: usize,
    /// bytes taken
    taken: AtomicUsize,
    folder: PathBuf,
}

impl Bound {
    pub(super) fn new(bytes: usize, folder: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            bytes,
            taken: AtomicUsize::new(0),
            folder,
        })
    }

    /// Reserves memory for the longest prefix of pieces (sizes in bytes) that still fits.
    fn take(&self, pieces: impl Iterator<Item = usize>) -> usize {
        let left = self.bytes.saturating_sub(self.taken.load(Ordering::Relaxed));
        let ends = pieces.scan(0, |end, piece| {
            *end += piece;
            Some(*end)
        });
        let (count, bytes) = ends
            .take_while(|&end| end <= left)
            .fold((0, 0), |(count, _), end| (count + 1, end));
        self.taken.fetch_add(bytes, Ordering::Relaxed);
        count
    }
}

/// Hidden states of sequences that may differ in length, in f32. The first sequences are in memory, those
/// beyond the bound in an unnamed file in the bound's folder. The operating system deletes that file when the
/// process ends, also after a crash.
#[derive(Debug)]
pub struct HiddenStates {
    /// the row after the last one of each sequence, where the next sequence begins
    ends: Vec<usize>,
    /// row length
    width: usize,
    /// number of sequences in memory
    kept: usize,
    /// their rows, one after another
    resident: Vec<f32>,
    /// the rows of the other sequences, one after another
    spilled: Option<File>,
    bound: Option<Arc<Bound>>,
}

impl HiddenStates {
    /// Zeros for sequences of these lengths, in memory up to the bound. The contents of the file are
    /// unspecified until written.
    pub(super) fn new(lengths: &[usize], width: usize, bound: Option<&Arc<Bound>>) -> Result<Self> {
        let kept = bound.map_or(lengths.len(), |bound| {
            bound.take(lengths.iter().map(|tokens| tokens * width * size_of::<f32>()))
        });
        let ends = lengths.iter().scan(0, |end, tokens| {
            *end += tokens;
            Some(*end)
        });
        let mut states = Self {
            ends: ends.collect(),
            width,
            kept,
            resident: Vec::new(),
            spilled: None,
            bound: bound.cloned(),
        };
        states.resident = vec![0.0; states.start(kept) * width];
        if let Some(bound) = bound.filter(|_| kept < lengths.len()) {
            let file = tempfile::tempfile_in(&bound.folder);
            states.spilled =
                Some(file.map_err(Error::io(&bound.folder, "make a file for hidden states in"))?);
        }
        Ok(states)
    }

    /// First row of a sequence.
    fn start(&self, sequence: usize) -> usize {
        if sequence == 0 { 0 } else { self.ends[sequence - 1] }
    }

    /// Range of a sequence's numbers in `resident`.
    fn place(&self, sequence: usize) -> Range<usize> {
        self.start(sequence) * self.width..self.ends[sequence] * self.width
    }

    /// Writes consecutive sequences, beginning at `first`.
    pub(super) fn write(&mut self, first: usize, states: &ArrayView3<'_, f32>) -> Result<()> {
        for (sequence, from) in (first..).zip(states.outer_iter()) {
            let from = from.as_standard_layout();
            let from = from.as_slice().expect("a copy in standard layout");
            if sequence < self.kept {
                let place = self.place(sequence);
                self.resident[place].copy_from_slice(from);
            } else if let (Some(file), Some(bound)) = (&self.spilled, &self.bound) {
                file.write_all_at(bytemuck::cast_slice(from), self.offset(sequence))
                    .map_err(Error::io(&bound.folder, "write hidden states to a file in"))?;
            }
        }
        Ok(())
    }

    /// Offset of a spilled sequence in the file, in bytes.
    fn offset(&self, sequence: usize) -> u64 {
        let rows = self.start(sequence) - self.start(self.kept);
        (rows * self.width * size_of::<f32>()) as u64
    }

    /// All sequences as one array in memory; they must be of equal length.
    ///
    /// # Errors
    /// `Io` when spilled sequences can't be read, `Shape` when lengths differ.
    pub fn to_array(&self) -> Result<Array3<f32>> {
        let all: Vec<usize> = (0..self.ends.len()).collect();
        Ok(self.read(&all)?.into_owned())
    }
}

impl From<Array3<f32>> for HiddenStates {
    fn from(states: Array3<f32>) -> Self {
        let (sequences, tokens, width) = states.dim();
        Self {
            ends: (1..=sequences).map(|sequence| sequence * tokens).collect(),
            width,
            kept: sequences,
            resident: states
                .as_standard_layout()
                .into_owned()
                .into_raw_vec_and_offset()
                .0,
            spilled: None,
            bound: None,
        }
    }
}

impl Drop for HiddenStates {
    fn drop(&mut self) {
        if let Some(bound) = &self.bound {
            let bytes = self.resident.len() * size_of::<f32>();
            bound.taken.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

impl Sequences for HiddenStates {
    type Error = Error;

    fn lengths(&self) -> Vec<usize> {
        (0..self.ends.len())
            .map(|sequence| self.ends[sequence] - self.start(sequence))
            .collect()
    }

    fn width(&self) -> usize {
        self.width
    }

    fn read(&self, indices: &[usize]) -> Result<CowArray<'_, f32, Ix3>> {
        let tokens = |sequence: usize| self.ends[sequence] - self.start(sequence);
        let first = indices.first().map_or(0, |&first| tokens(first));
        if let Some(&other) = indices.iter().find(|&&sequence| tokens(sequence) != first) {
            return Err(AqlmError::Shape {
                what: "sequences that are read together".into(),
                expected: vec![first],
                found: vec![tokens(other)],
            }
            .into());
        }
        let dim = (indices.len(), first, self.width);
        let follow = indices.windows(2).all(|pair| pair[1] == pair[0] + 1);
        if let (Some(&from), Some(&to), true) = (indices.first(), indices.last(), follow)
            && to < self.kept
        {
            let rows = &self.resident[self.place(from).start..self.place(to).end];
            let view = ArrayView3::from_shape(dim, rows).expect("so many rows of equal sequences");
            return Ok(view.into());
        }
        let mut states = Array3::zeros(dim);
        for (mut to, &sequence) in states.outer_iter_mut().zip(indices) {
            let to = to.as_slice_mut().expect("made in standard layout");
            if sequence < self.kept {
                to.copy_from_slice(&self.resident[self.place(sequence)]);
            } else if let (Some(file), Some(bound)) = (&self.spilled, &self.bound) {
                file.read_exact_at(bytemuck::cast_slice_mut(to), self.offset(sequence))
                    .map_err(Error::io(&bound.folder, "read hidden states from a file in"))?;
            }
        }
        Ok(states.into())
    }
}

#[cfg(test)]
mod tests {
    use ndarray::s;

    use super::*;

    fn numbers(sequences: usize) -> Array3<f32> {
        Array3::from_shape_fn((sequences, 3, 4), |(i, t, h)| (100 * i + 10 * t + h) as f32)
    }

    #[test]
    fn what_is_beyond_the_bound_is_read_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let all = numbers(7);
        for kept in [0, 1, 4, 7] {
            let bound = Bound::new(kept * 3 * 4 * 4 + 5, folder.path().to_path_buf());
            let mut states = HiddenStates::new(&[3; 7], 4, Some(&bound)).unwrap();
            assert_eq!(states.kept, kept);
            states.write(0, &all.slice(s![..3, .., ..])).unwrap();
            states.write(3, &all.slice(s![3.., .., ..])).unwrap();
            assert_eq!(states.to_array().unwrap(), all);
            for indices in [vec![0, 1], vec![5, 6], vec![6, 0, 3], vec![2, 3, 4]] {
                let expected = all.select(ndarray::Axis(0), &indices);
                assert_eq!(
                    states.read(&indices).unwrap(),
                    expected,
                    "{kept} kept: {indices:?}"
                );
            }
            assert!(states.read(&[]).unwrap().is_empty());
            // The file has no name, so a crash leaves nothing behind.
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn sequences_of_different_length_lie_side_by_side() {
        let folder = tempfile::tempdir().unwrap();
        let lengths = [3, 1, 1, 4, 2];
        let of = |sequence: usize| {
            Array3::from_shape_fn((1, lengths[sequence], 4), |(_, t, h)| {
                (100 * sequence + 10 * t + h) as f32
            })
        };
        for kept in 0..=lengths.len() {
            let rows: usize = lengths[..kept].iter().sum();
            let bound = Bound::new(rows * 4 * 4 + 3, folder.path().to_path_buf());
            let mut states = HiddenStates::new(&lengths, 4, Some(&bound)).unwrap();
            assert_eq!((states.kept, states.lengths()), (kept, lengths.to_vec()));
            for sequence in [4, 0, 2, 1, 3] {
                states.write(sequence, &of(sequence).view()).unwrap();
            }
            for sequence in 0..lengths.len() {
                assert_eq!(states.read(&[sequence]).unwrap(), of(sequence), "{kept} kept");
            }
            let pair = ndarray::concatenate![ndarray::Axis(0), of(1), of(2)];
            assert_eq!(states.read(&[1, 2]).unwrap(), pair);
            assert!(states.read(&[0, 1]).is_err());
        }
    }

    #[test]
    fn memory_is_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let bound = Bound::new(5 * 48, folder.path().to_path_buf());
        let kept = |states: &HiddenStates| states.kept;
        let first = HiddenStates::new(&[3; 4], 4, Some(&bound)).unwrap();
        let second = HiddenStates::new(&[3; 4], 4, Some(&bound)).unwrap();
        assert_eq!((kept(&first), kept(&second)), (4, 1));
        drop(first);
        let third = HiddenStates::new(&[3; 9], 4, Some(&bound)).unwrap();
        assert_eq!(kept(&third), 4);
        drop((second, third));
        assert_eq!(bound.taken.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_folder_that_takes_no_file_is_named() {
        let bound = Bound::new(0, "/nowhere/at/all".into());
        let error = HiddenStates::new(&[3], 4, Some(&bound)).unwrap_err().to_string();
        assert!(error.starts_with("/nowhere/at/all: cannot make"), "{error}");
    }
}
