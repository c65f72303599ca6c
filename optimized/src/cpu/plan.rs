//! How to compute with a quantized matrix: instructions, form and storage.

use aqlm_vocabulary::Scheme;

use super::simd::SimdLevel;

/// How x times a quantized weight is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// Codewords are loaded, added and multiplied with x: M loads of a codeword per group.
    Direct,
    /// Once per input group, x is multiplied with whole codebooks; then every code is a look-up. This is the
    /// paper's CPU kernel (section 4.4, "lookup tables"). B up to 8.
    Table(TablePrecision),
}

/// Entries of look-up tables.
///
/// The fixed-point ones share one scale (a power of two) among the tables of a few neighbouring input groups
/// and are added as integers. So their only error is the rounding of an entry, at most half a step:
/// 2^-(bits-1) of the largest entry of those tables, or twice that for an unlucky power of two.
/// [`super::PackedMatrix::table_error_bound`] gives the bound for a given x.
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
    /// f16 if that is lossless and halves a working set that would not fit the cache, else f32
    Auto,
    /// 4 bytes a value
    F32,
    /// 2 bytes a value, widened on the fly; rounds values that f16 cannot represent
    F16,
}

/// All choices that determine the layout and the computation of a [`super::PackedMatrix`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Plan {
    /// instructions
    pub level: SimdLevel,
    /// evaluation of products with one x
    pub form: Form,
    /// storage of codewords
    pub codebooks: CodebookPrecision,
    /// largest batch computed as one product per row of x; larger batches decode the weights once
    pub largest_matvec_batch: usize,
}

impl Plan {
    /// The choice by measurements for a scheme and a weight of [out_features, in_features] at the current
    /// SIMD level. The measurements, also those of the largest batch of fused products, are in docs/cpu.md.
    pub fn choose(scheme: Scheme, out_features: usize, in_features: usize) -> Self {
        Self::choose_at(SimdLevel::current(), scheme, out_features, in_features)
    }

    /// [`Plan::choose`] at a given level.
    pub fn choose_at(level: SimdLevel, scheme: Scheme, out_features: usize, _in_features: usize) -> Self {
        let out_groups = out_features / scheme.out_group_size;
        // A table costs 2^B products of G numbers and saves one such product in each row, so only enough rows
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
            largest_matvec_batch: match (form, level) {
                (Form::Table(_), SimdLevel::Avx512) if rayon::current_num_threads() <= FEW_THREADS => 8,
                (Form::Table(_), _) => 4,
                (Form::Direct, SimdLevel::Portable) => 1,
                (Form::Direct, _) => 2,
            },
        }
    }
}

/// Threads up to which eight products by tables of fixed point take less time than decoding once: their
/// tables cost each row two passes of all threads, which more threads share worse than the decoding
/// (docs/cpu.md).
const FEW_THREADS: usize = 4;

/// Where look-up tables beat the direct form: level, the output groups per codeword from which building
/// tables pays, and the entries to use. All other levels use the direct form: a look-up there is one load per
/// code, and the direct form needs no more loads. Measured on loaded cores (docs/cpu.md). A [`Plan`] made by
/// hand overrides this.
const TABLES_PAY: [(SimdLevel, usize, TablePrecision); 2] = [
    (SimdLevel::Avx512, 5, TablePrecision::I24),
    (SimdLevel::Portable, 2, TablePrecision::F32),
];
