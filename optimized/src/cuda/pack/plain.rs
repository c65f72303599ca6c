use aqlm_reference::vocabulary::QuantizedMatrix;

use super::{Packed, bytes_of_u16, codebook_bytes, scale_bytes};

/// Rows that a block of k1 does, a warp each.
const ROWS: usize = 8;

/// k1: codes as they are, 16 bits each.
pub(super) fn pack(matrix: &QuantizedMatrix) -> Packed {
    let scheme = matrix.scheme;
    Packed {
        kernel: "matvec/k1_naive",
        defines: vec![
            ("AQLM_M", scheme.num_codebooks),
            ("AQLM_B", scheme.nbits as usize),
            ("AQLM_G", scheme.in_group_size),
            ("AQLM_OUT_G", scheme.out_group_size),
        ],
        buffers: vec![
            bytes_of_u16(matrix.codes.iter().copied()),
            codebook_bytes(matrix),
            scale_bytes(matrix),
        ],
        sizes: vec![],
        grid: [matrix.out_features().div_ceil(ROWS) as u32, 1],
        block: ROWS as u32 * 32,
        cluster: 1,
        shared_bytes: 0,
        out_features: matrix.out_features(),
        in_features: matrix.in_features(),
    }
}
