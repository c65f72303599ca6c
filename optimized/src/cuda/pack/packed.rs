use aqlm_vocabulary::{AqlmError, Result};
use half::{bf16, f16};

use super::op::Op;
use super::operand::Operand;
use crate::cuda::Activations;

/// The constant that makes x and y bf16.
pub(super) const BF16: (&str, usize) = ("AQLM_BF16", 1);

/// One matrix, ready to upload, and the plan of its launch.
///
/// A kernel's arguments are the operands in order, then x (not for decode), y, out_features, in_features, the
/// rows of x (matmul only), then `sizes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// its id
    pub kernel: &'static str,
    /// compile-time constants
    pub defines: Vec<(&'static str, usize)>,
    /// the operands that the kernel's head describes, in the order of its entry's pointers
    pub operands: Vec<Operand>,
    /// the kernel's own integer arguments
    pub sizes: Vec<i32>,
    /// blocks
    pub grid: [u32; 2],
    /// threads of a block
    pub block: u32,
    /// blocks of a cluster, along the grid's first axis
    pub cluster: u32,
    /// dynamic shared memory of a block
    pub shared_bytes: usize,
    /// rows of the matrix
    pub out_features: usize,
    /// columns of the matrix
    pub in_features: usize,
    /// rows of x
    pub batch: usize,
    /// rows of the matrix to compute: all, except for a decode of some rows
    pub rows: usize,
    /// the format of x and y
    pub activations: Activations,
}

impl Packed {
    /// The bytes of an operand.
    ///
    /// # Errors
    /// `Unsupported` when there is no operand with that name.
    pub(super) fn operand_mut(&mut self, name: &str) -> Result<&mut Vec<u8>> {
        let kernel = self.kernel;
        self.operands
            .iter_mut()
            .find(|operand| operand.name == name)
            .map(|operand| &mut operand.bytes)
            .ok_or_else(|| AqlmError::Unsupported(format!("{kernel}: its packer lays out no operand {name}")))
    }

    /// What the kernel computes.
    pub fn op(&self) -> Op {
        Op::of(self.kernel)
    }

    /// Elements of x.
    pub fn x_len(&self) -> usize {
        match self.op() {
            Op::Decode => 0,
            Op::Matvec | Op::Matmul => self.batch * self.in_features,
        }
    }

    /// Elements of y.
    pub fn y_len(&self) -> usize {
        match self.op() {
            Op::Decode => self.rows * self.in_features,
            Op::Matvec | Op::Matmul => self.batch * self.out_features,
        }
    }

    /// The integer arguments after the pointers.
    pub fn integers(&self) -> Vec<i32> {
        let mut integers = vec![self.out_features as i32, self.in_features as i32];
        if self.op() == Op::Matmul {
            integers.push(self.batch as i32);
        }
        integers.extend(&self.sizes);
        integers
    }

    /// The same matrix and launch for x and y in another format than f16, the packers' default.
    ///
    /// Tensor cores multiply numbers of one format. Kernels that feed codewords to them unchanged get
    /// codebooks in the format of x, rounded to nearest. All other kernels keep f16 codebooks and are exact.
    ///
    /// # Errors
    /// `Unsupported` when the kernel supports only f16.
    pub fn with_activations(mut self, activations: Activations) -> Result<Self> {
        if self.activations == activations {
            return Ok(self);
        }
        let kernel =
            aqlm_kernels::kernel(self.kernel).map_err(|error| AqlmError::Internal(error.to_string()))?;
        if !kernel.bf16 {
            return Err(AqlmError::Unsupported(format!("{} knows f16 only", self.kernel)));
        }
        self.activations = activations;
        self.defines.push(BF16);
        if let Some(name) = &kernel.typed_codebooks {
            for pair in self.operand_mut(name)?.chunks_exact_mut(2) {
                let value = f16::from_le_bytes([pair[0], pair[1]]);
                pair.copy_from_slice(&bf16::from_f32(value.to_f32()).to_le_bytes());
            }
        }
        Ok(self)
    }

    /// Bytes of the matrix on the device.
    pub fn bytes(&self) -> usize {
        self.operands.iter().map(|operand| operand.bytes.len()).sum()
    }

    /// The plan of the launch, without its operands.
    pub(crate) fn without_operands(&self) -> Self {
        Self {
            kernel: self.kernel,
            defines: self.defines.clone(),
            operands: vec![],
            sizes: self.sizes.clone(),
            ..*self
        }
    }
}
