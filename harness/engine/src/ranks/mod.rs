//! Several processes that do one run together, each on a device of its own (docs/scaling.md).
//!
//! Every rank runs the same policy on the same data, so every rank takes the same decisions. Work is spread
//! in units that depend on the data alone: leaves of sums, and layers of a block. The units' results are
//! combined in the order of the units. No result depends on the number of ranks.

mod connections;
mod frame;
mod meeting;
mod place;

pub use connections::Connections;
pub use meeting::{Meeting, listen_here};
pub use place::{Launch, Place};

use std::ops::Range;

use serde::Serialize;
use serde::de::DeserializeOwned;

use aqlm_formats::{Error, Result};
use aqlm_vocabulary::PartSums;

/// Maximum number of leaves of a sum. More leaves let more ranks take part; each one that is computed
/// elsewhere is a message as long as the sum.
pub const LEAVES: usize = 8;

/// The processes of a run, as one of them sees them. Messages go between rank 0 and another rank, and arrive
/// in the order in which they were sent.
pub trait Ranks {
    /// This process, from 0.
    fn rank(&self) -> usize;

    /// Number of processes.
    fn size(&self) -> usize;

    /// This process among those of its host, from 0: the number of its device.
    fn local_rank(&self) -> usize;

    /// Sends a message from rank 0 to `to`, or to rank 0.
    ///
    /// # Errors
    /// `Rank` when a rank cannot go on.
    fn send(&self, to: usize, message: &[u8]) -> Result<()>;

    /// Waits for the next message from `from`.
    ///
    /// # Errors
    /// `Rank` when a rank cannot go on.
    fn receive(&self, from: usize) -> Result<Vec<u8>>;

    /// Whether this is rank 0, which alone writes files and prints results.
    fn is_first(&self) -> bool {
        self.rank() == 0
    }
}

/// One process, which has nobody to send to.
#[derive(Debug, Clone, Copy)]
pub struct Alone;

impl Ranks for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn local_rank(&self) -> usize {
        0
    }

    fn send(&self, to: usize, _message: &[u8]) -> Result<()> {
        Err(Error::Internal(format!("a message to rank {to} of one")))
    }

    fn receive(&self, from: usize) -> Result<Vec<u8>> {
        Err(Error::Internal(format!("a message from rank {from} of one")))
    }
}

/// The share of `owner` among `owners` in `count` consecutive things; shares differ by one at most.
fn share_of(count: usize, owners: usize, owner: usize) -> Range<usize> {
    count * owner / owners..count * (owner + 1) / owners
}

/// The consecutive parts, of `parts`, that this rank adds in [`sum_in_order`].
pub(crate) fn own_parts(parts: usize, ranks: &dyn Ranks) -> Range<usize> {
    let leaves = parts.min(LEAVES);
    let own = share_of(leaves, ranks.size(), ranks.rank());
    if own.is_empty() {
        return 0..0;
    }
    share_of(parts, leaves, own.start).start..share_of(parts, leaves, own.end - 1).end
}

/// Adds the parts 0 to `parts` to the sums, which are zero before. `add` adds a range of consecutive parts,
/// one number per element for each part. Afterwards every rank's sums include every part, with the same bits
/// on any number of ranks.
///
/// # Errors
/// Those of `add`; `Rank`.
pub fn sum_in_order<S: PartSums>(
    ranks: &dyn Ranks,
    sums: &mut S,
    parts: usize,
    add: &mut dyn FnMut(&mut S, Range<usize>) -> Result<()>,
) -> Result<()> {
    sum_on_first(ranks, sums, parts, add)?;
    let others: Vec<usize> = (1..ranks.size()).collect();
    hand_out(ranks, sums, &others)
}

