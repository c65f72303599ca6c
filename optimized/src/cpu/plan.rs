//! How a quantized matrix is to be computed with: instructions, form and storage.

use aqlm_vocabulary::Scheme;

use super::simd::SimdLevel;

/// How x times a quantized weight is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// Codewords are loaded, added up and multiplied with x: M loads of a codeword per group.
    Direct,
    /// x is multiplied with whole codebooks once per input group, then every code is a look-up: the paper's
    /// CPU kernel (section 4.4, "lookup tables"). B up to 8.
    Table(TablePrecision),
}

/// Entries of look-up tables.
///
/// The fixed-point ones share one scale (a power of two) among the tables of a few neighbouring input groups
/// and are added up as integers, so their only error is the rounding of an entry, at most half a step:
/// 2^-(bits-1) of the largest entry of those tables, or twice that when the power of two falls badly.
/// [`super::PackedMatrix::table_error_bound`] says what it comes to for a given x.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TablePrecision {
    /// f32
    F32,
    /// 24-bit fixed point: as fine as f32's own 24-bit significand for the largest entries
    I24,
    /// 16-bit fixed point
    I16,
    /// 8-bit fixed point
    I8,
}

impl TablePrecision {
    /// Bytes of a fixed-point entry; `None` for f32.
    pub(crate) fn planes(self) -> Option<usize> {
        match self {
            Self::F32 => None,
            Self::I24 => Some(3),
            Self::I16 => Some(2),
            Self::I8 => Some(1),
        }
    }
}

/// Storage of codewords in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CodebookPrecision {
    /// f16 when that halves a working set that falls out of the cache otherwise and loses nothing, else f32
    Auto,
    /// 4 bytes a value
    F32,
    /// 2 bytes a value, widened on the fly; rounds values that are not f16 already
    F16,
}

/// Everything that decides how a [`super::PackedMatrix`] is laid out and computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Plan {
    /// instructions
    pub level: SimdLevel,
    /// evaluation of products with one x
    pub form: Form,
    /// storage of codewords
    pub codebooks: CodebookPrecision,
    /// largest batch that takes one product per row of x; for larger ones, weights are decoded once for the
    /// whole batch
    pub largest_matvec_batch: usize,
}

impl Plan {
    /// The measured choice for a scheme and a weight of [out_features, in_features] with the current SIMD
    /// level. The measurements are in docs/cpu.md.
    pub fn choose(scheme: Scheme, out_features: usize, in_features: usize) -> Self {
        Self::choose_at(SimdLevel::current(), scheme, out_features, in_features)
    }

    /// The same at a given level.
    pub fn choose_at(level: SimdLevel, scheme: Scheme, out_features: usize, _in_features: usize) -> Self {
        let out_groups = out_features / scheme.out_group_size;
        // A table costs 2^B products of G numbers and saves one such product in each row, so it needs rows to
        // pay for it.
        let rows_per_entry = out_groups / scheme.codebook_size();
        let form = TABLES_PAY
            .iter()
            .find(|(at, fewest, _)| *at == level && scheme.nbits <= 8 && rows_per_entry >= *fewest)
            .map_or(Form::Direct, |(_, _, precision)| Form::Table(*precision));
        Self {
            level,
            form,
            codebooks: CodebookPrecision::Auto,
            largest_matvec_batch: LARGEST_MATVEC_BATCH,
        }
    }
}

/// Where look-up tables beat the direct form: level, output groups per codeword from which building them
/// pays, and the entries to use. All other levels use the direct form: there a look-up is one load per code,
/// and the direct form needs no more loads than that. Measured on loaded cores (docs/cpu.md). A [`Plan`] made
/// by hand overrides it.
const TABLES_PAY: [(SimdLevel, usize, TablePrecision); 2] = [
    (SimdLevel::Avx512, 5, TablePrecision::I24),
    (SimdLevel::Portable, 2, TablePrecision::F32),
];

/// Batches up to this size take one fused product per row of x; larger ones decode once and take a dense
/// product. An estimate: the crossover has not been measured.
const LARGEST_MATVEC_BATCH: usize = 4;
