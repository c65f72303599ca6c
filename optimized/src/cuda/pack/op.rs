/// The operations that have kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// y = W x, one x
    Matvec,
    /// Y = X W^T, several rows of x
    Matmul,
    /// the dense weight
    Decode,
}

impl Op {
    /// What the folder of its kernels and their entries are called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Matvec => "matvec",
            Self::Matmul => "matmul",
            Self::Decode => "decode",
        }
    }

    /// Of a kernel's id, which starts with its operation.
    pub(super) fn of(kernel: &str) -> Self {
        match kernel.split('/').next() {
            Some("matmul") => Self::Matmul,
            Some("decode") => Self::Decode,
            _ => Self::Matvec,
        }
    }
}
