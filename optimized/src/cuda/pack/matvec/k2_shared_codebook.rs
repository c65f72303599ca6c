use aqlm_vocabulary::{AqlmError, Result};
use rayon::prelude::*;

use super::super::Packed;
use super::super::job::Job;
use super::super::operand::{bytes_of_u32, codebook_bytes, operand, scale_bytes};
use super::super::warps::even_warps;
use aqlm_kernels::defines::matvec::k2_shared_codebook::{MOST_THREADS, ROWS};

/// 16-byte loads of a lane in a unit, at most: with more, the kernel runs out of registers.
const MOST_UNIT_LOADS: usize = 4;

/// k2: bit-packed codes, in tasks of four rows.
pub(in super::super) fn pack(job: &Job<'_>) -> Result<Packed> {
    let &Job { matrix, target, .. } = job;
    let scheme = matrix.scheme();
    let (m, b) = (scheme.num_codebooks, scheme.nbits as usize);
    let (out_groups, in_groups) = matrix.groups();

    // A unit is the fewest steps whose bits fill whole 16-byte loads.
    let step_bits = ROWS * m * b;
    let unit = (1..=128_usize)
        .find(|unit| (step_bits * unit).is_multiple_of(128))
        .filter(|unit| step_bits * unit / 128 <= MOST_UNIT_LOADS)
        .ok_or_else(|| {
            AqlmError::Unsupported(format!("k2 cannot pack {m} codes of {b} bits into whole loads"))
        })?;
    let unit_loads = step_bits * unit / 128;
    let units = in_groups.div_ceil(32 * unit);
    let tasks = out_groups.div_ceil(ROWS);

    let word_bytes = m * scheme.codebook_size() * scheme.in_group_size * 2;
    let input_bytes = units * unit * 32 * scheme.in_group_size * 2;
    let replicas = if 8 * word_bytes + input_bytes <= target.shared_bytes {
        8
    } else {
        1
    };

    let mut words = vec![0_u32; tasks * units * unit_loads * 32 * 4];
    words
        .par_chunks_mut(units * unit_loads * 32 * 4)
        .enumerate()
        .for_each(|(task, words)| {
            for row in 0..ROWS.min(out_groups - task * ROWS) {
                for group in 0..in_groups {
                    let (step, lane) = (group / 32, group % 32);
                    let base = step / unit * unit_loads * 32 * 4 + lane * 4;
                    for codebook in 0..m {
                        let code = u64::from(matrix.codes()[[task * ROWS + row, group, codebook]]);
                        let bit = (((step % unit) * ROWS + row) * m + codebook) * b;
                        let shifted = code << (bit % 32);
                        let mut put =
                            |word: usize, bits: u32| words[base + word / 4 * 128 + word % 4] |= bits;
                        put(bit / 32, shifted as u32);
                        if shifted >> 32 != 0 {
                            put(bit / 32 + 1, (shifted >> 32) as u32);
                        }
                    }
                }
            }
        });

    let grid = tasks.min(target.multiprocessors as usize);
    let warps = even_warps(tasks.div_ceil(grid), MOST_THREADS / 32);
    Ok(Packed {
        defines: vec![
            ("AQLM_M", m),
            ("AQLM_B", b),
            ("AQLM_G", scheme.in_group_size),
            ("AQLM_REPLICAS", replicas),
            ("AQLM_UNIT", unit),
        ],
        operands: vec![
            operand("codes", bytes_of_u32(&words)),
            operand("codebooks", codebook_bytes(matrix)),
            operand("scales", scale_bytes(matrix)),
        ],
        sizes: vec![tasks as i32, units as i32],
        grid: [grid as u32, 1],
        block: warps as u32 * 32,
        shared_bytes: replicas * word_bytes + input_bytes,
        ..job.unplanned()
    })
}
