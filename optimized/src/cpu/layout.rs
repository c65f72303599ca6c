//! A quantized matrix laid out in memory for the kernels of one plan. The file layout is different
//! (docs/formats.md).

use aqlm_vocabulary::{AqlmError, QuantizedMatrix, Result, Scheme};

use super::aligned::Aligned;
use super::plan::{CodebookPrecision, Form, Plan};

/// Codewords are padded to a multiple of this. Every vector type's width divides it or is a multiple of it.
const CODEWORD_LANES: usize = 8;

/// Output groups whose codes are adjacent in the tiled layout: one AVX-512 register of bytes.
pub(crate) const TILE: usize = 64;

/// Look-ups whose tables share a scale and stay in the L1 cache together. 16 tables of 256 f32 are 16 KiB,
/// and 16 times 255 is far from overflowing a 16-bit sum.
const LOOKUPS_PER_BLOCK: usize = 16;

/// From this size on, codebooks no longer fit the L1 cache (32 to 48 KiB) together with x and codes.
const LARGE_CODEBOOKS: usize = 32 << 10;

/// A [`QuantizedMatrix`] ready for computation: codes in their new order, codebooks padded and in f32 or f16,
/// scales in f32. It keeps the [`Plan`] that it was made for.
#[derive(Debug, Clone)]
pub struct PackedMatrix {
    pub(crate) scheme: Scheme,
    pub(crate) plan: Plan,
    pub(crate) out_groups: usize,
    pub(crate) in_groups: usize,
    /// in_group_size rounded up to whole vectors
    pub(crate) padded_group: usize,
    pub(crate) codes: Codes,
    /// [M, 2^B, out_group, padded_group], zero in the padding
    pub(crate) codebooks: Codebooks,
    /// `[out_groups]`
    pub(crate) scales: Vec<f32>,
}

/// Codes in the order in which kernels read them.
#[derive(Debug, Clone)]
pub(crate) enum Codes {
    /// [out_groups, in_groups, M]
    Rows8(Aligned<u8>),
    /// [out_groups, in_groups, M]
    Rows16(Aligned<u16>),
    /// for look-up tables
    Tiles(TiledCodes),
}

/// Codes in the order in which look-up kernels read them: first blocks of input groups, then tiles of 64
/// output groups, then the (input group, codebook) pairs of the block, then 64 bytes. Byte 4 i + c of the 64
/// belongs to output group 16 c + i of the tile. Shifts alone then spread the four bytes of 32-bit lane i
/// over four vectors. Rows past the last have code 0.
#[derive(Debug, Clone)]
pub(crate) struct TiledCodes {
    pub(crate) bytes: Aligned<u8>,
    /// input groups of every block but the last, which may be shorter
    pub(crate) groups_per_block: usize,
    pub(crate) tiles: usize,
    /// [M, out_group, in_group, table length]: codebooks with the codeword's index innermost, for building
    /// tables
    pub(crate) transposed: Aligned<f32>,
    /// 2^B, at least 64
    pub(crate) table_len: usize,
}

/// Padded codebooks.
#[derive(Debug, Clone)]
pub(crate) enum Codebooks {
    F32(Aligned<f32>),
    /// bits of f16
    F16(Aligned<u16>),
}

/// The byte of a tile that holds an output group's code.
pub(crate) fn byte_of_row(row: usize) -> usize {
    4 * (row % 16) + row / 16
}

impl TiledCodes {
    /// Where the 64 bytes of (input group, codebook, tile) start.
    pub(crate) fn offset(
        &self,
        in_groups: usize,
        codebooks: usize,
        group: usize,
        m: usize,
        tile: usize,
    ) -> usize {
        let block = group / self.groups_per_block;
        let first = block * self.groups_per_block;
        let groups_here = self.groups_per_block.min(in_groups - first);
        let before = first * codebooks * self.tiles;
        let in_block = tile * groups_here * codebooks + (group - first) * codebooks + m;
        (before + in_block) * TILE
    }
}

impl PackedMatrix {
    /// Lays a matrix out for `plan`.
    ///
    /// # Errors
    /// `Unsupported` when the machine lacks the plan's SIMD level, or the plan wants tables for codes over 8
    /// bits; `NotFinite` for a scale or codebook entry beyond the range of its storage.
    pub fn new(matrix: &QuantizedMatrix, plan: &Plan) -> Result<Self> {
        plan.level.require()?;
        let scheme = matrix.scheme();
        if matches!(plan.form, Form::Table(_)) && scheme.nbits > 8 {
            return Err(AqlmError::Unsupported(format!(
                "look-up tables for scheme {scheme}: 2^B products per input group pay up to B = 8 only"
            )));
        }
        let (out_groups, in_groups) = matrix.groups();
        let padded_group = scheme.in_group_size.next_multiple_of(CODEWORD_LANES);
        let scales = matrix
            .scales()
            .iter()
            .enumerate()
            .map(|(o, &scale)| finite("scales", &[o], scale as f32))
            .collect::<Result<_>>()?;
        let codes = match plan.form {
            Form::Table(_) => Codes::Tiles(tiled(matrix)?),
            Form::Direct if scheme.nbits <= 8 => {
                let mut codes = Aligned::zeroed(matrix.codes().len());
                for (packed, &code) in codes.as_mut_slice().iter_mut().zip(matrix.codes()) {
                    *packed = code as u8;
                }
                Codes::Rows8(codes)
            }
            Form::Direct => {
                let mut codes = Aligned::zeroed(matrix.codes().len());
                for (packed, &code) in codes.as_mut_slice().iter_mut().zip(matrix.codes()) {
                    *packed = code;
                }
                Codes::Rows16(codes)
            }
        };
        Ok(Self {
            scheme,
            plan: *plan,
            out_groups,
            in_groups,
            padded_group,
            codes,
            codebooks: codebooks(matrix, plan, padded_group)?,
            scales,
        })
    }

