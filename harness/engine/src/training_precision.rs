use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// How products of training on a GPU round their factors. Sums are f32 in any case, and so is all else that a
/// GPU computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum TrainingPrecision {
    /// not at all
    #[default]
    F32,
    /// those of gradients to 10 bits after the point, for the tensor cores, the others not at all
    Mixed,
    /// to 10 bits after the point, for the tensor cores
    Tf32,
    /// to 7 bits after the point, for tensor cores at twice the speed
    Bf16,
}

/// How hidden states are kept between blocks on a GPU, and how products of calibration round their factors:
/// passes through blocks, and Hessians. Sums are f32 in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum CalibrationPrecision {
    /// in f32
    #[default]
    F32,
    /// in bf16: half of the memory, and products on tensor cores; a layer's H is that of its rounded inputs
    Bf16,
}
