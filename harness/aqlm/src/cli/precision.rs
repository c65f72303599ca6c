use clap::Args;

use aqlm_engine::QuantizeSettings;
use aqlm_engine::backends::{BackendKind, CalibrationPrecision, TrainingPrecision};
use aqlm_formats::{Error, Result};

/// The precision of training on a GPU.
#[derive(Debug, Args)]
pub(super) struct PrecisionArgs {
    /// How products of training round their factors on a GPU [default: mixed for blocks, tf32 end to end]
    #[arg(long, value_enum)]
    precision: Option<TrainingPrecision>,
}

impl PrecisionArgs {
    /// The precision, if one is chosen.
    ///
    /// # Errors
    /// `Argument` for a backend that always computes in one way.
    pub(super) fn chosen(&self, backend: BackendKind) -> Result<Option<TrainingPrecision>> {
        match self.precision {
            Some(_) if backend != BackendKind::Cuda => Err(Error::argument(
                "--precision",
                "--backend cuda beside it",
                format!("--backend {backend}"),
            )),
            chosen => Ok(chosen),
        }
    }
}

/// The precision of calibration on a GPU.
#[derive(Debug, Args)]
pub(super) struct ActivationArgs {
    /// How a GPU keeps hidden states between blocks, and multiplies while it calibrates
    #[arg(long, value_enum, default_value = "f32")]
    activations: CalibrationPrecision,
}

impl ActivationArgs {
    /// The precision.
    ///
    /// # Errors
    /// `Argument` for a backend or an objective that has only f32.
    pub(super) fn chosen(
        &self,
        backend: BackendKind,
        settings: &QuantizeSettings,
    ) -> Result<CalibrationPrecision> {
        let refused = |expected: &str, found: String| Err(Error::argument("--activations", expected, found));
        if self.activations == CalibrationPrecision::Bf16 {
            if backend != BackendKind::Cuda {
                return refused(
                    "f32, or --backend cuda beside bf16",
                    format!("bf16 and --backend {backend}"),
                );
            }
            if settings.needs_sketch() {
                return refused(
                    "f32 beside --hessian sketched or --objective two-sided, whose gradients are f32",
                    "bf16".into(),
                );
            }
        }
        Ok(self.activations)
    }
}
