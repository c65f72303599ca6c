//! The block types of GGUF tensors, decoded to f32 in ggml's order of operations.

use half::{bf16, f16};

/// Supported tensor types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(
    non_camel_case_types,
    reason = "the format's own spelling, which errors and listings print"
)]
pub(super) enum TensorType {
    F32,
    F16,
    BF16,
    /// 32 numbers: f16 d, 16 bytes of nibbles; d (q - 8)
    Q4_0,
    /// 32 numbers: f16 d, f16 m, 16 bytes of nibbles; d q + m
    Q4_1,
    /// 32 numbers: f16 d, 32 signed bytes; d q
    Q8_0,
    /// 256 numbers in 8 groups: f16 d, f16 dmin, 8 scales and 8 minima of 6 bits, nibbles; d scale q - dmin
    /// minimum
    Q4_K,
    /// 256 numbers in 16 groups: low nibbles, high pairs of bits, 16 signed scales, f16 d; d scale (q - 32)
    Q6_K,
}

impl TensorType {
    /// For error messages.
    pub(super) const NAMES: &'static str = "F32, F16, BF16, Q4_0, Q4_1, Q8_0, Q4_K or Q6_K";

    /// The type with this number in the file, or the name of an unsupported one.
    pub(super) fn from_id(id: u32) -> Result<Self, String> {
        Ok(match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            8 => Self::Q8_0,
            12 => Self::Q4_K,
            14 => Self::Q6_K,
            30 => Self::BF16,
            other => {
                let name = match other {
                    6 => "Q5_0",
                    7 => "Q5_1",
                    9 => "Q8_1",
                    10 => "Q2_K",
                    11 => "Q3_K",
                    13 => "Q5_K",
                    15 => "Q8_K",
                    16 => "IQ2_XXS",
                    17 => "IQ2_XS",
                    18 => "IQ3_XXS",
                    19 => "IQ1_S",
                    20 => "IQ4_NL",
                    21 => "IQ3_S",
                    22 => "IQ2_S",
                    23 => "IQ4_XS",
                    24 => "I8",
                    25 => "I16",
                    26 => "I32",
                    27 => "I64",
                    28 => "F64",
                    29 => "IQ1_M",
                    34 => "TQ1_0",
                    35 => "TQ2_0",
                    39 => "MXFP4",
                    _ => return Err(format!("type number {other}")),
                };
                return Err(name.into());
            }
        })
    }

    /// Numbers per block.
    pub(super) fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q8_0 => 32,
            Self::Q4_K | Self::Q6_K => 256,
        }
    }

    /// Bytes per block.
    pub(super) fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 2 + 16,
            Self::Q4_1 => 4 + 16,
            Self::Q8_0 => 2 + 32,
            Self::Q4_K => 4 + 12 + 128,
            Self::Q6_K => 128 + 64 + 16 + 2,
        }
    }

    /// Decodes whole blocks.
    pub(super) fn decode(self, bytes: &[u8]) -> Vec<f32> {
        let mut out = Vec::with_capacity(bytes.len() / self.block_bytes() * self.block_len());
        for block in bytes.chunks_exact(self.block_bytes()) {
            match self {
                Self::F32 => out.push(f32::from_le_bytes([block[0], block[1], block[2], block[3]])),
                Self::F16 => out.push(half(block)),
                Self::BF16 => out.push(bf16::from_le_bytes([block[0], block[1]]).to_f32()),
                Self::Q4_0 => {
                    let d = half(block);
                    out.extend(nibbles(&block[2..]).map(|q| (f32::from(q) - 8.0) * d));
                }
                Self::Q4_1 => {
                    let (d, m) = (half(block), half(&block[2..]));
                    out.extend(nibbles(&block[4..]).map(|q| f32::from(q) * d + m));
                }
                Self::Q8_0 => {
                    let d = half(block);
                    out.extend(block[2..].iter().map(|&q| f32::from(q as i8) * d));
                }
                Self::Q4_K => q4_k(block, &mut out),
                Self::Q6_K => q6_k(block, &mut out),
            }
        }
        out
    }
}

fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// All low nibbles, then all high nibbles.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> {
    let low = bytes.iter().map(|byte| byte & 15);
    low.chain(bytes.iter().map(|byte| byte >> 4))
}

fn q4_k(block: &[u8], out: &mut Vec<f32>) {
    let (d, dmin) = (half(block), half(&block[2..]));
    let packed = &block[4..16];
    for (pair, quants) in block[16..].chunks_exact(32).enumerate() {
        for (group, high) in [(2 * pair, false), (2 * pair + 1, true)] {
            let (scale, minimum) = q4_k_scale(packed, group);
            let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
            out.extend(quants.iter().map(|&byte| {
                let q = if high { byte >> 4 } else { byte & 15 };
                scale * f32::from(q) - minimum
            }));
        }
    }
}

/// Scale and minimum of one of 8 groups, 6 bits each. Those of the first four groups are in bytes 0..4 and
/// 4..8. Those of the other four have their low nibbles in bytes 8..12 and their high two bits in the top
/// bits of the first four groups' bytes.
fn q4_k_scale(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let low = packed[group + 4];
        (
            (low & 15) | (packed[group - 4] >> 6) << 4,
            (low >> 4) | (packed[group] >> 6) << 4,
        )
    }
}

