use crate::cpu::vectorize::{exp, vectorized};

/// cap tanh(x / cap), with tanh(z) = 1 - 2 / (1 + e^2z). Its error is about half an epsilon times the cap, as
/// that of a sum of numbers of the cap's size.
#[inline(always)]
fn cap_body<const FUSED: bool>(values: &mut [f32], cap: f32) {
    for value in values {
        let z = *value / cap;
        *value = cap * (1.0 - 2.0 / (1.0 + exp::<FUSED>(2.0 * z)));
    }
}

vectorized! {
    /// Replaces every x by cap tanh(x / cap) (Gemma 2, section 2).
    pub(super) fn soft_cap(values: &mut [f32], cap: f32) = cap_body
}

#[inline(always)]
fn slope_body<const FUSED: bool>(slopes: &mut [f32], capped: &[f32], cap: f32) {
    for (slope, y) in slopes.iter_mut().zip(capped) {
        let t = y / cap;
        *slope = 1.0 - t * t;
    }
}

vectorized! {
    /// The slopes of [`soft_cap`] at the points where its values are `capped`: 1 - (y / cap)^2.
    pub(super) fn soft_cap_slopes(slopes: &mut [f32], capped: &[f32], cap: f32) = slope_body
}
