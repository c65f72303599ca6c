use std::sync::Arc;

use aqlm_vocabulary::{AqlmError, ArchSpec};
use cudarc::driver::{DeviceRepr, ValidAsZeroBits, sys};

use super::super::error::During;
use super::super::llama::plan::Plan;
use super::super::llama::run;
use super::super::{Buffer, CudaError, Device, Result};
use super::plan::AttentionForm;
use super::products::{Precision, Products};
use crate::cpu::llama::Rotary;

/// Maximum number of logits that one pass holds: 512 MiB.
pub(super) const LOGITS: usize = 1 << 27;

/// Rows that go through a block together. A GPU needs more of them than a processor for efficient products.
pub(super) const ROWS: usize = 16_384;

/// A GPU that computes blocks of one architecture, forward and back.
pub struct Machine {
    device: Arc<Device>,
    pub(super) products: Products,
    precision: Precision,
    arch: ArchSpec,
    positions: usize,
    /// [positions, head / 2]
    pub(super) cosines: Buffer<f32>,
    pub(super) sines: Buffer<f32>,
    /// of attention in f32, and with factors rounded where training rounds any
    forms: [AttentionForm; 2],
}

impl Machine {
    /// For models of this shape and sequences of at most `positions` tokens. `precision` is that of the
    /// products of training; everything else is computed in f32.
    ///
    /// # Errors
    /// `Aqlm` with `Unsupported` for a model that is not a plain Llama, or whose heads are too wide for the
    /// device; `Absent` when cuBLAS is missing; `Driver`.
    pub fn new(device: Arc<Device>, arch: &ArchSpec, positions: usize, precision: Precision) -> Result<Self> {
        arch.require_plain()?;
        let head = arch.attention().head_dim;
        let shared_bytes = device.target().shared_bytes;
        let form = |tf32| {
            AttentionForm::fitting(head, shared_bytes, tf32).ok_or_else(|| {
                AqlmError::Unsupported(format!("heads of {head} numbers on a GPU: at most 256"))
            })
        };
        let forms = [form(false)?, form(precision.rounds_gradients())?];
        device.keep_freed_memory()?;
        let rotary = Rotary::new(arch.attention(), positions);
        let (cosines, sines) = rotary.tables();
        Ok(Self {
            cosines: device.upload(cosines)?.named("cosines"),
            sines: device.upload(sines)?.named("sines"),
            products: Products::new(&device)?,
            device,
            precision,
            arch: arch.clone(),
            positions,
            forms,
        })
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// The model's shape.
    pub fn arch(&self) -> &ArchSpec {
        &self.arch
    }

    /// The longest sequence.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// How products of training round their factors.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// How attention computes its products when it rounds their factors and when not.
    pub(super) fn attention_form(&self, rounds: bool) -> AttentionForm {
        self.forms[usize::from(rounds)]
    }

    /// Rows of logits that one pass holds.
    pub(super) fn rows_of_logits(&self) -> usize {
        (LOGITS / self.arch.vocab_size.max(1)).max(1)
    }

    /// Memory whose numbers are written before they are read.
    pub(super) fn space<T: DeviceRepr>(&self, count: usize, name: &str) -> Result<Buffer<T>> {
        // SAFETY: every caller passes the buffer to a kernel, product or copy that writes all of it. On a
        // device with guard bytes, a number that is not written shows as a difference from the reference.
        let buffer = unsafe { self.device.uninitialized(count) };
        Ok(self.in_memory(name, buffer)?.named(name))
    }

    pub(super) fn zeros<T: DeviceRepr + ValidAsZeroBits>(
        &self,
        count: usize,
        name: &str,
    ) -> Result<Buffer<T>> {
        Ok(self.in_memory(name, self.device.zeros(count))?.named(name))
    }

    pub(super) fn upload<T: DeviceRepr>(&self, values: &[T], name: &str) -> Result<Buffer<T>> {
        Ok(self.in_memory(name, self.device.upload(values))?.named(name))
    }

    /// A copy of f32 numbers.
    pub(super) fn copy(&self, from: &Buffer<f32>, name: &str) -> Result<Buffer<f32>> {
        Ok(self.in_memory(name, from.try_clone())?.named(name))
    }

    pub(super) fn run(&self, plan: &Plan, pointers: &[sys::CUdeviceptr]) -> Result<()> {
        // A launch of no blocks is an error of the driver.
        if plan.grid.contains(&0) {
            return Ok(());
        }
        run(&self.device, plan, pointers, false)
    }

    /// Turns the driver's out-of-memory error into one that says what did not fit.
    fn in_memory<T>(&self, what: &str, result: Result<T>) -> Result<T> {
        match result {
            Err(CudaError::Driver { error, .. }) if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                Err(CudaError::Memory {
                    what: format!("{what} (use shorter sequences or smaller batches)"),
                    free: self.device.free_bytes()?,
                })
            }
            other => other,
        }
    }

    /// Waits for all work.
    ///
    /// # Errors
    /// `Driver`, also when a kernel started before has failed.
    pub fn wait(&self) -> Result<()> {
        self.device
            .stream()
            .synchronize()
            .during("waiting for the device")
    }
}