fn q6_k(block: &[u8], out: &mut Vec<f32>) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, d) = rest.split_at(16);
    let d = half(d);
    for part in 0..2 {
        let (low, high) = (&low[64 * part..][..64], &high[32 * part..][..32]);
        for quarter in 0..4 {
            for index in 0..32 {
                let byte = low[32 * (quarter % 2) + index];
                let nibble = if quarter < 2 { byte & 15 } else { byte >> 4 };
                let q = nibble | (high[index] >> (2 * quarter) & 3) << 4;
                let scale = scales[8 * part + 2 * quarter + index / 16] as i8;
                out.push(d * f32::from(scale) * (f32::from(q) - 32.0));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A power of two, so that every product in these tests is exact.
    fn exact_half(exponent: i32) -> (f32, [u8; 2]) {
        let value = 2_f32.powi(exponent);
        (value, f16::from_f32(value).to_le_bytes())
    }

    fn pack_nibbles(quants: &[u8]) -> Vec<u8> {
        let (low, high) = quants.split_at(quants.len() / 2);
        low.iter().zip(high).map(|(low, high)| low | high << 4).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn blocks_of_32(quants in prop::collection::vec(0_u8..16, 32), e in -8_i32..8, f in -8_i32..8) {
            let ((d, d_bytes), (m, m_bytes)) = (exact_half(e), exact_half(f));
            let q4_0 = [&d_bytes[..], &pack_nibbles(&quants)].concat();
            let expected: Vec<f32> = quants.iter().map(|&q| d * (f32::from(q) - 8.0)).collect();
            prop_assert_eq!(TensorType::Q4_0.decode(&q4_0), expected);
            let q4_1 = [&d_bytes[..], &m_bytes, &pack_nibbles(&quants)].concat();
            let expected: Vec<f32> = quants.iter().map(|&q| d * f32::from(q) + m).collect();
            prop_assert_eq!(TensorType::Q4_1.decode(&q4_1), expected);
            let signed: Vec<i8> = quants.iter().map(|&q| (q * 17) as i8).collect();
            let q8_0 = [&d_bytes[..], &signed.iter().map(|&q| q as u8).collect::<Vec<_>>()].concat();
            let expected: Vec<f32> = signed.iter().map(|&q| d * f32::from(q)).collect();
            prop_assert_eq!(TensorType::Q8_0.decode(&q8_0), expected);
        }

        /// Packs numbers as the format specifies and checks the scale and minimum of each group of 32.
        #[test]
        fn q4_k_blocks(
            quants in prop::collection::vec(0_u8..16, 256), scales in prop::collection::vec((0_u8..64, 0_u8..64), 8),
            e in -8_i32..8, f in -8_i32..8
        ) {
            let ((d, d_bytes), (dmin, dmin_bytes)) = (exact_half(e), exact_half(f));
            let mut packed = [0_u8; 12];
            for group in 0..4 {
                let ((scale, minimum), (later_scale, later_minimum)) = (scales[group], scales[group + 4]);
                packed[group] = scale | (later_scale >> 4) << 6;
                packed[group + 4] = minimum | (later_minimum >> 4) << 6;
                packed[group + 8] = (later_scale & 15) | (later_minimum & 15) << 4;
            }
            let mut block = [&d_bytes[..], &dmin_bytes, &packed].concat();
            for pair in quants.chunks(64) {
                block.extend(pack_nibbles(pair));
            }
            let expected: Vec<f32> = quants
                .iter()
                .enumerate()
                .map(|(index, &q)| {
                    let (scale, minimum) = scales[index / 32];
                    d * f32::from(scale) * f32::from(q) - dmin * f32::from(minimum)
                })
                .collect();
            prop_assert_eq!(TensorType::Q4_K.decode(&block), expected);
        }

        /// The same for 6-bit numbers in groups of 16.
        #[test]
        fn q6_k_blocks(
            quants in prop::collection::vec(0_u8..64, 256), scales in prop::collection::vec(any::<i8>(), 16), e in -8_i32..8
        ) {
            let (d, d_bytes) = exact_half(e);
            let (mut low, mut high) = (vec![0_u8; 128], vec![0_u8; 64]);
            for (index, &q) in quants.iter().enumerate() {
                let (part, quarter, column) = (index / 128, index / 32 % 4, index % 32);
                low[64 * part + 32 * (quarter % 2) + column] |= (q & 15) << (4 * (quarter / 2));
                high[32 * part + column] |= (q >> 4) << (2 * quarter);
            }
            let scale_bytes: Vec<u8> = scales.iter().map(|&scale| scale as u8).collect();
            let block = [low, high, scale_bytes, d_bytes.to_vec()].concat();
            let expected: Vec<f32> = quants
                .iter()
                .enumerate()
                .map(|(index, &q)| d * f32::from(scales[index / 16]) * (f32::from(q) - 32.0))
                .collect();
            prop_assert_eq!(TensorType::Q6_K.decode(&block), expected);
        }
    }

    #[test]
    fn plain_types_are_kept() {
        let values = [1.5_f32, -3.25];
        let bytes = |bytes: [Vec<u8>; 2]| bytes.concat();
        assert_eq!(
            TensorType::F32.decode(&bytes(values.map(|x| x.to_le_bytes().to_vec()))),
            values
        );
        assert_eq!(
            TensorType::F16.decode(&bytes(values.map(|x| f16::from_f32(x).to_le_bytes().to_vec()))),
            values
        );
        assert_eq!(
            TensorType::BF16.decode(&bytes(values.map(|x| bf16::from_f32(x).to_le_bytes().to_vec()))),
            values
        );
    }

    #[test]
    fn other_types_are_named() {
        assert_eq!(TensorType::from_id(13), Err("Q5_K".into()));
        assert_eq!(TensorType::from_id(99), Err("type number 99".into()));
    }
}
