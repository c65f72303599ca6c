use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aqlm_optimized::cpu::llama::{Sequences, selected};
use ndarray::{Array3, ArrayView3, CowArray, Ix3, s};

use aqlm_formats::{Error, Result};

/// How much memory hidden states may take together, and the folder where the rest of them lies.
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

    /// Takes memory for as many of `wanted` pieces of `piece` bytes as there is left for.
    fn take(&self, wanted: usize, piece: usize) -> usize {
        let left = self.bytes.saturating_sub(self.taken.load(Ordering::Relaxed));
        let pieces = wanted.min(left / piece.max(1));
        self.taken.fetch_add(pieces * piece, Ordering::Relaxed);
        pieces
    }
}

/// Hidden states [sequences, tokens, hidden] in f32: the first in memory, those beyond the bound in a file
/// that has no name in its folder, so that it is gone with the process however that ends.
#[derive(Debug)]
pub struct HiddenStates {
    /// (sequences, tokens, hidden)
    dim: (usize, usize, usize),
    /// [sequences in memory, tokens, hidden]
    resident: Array3<f32>,
    /// the other sequences, one after another
    spilled: Option<File>,
    bound: Option<Arc<Bound>>,
}

impl HiddenStates {
    /// Zeros within the bound; what the file holds before it is written is unspecified.
    pub(super) fn new(dim: (usize, usize, usize), bound: Option<&Arc<Bound>>) -> Result<Self> {
        let (sequences, tokens, hidden) = dim;
        let resident = bound.map_or(sequences, |bound| {
            bound.take(sequences, tokens * hidden * size_of::<f32>())
        });
        let mut states = Self {
            dim,
            resident: Array3::zeros((resident, tokens, hidden)),
            spilled: None,
            bound: bound.cloned(),
        };
        if let Some(bound) = bound.filter(|_| resident < sequences) {
            let file = tempfile::tempfile_in(&bound.folder);
            states.spilled =
                Some(file.map_err(Error::io(&bound.folder, "make a file for hidden states in"))?);
        }
        Ok(states)
    }

    /// Writes sequences from `first` on.
    pub(super) fn write(&mut self, first: usize, states: &ArrayView3<'_, f32>) -> Result<()> {
        for (sequence, from) in (first..).zip(states.outer_iter()) {
            if sequence < self.resident.dim().0 {
                self.resident.slice_mut(s![sequence, .., ..]).assign(&from);
            } else {
                let (Some(file), Some(bound)) = (&self.spilled, &self.bound) else {
                    panic!("sequence {sequence}, beyond the resident ones of states that are not spilled");
                };
                let from = from.as_standard_layout();
                let bytes = bytemuck::cast_slice(from.as_slice().expect("standard layout: made so above"));
                file.write_all_at(bytes, self.offset(sequence))
                    .map_err(Error::io(&bound.folder, "write hidden states to a file in"))?;
            }
        }
        Ok(())
    }

    /// Where a spilled sequence begins in the file.
    fn offset(&self, sequence: usize) -> u64 {
        let (_, tokens, hidden) = self.dim;
        ((sequence - self.resident.dim().0) * tokens * hidden * size_of::<f32>()) as u64
    }

    /// All of them in memory.
    ///
    /// # Errors
    /// `Io` when spilled ones can't be read.
    pub fn to_array(&self) -> Result<Array3<f32>> {
        let all: Vec<usize> = (0..self.dim.0).collect();
        Ok(self.read(&all)?.into_owned())
    }
}

impl From<Array3<f32>> for HiddenStates {
    fn from(states: Array3<f32>) -> Self {
        Self {
            dim: states.dim(),
            resident: states,
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

    fn dim(&self) -> (usize, usize, usize) {
        self.dim
    }

    fn read(&self, indices: &[usize]) -> Result<CowArray<'_, f32, Ix3>> {
        let resident = self.resident.dim().0;
        let (Some(file), Some(bound)) = (&self.spilled, &self.bound) else {
            return Ok(selected(self.resident.view(), indices));
        };
        if indices.iter().all(|&sequence| sequence < resident) {
            return Ok(selected(self.resident.view(), indices));
        }
        let (_, tokens, hidden) = self.dim;
        let mut states = Array3::zeros((indices.len(), tokens, hidden));
        for (mut to, &sequence) in states.outer_iter_mut().zip(indices) {
            if sequence < resident {
                to.assign(&self.resident.slice(s![sequence, .., ..]));
            } else {
                let to = to
                    .as_slice_mut()
                    .expect("a sequence of an array made here lies in one piece");
                file.read_exact_at(bytemuck::cast_slice_mut(to), self.offset(sequence))
                    .map_err(Error::io(&bound.folder, "read hidden states from a file in"))?;
            }
        }
        Ok(states.into())
    }
}

#[cfg(test)]
mod tests {
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
            let mut states = HiddenStates::new((7, 3, 4), Some(&bound)).unwrap();
            assert_eq!(states.resident.dim().0, kept);
            states.write(0, &all.slice(s![..3, .., ..])).unwrap();
            states.write(3, &all.slice(s![3.., .., ..])).unwrap();
            assert_eq!(states.to_array().unwrap(), all);
            for indices in [vec![0, 1], vec![5, 6], vec![6, 0, 3], vec![2, 3, 4], vec![]] {
                let expected = all.select(ndarray::Axis(0), &indices);
                assert_eq!(
                    states.read(&indices).unwrap(),
                    expected,
                    "{kept} kept: {indices:?}"
                );
            }
            // The file has no name that a crash could leave behind.
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn memory_is_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let bound = Bound::new(5 * 48, folder.path().to_path_buf());
        let kept = |states: &HiddenStates| states.resident.dim().0;
        let first = HiddenStates::new((4, 3, 4), Some(&bound)).unwrap();
        let second = HiddenStates::new((4, 3, 4), Some(&bound)).unwrap();
        assert_eq!((kept(&first), kept(&second)), (4, 1));
        drop(first);
        let third = HiddenStates::new((9, 3, 4), Some(&bound)).unwrap();
        assert_eq!(kept(&third), 4);
        drop((second, third));
        assert_eq!(bound.taken.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_folder_that_takes_no_file_is_named() {
        let bound = Bound::new(0, "/nowhere/at/all".into());
        let error = HiddenStates::new((1, 3, 4), Some(&bound))
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("/nowhere/at/all: cannot make"), "{error}");
    }
}
