use std::sync::Arc;

use aqlm_vocabulary::{AqlmError, ArchSpec, AttentionSpec, Rope};
use cudarc::driver::{DevicePtr, DeviceRepr, ValidAsZeroBits, sys};

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
    calibration: Precision,
    arch: ArchSpec,
    positions: usize,
    /// the different rotations of the model's blocks
    rotations: Vec<Rotation>,
}

/// The tables of one rotation.
struct Rotation {
    rope: Rope,
    /// how many numbers of a head are rotated
    rotated: usize,
    /// cosines and sines, [positions, rotated / 2]
    tables: [Buffer<f32>; 2],
}

impl Machine {
    /// For models of this shape and sequences of at most `positions` tokens. `precision` is that of the
    /// products of training; everything else is computed in f32.
    ///
    /// # Errors
    /// `Aqlm` with `Argument` for a model whose parts do not fit together, with `Unsupported` for one with
    /// LayerNorms or a rotation of neighbours, or whose heads are too wide for the device; `Absent` when
    /// cuBLAS is missing; `Driver`.
    pub fn new(device: Arc<Device>, arch: &ArchSpec, positions: usize, precision: Precision) -> Result<Self> {
        arch.check()?;
        arch.require_rms_norms_and_halves()?;
        device.keep_freed_memory()?;
        let rotary = Rotary::of_model(arch, positions);
        let machine = Self {
            rotations: rotations(&device, arch, &rotary)?,
            products: Products::new(&device)?,
            device,
            precision,
            calibration: Precision::Single,
            arch: arch.clone(),
            positions,
        };
        for block in &arch.blocks {
            machine.attention_form(&block.attention, false)?;
        }
        Ok(machine)
    }

    /// The same machine with this precision of the products of calibration: passes of hidden states through
    /// blocks, and Hessians.
    #[must_use]
    pub fn calibrating(mut self, precision: Precision) -> Self {
        self.calibration = precision;
        self
    }

    /// How products of calibration round their factors.
    pub fn calibration(&self) -> Precision {
        self.calibration
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
    ///
    /// # Errors
    /// `Aqlm` with `Unsupported` for heads that are too wide.
    pub(super) fn attention_form(&self, spec: &AttentionSpec, rounds: bool) -> Result<AttentionForm> {
        let (head, shared_bytes) = (spec.head_dim, self.device.target().shared_bytes);
        AttentionForm::fitting(head, shared_bytes, rounds).ok_or_else(|| {
            AqlmError::Unsupported(format!("heads of {head} numbers on a GPU: at most 256")).into()
        })
    }

    /// Cosines and sines of a block's rotation, [positions, rotated / 2]; `None` if it has none.
    pub(super) fn rotation(&self, spec: &AttentionSpec) -> Option<[&Buffer<f32>; 2]> {
        let rope = spec.rotary.as_ref()?;
        let mut rotations = self.rotations.iter();
        let own = rotations.find(|own| own.rotated == spec.rotated && own.rope == *rope);
        Some(own.expect("a block of the machine's model").tables.each_ref())
    }

    /// Where numbers lie on the device.
    pub(super) fn place<T>(&self, of: &impl DevicePtr<T>) -> sys::CUdeviceptr {
        // The guard records a use for cudarc's own ordering of streams, which is disabled.
        of.device_ptr(self.device.stream()).0
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

/// The tables of every different rotation of a model's blocks, on the device.
fn rotations(device: &Device, arch: &ArchSpec, rotary: &Rotary) -> Result<Vec<Rotation>> {
    let mut all: Vec<Rotation> = Vec::new();
    for attention in arch.blocks.iter().map(|block| &block.attention) {
        let (Some(rope), Some((cosines, sines))) = (&attention.rotary, rotary.tables_of(attention)) else {
            continue;
        };
        let known = |own: &Rotation| own.rotated == attention.rotated && own.rope == *rope;
        if all.iter().any(known) {
            continue;
        }
        all.push(Rotation {
            rope: rope.clone(),
            rotated: attention.rotated,
            tables: [
                device.upload(cosines)?.named("cosines"),
                device.upload(sines)?.named("sines"),
            ],
        });
    }
    Ok(all)
}
