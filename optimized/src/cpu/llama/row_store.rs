use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use ndarray::Array2;
use rayon::prelude::*;

use crate::cpu::SimdLevel;
use crate::cpu::row_major::elements;
use crate::cpu::simd::vector::{Vector, multiply_add_by};
use crate::cpu::simd::{Kernel, Width, run};
use crate::cpu::vectorize::{LANES, close, dot};

/// Rows of one task of a product with one vector.
const ROWS: usize = 256;

/// Rows that share a load of the vector.
const TOGETHER: usize = 4;

/// A matrix for products with one vector at a time. Such a product is bound by reading the matrix, so the
/// matrix is kept in f16 if that is lossless, as for any checkpoint in f16.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RowStore {
    values: Values,
    /// (rows, columns)
    dim: (usize, usize),
}

#[derive(Debug, Clone, PartialEq)]
enum Values {
    F32(Vec<f32>),
    /// bits of f16
    F16(Vec<u16>),
}

impl RowStore {
    /// From [rows, columns].
    pub(super) fn new(matrix: &Array2<f32>) -> Self {
        let matrix = matrix.as_standard_layout();
        let wide = elements(&matrix);
        let exact = wide.par_iter().all(|&x| {
            let half = f16::from_f32(x);
            half.is_finite() && half.to_f32().to_bits() == x.to_bits()
        });
        let values = if exact {
            Values::F16(wide.par_iter().map(|&x| f16::from_f32(x).to_bits()).collect())
        } else {
            Values::F32(wide.to_vec())
        };
        Self {
            values,
            dim: matrix.dim(),
        }
    }

    /// (rows, columns).
    pub(super) fn dim(&self) -> (usize, usize) {
        self.dim
    }

    /// The whole matrix in f32.
    pub(super) fn widened(&self) -> std::borrow::Cow<'_, [f32]> {
        match &self.values {
            Values::F32(values) => values.into(),
            Values::F16(bits) => {
                let mut wide = vec![0.0; bits.len()];
                let len = ROWS * self.dim.1.max(1);
                wide.par_chunks_mut(len)
                    .zip(bits.par_chunks(len))
                    .for_each(|(wide, bits)| bits.reinterpret_cast::<f16>().convert_to_f32_slice(wide));
                wide.into()
            }
        }
    }

    /// The product with a vector, `[columns]` to `[rows]`. The bytes are the same for either storage.
    ///
    /// # Panics
    /// When the length of the vector differs.
    pub(super) fn times(&self, x: &[f32]) -> Vec<f32> {
        let (rows, columns) = self.dim;
        assert_eq!(x.len(), columns, "length of a vector");
        let mut y = vec![0.0; rows];
        let len = ROWS * columns.max(1);
        match &self.values {
            Values::F32(values) => {
                y.par_chunks_mut(ROWS)
                    .zip(values.par_chunks(len))
                    .for_each(|(y, rows)| {
                        for (y, row) in y.iter_mut().zip(rows.chunks_exact(columns)) {
                            *y = dot(row, x);
                        }
                    });
            }
            Values::F16(bits) => {
                y.par_chunks_mut(ROWS)
                    .zip(bits.par_chunks(len))
                    .for_each(|(y, rows)| {
                        // SAFETY: the current level is available, and there are `columns` values for each
                        // element of y.
                        unsafe { run(SimdLevel::current(), Width::Sixteen, Products { rows, x, y }) }
                    });
            }
        }
        y
    }
}

/// Products of f16 rows with x, in the order of [`dot`].
struct Products<'a> {
    /// [y.len(), x.len()], bits of f16
    rows: &'a [u16],
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Products<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        assert_eq!(self.rows.len(), self.y.len() * self.x.len(), "rows of a product");
        let columns = self.x.len();
        let whole = self.y.len() / TOGETHER * TOGETHER;
        for row in (0..whole).step_by(TOGETHER) {
            // SAFETY: the caller guarantees the instructions; these rows exist.
            let sums = unsafe { products::<V, TOGETHER>(&self.rows[row * columns..], self.x) };
            self.y[row..row + TOGETHER].copy_from_slice(&sums);
        }
        for row in whole..self.y.len() {
            // SAFETY: as above.
            [self.y[row]] = unsafe { products::<V, 1>(&self.rows[row * columns..], self.x) };
        }
    }
}

/// The first N rows times x. Partial sums and their order are those of [`dot`].
///
/// # Safety
/// `rows` holds N rows of the length of x; the caller has V's instructions.
#[inline(always)]
unsafe fn products<V: Vector, const N: usize>(rows: &[u16], x: &[f32]) -> [f32; N] {
    let columns = x.len();
    let whole = columns / LANES * LANES;
    let mut results = [0.0; N];
    // SAFETY: whole is at most the length of x and of each row; LANES is one or two vectors.
    unsafe {
        let mut sums = [[V::splat(0.0); 2]; N];
        for i in (0..whole).step_by(LANES) {
            for part in 0..LANES / V::LANES {
                let at = i + part * V::LANES;
                let x = V::load(x.as_ptr().add(at));
                for r in 0..N {
                    let row = V::load_f16(rows.as_ptr().add(r * columns + at));
                    sums[r][part] = row.mul_add(x, sums[r][part]);
                }
            }
        }
        for r in 0..N {
            let mut lanes = [0.0; LANES];
            for part in 0..LANES / V::LANES {
                sums[r][part].store(lanes.as_mut_ptr().add(part * V::LANES));
            }
            for i in whole..columns {
                let value = f16::from_bits(rows[r * columns + i]).to_f32();
                lanes[i - whole] = multiply_add_by::<V>(value, x[i], lanes[i - whole]);
            }
            results[r] = close(lanes);
        }
    }
    results
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Multiples of 1/64 below 16: exact in f16.
    fn matrix(rows: usize, columns: usize) -> Array2<f32> {
        Array2::from_shape_fn((rows, columns), |(r, c)| {
            ((r * 131 + c * 37) % 1999) as f32 / 64.0 - 15.0
        })
    }

    #[test]
    fn what_it_is_stored_in_changes_no_byte() {
        for (rows, columns) in [(1, 1), (5, 16), (300, 40), (259, 33), (7, 576)] {
            let narrow = matrix(rows, columns);
            let stored = RowStore::new(&narrow);
            assert!(matches!(stored.values, Values::F16(_)));
            assert_eq!(stored.widened(), narrow.as_slice().unwrap());
            let x: Vec<f32> = (0..columns).map(|i| (i as f32 * 0.7).sin()).collect();
            let wide = RowStore {
                values: Values::F32(narrow.iter().copied().collect()),
                dim: narrow.dim(),
            };
            let bits = |y: Vec<f32>| -> Vec<u32> { y.into_iter().map(f32::to_bits).collect() };
            assert_eq!(bits(stored.times(&x)), bits(wide.times(&x)), "{rows} x {columns}");
        }
    }

    #[test]
    fn what_f16_would_change_stays_in_f32() {
        for bad in [0.1, 1e-9, 70_000.0, f32::NAN, f32::INFINITY, 2049.0] {
            let mut matrix = matrix(3, 20);
            matrix[[2, 3]] = bad;
            let stored = RowStore::new(&matrix);
            assert!(matches!(stored.values, Values::F32(_)), "{bad}");
        }
        let mut negative_zero = matrix(2, 16);
        negative_zero[[0, 0]] = -0.0;
        let stored = RowStore::new(&negative_zero);
        assert_eq!(stored.widened()[0].to_bits(), (-0.0f32).to_bits());
    }
}
