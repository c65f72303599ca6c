use std::sync::OnceLock;

use aqlm_optimized::cuda::pack::pack;
use aqlm_optimized::cuda::{CudaError, Device, DeviceMatrix};
use aqlm_reference::vocabulary::{AqlmError, QuantizedMatrix};
use half::f16;
use ndarray::{ArrayView2, ArrayViewMut2};

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

    fn decode(&self, matrix: &QuantizedMatrix, weight: &mut [f32]) -> Result<()> {
        if self.kernel.is_empty() {
            return no(self.backend(), Operation::Decode);
        }
        widen(&self.run(matrix, None, 1)?, weight.iter_mut());
        Ok(())
    }

    fn matvec(&self, matrix: &QuantizedMatrix, x: &[f32], y: &mut [f32]) -> Result<()> {
        if self.kernel.is_empty() {
            return no(self.backend(), Operation::Matvec);
        }
        widen(&self.run(matrix, Some(&narrowed(x.iter())?), 1)?, y.iter_mut());
        Ok(())
    }

    fn matmul(
        &self,
        matrix: &QuantizedMatrix,
        x: ArrayView2<'_, f32>,
        mut y: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        if self.kernel.is_empty() {
            return no(self.backend(), Operation::Matmul);
        }
        let result = self.run(matrix, Some(&narrowed(x.iter())?), x.nrows())?;
        widen(&result, y.iter_mut());
        Ok(())
    }
}

impl CudaSubject {
    /// The kernel's output, row-major; NaN where it wrote nothing.
    fn run(&self, matrix: &QuantizedMatrix, x: Option<&[f16]>, batch: usize) -> Result<Vec<f16>> {
        let run = || -> std::result::Result<Vec<f16>, CudaError> {
            let packed = pack(self.kernel, matrix, self.device.target(), batch)?;
            let matrix = DeviceMatrix::new(self.device, &packed)?;
            let x = x.map(|x| self.device.upload(x)).transpose()?;
            let mut result = self.device.upload(&vec![f16::NAN; packed.y_len()])?;
            matrix.start(self.device, x.as_ref(), &mut result, false)?;
            self.device.download(&result)
        };
        run().map_err(|error| match error {
            CudaError::Aqlm(error) => error.into(),
            other => Error::invalid(self.kernel, "a result", other.to_string()),
        })
    }
}

/// x in the kernels' format, where that loses nothing.
fn narrowed<'a>(x: impl Iterator<Item = &'a f32>) -> Result<Vec<f16>> {
    x.map(|&x| {
        let narrow = f16::from_f32(x);
        if narrow.to_f32() == x {
            Ok(narrow)
        } else {
            Err(AqlmError::Unsupported("x has numbers that f16 does not hold".into()).into())
        }
    })
    .collect()
}

fn widen<'a>(from: &[f16], to: impl Iterator<Item = &'a mut f32>) {
    for (to, from) in to.zip(from) {
        *to = from.to_f32();
    }
}
