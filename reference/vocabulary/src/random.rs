use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{AqlmError, LayerId, Result};

/// A random stream of the project.
pub type Stream = ChaCha8Rng;

/// Purpose of a stream. Its number is part of the stream's key and never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// choice of the calibration sequences, and of those that validate
    Calibration = 1,
    /// starting points of k-means
    Initialization = 2,
    /// order in which beam search visits groups and codebooks
    Sweep = 3,
    /// order of sequences in an epoch of fine-tuning
    Minibatches = 4,
    /// sampling of generated tokens
    Generation = 5,
    /// inputs of checks and benchmarks
    TestData = 6,
    /// order in which a step of PV-Tuning visits codebooks
    CodeSteps = 7,
    /// labels drawn from the dense model for the sketch of its gradients
    Labels = 8,
}

/// The stream for (run seed, block, layer, purpose).
///
/// The four numbers themselves form the 256-bit key, so no two streams collide, and no stream depends on
/// earlier draws. A layer can be quantized again alone, and threads or resumption change nothing.
pub fn stream(seed: u64, block: usize, layer: Option<LayerId>, purpose: Purpose) -> Stream {
    let layer = layer.map_or(0, |layer| u64::from(layer.0) + 1);
    let mut key = [0u8; 32];
    for (slot, part) in key
        .chunks_exact_mut(8)
        .zip([seed, block as u64, layer, purpose as u64])
    {
        slot.copy_from_slice(&part.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// The owner of random numbers: a run's seed, and the block and layer that draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamKey {
    /// the run's seed
    pub seed: u64,
    /// index of the block
    pub block: usize,
    /// the layer, or `None` for draws that concern the whole block
    pub layer: Option<LayerId>,
}

impl StreamKey {
    /// This key's stream for one purpose; always begins at the stream's start.
    pub fn stream(self, purpose: Purpose) -> Stream {
        stream(self.seed, self.block, self.layer, purpose)
    }
}

/// Shuffles in place (Fisher-Yates from the front, so that the first k items of a longer shuffle are a random
/// sample).
pub fn shuffle<T>(rng: &mut Stream, items: &mut [T]) {
    for i in 0..items.len().saturating_sub(1) {
        let j = rng.random_range(i as u64..items.len() as u64) as usize;
        items.swap(i, j);
    }
}

/// `count` distinct indices below `len`, in the order drawn. All indices, shuffled, when `count >= len`.
pub fn sample_distinct(rng: &mut Stream, len: usize, count: usize) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..len).collect();
    let count = count.min(len);
    for i in 0..count.min(len.saturating_sub(1)) {
        let j = rng.random_range(i as u64..len as u64) as usize;
        indices.swap(i, j);
    }
    indices.truncate(count);
    indices
}

/// One step of a beam-search sweep: an input group, and the codebooks whose codes are chosen there together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// index of the input group
    pub group: usize,
    /// a codebook
    pub codebook: usize,
    /// another codebook; the step then chooses among all sums of a codeword of each
    pub partner: Option<usize>,
}

impl Position {
    /// The step that chooses the code of one codebook.
    pub const fn single(group: usize, codebook: usize) -> Self {
        Self {
            group,
            codebook,
            partner: None,
        }
    }

    /// The step that chooses the codes of two codebooks together.
    pub const fn pair(group: usize, codebook: usize, partner: usize) -> Self {
        Self {
            group,
            codebook,
            partner: Some(partner),
        }
    }

    /// Its codebooks, one or two.
    pub fn codebooks(self) -> impl Iterator<Item = usize> {
        std::iter::once(self.codebook).chain(self.partner)
    }

    /// Rejects an order of a sweep with a step outside a matrix of so many input groups and codebooks, or
    /// with a step that chooses two codes of one codebook.
    ///
    /// # Errors
    /// `Argument` naming the step.
    pub fn check_order(order: &[Self], in_groups: usize, num_codebooks: usize) -> Result<()> {
        let outside = |step: &&Self| {
            step.group >= in_groups
                || step.codebooks().any(|m| m >= num_codebooks)
                || step.partner == Some(step.codebook)
        };
        let Some(step) = order.iter().find(outside) else {
            return Ok(());
        };
        let partner = step.partner.map_or_else(String::new, |m| format!(" and {m}"));
        Err(AqlmError::argument(
            "order of a sweep",
            format!(
                "input groups below {in_groups} and codebooks below {num_codebooks}, two different ones in a pair"
            ),
            format!("input group {}, codebook {}{partner}", step.group, step.codebook),
        ))
    }
}

