//! matvec: y = W x with the decode fused in.

mod direct;
mod fixed;
mod fixed_tables;
#[cfg(target_arch = "x86_64")]
mod permute;
mod table;

use std::cell::Cell;

use aqlm_vocabulary::{AqlmError, Result};
use rayon::prelude::*;

use self::direct::Direct;
use self::fixed_tables::FixedTables;
use self::table::BuildTables;
use super::aligned::Aligned;
use super::layout::{Codebooks, Codes, PackedMatrix, TILE, TiledCodes};
use super::plan::Form;
use super::words::{Code, CodewordView, Value};

/// Tasks per thread. There are enough that an interrupted thread does not delay the others for long, and few
/// enough that every task's pass over x or the tables stays cheap.
const TASKS_PER_THREAD: usize = 4;

/// Minimum output groups of a task of the direct form.
const SHORTEST_TASK: usize = 64;

impl PackedMatrix {
    /// `y = W x` for x `[in_features]`, y `[out_features]`, on the current rayon pool. The same bytes for any
    /// number of threads.
    ///
    /// # Errors
    /// `Shape` when x or y has another length.
    pub fn matvec(&self, x: &[f32], y: &mut [f32]) -> Result<()> {
        expect_len("x", self.in_features(), x.len())?;
        expect_len("y", self.out_features(), y.len())?;
        if y.is_empty() || x.is_empty() {
            y.fill(0.0);
            return Ok(());
        }
        match &self.codes {
            Codes::Rows8(codes) => self.direct(codes.as_slice(), x, y),
            Codes::Rows16(codes) => self.direct(codes.as_slice(), x, y),
            Codes::Tiles(tiles) => self.tables(tiles, x, y),
        }
        Ok(())
    }

    /// How far fixed-point tables may move an element of `W x`, before its scale. |y_o - exact| is at most
    /// this times |scale_o|, plus the rounding of f32 sums. Zero for forms without fixed-point tables.
    ///
    /// # Errors
    /// `Shape` when x has another length.
    pub fn table_error_bound(&self, x: &[f32]) -> Result<f32> {
        expect_len("x", self.in_features(), x.len())?;
        let (Codes::Tiles(tiles), Form::Table(precision)) = (&self.codes, self.plan.form) else {
            return Ok(0.0);
        };
        let Some(planes) = precision.planes() else {
            return Ok(0.0);
        };
        // The error of a look-up is at most half a step.
        let bound = |a| {
            let mut tables = Tables::default();
            self.tables_of_x(tiles, planes, a, x, &mut tables);
            tables
                .steps
                .iter()
                .enumerate()
                .map(|(block, step)| self.lookups(tiles, block) as f32 * step / 2.0)
                .sum::<f32>()
        };
        Ok((0..self.scheme.out_group_size).map(bound).fold(0.0, f32::max))
    }

    fn direct<C: Code>(&self, codes: &[C], x: &[f32], y: &mut [f32]) {
        match &self.codebooks {
            Codebooks::F32(values) => self.direct_with(codes, values.as_slice(), x, y),
            Codebooks::F16(bits) => self.direct_with(codes, bits.as_slice(), x, y),
        }
    }

    fn direct_with<C: Code, W: Value>(&self, codes: &[C], values: &[W], x: &[f32], y: &mut [f32]) {
        let group = self.scheme.in_group_size;
        let mut padded = Aligned::zeroed(self.in_groups * self.padded_group);
        for (padded, x) in padded
            .as_mut_slice()
            .chunks_exact_mut(self.padded_group)
            .zip(x.chunks_exact(group))
        {
            padded[..group].copy_from_slice(x);
        }
        let x = padded.as_slice();
        let out_group = self.scheme.out_group_size;
        let codewords = self.codewords(values);
        let task = task_len(self.out_groups, SHORTEST_TASK);
        let row_codes = self.in_groups * self.scheme.num_codebooks;
        y.par_chunks_mut(task * out_group)
            .zip(self.scales.par_chunks(task))
            .zip(codes.par_chunks(task * row_codes))
            .for_each(|((y, scales), codes)| {
                let rows = Direct {
                    codes,
                    codewords,
                    in_groups: self.in_groups,
                    padded_group: self.padded_group,
                    out_group,
                    scales,
                    x,
                    y,
                };
                direct::matvec(self.plan.level, rows);
            });
    }

