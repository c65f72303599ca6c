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
    /// The name of its kernels' folder and of their entries.
    pub fn name(self) -> &'static str {
        match self {
            Self::Matvec => "matvec",
            Self::Matmul => "matmul",
            Self::Decode => "decode",
        }
    }

    /// The operation of a kernel's id, which starts with it.
    pub(super) fn of(kernel: &str) -> Self {
        match kernel.split('/').next() {
            Some("matmul") => Self::Matmul,
            Some("decode") => Self::Decode,
            _ => Self::Matvec,
        }
    }
}
