use aqlm_vocabulary::Result;

use super::job::Job;
use super::operand::{bytes_of_u16, codebook_bytes, operand, scale_bytes};
use super::{Op, Packed};

/// Rows of a block of matvec and matmul, a warp each.
const ROWS: usize = 8;
/// Columns of a block of decode, a thread each.
const COLUMNS: usize = 256;

/// k1 of every operation: codes unchanged, 16 bits each.
pub(super) fn pack(job: &Job<'_>) -> Result<Packed> {
    let &Job { matrix, batch, .. } = job;
    let scheme = matrix.scheme();
    let (out_features, in_features) = (matrix.out_features(), matrix.in_features());
    let row_blocks = out_features.div_ceil(ROWS) as u32;
    let grid = match Op::of(job.kernel) {
        Op::Matvec => [row_blocks, 1],
        // The kernels stride over rows beyond the maximum of a grid's second axis.
        Op::Matmul => [row_blocks, batch.min(65_535) as u32],
        Op::Decode => [
            in_features.div_ceil(COLUMNS) as u32,
            out_features.min(65_535) as u32,
        ],
    };
    Ok(Packed {
        defines: vec![
            ("AQLM_M", scheme.num_codebooks),
            ("AQLM_B", scheme.nbits as usize),
            ("AQLM_G", scheme.in_group_size),
            ("AQLM_OUT_G", scheme.out_group_size),
        ],
        operands: vec![
            operand("codes", bytes_of_u16(matrix.codes().iter().copied())),
            operand("codebooks", codebook_bytes(matrix)),
            operand("scales", scale_bytes(matrix)),
        ],
        grid,
        block: 256,
        ..job.unplanned()
    })
}
