//! Look-up tables in f32: x times all codewords once per input group, then a look-up per code.
//!
//! A block of 16 tables (16 KiB at B = 8) stays in the L1 cache while the codes of many rows stream past.
//! Rows are lanes: sums stay in registers, and no sum runs across lanes.

use crate::cpu::layout::{TILE, TiledCodes};
use crate::cpu::simd::vector::Vector;
use crate::cpu::simd::{Kernel, SimdLevel, Width, run};

/// Vectors that cover a tile with the narrowest type.
const VECTORS: usize = TILE / 8;

/// Builds the tables of one block's input groups, [groups, M, table length]: entry k is x . (row `a` of
/// codeword k).
pub(super) struct BuildTables<'a> {
    pub(super) tiles: &'a TiledCodes,
    pub(super) in_group: usize,
    pub(super) out_group: usize,
    pub(super) codebooks: usize,
    /// row inside the output group
    pub(super) a: usize,
    /// [groups of the block, in_group]
    pub(super) x: &'a [f32],
    pub(super) tables: &'a mut [f32],
}

/// Fills the tables of one block.
pub(super) fn build(level: SimdLevel, build: BuildTables<'_>) {
    let groups = build.x.len() / build.in_group;
    assert_eq!(build.x.len() % build.in_group, 0);
    assert_eq!(
        build.tables.len(),
        groups * build.codebooks * build.tiles.table_len
    );
    assert!(build.a < build.out_group);
    assert_eq!(
        build.tiles.transposed.as_slice().len(),
        build.codebooks * build.out_group * build.in_group * build.tiles.table_len
    );
    // SAFETY: lengths were just checked, the level when the matrix was packed. Table lengths are multiples of
    // 64.
    unsafe { run(level, Width::Sixteen, build) }
}

impl Kernel for BuildTables<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let len = self.tiles.table_len;
        let codebook_len = self.in_group * len;
        let mut target = self.tables.as_mut_ptr();
        for x in self.x.chunks_exact(self.in_group) {
            for m in 0..self.codebooks {
                // SAFETY: `build` checked the lengths that bound source and target.
                unsafe {
                    let codebook = self.tiles.transposed.as_slice().as_ptr();
                    let source = codebook.add((m * self.out_group + self.a) * codebook_len);
                    for k in (0..len).step_by(V::LANES) {
                        let mut sum = V::load(source.add(k)).mul(V::splat(x[0]));
                        for (i, &x) in x.iter().enumerate().skip(1) {
                            sum = V::load(source.add(i * len + k)).mul_add(V::splat(x), sum);
                        }
                        sum.store(target.add(k));
                    }
                    target = target.add(len);
                }
            }
        }
    }
}

/// Looks up one block for some tiles.
struct LookUp<'a> {
    table_len: usize,
    /// [look-ups, table length]
    tables: &'a [f32],
    /// [tiles, look-ups, 64]
    codes: &'a [u8],
    /// [tiles, 64], added to
    sums: &'a mut [f32],
}

/// Adds one block's contribution to `sums` ([tiles, 64]); `codes` are the block's, [tiles, look-ups, 64].
pub(super) fn look_up(level: SimdLevel, table_len: usize, tables: &[f32], codes: &[u8], sums: &mut [f32]) {
    let lookups = tables.len() / table_len;
    assert_eq!(tables.len() % table_len, 0);
    assert_eq!(codes.len(), sums.len() * lookups);
    assert_eq!(sums.len() % TILE, 0);
    let kernel = LookUp {
        table_len,
        tables,
        codes,
        sums,
    };
    // SAFETY: lengths were just checked. The level and the range of codes (below 2^B) were checked when the
    // matrix was packed.
    unsafe { run(level, Width::Sixteen, kernel) }
}

impl Kernel for LookUp<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let vectors = TILE / V::LANES;
        let lookups = self.tables.len() / self.table_len;
        let mut codes = self.codes.as_ptr();
        for sums in self.sums.chunks_exact_mut(TILE) {
            // SAFETY: `look_up` checked the lengths that bound all of these.
            unsafe {
                let mut local = [V::splat(0.0); VECTORS];
                for l in 0..lookups {
                    let table = self.tables.as_ptr().add(l * self.table_len);
                    for v in 0..vectors {
                        let row = v * V::LANES;
                        let quads = codes.add(4 * (row % 16));
                        local[v] = local[v].add(V::look_up(table, quads, row / 16));
                    }
                    codes = codes.add(TILE);
                }
                for v in 0..vectors {
                    let target = sums.as_mut_ptr().add(v * V::LANES);
                    V::load(target).add(local[v]).store(target);
                }
            }
        }
    }
}
