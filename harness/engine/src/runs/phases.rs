use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Seconds that quantizing a block took, by phase. Their sum is the block's whole time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PhaseSeconds {
    /// the pass through the dense block: sums of inputs' products, and targets
    pub hessians: f64,
    /// first codes and codebooks, with the preparation of the layer's problem
    pub initialisation: f64,
    /// codebook updates
    pub codebook_update: f64,
    /// beam searches
    pub beam_search: f64,
    /// fine-tuning of the block
    pub finetuning: f64,
    /// the pass through the quantized block, eigenvalues of Hessians, rounding and storing
    pub rest: f64,
}

impl PhaseSeconds {
    /// Names and seconds of the phases, in the order of the work.
    pub fn named(&self) -> [(&'static str, f64); 6] {
        [
            ("Hessians", self.hessians),
            ("initialisation", self.initialisation),
            ("codebook update", self.codebook_update),
            ("beam search", self.beam_search),
            ("fine-tuning", self.finetuning),
            ("rest", self.rest),
        ]
    }

    /// Seconds of all phases.
    pub fn total(&self) -> f64 {
        self.named().iter().map(|(_, seconds)| seconds).sum()
    }

    /// Adds the seconds of another block.
    pub fn add(&mut self, other: &Self) {
        self.hessians += other.hessians;
        self.initialisation += other.initialisation;
        self.codebook_update += other.codebook_update;
        self.beam_search += other.beam_search;
        self.finetuning += other.finetuning;
        self.rest += other.rest;
    }

    fn times(&self, factor: f64) -> Self {
        Self {
            hessians: self.hessians * factor,
            initialisation: self.initialisation * factor,
            codebook_update: self.codebook_update * factor,
            beam_search: self.beam_search * factor,
            finetuning: self.finetuning * factor,
            rest: self.rest * factor,
        }
    }
}

/// A clock that books the time since its last reading on a phase.
#[derive(Debug)]
pub(crate) struct PhaseClock {
    last: Instant,
    seconds: PhaseSeconds,
}

impl PhaseClock {
    pub(crate) fn start() -> Self {
        Self {
            last: Instant::now(),
            seconds: PhaseSeconds::default(),
        }
    }

    /// Books the time since the last call on the phase that `of` selects.
    pub(crate) fn book(&mut self, of: impl FnOnce(&mut PhaseSeconds) -> &mut f64) {
        let now = Instant::now();
        *of(&mut self.seconds) += (now - self.last).as_secs_f64();
        self.last = now;
    }

    /// Books the time since the last call on phases in proportion to these seconds, which may have passed at
    /// once.
    pub(crate) fn book_shares(&mut self, shares: &PhaseSeconds) {
        let now = Instant::now();
        let passed = (now - self.last).as_secs_f64();
        self.last = now;
        let total = shares.total();
        if total > 0.0 {
            self.seconds.add(&shares.times(passed / total));
        } else {
            self.seconds.rest += passed;
        }
    }

    pub(crate) fn seconds(&self) -> PhaseSeconds {
        self.seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_time_is_booked_once() {
        let mut clock = PhaseClock::start();
        let started = clock.last;
        std::thread::sleep(std::time::Duration::from_millis(5));
        clock.book(|phases| &mut phases.hessians);
        clock.book(|phases| &mut phases.rest);
        std::thread::sleep(std::time::Duration::from_millis(5));
        clock.book(|phases| &mut phases.hessians);
        let seconds = clock.seconds();
        assert!(
            seconds.hessians >= 0.01 && seconds.beam_search == 0.0,
            "{seconds:?}"
        );
        let whole = (clock.last - started).as_secs_f64();
        assert!((seconds.total() - whole).abs() < 1e-9, "{seconds:?}, {whole}");
        std::thread::sleep(std::time::Duration::from_millis(5));
        let (before, last) = (clock.seconds(), clock.last);
        let shares = PhaseSeconds {
            initialisation: 3.0,
            beam_search: 1.0,
            ..PhaseSeconds::default()
        };
        clock.book_shares(&shares);
        let passed = (clock.last - last).as_secs_f64();
        let after = clock.seconds();
        assert!((after.initialisation - before.initialisation - 0.75 * passed).abs() < 1e-9);
        assert!(
            (after.total() - before.total() - passed).abs() < 1e-9,
            "{after:?}"
        );
        let mut twice = seconds;
        twice.add(&seconds);
        assert!((twice.total() - 2.0 * whole).abs() < 1e-9);
    }
}
