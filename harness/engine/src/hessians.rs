use std::ops::Range;

use aqlm_vocabulary::{AqlmError, LayerId};

use crate::held::Held;
use crate::ops::{BlockOps, PartSums, joined};
use crate::ranks::{Ranks, hand_out, sum_on_first};
use crate::targets::Targets;
use aqlm_formats::Result;

/// H of the inputs of each of `layers`, over the given sequences only, all from one pass through the block.
///
/// # Errors
/// Errors of the machine.
pub fn hessians<M: BlockOps>(
    machine: &M,
    block: &M::Block,
    hidden: &M::Hidden,
    sequences: Range<usize>,
    layers: &[LayerId],
    ranks: &dyn Ranks,
) -> Result<Vec<M::Hessian>> {
    let held = Held::all(machine, machine.lengths(hidden), sequences);
    let mut hessians = sums_of_held(machine, block, hidden, &held, layers, ranks, None)?;
    let all: Vec<usize> = (0..ranks.size()).collect();
    for hessian in &mut hessians {
        hand_out(ranks, hessian, &all)?;
    }
    Ok(hessians)
}

/// H of the inputs of each of `layers`, over the training sequences of a run of which this rank holds some.
/// On ranks other than the first, each is empty. The same pass computes targets that are missing.
///
/// # Errors
/// Errors of the machine; `Rank`.
pub(crate) fn sums_of_held<M: BlockOps>(
    machine: &M,
    block: &M::Block,
    hidden: &M::Hidden,
    held: &Held,
    layers: &[LayerId],
    ranks: &dyn Ranks,
    mut targets: Option<&mut Targets<M>>,
) -> Result<Vec<M::Hessian>> {
    let empty = || -> Vec<M::Hessian> {
        let of = |&layer: &LayerId| machine.hessian(block, layer);
        layers.iter().map(of).collect()
    };
    let mut sums = Sums {
        hessians: empty(),
        empty: &empty,
    };
    let parts = held.parts();
    sum_on_first(ranks, &mut sums, parts.len(), &mut |sums, part| {
        let mut part = held.place(joined(parts, part));
        if let Some(targets) = &mut targets {
            let (count, outputs) = targets.take(&part);
            if count > 0 {
                let both = part.start..part.start + count;
                machine.add_to_hessians(block, hidden, both, layers, &mut sums.hessians, Some(outputs))?;
                part.start += count;
            }
        }
        if part.is_empty() {
            return Ok(());
        }
        machine.add_to_hessians(block, hidden, part, layers, &mut sums.hessians, None)
    })?;
    if let Some(targets) = targets {
        targets.complete(machine, block, hidden)?;
    }
    Ok(sums.hessians)
}

/// The Hessians of several layers, accumulated in one pass.
struct Sums<'a, H> {
    hessians: Vec<H>,
    /// makes Hessians without samples
    empty: &'a dyn Fn() -> Vec<H>,
}

impl<H: PartSums> PartSums for Sums<'_, H> {
    /// The sums of each Hessian, preceded by their count.
    fn take(&mut self) -> Vec<f64> {
        let with_number = |hessian: &mut H| {
            let sums = hessian.take();
            std::iter::once(sums.len() as f64).chain(sums)
        };
        self.hessians.iter_mut().flat_map(with_number).collect()
    }

    fn add(&mut self, sums: &[f64]) -> aqlm_vocabulary::Result<()> {
        let mut rest = sums;
        let layers = self.hessians.len();
        for (done, hessian) in self.hessians.iter_mut().enumerate() {
            let whole = rest
                .split_first()
                .and_then(|(&number, after)| after.split_at_checked(number as usize));
            let (of_this, after) = whole.ok_or_else(|| AqlmError::Shape {
                what: "sums of Hessians".into(),
                expected: vec![layers],
                found: vec![done],
            })?;
            hessian.add(of_this)?;
            rest = after;
        }
        Ok(())
    }

    /// A leaf has Hessians of its own, so that nothing leaves the device.
    fn apart<E: From<AqlmError>>(
        &mut self,
        add: impl FnOnce(&mut Self) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let before = std::mem::replace(&mut self.hessians, (self.empty)());
        let added = add(self);
        let parts = std::mem::replace(&mut self.hessians, before);
        added?;
        for (hessian, part) in self.hessians.iter_mut().zip(parts) {
            hessian.merge(part)?;
        }
        Ok(())
    }
}