    /// Lays a matrix out for the plan that [`Plan::choose`] prefers by measurements.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_best_plan(matrix: &QuantizedMatrix) -> Result<Self> {
        let plan = Plan::choose(matrix.scheme(), matrix.out_features(), matrix.in_features());
        Self::new(matrix, &plan)
    }

    /// How the weight is cut and coded.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The plan of this layout.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Rows of the weight.
    pub fn out_features(&self) -> usize {
        self.out_groups * self.scheme.out_group_size
    }

    /// Columns of the weight.
    pub fn in_features(&self) -> usize {
        self.in_groups * self.scheme.in_group_size
    }

    /// The largest |scale|, which turns [`Self::table_error_bound`] into a bound on every output.
    pub fn largest_scale(&self) -> f32 {
        self.scales
            .iter()
            .fold(0.0, |largest, scale| largest.max(scale.abs()))
    }

    /// Bytes that a product with one x reads: codes, codebooks and scales in their layout in memory.
    pub fn bytes(&self) -> usize {
        let codes = match &self.codes {
            Codes::Rows8(codes) => codes.as_slice().len(),
            Codes::Rows16(codes) => size_of_val(codes.as_slice()),
            Codes::Tiles(tiles) => tiles.bytes.as_slice().len(),
        };
        let codebooks = match (&self.codes, &self.codebooks) {
            (Codes::Tiles(tiles), _) => size_of_val(tiles.transposed.as_slice()),
            (_, Codebooks::F32(values)) => size_of_val(values.as_slice()),
            (_, Codebooks::F16(values)) => size_of_val(values.as_slice()),
        };
        codes + codebooks + size_of_val(self.scales.as_slice())
    }
}

fn finite(what: &str, index: &[usize], value: f32) -> Result<f32> {
    if value.is_finite() {
        Ok(value)
    } else {
        Err(AqlmError::NotFinite {
            what: what.into(),
            index: index.to_vec(),
            value: f64::from(value),
        })
    }
}

fn codebooks(matrix: &QuantizedMatrix, plan: &Plan, padded_group: usize) -> Result<Codebooks> {
    let group = matrix.scheme().in_group_size;
    let rows = matrix.codebooks().len() / group;
    let values = rows * padded_group;
    let in_f16 = match plan.codebooks {
        CodebookPrecision::F32 => false,
        CodebookPrecision::F16 => true,
        CodebookPrecision::Auto => {
            values * size_of::<f32>() > LARGE_CODEBOOKS
                && matrix
                    .codebooks()
                    .iter()
                    .all(|&value| half::f16::from_f64(value).to_f64() == value)
        }
    };
    let indexed = || {
        matrix
            .codebooks()
            .indexed_iter()
            .enumerate()
            .map(move |(flat, ((m, k, a, b), &value))| {
                let target = flat / group * padded_group + flat % group;
                (target, [m, k, a, b], value)
            })
    };
    if in_f16 {
        let mut packed = Aligned::zeroed(values);
        let slice = packed.as_mut_slice();
        for (target, index, value) in indexed() {
            let rounded = half::f16::from_f64(value);
            finite("codebooks", &index, rounded.to_f32())?;
            slice[target] = rounded.to_bits();
        }
        Ok(Codebooks::F16(packed))
    } else {
        let mut packed = Aligned::zeroed(values);
        let slice = packed.as_mut_slice();
        for (target, index, value) in indexed() {
            slice[target] = finite("codebooks", &index, value as f32)?;
        }
        Ok(Codebooks::F32(packed))
    }
}

fn tiled(matrix: &QuantizedMatrix) -> Result<TiledCodes> {
    let scheme = matrix.scheme();
    let (out_groups, in_groups, codebooks) = matrix.codes().dim();
    let table_len = scheme.codebook_size().max(TILE);
    let (go, gi) = (scheme.out_group_size, scheme.in_group_size);
    let mut transposed = Aligned::zeroed(codebooks * go * gi * table_len);
    for ((m, k, a, b), &value) in matrix.codebooks().indexed_iter() {
        transposed.as_mut_slice()[((m * go + a) * gi + b) * table_len + k] =
            finite("codebooks", &[m, k, a, b], value as f32)?;
    }
    let tiles = out_groups.div_ceil(TILE);
    let mut tiled = TiledCodes {
        bytes: Aligned::zeroed(tiles * TILE * in_groups * codebooks),
        groups_per_block: (LOOKUPS_PER_BLOCK / codebooks).max(1),
        tiles,
        transposed,
        table_len,
    };
    for tile in 0..tiles {
        let rows = (out_groups - tile * TILE).min(TILE);
        for j in 0..in_groups {
            for m in 0..codebooks {
                let offset = tiled.offset(in_groups, codebooks, j, m, tile);
                let bytes = &mut tiled.bytes.as_mut_slice()[offset..offset + TILE];
                for row in 0..rows {
                    bytes[byte_of_row(row)] = matrix.codes()[[tile * TILE + row, j, m]] as u8;
                }
            }
        }
    }
    Ok(tiled)
}
