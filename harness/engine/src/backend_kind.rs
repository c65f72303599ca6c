use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The machines that can run operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum BackendKind {
    /// f64 on ndarray: slow, readable, the ground truth
    Reference,
    /// f32 on all cores, with the vector instructions at hand
    Cpu,
    /// the first NVIDIA GPU: quantizes, trains and evaluates in f32, generates with products in f16
    Cuda,
}

impl BackendKind {
    /// All, in the order in which they are checked.
    pub const ALL: [Self; 3] = [Self::Reference, Self::Cpu, Self::Cuda];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
