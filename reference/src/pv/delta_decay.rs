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
