use crate::cpu::vectorize::{LANES, exp, vectorized};

/// The two numbers that turn a row of logits l into probabilities e^(l - largest) / sum.
#[derive(Debug, Clone, Copy)]
pub(super) struct Softmax {
    /// the largest logit
    pub(super) largest: f32,
    /// sum over the row of e^(l - largest)
    pub(super) sum: f64,
}

impl Softmax {
    /// From a row; a NaN anywhere makes the sum NaN.
    pub(super) fn of(logits: &[f32]) -> Self {
        let largest = logits
            .iter()
            .fold(f32::NEG_INFINITY, |most, &logit| most.max(logit));
        Self {
            largest,
            sum: sum_of_exponentials(logits, largest),
        }
    }

    /// ln of the probability of a token with this logit.
    pub(super) fn log_probability(&self, logit: f32) -> f64 {
        (f64::from(logit) - f64::from(self.largest)) - self.sum.ln()
    }

    /// Replaces logits l by e^(l - largest).
    pub(super) fn exponentials(&self, logits: &mut [f32]) {
        exponentials(logits, self.largest);
    }
}

#[inline(always)]
fn sum_body<const FUSED: bool>(logits: &[f32], largest: f32) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (whole, rest) = logits.as_chunks::<LANES>();
    for logits in whole {
        for i in 0..LANES {
            lanes[i] += f64::from(exp::<FUSED>(logits[i] - largest));
        }
    }
    for (i, logit) in rest.iter().enumerate() {
        lanes[i] += f64::from(exp::<FUSED>(logit - largest));
    }
    lanes.iter().sum()
}

vectorized! {
    /// Sum of e^(l - largest).
    fn sum_of_exponentials(logits: &[f32], largest: f32) -> f64 = sum_body
}

#[inline(always)]
fn exponentials_body<const FUSED: bool>(logits: &mut [f32], largest: f32) {
    for logit in logits {
        *logit = exp::<FUSED>(*logit - largest);
    }
}

vectorized! {
    /// Replaces l by e^(l - largest).
    fn exponentials(logits: &mut [f32], largest: f32) = exponentials_body
}
