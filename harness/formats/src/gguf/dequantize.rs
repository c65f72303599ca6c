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
    /// 32 numbers: f16 d, 32 high bits, 16 bytes of nibbles; d (q - 16)
    Q5_0,
    /// 32 numbers: f16 d, f16 m, 32 high bits, 16 bytes of nibbles; d q + m
    Q5_1,
    /// 32 numbers: f16 d, 32 signed bytes; d q
    Q8_0,
    /// 256 numbers in 16 groups: a nibble of scale and one of minimum for each, pairs of bits, f16 d, f16
    /// dmin; d scale q - dmin minimum
    Q2_K,
    /// 256 numbers in 16 groups: high bits, low pairs of bits, 16 scales of 6 bits, f16 d; d (scale - 32) (q
    /// - 4)
    Q3_K,
    /// 256 numbers in 8 groups: f16 d, f16 dmin, 8 scales and 8 minima of 6 bits, nibbles; d scale q - dmin
    /// minimum
    Q4_K,
    /// as Q4_K, with 256 high bits before the nibbles
    Q5_K,
    /// 256 numbers in 16 groups: low nibbles, high pairs of bits, 16 signed scales, f16 d; d scale (q - 32)
    Q6_K,
    /// 256 numbers: f32 d, 256 signed bytes, sums of 16 numbers each that are not read; d q
    Q8_K,
}

impl TensorType {
    /// For error messages.
    pub(super) const NAMES: &'static str =
        "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, or Q2_K to Q6_K or Q8_K";

    /// The type with this number in the file, or the name of an unsupported one.
    pub(super) fn from_id(id: u32) -> Result<Self, String> {
        Ok(match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2_K,
            11 => Self::Q3_K,
            12 => Self::Q4_K,
            13 => Self::Q5_K,
            14 => Self::Q6_K,
            15 => Self::Q8_K,
            30 => Self::BF16,
            other => {
                let name = match other {
                    9 => "Q8_1",
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
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K | Self::Q8_K => 256,
        }
    }

    /// Bytes per block.
    pub(super) fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 2 + 16,
            Self::Q4_1 => 4 + 16,
            Self::Q5_0 => 2 + 4 + 16,
            Self::Q5_1 => 4 + 4 + 16,
            Self::Q8_0 => 2 + 32,
            Self::Q2_K => 16 + 64 + 4,
            Self::Q3_K => 32 + 64 + 12 + 2,
            Self::Q4_K => 4 + 12 + 128,
            Self::Q5_K => 4 + 12 + 32 + 128,
            Self::Q6_K => 128 + 64 + 16 + 2,
            Self::Q8_K => 4 + 256 + 2 * 16,
        }
    }

    /// Decodes whole blocks.
    pub(super) fn decode(self, bytes: &[u8]) -> Vec<f32> {
        let mut out = Vec::with_capacity(bytes.len() / self.block_bytes() * self.block_len());
        for block in bytes.chunks_exact(self.block_bytes()) {
            match self {
                Self::F32 => out.push(single(block)),
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
                Self::Q5_0 => {
                    let d = half(block);
                    out.extend(fifth_bits(&block[2..]).map(|q| (f32::from(q) - 16.0) * d));
                }
                Self::Q5_1 => {
                    let (d, m) = (half(block), half(&block[2..]));
                    out.extend(fifth_bits(&block[4..]).map(|q| f32::from(q) * d + m));
                }
                Self::Q2_K => q2_k(block, &mut out),
                Self::Q3_K => q3_k(block, &mut out),
                Self::Q4_K => q4_k(block, &mut out),
                Self::Q5_K => q5_k(block, &mut out),
                Self::Q6_K => q6_k(block, &mut out),
                Self::Q8_K => {
                    let d = single(block);
                    out.extend(block[4..260].iter().map(|&q| f32::from(q as i8) * d));
                }
            }
        }
        out
    }
}

fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

fn single(bytes: &[u8]) -> f32 {
    f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// All low nibbles, then all high nibbles.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> {
    let low = bytes.iter().map(|byte| byte & 15);
    low.chain(bytes.iter().map(|byte| byte >> 4))
}

/// 32 numbers of 5 bits: 4 bytes of high bits, then the nibbles.
fn fifth_bits(bytes: &[u8]) -> impl Iterator<Item = u8> {
    let high = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let low = nibbles(&bytes[4..]).enumerate();
    low.map(move |(index, nibble)| nibble | ((high >> index & 1) as u8) << 4)
}

