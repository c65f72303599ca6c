use aqlm_vocabulary::{AqlmError, QuantizedMatrix};
use ndarray::Array2;

use crate::cpu::quantizer::Preconditioner as OnHost;
use crate::cuda::quantizer::codes::{Places, Summed};
use crate::cuda::quantizer::machine::{Machine, THREADS};
use crate::cuda::{Buffer, Result};

/// An approximate inverse of the codebooks' normal matrix.
pub(in crate::cuda::quantizer) enum Preconditioner {
    /// factors of each codeword's own diagonal block, [codewords, gi, gi]; zeros for codewords without weight
    OwnBlocks { factors: Buffer<f64>, gi: usize },
    /// the whole matrix of a small problem, which the host factors and solves
    Whole(OnHost),
}

impl Preconditioner {
    /// From each codeword's own block: the sum of s_o^2 H_jj over its places. `blocks` are the H_jj,
    /// [in_groups, gi, gi].
    ///
    /// # Errors
    /// `NotPositiveDefinite` when H is indefinite.
    pub(in crate::cuda::quantizer) fn of_places(
        machine: &Machine,
        blocks: &Buffer<f64>,
        scales: &Buffer<f64>,
        places: &Places,
        inputs: usize,
        gi: usize,
    ) -> Result<Self> {
        let sums = machine.scatter(
            blocks,
            Some(scales),
            places,
            &Summed {
                width: gi,
                inputs,
                group: [gi, gi],
                power: 2,
                of_input: true,
            },
        )?;
        let count = sums.len() / (gi * gi);
        let factors = machine.fresh::<f64>(sums.len(), "factors of codewords' metrics")?;
        let failed = machine.zeros::<i32>(1, "a metric without a factor")?;
        machine.run(
            "layer_factor/k1_thread_a_block",
            &[],
            [count.div_ceil(64), 1, 64, 0],
            &[
                machine.address(&sums),
                machine.address(&factors),
                machine.address(&failed),
            ],
            &[count, gi],
        )?;
        if machine.download(&failed)?[0] != 0 {
            return Err(AqlmError::NotPositiveDefinite {
                what: "metric of a codeword".into(),
                pivot: 0,
            }
            .into());
        }
        Ok(Self::OwnBlocks { factors, gi })
    }

    /// From the whole normal matrix.
    ///
    /// # Errors
    /// `NotPositiveDefinite` when H is indefinite.
    pub(super) fn whole(hessian: &Array2<f64>, matrix: &QuantizedMatrix) -> Result<Self> {
        Ok(Self::Whole(OnHost::whole(hessian, matrix)?))
    }

    /// The approximate solution for a right-hand side in the codebooks' order.
    pub(in crate::cuda::quantizer) fn apply(
        &self,
        machine: &Machine,
        right: &Buffer<f64>,
    ) -> Result<Buffer<f64>> {
        match self {
            Self::OwnBlocks { factors, gi } => {
                let count = factors.len() / (gi * gi);
                let rows = right.len() / (count * gi);
                let solutions = machine.fresh::<f64>(right.len(), "solutions for codewords")?;
                machine.run(
                    "layer_solve/k1_thread_a_row",
                    &[],
                    [(count * rows).div_ceil(THREADS), 1, THREADS, 0],
                    &[
                        machine.address(factors),
                        machine.address(right),
                        machine.address(&solutions),
                    ],
                    &[count, rows, *gi],
                )?;
                Ok(solutions)
            }
            Self::Whole(on_host) => {
                let solutions = on_host.apply(&machine.download(right)?);
                machine.upload(&solutions, "solutions for codewords")
            }
        }
    }
}
