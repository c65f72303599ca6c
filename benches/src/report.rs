use std::sync::OnceLock;
use std::time::Duration;

use crate::roofline::copy_bandwidth;

/// Prints the memory bound of an operation: `bytes` over the bandwidth of a copy, which is measured once per
/// process.
pub fn print_roofline(what: &str, bytes: usize) {
    static BANDWIDTH: OnceLock<f64> = OnceLock::new();
    let bandwidth = BANDWIDTH.get_or_init(|| copy_bandwidth(Duration::from_secs(1)).0);
    println!(
        "roofline of {what}: {:.2} MB at {:.1} GB/s (measured copy, {} threads) is {:.0} us",
        bytes as f64 * 1e-6,
        bandwidth * 1e-9,
        rayon::current_num_threads(),
        bytes as f64 / bandwidth * 1e6
    );
}