fn q2_k(block: &[u8], out: &mut Vec<f32>) {
    let (scales, rest) = block.split_at(16);
    let (quants, rest) = rest.split_at(64);
    let (d, dmin) = (half(rest), half(&rest[2..]));
    for group in 0..16 {
        let scale = d * f32::from(scales[group] & 15);
        let minimum = dmin * f32::from(scales[group] >> 4);
        out.extend(pairs_of_bits(quants, group).map(|q| scale * f32::from(q) - minimum));
    }
}

fn q3_k(block: &[u8], out: &mut Vec<f32>) {
    let (high, rest) = block.split_at(32);
    let (low, rest) = rest.split_at(64);
    let (packed, d) = rest.split_at(12);
    let d = half(d);
    for group in 0..16 {
        // low nibbles in bytes 0..8, groups 8..16 in their upper halves; high pairs of bits in bytes 8..12
        let nibble = packed[group % 8] >> (4 * (group / 8)) & 15;
        let scale = nibble | (packed[8 + group % 4] >> (2 * (group / 4)) & 3) << 4;
        let scale = d * (f32::from(scale) - 32.0);
        let bits = high[16 * (group % 2)..][..16]
            .iter()
            .map(|&byte| byte >> (group / 2) & 1);
        out.extend(
            pairs_of_bits(low, group)
                .zip(bits)
                .map(|(low, bit)| scale * (f32::from(low | bit << 2) - 4.0)),
        );
    }
}

/// Group `group` of 16 numbers of 2 bits. The first 128 numbers are in bytes 0..32, the others in bytes
/// 32..64. Groups 2 k and 2 k + 1 of a half are in bits 2 k and 2 k + 1 of its bytes 0..16 and 16..32.
fn pairs_of_bits(quants: &[u8], group: usize) -> impl Iterator<Item = u8> {
    let shift = 2 * (group / 2 % 4);
    let bytes = &quants[32 * (group / 8) + 16 * (group % 2)..][..16];
    bytes.iter().map(move |&byte| byte >> shift & 3)
}

fn q4_k(block: &[u8], out: &mut Vec<f32>) {
    grouped_nibbles(block, &[0; 32], &block[16..], out);
}

fn q5_k(block: &[u8], out: &mut Vec<f32>) {
    grouped_nibbles(block, &block[16..48], &block[48..], out);
}

