//! The rates of memory that kernels are compared with: the best that a kernel can read, and the best that it
//! can copy.

use super::error::During;
use super::llama::plan::Plan;
use super::llama::{address, run};
use super::timing::time_graph;
use super::{Buffer, CudaError, Device, Result};

/// Bytes of the array that is read or copied: so far beyond any L2 cache that caching hides nothing.
const BYTES: usize = 2 << 30;
/// Bytes of the pattern that fills the array. It is larger than any L2 cache, too. Its words differ, because
/// constant bytes draw less power and so allow higher clocks.
const PATTERN_BYTES: usize = 64 << 20;
/// Threads of a block, tried in turn.
pub const BLOCKS: [u32; 3] = [256, 512, 1024];
/// Loads of 16 bytes in flight per thread, tried in turn.
pub const LOADS: [usize; 2] = [4, 8];
/// Blocks for each block that a multiprocessor can hold, tried in turn. Zero: one block for each tile.
const WAVES: [usize; 4] = [1, 2, 4, 0];
/// Threads that a multiprocessor can hold.
const THREADS: usize = 2048;
/// Replays of each shape.
const REPLAYS: usize = 10;

/// Bytes per second, each the best of several launch shapes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MemoryRates {
    /// reading only
    pub read: f64,
    /// copying: bytes read plus bytes written
    pub copy: f64,
}

/// Reads `tiles` tiles. Pointers: from, sums.
pub fn read_plan(block: u32, loads: usize, blocks: usize, tiles: usize) -> Plan {
    Plan {
        shared_bytes: block as usize * size_of::<u32>(),
        ..plan("stream_read/k1_tiles", block, loads, blocks, tiles)
    }
}

/// Copies `tiles` tiles. Pointers: from, to.
pub fn copy_plan(block: u32, loads: usize, blocks: usize, tiles: usize) -> Plan {
    plan("stream_copy/k1_tiles", block, loads, blocks, tiles)
}

fn plan(kernel: &'static str, block: u32, loads: usize, blocks: usize, tiles: usize) -> Plan {
    Plan {
        kernel,
        defines: vec![("AQLM_LOADS", loads)],
        integers: vec![tiles as i32],
        grid: [blocks as u32, 1],
        block,
        cluster: 1,
        shared_bytes: 0,
    }
}

/// Measures both rates on 2 GiB. Every shape's result is checked before its time counts.
///
/// # Errors
/// `Memory` when the device has no room for two such arrays, `Changed` when a kernel does not add up or copy
/// the array, `Driver`.
pub fn memory_rates(device: &Device) -> Result<MemoryRates> {
    let free = device.free_bytes()?;
    if free < 2 * BYTES + 2 * PATTERN_BYTES {
        return Err(CudaError::Memory {
            what: format!("two arrays of {BYTES} bytes, to measure the rate of memory,"),
            free,
        });
    }
    let (from, sum) = filled(device)?;
    let mut to: Buffer<u32> = device.zeros(from.len())?;
    let mut best = MemoryRates { read: 0.0, copy: 0.0 };
    for (block, loads, blocks, tiles) in shapes(device.target().multiprocessors as usize) {
        let read = read_plan(block, loads, blocks, tiles);
        best.read = best.read.max(read_rate(device, &read, &from, sum)?);

        device.stream().memset_zeros(&mut to).during("writing zeros")?;
        let copy = copy_plan(block, loads, blocks, tiles);
        let timing = time_graph(device, 2, REPLAYS, |_| {
            run(
                device,
                &copy,
                &[address(device, &from), address(device, &to)],
                false,
            )
        })?;
        read_rate(device, &read, &to, sum)?;
        best.copy = best.copy.max(2.0 * BYTES as f64 / (timing.median * 1e-6));
    }
    // The driver's own copy is one shape more.
    let timing = time_graph(device, 2, REPLAYS, |_| {
        device.stream().memcpy_dtod(&from, &mut to).during("copying")
    })?;
    best.copy = best.copy.max(2.0 * BYTES as f64 / (timing.median * 1e-6));
    Ok(best)
}

/// Every launch shape: threads, loads, blocks, tiles.
fn shapes(multiprocessors: usize) -> Vec<(u32, usize, usize, usize)> {
    let mut shapes = Vec::new();
    for block in BLOCKS {
        for loads in LOADS {
            let tiles = BYTES / (block as usize * loads * 16);
            for waves in WAVES {
                let resident = multiprocessors * (THREADS / block as usize);
                let blocks = if waves == 0 {
                    tiles
                } else {
                    (waves * resident).min(tiles)
                };
                shapes.push((block, loads, blocks, tiles));
            }
        }
    }
    shapes
}

/// The array, and the sum of its words modulo 2^32.
fn filled(device: &Device) -> Result<(Buffer<u32>, u32)> {
    let words = PATTERN_BYTES / size_of::<u32>();
    let pattern: Vec<u32> = (0..words as u32)
        .map(|i| i.wrapping_mul(0x9e37_79b9).rotate_left(i % 31))
        .collect();
    let sum = pattern.iter().fold(0_u32, |sum, word| sum.wrapping_add(*word));
    let part = device.upload(&pattern)?;
    let repeats = BYTES / PATTERN_BYTES;
    let mut array: Buffer<u32> = device.zeros(repeats * words)?;
    for i in 0..repeats {
        let mut to = array.slice_mut(i * words..(i + 1) * words);
        device.stream().memcpy_dtod(&part, &mut to).during("copying")?;
    }
    Ok((array, sum.wrapping_mul(repeats as u32)))
}

/// Bytes per second of reading `from`, whose words must add up to `sum`.
fn read_rate(device: &Device, plan: &Plan, from: &Buffer<u32>, sum: u32) -> Result<f64> {
    let sums: Buffer<u32> = device.zeros(plan.grid[0] as usize)?;
    let timing = time_graph(device, 2, REPLAYS, |_| {
        run(
            device,
            plan,
            &[address(device, from), address(device, &sums)],
            false,
        )
    })?;
    let found = device.download(&sums)?.into_iter().fold(0_u32, u32::wrapping_add);
    if found != sum {
        return Err(CudaError::Changed);
    }
    Ok(BYTES as f64 / (timing.median * 1e-6))
}
