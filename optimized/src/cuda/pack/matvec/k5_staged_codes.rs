use aqlm_kernels::defines::matvec::k5_staged_codes::THREADS;
use aqlm_vocabulary::{AqlmError, Result};

use super::super::Packed;
use super::super::job::Job;
use super::k3_lookup_table::{Form, SYSTEM_BYTES, TABLE_BYTES};

/// Warps of a block.
const WARPS: usize = THREADS / 32;
/// Bytes of one copy of codes by all lanes of a block together.
const COPY_BYTES: usize = WARPS * 32 * 16;

/// k5: k3's layout. Copies of codes use the shared memory that is free before and after the table.
pub(in super::super) fn pack(job: &Job<'_>) -> Result<Packed> {
    let form = Form::of(job);
    let table_at = form.table_at();
    let wanted = (form.rows / 4).div_ceil(WARPS);
    let before = ((table_at - SYSTEM_BYTES - form.rows * 8) / COPY_BYTES).min(wanted);
    let room = (job.target.shared_bytes + SYSTEM_BYTES).saturating_sub(table_at + TABLE_BYTES);
    let depth = wanted.min(before + room / COPY_BYTES);
    if depth == 0 {
        return Err(AqlmError::Unsupported(format!(
            "k5 has no shared memory left for codes beside the sums of {} rows",
            form.rows
        )));
    }
    let shared_bytes = table_at - SYSTEM_BYTES + TABLE_BYTES + (depth - before) * COPY_BYTES;
    let mut packed = form.packed(job, shared_bytes);
    packed
        .defines
        .extend([("AQLM_DEPTH", depth), ("AQLM_BEFORE", before)]);
    Ok(packed)
}
