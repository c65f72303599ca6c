//! Several matrices that read the same x in one launch: queries, keys and values, or gate and up.
//!
//! Each launch costs a start and a tail, and kernels that prepare something for x (tables, a slice of the
//! codebook) do so once a launch. Rows of the matrices follow one another. Each matrix starts with a slab of
//! its own, so that a block needs only one codebook.

use aqlm_vocabulary::{AqlmError, QuantizedMatrix, Result};
use ndarray::{Array1, Array3, Axis, ShapeError, concatenate, s};

use super::operand::codebook_bytes;
use super::{Packed, Target, known, pack};

/// Matrices laid out as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// y has the rows of all matrices, and padding between them
    pub packed: Packed,
    /// where each matrix starts in y
    pub offsets: Vec<usize>,
}

/// Lays out two or three matrices of one scheme, with the same number of columns, for one launch of the
/// matvec kernel `id`.
///
/// # Errors
/// `Argument` for an unknown kernel or for matrices that differ; `Unsupported` when the kernel does not join,
/// or when [`pack`] refuses.
pub fn pack_joined(id: &str, matrices: &[&QuantizedMatrix], target: &Target) -> Result<Joined> {
    let refuse = |reason: &str| Err(AqlmError::Unsupported(format!("joining for {id}: {reason}")));
    let kernel = known(id)?;
    let Some(codebook) = kernel.joins.as_deref() else {
        return refuse("the kernel does not join");
    };
    let argument = |expected: &str, found| Err(AqlmError::argument("matrices to join", expected, found));
    let ([first, others @ ..], 2..=3) = (matrices, matrices.len()) else {
        return argument("two or three", matrices.len().to_string());
    };
    if others
        .iter()
        .any(|other| other.scheme() != first.scheme() || other.in_features() != first.in_features())
    {
        return argument("one scheme and one number of columns", "several".into());
    }
    // Packing a matrix of one row reveals the step of a slab's rows and the size of a cluster.
    let one_row = QuantizedMatrix::new(
        first.scheme(),
        first.codes().slice(s![..1, .., ..]).to_owned(),
        first.codebooks().clone(),
        Array1::ones(1),
    )?;
    let probe = pack(id, &one_row, target, 1)?;
    let (Some(&step), cluster) = (probe.sizes.first(), probe.cluster) else {
        return refuse("the kernel has no slabs");
    };
    let step = step as usize;
    let at_once = target.clusters_of(cluster) as usize;
    let rows: Vec<usize> = matrices.iter().map(|matrix| matrix.groups().0).collect();
    let per_slab = rows_of_slab(&rows, step, at_once);
    let slabs: Vec<usize> = rows.iter().map(|rows| rows.div_ceil(per_slab)).collect();
    let all_slabs: usize = slabs.iter().sum();

    // The packer deals rows to as many clusters as the target has. Make that one a slab.
    let mut exact = target.clone();
    exact.clusters[cluster.trailing_zeros() as usize] = all_slabs as u32;
    let parts: Vec<QuantizedMatrix> = matrices
        .iter()
        .zip(&slabs)
        .map(|(matrix, slabs)| with_rows(matrix, slabs * per_slab))
        .collect::<Result<_>>()?;
    let codes: Vec<_> = parts.iter().map(|part| part.codes().view()).collect();
    let scales: Vec<_> = parts.iter().map(|part| part.scales().view()).collect();
    // Columns and schemes were compared above.
    let unequal = |error: ShapeError| AqlmError::Internal(format!("joining for {id}: {error}"));
    let whole = QuantizedMatrix::new(
        first.scheme(),
        concatenate(Axis(0), &codes).map_err(unequal)?,
        first.codebooks().clone(),
        concatenate(Axis(0), &scales).map_err(unequal)?,
    )?;
    let mut packed = pack(id, &whole, &exact, 1)?;
    if packed.sizes[0] as usize != per_slab
        || packed.grid[1] as usize != all_slabs
        || packed.cluster != cluster
    {
        return refuse("the packer dealt out rows in another way");
    }

    let joined = packed.operand_mut(codebook)?;
    let bytes = joined.len();
    *joined = matrices
        .iter()
        .flat_map(|matrix| {
            let mut codebook = codebook_bytes(matrix);
            codebook.resize(bytes, 0);
            codebook
        })
        .collect();
    packed.defines.push(("AQLM_PARTS", matrices.len()));
    if !target.has(id, &packed.defines) {
        return refuse("no such kernel was compiled into the program");
    }
    let starts: Vec<usize> = slabs
        .iter()
        .scan(0, |next, slabs| {
            let start = *next;
            *next += slabs;
            Some(start)
        })
        .collect();
    packed.sizes.push(starts[1] as i32);
    packed
        .sizes
        .push(starts.get(2).map_or(i32::MAX, |&slab| slab as i32));
    Ok(Joined {
        packed,
        offsets: starts.iter().map(|slab| slab * per_slab).collect(),
    })
}

/// The fewest rows, a multiple of `step`, with which the slabs of all matrices run at once. If that is
/// impossible, each matrix gets one slab.
fn rows_of_slab(rows: &[usize], step: usize, at_once: usize) -> usize {
    let longest = rows.iter().copied().fold(1, usize::max).next_multiple_of(step);
    let even = rows
        .iter()
        .sum::<usize>()
        .div_ceil(at_once)
        .next_multiple_of(step);
    (even..longest)
        .step_by(step)
        .find(|size| rows.iter().map(|rows| rows.div_ceil(*size)).sum::<usize>() <= at_once)
        .unwrap_or(longest)
}

/// The matrix, padded with rows of scale 0. The codes of the padding run over the whole codebook, so that no
/// slice of the codebook gets more than its share.
fn with_rows(matrix: &QuantizedMatrix, rows: usize) -> Result<QuantizedMatrix> {
    let (own, in_groups) = matrix.groups();
    let (m, size) = (matrix.scheme().num_codebooks, matrix.scheme().codebook_size());
    let codes = Array3::from_shape_fn((rows, in_groups, m), |(row, group, codebook)| {
        if row < own {
            matrix.codes()[[row, group, codebook]]
        } else {
            // An odd multiplier near 2^16 over the golden ratio visits all codes evenly.
            ((row + group).wrapping_mul(40503) % size) as u16
        }
    });
    let scales = Array1::from_shape_fn(rows, |row| if row < own { matrix.scales()[row] } else { 0.0 });
    QuantizedMatrix::new(matrix.scheme(), codes, matrix.codebooks().clone(), scales)
}

#[cfg(test)]
mod tests {
    use super::rows_of_slab;

    #[test]
    fn slabs_are_as_small_as_all_running_at_once_allows() {
        // Llama-2-7B on 15 clusters of 8: five slabs for each of q, k, v; seven for gate and for up.
        assert_eq!(rows_of_slab(&[4096; 3], 32, 15), 832);
        assert_eq!(rows_of_slab(&[11008; 2], 32, 15), 1600);
        // Llama-2-70B's q, k, v.
        let size = rows_of_slab(&[8192, 1024, 1024], 32, 15);
        assert!(8192_usize.div_ceil(size) + 2 * 1024_usize.div_ceil(size) <= 15);
        assert_eq!(rows_of_slab(&[100, 60], 32, 1), 128);
    }
}