/// The order of one beam-search sweep: every input group once, in random order, and within each group every
/// codebook once, in random order. With `pairs`, codebooks that follow each other in a group are chosen two
/// by two; an odd one remains single.
pub fn sweep_order(rng: &mut Stream, in_groups: usize, num_codebooks: usize, pairs: bool) -> Vec<Position> {
    let mut groups: Vec<usize> = (0..in_groups).collect();
    shuffle(rng, &mut groups);
    let mut order = Vec::with_capacity(in_groups * num_codebooks);
    for group in groups {
        let mut codebooks: Vec<usize> = (0..num_codebooks).collect();
        shuffle(rng, &mut codebooks);
        let together = if pairs { 2 } else { 1 };
        order.extend(codebooks.chunks(together).map(|chosen| Position {
            group,
            codebook: chosen[0],
            partner: chosen.get(1).copied(),
        }));
    }
    order
}

/// The order in which step `step` of PV-Tuning visits a matrix's codebooks. It depends on the key and the
/// step alone, so a resumed run draws what an uninterrupted one draws.
pub fn codebook_order(key: StreamKey, step: u32, num_codebooks: usize) -> Vec<usize> {
    let mut rng = key.stream(Purpose::CodeSteps);
    rng.set_stream(u64::from(step));
    let mut order: Vec<usize> = (0..num_codebooks).collect();
    shuffle(&mut rng, &mut order);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_in_every_part_of_their_key() {
        let draw = |seed, block, layer, purpose| stream(seed, block, layer, purpose).random::<u64>();
        let base = draw(0, 0, None, Purpose::Sweep);
        assert_eq!(base, draw(0, 0, None, Purpose::Sweep));
        assert_ne!(base, draw(1, 0, None, Purpose::Sweep));
        assert_ne!(base, draw(0, 1, None, Purpose::Sweep));
        assert_ne!(base, draw(0, 0, Some(LayerId(0)), Purpose::Sweep));
        assert_ne!(base, draw(0, 0, None, Purpose::Calibration));
    }

    #[test]
    fn layers_are_numbered_from_one_in_the_key() {
        // 0 for the whole block, then q, k, v, o, gate, up, down. These numbers must never change: earlier
        // runs depend on them.
        for (layer, number) in [(None, 0u8), (Some(LayerId(0)), 1), (Some(LayerId(6)), 7)] {
            let mut key = [0; 32];
            (key[0], key[8], key[16], key[24]) = (5, 3, number, Purpose::Sweep as u8);
            let expected: u64 = ChaCha8Rng::from_seed(key).random();
            assert_eq!(stream(5, 3, layer, Purpose::Sweep).random::<u64>(), expected);
        }
    }

    #[test]
    fn a_sweep_visits_everything_once() {
        for (codebooks, pairs) in [(3, false), (2, true), (3, true), (1, true)] {
            let order = sweep_order(&mut stream(3, 0, None, Purpose::Sweep), 7, codebooks, pairs);
            Position::check_order(&order, 7, codebooks).unwrap();
            let steps = if pairs { codebooks.div_ceil(2) } else { codebooks };
            assert_eq!(order.len(), 7 * steps);
            let mut visited: Vec<_> = order
                .iter()
                .flat_map(|step| step.codebooks().map(|m| (step.group, m)))
                .collect();
            visited.sort_unstable();
            let expected: Vec<_> = (0..7).flat_map(|j| (0..codebooks).map(move |m| (j, m))).collect();
            assert_eq!(visited, expected);
        }
    }

    #[test]
    fn steps_outside_a_matrix_are_refused() {
        for bad in [
            Position::single(7, 0),
            Position::single(0, 3),
            Position::pair(0, 0, 3),
            Position::pair(0, 1, 1),
        ] {
            let order = [Position::single(0, 0), bad];
            let error = Position::check_order(&order, 7, 3).unwrap_err().to_string();
            assert!(error.contains("order of a sweep"), "{error}");
        }
    }

    #[test]
    fn orders_of_codebooks_depend_on_key_and_step() {
        let key = |block| StreamKey {
            seed: 3,
            block,
            layer: Some(LayerId(0)),
        };
        let orders =
            |block| -> Vec<Vec<usize>> { (0..8).map(|step| codebook_order(key(block), step, 5)).collect() };
        for order in orders(0) {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4]);
        }
        assert_eq!(orders(0), orders(0));
        assert_ne!(orders(0), orders(1));
        assert!(orders(0).windows(2).any(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn samples_are_distinct() {
        let mut sample = sample_distinct(&mut stream(3, 0, None, Purpose::TestData), 100, 40);
        assert_eq!(sample.len(), 40);
        sample.sort_unstable();
        sample.dedup();
        assert_eq!(sample.len(), 40);
        assert!(sample.iter().all(|&i| i < 100));
        assert_eq!(
            sample_distinct(&mut stream(3, 0, None, Purpose::TestData), 3, 9).len(),
            3
        );
    }
}
