use aqlm_vocabulary::QuantizedMatrix;

use super::{Packed, Target};
use crate::cuda::Activations;

/// What a packer lays out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Job<'a> {
    /// the kernel's id
    pub(super) kernel: &'static str,
    pub(super) matrix: &'a QuantizedMatrix,
    pub(super) target: &'a Target,
    /// rows of x; 1 for matvec and decode
    pub(super) batch: usize,
}

impl Job<'_> {
    /// A launch not yet planned: one block, no operands.
    pub(super) fn unplanned(&self) -> Packed {
        Packed {
            kernel: self.kernel,
            defines: vec![],
            operands: vec![],
            sizes: vec![],
            grid: [1, 1],
            block: 32,
            cluster: 1,
            shared_bytes: 0,
            out_features: self.matrix.out_features(),
            in_features: self.matrix.in_features(),
            batch: self.batch,
            rows: self.matrix.out_features(),
            activations: Activations::F16,
        }
    }
}
