//! Look-up tables in fixed point.
//!
//! An entry t of a block's tables is stored as the unsigned integer round(t / step) + bias of P bytes, one
//! byte in each of P planes. `step` is a power of two, shared by the block, so that exact multiples of `step`
//! stay exact. Sums over the block are integers: exact, in any order.

/// The tables of one block in fixed point.
pub(super) struct FixedTables<'a> {
    /// [look-ups, planes, table length], the lowest byte first
    pub(super) planes: &'a [u8],
    /// value of one unit
    pub(super) step: f32,
}

/// Half the range of an entry of `planes` bytes, the bias that makes entries unsigned.
pub(super) fn bias(planes: usize) -> i32 {
    1 << (8 * planes - 1)
}

/// The smallest power of two that keeps round(t / step) within the signed range for |t| <= `largest`.
///
/// NaN when `largest` is not finite, so that the product becomes NaN rather than a wrong number. Never below
/// 2^-120, where a quotient could overflow.
fn step(largest: f32, planes: usize) -> f32 {
    if !largest.is_finite() {
        return f32::NAN;
    }
    let bits = 8 * planes as i32 - 1;
    let exponent = ((largest.to_bits() >> 23) as i32 - 127 + 1 - bits).max(-120);
    let step = f32::from_bits(((exponent + 127) << 23) as u32);
    // largest / step is below 2^bits, but may round up to it.
    if (largest / step).round_ties_even() >= bias(planes) as f32 {
        2.0 * step
    } else {
        step
    }
}

/// [`step`] for the largest magnitude in `tables`; NaN when one of them is not finite.
#[inline(always)]
pub(super) fn common_step(tables: &[f32], planes: usize) -> f32 {
    // NaN must survive: `f32::max` drops it, an integer maximum of the bits keeps it.
    let largest = tables
        .iter()
        .fold(0, |largest, t| largest.max(t.to_bits() & 0x7fff_ffff));
    step(f32::from_bits(largest), planes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_the_smallest_that_fit() {
        for planes in 1..=3 {
            let limit = bias(planes) as f32;
            for largest in [1.0f32, 1.0 - f32::EPSILON / 2.0, 3.7e-5, 123.456, 1.0e30] {
                let step = step(largest, planes);
                assert_eq!(step.to_bits() & 0x7f_ffff, 0, "a power of two");
                assert!((largest / step).round_ties_even() < limit);
                assert!(
                    (largest / (step / 2.0)).round_ties_even() >= limit,
                    "{largest} {planes}"
                );
            }
            assert!(step(f32::NAN, planes).is_nan());
            assert!(step(f32::INFINITY, planes).is_nan());
            assert!(step(0.0, planes) > 0.0);
        }
    }
}
