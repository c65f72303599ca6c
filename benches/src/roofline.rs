use std::time::Duration;

use rayon::prelude::*;

use crate::clock::{Times, time};

/// Bytes of the copied array: far beyond any private cache. A shared L3 cache may still hold it, but then may
/// also hold the weights that are compared with this figure.
const BYTES: usize = 256 << 20;

/// Bytes per second of a copy by all threads of the current rayon pool, at the fastest and at the median
/// repetition. Read and write count separately.
pub fn copy_bandwidth(budget: Duration) -> (f64, f64) {
    let source = vec![1.0f32; BYTES / size_of::<f32>()];
    let mut target = vec![0.0f32; source.len()];
    let piece = source.len().div_ceil(4 * rayon::current_num_threads());
    let Times { min, median, .. } = time(budget, || {
        target
            .par_chunks_mut(piece)
            .zip(source.par_chunks(piece))
            .for_each(|(target, source)| target.copy_from_slice(source));
        std::hint::black_box(&target);
    });
    (2.0 * BYTES as f64 / min, 2.0 * BYTES as f64 / median)
}