/// [`sum_in_order`], but only rank 0 has the sums afterwards; those of the others are zero.
///
/// The parts are divided into at most [`LEAVES`] leaves of consecutive parts. The parts of a leaf are added
/// in their order, and the leaves' sums in theirs. A rank computes consecutive leaves.
///
/// # Errors
/// Those of `add`; `Rank`.
pub(crate) fn sum_on_first<S: PartSums>(
    ranks: &dyn Ranks,
    sums: &mut S,
    parts: usize,
    add: &mut dyn FnMut(&mut S, Range<usize>) -> Result<()>,
) -> Result<()> {
    let (rank, size) = (ranks.rank(), ranks.size());
    let leaves = parts.min(LEAVES);
    let leaf = |leaf: usize| share_of(parts, leaves, leaf);
    if rank > 0 {
        for own in share_of(leaves, size, rank) {
            add(sums, leaf(own))?;
            ranks.send(0, bytemuck::cast_slice(&sums.take()))?;
        }
        return Ok(());
    }
    let own = share_of(leaves, size, 0);
    if leaves == parts {
        // each part is a leaf
        if !own.is_empty() {
            add(sums, own)?;
        }
    } else {
        for own in own {
            sums.apart(|sums| add(sums, leaf(own)))?;
        }
    }
    for other in 1..size {
        for _ in share_of(leaves, size, other) {
            sums.add(&numbers(&ranks.receive(other)?)?)?;
        }
    }
    Ok(())
}

/// Gives what rank 0's sums are to other ranks, whose sums are zero. Every one of `to` and rank 0 calls this.
///
/// # Errors
/// `Rank`; those of adding.
pub(crate) fn hand_out<S: PartSums>(ranks: &dyn Ranks, sums: &mut S, to: &[usize]) -> Result<()> {
    if !ranks.is_first() {
        if to.contains(&ranks.rank()) {
            sums.add(&numbers(&ranks.receive(0)?)?)?;
        }
        return Ok(());
    }
    let to: Vec<usize> = to.iter().copied().filter(|&rank| rank > 0).collect();
    if to.is_empty() {
        return Ok(());
    }
    let total = sums.take();
    for rank in to {
        ranks.send(rank, bytemuck::cast_slice(&total))?;
    }
    Ok(sums.add(&total)?)
}

/// The numbers of a message.
fn numbers(message: &[u8]) -> Result<Vec<f64>> {
    let (numbers, []) = message.as_chunks() else {
        return Err(Error::Internal(format!(
            "{} bytes in a message of f64 numbers",
            message.len()
        )));
    };
    Ok(numbers.iter().map(|&bytes| f64::from_ne_bytes(bytes)).collect())
}

/// The message of rank `from`, on every rank. Only that rank has one.
///
/// # Errors
/// `Rank`.
pub fn broadcast(ranks: &dyn Ranks, from: usize, own: Option<Vec<u8>>) -> Result<Vec<u8>> {
    let missing = || Error::Internal(format!("rank {from} has nothing to broadcast"));
    let rank = ranks.rank();
    if rank > 0 && rank != from {
        return ranks.receive(0);
    }
    let message = match own {
        Some(own) => own,
        None if rank != from => ranks.receive(from)?,
        None => return Err(missing()),
    };
    if rank > 0 {
        ranks.send(0, &message)?;
        return Ok(message);
    }
    for to in (1..ranks.size()).filter(|&to| to != from) {
        ranks.send(to, &message)?;
    }
    Ok(message)
}

/// What rank `from` computes, on every rank.
///
/// # Errors
/// Those of `own`, on rank `from`; `Rank`.
pub fn share<T: Serialize + DeserializeOwned>(
    ranks: &dyn Ranks,
    from: usize,
    own: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let json = |error: serde_json::Error| Error::Internal(format!("a message between ranks: {error}"));
    if ranks.rank() == from {
        let own = own()?;
        if ranks.size() > 1 {
            let message = serde_json::to_vec(&own).map_err(json)?;
            broadcast(ranks, from, Some(message))?;
        }
        return Ok(own);
    }
    serde_json::from_slice(&broadcast(ranks, from, None)?).map_err(json)
}

/// What each rank has, in the order of ranks, on every rank.
///
/// # Errors
/// `Rank`.
pub(crate) fn gather<T: Serialize + DeserializeOwned>(ranks: &dyn Ranks, own: T) -> Result<Vec<T>> {
    let mut own = Some(own);
    let of = |from| {
        share(ranks, from, || {
            own.take().ok_or_else(|| Error::Internal("shared twice".into()))
        })
    };
    (0..ranks.size()).map(of).collect()
}

