use aqlm_vocabulary::QuantizedMatrix;
use half::f16;

/// A kernel's operand other than x and y.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operand {
    /// its name in the kernel's source
    pub name: &'static str,
    /// its contents; the length is a multiple of 16
    pub bytes: Vec<u8>,
}

pub(super) fn bytes_of_u16(values: impl Iterator<Item = u16>) -> Vec<u8> {
    padded(values.flat_map(u16::to_le_bytes).collect())
}

pub(super) fn bytes_of_u32(values: &[u32]) -> Vec<u8> {
    padded(bytemuck::cast_slice(values).to_vec())
}

pub(super) fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(16).max(16), 0);
    bytes
}

pub(super) fn operand(name: &'static str, bytes: Vec<u8>) -> Operand {
    Operand { name, bytes }
}

/// Codebooks [M, 2^B, out_group, in_group] as f16.
pub(super) fn codebook_bytes(matrix: &QuantizedMatrix) -> Vec<u8> {
    bytes_of_u16(
        matrix
            .codebooks()
            .iter()
            .map(|&value| f16::from_f64(value).to_bits()),
    )
}

/// Scales `[out_groups]` as f16.
pub(super) fn scale_bytes(matrix: &QuantizedMatrix) -> Vec<u8> {
    bytes_of_u16(
        matrix
            .scales()
            .iter()
            .map(|&value| f16::from_f64(value).to_bits()),
    )
}