/// Q4_K and Q5_K: `high` has the fifth bits, bit k of byte i for number i of group k.
fn grouped_nibbles(block: &[u8], high: &[u8], nibbles: &[u8], out: &mut Vec<f32>) {
    let (d, dmin) = (half(block), half(&block[2..]));
    let packed = &block[4..16];
    for (pair, quants) in nibbles.chunks_exact(32).enumerate() {
        for (group, upper) in [(2 * pair, false), (2 * pair + 1, true)] {
            let (scale, minimum) = q4_k_scale(packed, group);
            let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
            out.extend(quants.iter().zip(high).map(|(&byte, &high)| {
                let nibble = if upper { byte >> 4 } else { byte & 15 };
                scale * f32::from(nibble | (high >> group & 1) << 4) - minimum
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

    /// Numbers of 2 bits: those of index i, i + 32, i + 64 and i + 96 of each half in byte i.
    fn pack_pairs(quants: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        for (index, q) in quants.iter().enumerate() {
            bytes[32 * (index / 128) + index % 32] |= q << (2 * (index / 32 % 4));
        }
        bytes
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

        /// Numbers of 5 bits, the fifth of each in one word of 32 bits.
        #[test]
        fn blocks_of_32_with_fifth_bits(
            quants in prop::collection::vec(0_u8..32, 32), e in -8_i32..8, f in -8_i32..8
        ) {
            let ((d, d_bytes), (m, m_bytes)) = (exact_half(e), exact_half(f));
            let nibbles: Vec<u8> = quants.iter().map(|q| q & 15).collect();
            let high = quants.iter().enumerate().fold(0, |word, (index, q)| word | u32::from(q >> 4) << index);
            let packed = [&high.to_le_bytes()[..], &pack_nibbles(&nibbles)].concat();
            let expected: Vec<f32> = quants.iter().map(|&q| d * (f32::from(q) - 16.0)).collect();
            prop_assert_eq!(TensorType::Q5_0.decode(&[&d_bytes[..], &packed].concat()), expected);
            let expected: Vec<f32> = quants.iter().map(|&q| d * f32::from(q) + m).collect();
            prop_assert_eq!(TensorType::Q5_1.decode(&[&d_bytes[..], &m_bytes, &packed].concat()), expected);
        }

        /// Numbers of 2 bits in 16 groups, each with a scale and a minimum of 4 bits.
        #[test]
        fn q2_k_blocks(
            quants in prop::collection::vec(0_u8..4, 256), scales in prop::collection::vec((0_u8..16, 0_u8..16), 16),
            e in -8_i32..8, f in -8_i32..8
        ) {
            let ((d, d_bytes), (dmin, dmin_bytes)) = (exact_half(e), exact_half(f));
            let scale_bytes: Vec<u8> = scales.iter().map(|(scale, minimum)| scale | minimum << 4).collect();
            let block = [&scale_bytes[..], &pack_pairs(&quants), &d_bytes, &dmin_bytes].concat();
            let expected: Vec<f32> = quants
                .iter()
                .enumerate()
                .map(|(index, &q)| {
                    let (scale, minimum) = scales[index / 16];
                    d * f32::from(scale) * f32::from(q) - dmin * f32::from(minimum)
                })
                .collect();
            prop_assert_eq!(TensorType::Q2_K.decode(&block), expected);
        }

        /// Numbers of 3 bits in 16 groups, each with a scale of 6 bits.
        #[test]
        fn q3_k_blocks(
            quants in prop::collection::vec(0_u8..8, 256), scales in prop::collection::vec(0_u8..64, 16), e in -8_i32..8
        ) {
            let (d, d_bytes) = exact_half(e);
            let mut high = [0_u8; 32];
            for (index, q) in quants.iter().enumerate() {
                high[index % 32] |= (q >> 2) << (index / 32);
            }
            let low: Vec<u8> = quants.iter().map(|q| q & 3).collect();
            let mut packed = [0_u8; 12];
            for (group, scale) in scales.iter().enumerate() {
                packed[group % 8] |= (scale & 15) << (4 * (group / 8));
                packed[8 + group % 4] |= (scale >> 4) << (2 * (group / 4));
            }
            let block = [&high[..], &pack_pairs(&low), &packed, &d_bytes].concat();
            let expected: Vec<f32> = quants
                .iter()
                .enumerate()
                .map(|(index, &q)| d * (f32::from(scales[index / 16]) - 32.0) * (f32::from(q) - 4.0))
                .collect();
            prop_assert_eq!(TensorType::Q3_K.decode(&block), expected);
        }

        #[test]
        fn q8_k_blocks(quants in prop::collection::vec(any::<i8>(), 256), e in -8_i32..8) {
            let d = 2_f32.powi(e);
            let mut block = d.to_le_bytes().to_vec();
            block.extend(quants.iter().map(|&q| q as u8));
            block.extend([255; 32]);
            let expected: Vec<f32> = quants.iter().map(|&q| d * f32::from(q)).collect();
            prop_assert_eq!(TensorType::Q8_K.decode(&block), expected);
        }

        /// Packs numbers as the format specifies and checks the scale and minimum of each group of 32.
        #[test]
        fn q4_k_and_q5_k_blocks(
            quants in prop::collection::vec(0_u8..32, 256), scales in prop::collection::vec((0_u8..64, 0_u8..64), 8),
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
            let head = [&d_bytes[..], &dmin_bytes, &packed].concat();
            let nibbles: Vec<u8> = quants.iter().map(|q| q & 15).collect();
            let packed_nibbles = nibbles.chunks(64).flat_map(pack_nibbles).collect::<Vec<_>>();
            let expected = |quants: &[u8]| -> Vec<f32> {
                let indexed = quants.iter().enumerate();
                indexed
                    .map(|(index, &q)| {
                        let (scale, minimum) = scales[index / 32];
                        d * f32::from(scale) * f32::from(q) - dmin * f32::from(minimum)
                    })
                    .collect()
            };
            let q4_k = [&head[..], &packed_nibbles].concat();
            prop_assert_eq!(TensorType::Q4_K.decode(&q4_k), expected(&nibbles));
            let mut high = vec![0_u8; 32];
            for (index, q) in quants.iter().enumerate() {
                high[index % 32] |= (q >> 4) << (index / 32);
            }
            let q5_k = [&head[..], &high, &packed_nibbles].concat();
            prop_assert_eq!(TensorType::Q5_K.decode(&q5_k), expected(&quants));
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
        assert_eq!(TensorType::from_id(23), Err("IQ4_XS".into()));
        assert_eq!(TensorType::from_id(99), Err("type number 99".into()));
    }
}