/// Returns when rank 0 has come to this call.
///
/// # Errors
/// `Rank`.
pub fn wait_for_first(ranks: &dyn Ranks) -> Result<()> {
    share(ranks, 0, || Ok(()))
}

/// Returns when every rank has come to this call.
///
/// # Errors
/// `Rank`.
pub fn wait_for_all(ranks: &dyn Ranks) -> Result<()> {
    agree(ranks, "a place to wait", "here")?;
    wait_for_first(ranks)
}

/// Fails unless every rank has the same `text` as rank 0; `what` it is appears in the message.
///
/// # Errors
/// `Rank`, on rank 0, with the first rank that differs, and both texts.
pub fn agree(ranks: &dyn Ranks, what: &str, text: &str) -> Result<()> {
    if !ranks.is_first() {
        return ranks.send(0, text.as_bytes());
    }
    for other in 1..ranks.size() {
        let theirs = ranks.receive(other)?;
        if theirs != text.as_bytes() {
            return Err(Error::Rank {
                name: format!("rank {other} of {}", ranks.size()),
                reason: format!(
                    "{what}: expected {text} as on rank 0, found {}",
                    String::from_utf8_lossy(&theirs)
                ),
            });
        }
    }
    Ok(())
}

/// Who does which of several jobs: the costliest first, each to the rank that has the least to do so far (the
/// lowest of these). It depends on costs and number of ranks alone.
pub(crate) fn owners(costs: &[usize], ranks: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..costs.len()).collect();
    order.sort_by_key(|&job| std::cmp::Reverse(costs[job]));
    let mut loads = vec![0_usize; ranks.max(1)];
    let mut owners = vec![0; costs.len()];
    for job in order {
        let least = (0..loads.len()).min_by_key(|&rank| loads[rank]).unwrap_or(0);
        owners[job] = least;
        loads[least] += costs[job];
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_consecutive_and_differ_by_one_at_most() {
        for (count, owners) in [(8, 3), (3, 8), (0, 2), (17, 8), (8, 8)] {
            let shares: Vec<_> = (0..owners).map(|owner| share_of(count, owners, owner)).collect();
            let all: Vec<usize> = shares.iter().cloned().flatten().collect();
            assert_eq!(all, (0..count).collect::<Vec<_>>());
            let sizes = || shares.iter().map(ExactSizeIterator::len);
            assert!(sizes().max().unwrap() - sizes().min().unwrap() <= 1);
        }
    }

    #[test]
    fn costly_layers_are_spread_and_cheap_ones_fill_up() {
        // the layers of a block of Llama 2 7B, in millions of weights
        let costs = [17, 17, 17, 17, 45, 45, 45];
        let loads = |ranks: usize| {
            let mut loads = vec![0; ranks];
            let of = owners(&costs, ranks);
            of.iter()
                .zip(costs)
                .for_each(|(&owner, cost)| loads[owner] += cost);
            loads
        };
        assert_eq!(loads(1), [203]);
        assert_eq!(loads(2), [107, 96]);
        assert_eq!(loads(8), [45, 45, 45, 17, 17, 17, 17, 0]);
    }

    #[test]
    fn one_process_adds_leaf_by_leaf_beyond_as_many_parts_as_leaves() {
        // One number per part, such that the order of addition shows.
        let value = |part: usize| 1.0 / (1.0 + part as f64).powi(7) + 1e-3 * part as f64;
        for parts in [0, 1, LEAVES, LEAVES + 1, 5 * LEAVES + 3] {
            let mut sums = vec![0.0];
            sum_in_order(&Alone, &mut sums, parts, &mut |sums, range| {
                range.for_each(|part| sums[0] += value(part));
                Ok(())
            })
            .unwrap();
            let leaves = parts.min(LEAVES);
            let expected = (0..leaves).fold(0.0, |sum, leaf| {
                sum + share_of(parts, leaves, leaf).fold(0.0, |sum, part| sum + value(part))
            });
            assert_eq!(sums, [expected], "{parts} parts");
        }
    }
}
