use std::sync::OnceLock;

use aqlm_optimized::cuda::pack::pack;
use aqlm_optimized::cuda::{CudaError, Device, DeviceMatrix};
use aqlm_reference::vocabulary::{AqlmError, QuantizedMatrix};
use half::f16;

use super::{Subject, Subjects, no};
use crate::cases::{Case, Operation};
use crate::check::limits::Number;
use crate::error::{Error, Result};

/// One kernel on the first GPU.
pub struct CudaSubject {
    device: &'static Device,
    kernel: &'static str,
}

static DEVICE: OnceLock<std::result::Result<Device, String>> = OnceLock::new();

impl CudaSubject {
    /// Every kernel of the case's operation; one without a kernel where there is none, which answers `unsupported`.
    ///
    /// # Errors
    /// What is missing, when there is no device.
    pub fn all(case: &Case) -> Subjects {
        let device = DEVICE
            .get_or_init(|| Device::open(0, None).map_err(|error| error.to_string()))
            .as_ref()
            .map_err(Clone::clone)?;
        let mut kernels: Vec<&'static str> = aqlm_kernels::kernels()
            .iter()
            .filter(|kernel| kernel.op == case.operation.word())
            .map(|kernel| kernel.id.as_str())
            .collect();
        if kernels.is_empty() {
            kernels.push("");
        }
        Ok(kernels
            .into_iter()
            .map(|kernel| -> Box<dyn Subject> { Box::new(Self { device, kernel }) })
            .collect())
    }
}

impl Subject for CudaSubject {
    fn backend(&self) -> &'static str {
        "cuda"
    }

    fn variant(&self) -> String {
        self.kernel.to_owned()
    }

    fn number(&self) -> Number {
        Number::F16
    }

    fn matvec(&self, matrix: &QuantizedMatrix, x: &[f32], y: &mut [f32]) -> Result<()> {
        if self.kernel.is_empty() {
            return no(self.backend(), Operation::Matvec);
        }
        let narrow: Vec<f16> = x.iter().map(|&x| f16::from_f32(x)).collect();
        if narrow.iter().zip(x).any(|(narrow, &x)| narrow.to_f32() != x) {
            return Err(AqlmError::Unsupported("x has numbers that f16 does not hold".into()).into());
        }
        let run = || -> std::result::Result<Vec<f16>, CudaError> {
            let packed = pack(self.kernel, matrix, self.device.target())?;
            let matrix = DeviceMatrix::new(self.device, &packed)?;
            let stream = self.device.stream();
            let driver = |during| move |error| CudaError::Driver { during, error };
            let x = stream.clone_htod(&narrow).map_err(driver("uploading x"))?;
            // What the kernel does not write stays NaN.
            let mut result = stream
                .clone_htod(&vec![f16::NAN; matrix.shape().0])
                .map_err(driver("uploading y"))?;
            matrix.start(self.device, &x, &mut result, false)?;
            stream.clone_dtoh(&result).map_err(driver("reading y"))
        };
        let result = run().map_err(|error| match error {
            CudaError::Aqlm(error) => error.into(),
            other => Error::invalid(self.kernel, "a result", other.to_string()),
        })?;
        for (y, value) in y.iter_mut().zip(result) {
            *y = value.to_f32();
        }
        Ok(())
    }
}
