use std::sync::Arc;

use aqlm_optimized::cpu::llama::Sequences as _;
use aqlm_optimized::cuda::training::Machine;
use aqlm_optimized::cuda::{Buffer, CudaError};
use aqlm_vocabulary::AqlmError;
use half::bf16;
use ndarray::{Array3, ArrayView3};

use super::super::CalibrationPrecision;
use super::super::hidden_states::{Bound, HiddenStates};
use aqlm_formats::Result;

/// Hidden states of sequences that may differ in length, in f32 or rounded to bf16. The first sequences are
/// on the device while they fit there, the others in memory, and those beyond the bound in a file; both in
/// f32.
pub struct CudaHidden {
    lengths: Vec<usize>,
    /// the row after the last one of each sequence
    ends: Vec<usize>,
    /// row length
    width: usize,
    /// number of sequences on the device
    kept: usize,
    /// their rows, one after another
    resident: Resident,
    /// the other sequences
    rest: HiddenStates,
}

/// Numbers on the device.
enum Resident {
    F32(Buffer<f32>),
    Bf16(Buffer<bf16>),
}

/// An error of the device as one of the engine.
pub(super) fn on_device<T>(result: std::result::Result<T, CudaError>) -> Result<T> {
    Ok(result.map_err(AqlmError::from)?)
}

impl CudaHidden {
    /// Room for sequences of these lengths. They may take all device memory but `reserve` bytes.
    pub(super) fn new(
        machine: &Machine,
        lengths: &[usize],
        width: usize,
        precision: CalibrationPrecision,
        reserve: usize,
        bound: Option<&Arc<Bound>>,
    ) -> Result<Self> {
        let bytes = match precision {
            CalibrationPrecision::F32 => size_of::<f32>(),
            CalibrationPrecision::Bf16 => size_of::<bf16>(),
        };
        let ends: Vec<usize> = lengths
            .iter()
            .scan(0, |end, tokens| {
                *end += tokens;
                Some(*end)
            })
            .collect();
        let room = on_device(machine.device().free_bytes())?.saturating_sub(reserve);
        let kept = ends
            .iter()
            .take_while(|&&end| end * width * bytes <= room)
            .count();
        let rows = kept.checked_sub(1).map_or(0, |last| ends[last]);
        Ok(Self {
            resident: match precision {
                CalibrationPrecision::F32 => Resident::F32(on_device(machine.room(rows * width))?),
                CalibrationPrecision::Bf16 => Resident::Bf16(on_device(machine.rounded_room(rows * width))?),
            },
            rest: HiddenStates::new(&lengths[kept..], width, bound)?,
            lengths: lengths.to_vec(),
            ends,
            width,
            kept,
        })
    }

    /// Copies of an array, [sequences, tokens, width].
    ///
    /// # Errors
    /// `Device`.
    pub fn of(machine: &Machine, states: &ArrayView3<'_, f32>) -> Result<Self> {
        let (sequences, tokens, width) = states.dim();
        let lengths = vec![tokens; sequences];
        let mut hidden = Self::new(machine, &lengths, width, CalibrationPrecision::F32, 0, None)?;
        let rows: Vec<f32> = states.iter().copied().collect();
        hidden.write(machine, 0, &on_device(machine.hidden(&rows))?)?;
        Ok(hidden)
    }

    /// All sequences as one array; they must be of equal length.
    ///
    /// # Errors
    /// `Device`; `Shape` when lengths differ.
    pub fn to_array(&self, machine: &Machine) -> Result<Array3<f32>> {
        let all: Vec<usize> = (0..self.lengths.len()).collect();
        let rows = on_device(machine.device().download(&self.read(machine, &all)?))?;
        let tokens = self.lengths.first().copied().unwrap_or(0);
        let shape = (self.lengths.len(), tokens, self.width);
        let found = rows.len();
        Ok(Array3::from_shape_vec(shape, rows).map_err(|_| AqlmError::Shape {
            what: "sequences of equal length".into(),
            expected: vec![shape.0, shape.1, shape.2],
            found: vec![found],
        })?)
    }

    /// Tokens of each sequence.
    pub(super) fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Length of a row.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Place of a sequence's numbers among those of all sequences.
    fn place(&self, sequence: usize) -> std::ops::Range<usize> {
        let end = self.ends[sequence];
        (end - self.lengths[sequence]) * self.width..end * self.width
    }

    /// A copy of the rows of these sequences on the device, one after another.
    pub(super) fn read(&self, machine: &Machine, sequences: &[usize]) -> Result<Buffer<f32>> {
        let count = sequences
            .iter()
            .map(|&sequence| self.lengths[sequence] * self.width)
            .sum();
        let mut rows = on_device(machine.room(count))?;
        let mut at = 0;
        for &sequence in sequences {
            let count = self.lengths[sequence] * self.width;
            if sequence < self.kept {
                let place = self.place(sequence);
                on_device(match &self.resident {
                    Resident::F32(resident) => rows.copy_from(at, resident, place),
                    Resident::Bf16(resident) => machine.widen_rows(resident, place, &mut rows, at),
                })?;
            } else {
                let states = self.rest.read(&[sequence - self.kept])?;
                let values: Vec<f32> = states.iter().copied().collect();
                on_device(rows.write(at, &values))?;
            }
            at += count;
        }
        Ok(rows)
    }

    /// Writes the rows of consecutive sequences, beginning with `first`.
    pub(super) fn write(&mut self, machine: &Machine, first: usize, rows: &Buffer<f32>) -> Result<()> {
        let (mut at, mut sequence) = (0, first);
        while at < rows.len() {
            let count = self.lengths[sequence] * self.width;
            if sequence < self.kept {
                let to = self.place(sequence).start;
                on_device(match &mut self.resident {
                    Resident::F32(resident) => resident.copy_from(to, rows, at..at + count),
                    Resident::Bf16(resident) => machine.round_rows(rows, at..at + count, resident, to),
                })?;
            } else {
                let mut values = on_device(machine.device().download(&rows.slice(at..at + count)))?;
                if matches!(self.resident, Resident::Bf16(_)) {
                    for value in &mut values {
                        *value = bf16::from_f32(*value).to_f32();
                    }
                }
                let shape = (1, self.lengths[sequence], self.width);
                let view = ArrayView3::from_shape(shape, &values).map_err(|_| AqlmError::Shape {
                    what: "hidden states of a sequence".into(),
                    expected: vec![shape.0, shape.1, shape.2],
                    found: vec![values.len()],
                })?;
                self.rest.write(sequence - self.kept, &view)?;
            }
            at += count;
            sequence += 1;
        }
        Ok(())
    }
}
