//! Loops that the compiler vectorises, compiled once for each instruction set and chosen at run time.
//!
//! Sums keep [`LANES`] partial sums for every register width and combine them in one order. So results differ
//! between instruction sets only by whether a multiplication and an addition round once or twice.

/// Number of partial sums of every reduction.
pub(crate) const LANES: usize = 16;

/// Defines a function that calls `$body::<FUSED>`, compiled for the best available instruction set. `$body`
/// must be `#[inline(always)]` and generic over whether fused multiply-adds are cheap.
macro_rules! vectorized {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    $body::<true>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $body::<true>($($arg),*)
                }
                match $crate::cpu::SimdLevel::current() {
                    // SAFETY: the processor has this level, which includes these features.
                    $crate::cpu::SimdLevel::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::cpu::SimdLevel::Avx2 => return unsafe { avx2($($arg),*) },
                    _ => {}
                }
            }
            $body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    };
}
pub(crate) use vectorized;

/// a b + c, rounded once where that is cheap.
#[inline(always)]
pub(crate) fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// The sum of the partial sums, always in the same order.
#[inline(always)]
pub(crate) fn close(lanes: [f32; LANES]) -> f32 {
    let mut lanes = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// e^x to about two units in the last place; 0 below -87.3 (where f32's normal numbers end), e^88 above 88.
///
/// x = n ln 2 + r. e^r on [-ln 2 / 2, ln 2 / 2] is its Taylor series to r^7, whose remainder is below 2^-27.
#[inline(always)]
pub(crate) fn exp<const FUSED: bool>(x: f32) -> f32 {
    // ln 2 in two parts. The first ends with zeros, so that n times it is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // adding and subtracting 1.5 x 2^23 rounds to an integer
    const ROUND: f32 = 12_582_912.0;
    const LOWEST: f32 = -87.3;
    let clamped = x.clamp(LOWEST, 88.0);
    let rounded = multiply_add::<FUSED>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = multiply_add::<FUSED>(n, -LN2_HIGH, clamped);
    let r = multiply_add::<FUSED>(n, -LN2_LOW, r);
    let mut p = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = multiply_add::<FUSED>(p, r, coefficient);
    }
    // the low bits of the sum hold n, which becomes an exponent
    let power = f32::from_bits(rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    if x < LOWEST { 0.0 } else { p * power }
}

#[inline(always)]
fn dot_body<const FUSED: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (whole_a, rest_a) = a.as_chunks::<LANES>();
    let (whole_b, rest_b) = b.as_chunks::<LANES>();
    for (a, b) in whole_a.iter().zip(whole_b) {
        for i in 0..LANES {
            lanes[i] = multiply_add::<FUSED>(a[i], b[i], lanes[i]);
        }
    }
    for (i, (a, b)) in rest_a.iter().zip(rest_b).enumerate() {
        lanes[i] = multiply_add::<FUSED>(*a, *b, lanes[i]);
    }
    close(lanes)
}

vectorized! {
    /// The inner product of two vectors of equal length.
    pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 = dot_body
}

#[inline(always)]
fn sum_of_exponentials_body<const FUSED: bool>(values: &[f32], origin: f32) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for values in whole {
        for i in 0..LANES {
            lanes[i] += f64::from(exp::<FUSED>(values[i] - origin));
        }
    }
    for (i, value) in rest.iter().enumerate() {
        lanes[i] += f64::from(exp::<FUSED>(value - origin));
    }
    lanes.iter().sum()
}

vectorized! {
    /// The sum of e^(x - origin): exponentials in f32, their sum in f64.
    pub(crate) fn sum_of_exponentials(values: &[f32], origin: f32) -> f64 = sum_of_exponentials_body
}

#[inline(always)]
fn squared_distance_body<const FUSED: bool>(a: &[f32], b: &[f32]) -> f64 {
    // Differences are exact enough in f32. Their squares, up to a hundred thousand, are summed in f64.
    let mut lanes = [0.0f64; LANES];
    let (whole_a, rest_a) = a.as_chunks::<LANES>();
    let (whole_b, rest_b) = b.as_chunks::<LANES>();
    for (a, b) in whole_a.iter().zip(whole_b) {
        for i in 0..LANES {
            let difference = f64::from(a[i]) - f64::from(b[i]);
            lanes[i] += difference * difference;
        }
    }
    for (i, (a, b)) in rest_a.iter().zip(rest_b).enumerate() {
        let difference = f64::from(*a) - f64::from(*b);
        lanes[i] += difference * difference;
    }
    lanes.iter().sum()
}

vectorized! {
    /// The sum of squared differences of two vectors of equal length, in f64.
    pub(crate) fn squared_distance(a: &[f32], b: &[f32]) -> f64 = squared_distance_body
}

#[inline(always)]
fn dot_in_f64_body<const FUSED: bool>(a: &[f32], b: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (whole_a, rest_a) = a.as_chunks::<LANES>();
    let (whole_b, rest_b) = b.as_chunks::<LANES>();
    for (a, b) in whole_a.iter().zip(whole_b) {
        for i in 0..LANES {
            // a product of two f32 is exact in f64
            lanes[i] += f64::from(a[i]) * f64::from(b[i]);
        }
    }
    for (i, (a, b)) in rest_a.iter().zip(rest_b).enumerate() {
        lanes[i] += f64::from(*a) * f64::from(*b);
    }
    lanes.iter().sum()
}

vectorized! {
    /// The inner product of two vectors of equal length, in f64.
    pub(crate) fn dot_in_f64(a: &[f32], b: &[f32]) -> f64 = dot_in_f64_body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_within_four_units_in_the_last_place() {
        let mut x = -87.0f32;
        while x < 88.0 {
            let exact = f64::from(x).exp();
            for ours in [exp::<false>(x), exp::<true>(x)] {
                let error = (f64::from(ours) - exact).abs() / exact;
                assert!(error <= 4.0 * f64::from(f32::EPSILON), "e^{x}: {error}");
            }
            x += 0.003_7;
        }
        assert_eq!(exp::<false>(0.0), 1.0);
        assert_eq!(exp::<true>(f32::NEG_INFINITY), 0.0);
        assert!(exp::<true>(f32::NAN).is_nan());
    }

    #[test]
    fn sums_of_any_length_are_complete() {
        for len in 0..70 {
            let a: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let b = vec![2.0; len];
            assert_eq!(dot_in_f64(&a, &b), (len * len.saturating_sub(1)) as f64);
            assert_eq!(dot(&a, &b), (len * len.saturating_sub(1)) as f32);
            let expected: f64 = (0..len).map(|i| (i as f64 - 2.0).powi(2)).sum();
            assert_eq!(squared_distance(&a, &b), expected);
        }
    }
}
