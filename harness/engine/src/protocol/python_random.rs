use rand_mt::Mt;

/// The random integers of Python's `random` module, on which the protocol for C4 depends.
pub(super) struct PythonRandom(Mt);

impl PythonRandom {
    /// `random.seed(seed)` for a seed of 32 bits.
    pub(super) fn new(seed: u32) -> Self {
        Self(Mt::new_with_key([seed]))
    }

    /// `random.randint(0, most)`: the upper bits of 32 random bits, as many as `most + 1` has, drawn again
    /// until they are at most `most`.
    pub(super) fn up_to(&mut self, most: u32) -> u32 {
        let bits = u64::BITS - (u64::from(most) + 1).leading_zeros();
        loop {
            // 33 bits would take two draws; no text has so many documents.
            let drawn = self.0.next_u32() >> 32u32.saturating_sub(bits);
            if drawn <= most {
                return drawn;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_python() {
        // python3 -c "import random; random.seed(0); print([random.randint(0, n) for n in [45575, 99, 0,
        // ...]])"
        let most = [45_575, 99, 0, 1, 2047, 1 << 30, 255, 7];
        let mut random = PythonRandom::new(0);
        let drawn = most.map(|most| random.up_to(most));
        assert_eq!(drawn, [25247, 97, 0, 0, 1060, 1043521778, 207, 4]);
    }
}