    pub(crate) fn codewords<'a, W>(&self, values: &'a [W]) -> CodewordView<'a, W> {
        let codeword_len = self.scheme.out_group_size * self.padded_group;
        CodewordView {
            values,
            codebooks: self.scheme.num_codebooks,
            codebook_len: codeword_len * self.scheme.codebook_size(),
            codeword_len,
        }
    }

    fn tables(&self, tiles: &TiledCodes, x: &[f32], y: &mut [f32]) {
        let out_group = self.scheme.out_group_size;
        let planes = match self.plan.form {
            // f32 tables have no planes
            Form::Table(precision) => precision.planes().unwrap_or(0),
            Form::Direct => unreachable!("codes are in tiles for tables only"),
        };
        let task = task_len(tiles.tiles, 1);
        let mut tables = take_scratch();
        for a in 0..out_group {
            self.tables_of_x(tiles, planes, a, x, &mut tables);
            y.par_chunks_mut(task * TILE * out_group)
                .zip(self.scales.par_chunks(task * TILE))
                .enumerate()
                .for_each(|(index, (y, scales))| {
                    let sums = self.look_up(tiles, planes, &tables, index * task, scales.len());
                    for ((y, scale), sum) in y.chunks_exact_mut(out_group).zip(scales).zip(&sums) {
                        y[a] = scale * sum;
                    }
                });
        }
        put_back_scratch(tables);
    }

    fn blocks(&self, tiles: &TiledCodes) -> usize {
        self.in_groups.div_ceil(tiles.groups_per_block)
    }

    /// Look-ups per row in a block.
    fn lookups(&self, tiles: &TiledCodes, block: usize) -> usize {
        let first = block * tiles.groups_per_block;
        tiles.groups_per_block.min(self.in_groups - first) * self.scheme.num_codebooks
    }

    /// The tables of all input groups for row `a` of the output groups; in f32 if `planes` is 0.
    fn tables_of_x(&self, tiles: &TiledCodes, planes: usize, a: usize, x: &[f32], tables: &mut Tables) {
        let (group, codebooks) = (self.scheme.in_group_size, self.scheme.num_codebooks);
        let entries = self.in_groups * codebooks * tiles.table_len;
        let entries_per_block = tiles.groups_per_block * codebooks * tiles.table_len;
        let build = |x: &[f32], tables: &mut [f32]| {
            let build = BuildTables {
                tiles,
                in_group: group,
                out_group: self.scheme.out_group_size,
                codebooks,
                a,
                x,
                tables,
            };
            table::build(self.plan.level, build);
        };
        let x = x.par_chunks(tiles.groups_per_block * group);
        if planes == 0 {
            tables
                .floats
                .resized(entries)
                .par_chunks_mut(entries_per_block)
                .zip(x)
                .for_each(|(tables, x)| build(x, tables));
            return;
        }
        tables.steps.resize(self.blocks(tiles), 0.0);
        tables
            .planes
            .resized(entries * planes)
            .par_chunks_mut(entries_per_block * planes)
            .zip(&mut tables.steps)
            .zip(x)
            .for_each_init(
                || Aligned::zeroed(entries_per_block),
                |scratch, ((bytes, step), x)| {
                    let scratch = &mut scratch.as_mut_slice()[..bytes.len() / planes];
                    build(x, scratch);
                    *step = fixed::round(self.plan.level, scratch, tiles.table_len, planes, bytes);
                },
            );
    }

    /// Unscaled sums of `rows` output groups from tile `first_tile` on, blocks in order.
    fn look_up(
        &self,
        tiles: &TiledCodes,
        planes: usize,
        tables: &Tables,
        first_tile: usize,
        rows: usize,
    ) -> Vec<f32> {
        let count = rows.div_ceil(TILE);
        let mut sums = vec![0.0; count * TILE];
        let codebooks = self.scheme.num_codebooks;
        let mut entry = 0;
        for block in 0..self.blocks(tiles) {
            let lookups = self.lookups(tiles, block);
            let start = tiles.offset(
                self.in_groups,
                codebooks,
                block * tiles.groups_per_block,
                0,
                first_tile,
            );
            let codes = &tiles.bytes.as_slice()[start..start + count * lookups * TILE];
            let end = entry + lookups * tiles.table_len;
            if planes == 0 {
                let tables = &tables.floats.as_slice()[entry..end];
                table::look_up(self.plan.level, tiles.table_len, tables, codes, &mut sums);
            } else {
                let tables = FixedTables {
                    planes: &tables.planes.as_slice()[entry * planes..end * planes],
                    step: tables.steps[block],
                };
                fixed::look_up(
                    self.plan.level,
                    tiles.table_len,
                    planes,
                    &tables,
                    codes,
                    &mut sums,
                );
            }
            entry = end;
        }
        sums
    }
}

/// Look-up tables of one x; only one of the two kinds is filled.
#[derive(Default)]
struct Tables {
    /// [in_groups, M, table length]
    floats: Aligned<f32>,
    /// [in_groups, M, planes, table length]
    planes: Aligned<u8>,
    /// per block
    steps: Vec<f32>,
}

thread_local! {
    /// The last tables of this thread, kept because allocating them costs more than filling them.
    static SCRATCH: Cell<Tables> = Cell::default();
}

fn take_scratch() -> Tables {
    SCRATCH.take()
}

fn put_back_scratch(tables: Tables) {
    SCRATCH.set(tables);
}

/// Output groups (or tiles) per task. It affects only speed, because one task computes each output element.
fn task_len(rows: usize, shortest: usize) -> usize {
    rows.div_ceil(TASKS_PER_THREAD * rayon::current_num_threads())
        .max(shortest)
}

pub(crate) fn expect_len(what: &str, expected: usize, found: usize) -> Result<()> {
    if expected == found {
        Ok(())
    } else {
        Err(AqlmError::Shape {
            what: what.into(),
            expected: vec![expected],
            found: vec![found],
        })
    }
}
