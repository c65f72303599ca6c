use std::time::Duration;

use rayon::prelude::*;

use crate::clock::{Times, time};

/// Bytes of the copied array: far beyond any private cache. A shared third-level cache may still hold it, as
/// it may hold the weights that are compared with this figure.
const BYTES: usize = 256 << 20;

/// Seconds to copy one byte (read and write count as two), all threads of the current rayon pool together,
/// and bytes per second at the fastest and the middle repetition.
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
