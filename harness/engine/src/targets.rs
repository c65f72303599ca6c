use std::ops::Range;

use crate::ops::BlockOps;
use aqlm_formats::Result;

/// The outputs of a block before its layers are quantized, while some of them are still missing.
///
/// A pass that sums Hessians computes outputs, too. Those of whole parts are taken from there, so that a
/// dense block is passed once.
pub(crate) struct Targets<M: BlockOps> {
    outputs: M::Hidden,
    /// the parts without outputs, in their order
    missing: Vec<Range<usize>>,
}

impl<M: BlockOps> Targets<M> {
    /// None of the outputs for these inputs.
    pub(crate) fn new(machine: &M, inputs: &M::Hidden) -> Result<Self> {
        Ok(Self {
            outputs: machine.room_like(inputs)?,
            missing: machine.parts(&machine.lengths(inputs)),
        })
    }

    /// Whether all outputs are there.
    pub(crate) fn is_whole(&self) -> bool {
        self.missing.is_empty()
    }

    /// Where the outputs of the first of `sequences` go that are missing and whole parts, and how many these
    /// are. Whoever takes the place writes them.
    pub(crate) fn take(&mut self, sequences: &Range<usize>) -> (usize, &mut M::Hidden) {
        let mut end = sequences.start;
        self.missing.retain(|part| {
            let next = part.start == end && part.end <= sequences.end;
            if next {
                end = part.end;
            }
            !next
        });
        (end - sequences.start, &mut self.outputs)
    }

    /// Computes the missing outputs.
    pub(crate) fn complete(&mut self, machine: &M, block: &M::Block, inputs: &M::Hidden) -> Result<()> {
        // Consecutive parts are passed at once.
        for parts in self.missing.chunk_by(|one, next| one.end == next.start) {
            let (Some(first), Some(last)) = (parts.first(), parts.last()) else {
                continue;
            };
            machine.forward_into(block, inputs, first.start..last.end, &mut self.outputs)?;
        }
        self.missing.clear();
        Ok(())
    }

    /// All outputs.
    pub(crate) fn into_outputs(self) -> M::Hidden {
        assert!(self.is_whole(), "the first Hessians complete the targets");
        self.outputs
    }
}
