use aqlm_vocabulary::{AqlmError, GroupOrder};
use ndarray::Array2;

use super::machine::{Block, Machine, Product, THREADS, further};
use crate::cpu::quantizer::groups_in_order;
use crate::cuda::{Buffer, Result};

/// Columns that one step of the factorisation finishes, a side of the kernels' diagonal block.
const SIDE: usize = aqlm_kernels::defines::layer_pivot::k1_one_block::SIDE;

/// H with its input groups permuted, factored in f64.
pub(super) struct Factor {
    /// the input groups; the last one is decided first
    pub(super) order: Vec<usize>,
    /// the columns of the weight in this order
    pub(super) columns: Buffer<u32>,
    /// L, [in_features, in_features]; what lies above the diagonal means nothing
    pub(super) lower: Buffer<f32>,
}

impl Factor {
    /// The order of groups is found on the host; `Variance` takes most of the time there.
    ///
    /// # Errors
    /// `NotPositiveDefinite` when H [in_features, in_features] is indefinite.
    pub(super) fn new(
        machine: &Machine,
        hessian: &Array2<f64>,
        on_device: &Buffer<f64>,
        gi: usize,
        order: GroupOrder,
    ) -> Result<Self> {
        let n = hessian.nrows();
        let order = groups_in_order(hessian, gi, order)?;
        let columns: Vec<u32> = order
            .iter()
            .flat_map(|&j| j * gi..(j + 1) * gi)
            .map(|column| column as u32)
            .collect();
        let columns = machine.upload(&columns, "the order of columns")?;
        let largest = hessian.diag().iter().fold(0.0_f64, |top, x| top.max(x.abs()));
        let lower = if largest == 0.0 {
            machine.zeros(n * n, "L")?
        } else {
            factored(machine, on_device, &columns, largest)?
        };
        Ok(Self {
            order,
            columns,
            lower,
        })
    }
}

/// The factor of H plus the first of a growing series of jitters with which it factors: zero, then the
/// rounding error of the factorisation, then a hundred times as much each time.
fn factored(
    machine: &Machine,
    hessian: &Buffer<f64>,
    columns: &Buffer<u32>,
    largest: f64,
) -> Result<Buffer<f32>> {
    let n = columns.len();
    let mut jitter = 0.0;
    loop {
        let mut matrix = machine.permuted(hessian, Some(columns), columns)?;
        machine.add_to_diagonal(&mut matrix, n, jitter)?;
        let pivot = machine.factor_in_place(&mut matrix, n)?;
        match pivot {
            None => return machine.narrow(&matrix),
            Some(pivot) if jitter > 1e-3 * largest || !largest.is_finite() => {
                return Err(AqlmError::NotPositiveDefinite {
                    what: "hessian".into(),
                    pivot,
                }
                .into());
            }
            Some(_) => jitter = (100.0 * jitter).max(n as f64 * f64::EPSILON * largest),
        }
    }
}

impl Machine {
    pub(super) fn add_to_diagonal(&self, matrix: &mut Buffer<f64>, n: usize, value: f64) -> Result<()> {
        if value == 0.0 {
            return Ok(());
        }
        let [low, high] = super::machine::halves(value);
        self.run(
            "layer_diagonal/k1_thread_a_pivot",
            &[],
            [n.div_ceil(THREADS), 1, THREADS, 0],
            &[self.address(matrix)],
            &[n, low, high],
        )
    }

    /// A blocked Cholesky factorisation of the lower triangle; returns the first pivot that is not positive.
    fn factor_in_place(&self, matrix: &mut Buffer<f64>, n: usize) -> Result<Option<usize>> {
        let failed = self.zeros::<i32>(1, "the failed pivot")?;
        let whole = self.address(matrix);
        for first in (0..n).step_by(SIDE) {
            let order = SIDE.min(n - first);
            let rest = n - first - order;
            self.run(
                "layer_pivot/k1_one_block",
                &[],
                [1, 1, SIDE * SIDE, SIDE * (SIDE + 1) * 8],
                &[whole, self.address(&failed)],
                &[n, first, order],
            )?;
            self.run(
                "layer_below/k1_thread_a_row",
                &[],
                [rest.div_ceil(64), 1, 64, SIDE * SIDE * 8],
                &[whole],
                &[n, first, order],
            )?;
            let below = Block {
                at: further::<f64>(whole, (first + order) * n + first),
                stride: n,
            };
            let trailing = Block {
                at: further::<f64>(whole, (first + order) * (n + 1)),
                stride: n,
            };
            self.product::<f64>(
                &Product {
                    alpha: -1.0,
                    beta: 1.0,
                    transposed: true,
                    ..Product::new(rest, rest, order)
                },
                [below, below, trailing],
            )?;
        }
        let failed = self.download(&failed)?[0];
        Ok(usize::try_from(failed - 1).ok())
    }
}
