use aqlm_kernels::defines::tiles::TILE_ROWS;
use aqlm_vocabulary::Result;

use super::super::Packed;
use super::super::job::Job;
use super::super::tiles::Form;

/// decode k2: the same buffers as matmul k2.
pub(in super::super) fn pack(job: &Job<'_>) -> Result<Packed> {
    let &Job { matrix, target, .. } = job;
    let form = Form::of(matrix, target);
    let tasks = form.tiles * form.units;
    // Two blocks of 16 warps a multiprocessor where shared memory allows.
    let shared_bytes = form.replicas * form.codebook_bytes;
    let blocks = if 2 * (shared_bytes + 1024) <= target.shared_bytes {
        4
    } else {
        1
    };
    let grid = tasks.div_ceil(16).min(target.multiprocessors as usize * blocks);
    Ok(Packed {
        defines: form.defines(matrix.scheme()),
        operands: form.operands(matrix),
        sizes: vec![form.units as i32, 0, form.tiles as i32],
        grid: [grid as u32, 1],
        block: 512,
        shared_bytes,
        ..job.unplanned()
    })
}

impl Packed {
    /// This launch of decode k2, restricted to `rows` rows from `first_row` (a multiple of 8) on.
    pub(crate) fn for_rows(&self, first_row: usize, rows: usize) -> Self {
        let tiles = rows.div_ceil(TILE_ROWS);
        let mut packed = self.without_operands();
        packed.sizes[1] = (first_row / TILE_ROWS) as i32;
        packed.sizes[2] = tiles as i32;
        let tasks = tiles * packed.sizes[0] as usize;
        packed.grid[0] = packed.grid[0].min(tasks.div_ceil(16) as u32);
        packed.rows = rows;
        packed
    }
}
