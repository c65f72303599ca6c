use ndarray::Array2;

/// What becomes of a buffer after a step: (1 - d) B + d W, for the decoded weight W with its new codes
/// (`delta_decay` of the official code).
///
/// With d = 0 the buffer remembers every gradient (straight-through estimation), with d = 1 none.
pub fn delta_decay(buffer: &mut Array2<f64>, weight: &Array2<f64>, d: f64) {
    if d != 0.0 {
        buffer.zip_mut_with(weight, |b, &w| *b = (1.0 - d) * *b + d * w);
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::delta_decay;

    #[test]
    fn a_buffer_moves_by_a_share_of_the_way_to_the_weight() {
        let weight = array![[8.0, -4.0]];
        // numbers without rounding
        for (share, expected) in [
            (0.0, array![[16.0, 0.5]]),
            (0.25, array![[14.0, -0.625]]),
            (1.0, weight.clone()),
        ] {
            let mut buffer = array![[16.0, 0.5]];
            delta_decay(&mut buffer, &weight, share);
            assert_eq!(buffer, expected);
        }
    }
}
