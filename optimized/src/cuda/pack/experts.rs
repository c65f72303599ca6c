//! Experts of a router: matrices that are laid out alike, of which one launch reads those whose numbers are
//! in device memory.
//!
//! Every operand is that of all experts, one after the other (`kernels/experts.cuh`). Experts whose operands
//! differ in length, because some kernels sort codes, are padded to the longest.

use aqlm_vocabulary::{AqlmError, QuantizedMatrix, Result};

use super::operand::operand;
use super::{Packed, Target, known, pack, pack_joined};

/// Experts laid out as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedExperts {
    /// as for one expert, but with the operands of all and the integers of `kernels/experts.cuh`
    pub packed: Packed,
    /// where each matrix of an expert starts in its y
    pub offsets: Vec<usize>,
    /// experts
    pub count: usize,
    /// experts that a launch computes
    pub slots: usize,
    /// numbers from the x of one slot to that of the next; 0 if all read the same x
    pub x_stride: usize,
    /// numbers from the y of one slot to that of the next
    pub y_stride: usize,
}

/// How the slots of a launch lie in x and y.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slots {
    /// experts that a launch computes
    pub count: usize,
    /// whether all read the same x; otherwise the x of slot s starts s times its length later
    pub same_x: bool,
    /// numbers from the y of one slot to that of the next; `None` for the length of one y
    pub y_stride: Option<usize>,
}

/// Lays out the matrices of experts for launches of the matvec kernel `id` that compute some of them. Each
/// expert has one matrix, or several that read the same x and share its part of the launch.
///
/// # Errors
/// `Argument` for an unknown kernel, no experts or more slots than experts; `Unsupported` when the kernel
/// takes no experts, when the layouts of these differ in more than lengths, or when [`pack`] or
/// [`pack_joined`] refuses.
pub fn pack_experts(
    id: &str,
    experts: &[Vec<&QuantizedMatrix>],
    slots: Slots,
    target: &Target,
) -> Result<PackedExperts> {
    let refuse = |reason: &str| Err(AqlmError::Unsupported(format!("experts for {id}: {reason}")));
    if !known(id)?.experts {
        return refuse("the kernel takes one matrix");
    }
    if experts.is_empty() || !(1..=experts.len()).contains(&slots.count) {
        let expected = format!("1 to {}", experts.len());
        return Err(AqlmError::argument("experts of a launch", expected, slots.count));
    }
    // The slots share the device.
    let share = |all: u32| {
        if all == 0 {
            0
        } else {
            (all / slots.count as u32).max(1)
        }
    };
    let part = Target {
        multiprocessors: share(target.multiprocessors),
        clusters: target.clusters.map(share),
        // checked below, with the constant of experts
        embedded_only: false,
        ..target.clone()
    };
    let of_one = |matrices: &Vec<&QuantizedMatrix>| match matrices[..] {
        [matrix] => Ok((pack(id, matrix, &part, 1)?, vec![0])),
        _ => pack_joined(id, matrices, &part).map(|joined| (joined.packed, joined.offsets)),
    };
    let all = experts.iter().map(of_one).collect::<Result<Vec<_>>>()?;
    let (first, offsets) = &all[0];
    let plan = first.without_operands();
    if all
        .iter()
        .any(|(packed, at)| packed.without_operands() != plan || at != offsets)
    {
        return refuse("their layouts differ");
    }
    let mut packed = plan;
    let slabs = packed.grid[1];
    packed.grid[1] *= slots.count as u32;
    let x_stride = if slots.same_x { 0 } else { packed.in_features };
    let y_stride = slots.y_stride.unwrap_or(packed.out_features);
    packed.defines.push(("AQLM_EXPERTS", 1));
    packed
        .sizes
        .extend([slabs as i32, x_stride as i32, y_stride as i32]);
    for (at, of_first) in first.operands.iter().enumerate() {
        let operands = || all.iter().map(|(packed, _)| &packed.operands[at].bytes);
        let longest = operands().map(Vec::len).max().unwrap_or(0);
        let mut bytes = Vec::with_capacity(longest * all.len());
        for (number, own) in operands().enumerate() {
            bytes.extend_from_slice(own);
            bytes.resize((number + 1) * longest, 0);
        }
        packed.operands.push(operand(of_first.name, bytes));
        packed.sizes.push((longest / 16) as i32);
    }
    if !target.has(id, &packed.defines) {
        return refuse("no such kernel was compiled into the program");
    }
    Ok(PackedExperts {
        packed,
        offsets: offsets.clone(),
        count: experts.len(),
        slots: slots.count,
        x_stride,
        y_stride,
    })
}
