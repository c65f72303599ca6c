//! The machines on which cases run. The caller passes them in. An operation lists the ways in which each
//! machine computes a case and calls the machine in its `run`.

use std::sync::Arc;

use aqlm_engine::backends::BackendKind;
use aqlm_optimized::cpu::{Form, Plan, SimdLevel, TablePrecision};
use aqlm_optimized::cuda::training::Precision;
use aqlm_optimized::cuda::{Activations, Device};
use rayon::ThreadPool;

use crate::limits::Number;
use crate::operation::Operation;
use aqlm_formats::Result;

/// A machine, with one of its ways of computing a case if it has several.
#[derive(Clone)]
pub enum Subject {
    /// the definitions in f64; the other machines are compared with it
    Reference,
    /// this processor
    Cpu(Cpu),
    /// a GPU
    Cuda(Cuda),
}

/// This processor at one SIMD level, in f32.
#[derive(Debug, Clone)]
pub struct Cpu {
    /// instructions
    pub level: SimdLevel,
    /// thread pools that use these instructions
    pub pools: Arc<Pools>,
    /// form and storage of products; `None` for an operation that has no choice of them
    pub plan: Option<Plan>,
}

/// A GPU and one of its ways of computing a case.
#[derive(Clone)]
pub struct Cuda {
    /// the device
    pub device: Arc<Device>,
    /// a kernel's id, or the name of a way in which a model computes a token; empty otherwise
    pub kernel: &'static str,
    /// how products round their factors, for operations of quantizing and training
    pub training: Option<Precision>,
    /// the format of x and y
    pub activations: Activations,
    /// thread pools that launch its kernels
    pub pools: Arc<Pools>,
}

impl Subject {
    /// The backend's name.
    pub fn backend(&self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::Cpu(_) => "cpu",
            Self::Cuda(_) => "cuda",
        }
    }

    /// The way of computing: instructions, form, storage.
    pub fn variant(&self) -> String {
        match self {
            Self::Reference => "f64".to_owned(),
            Self::Cpu(cpu) => cpu.variant(),
            Self::Cuda(cuda) => match (cuda.training, cuda.activations) {
                (Some(Precision::Single), _) => "f32".to_owned(),
                (Some(Precision::Mixed), _) => "mixed".to_owned(),
                (Some(Precision::Tf32), _) => "tf32".to_owned(),
                (Some(Precision::Bf16), _) => "bf16".to_owned(),
                (None, Activations::F16) => cuda.kernel.to_owned(),
                (None, Activations::Bf16) => format!("{} bf16", cuda.kernel),
            },
        }
    }

    /// The arithmetic, which decides the limits.
    pub fn number(&self) -> Number {
        match self {
            Self::Reference => Number::F64,
            Self::Cpu(_) => Number::F32,
            Self::Cuda(cuda) => match (cuda.training, cuda.activations) {
                (Some(Precision::Single), _) => Number::F32,
                (Some(Precision::Mixed | Precision::Tf32), _) => Number::Tf32,
                (Some(Precision::Bf16), _) | (None, Activations::Bf16) => Number::Bf16,
                (None, Activations::F16) => Number::F16,
            },
        }
    }

    /// This machine with products of this precision, for operations of quantizing and training.
    pub(crate) fn with(&self, precision: Precision) -> Self {
        match self {
            Self::Cuda(cuda) => Self::Cuda(Cuda {
                training: Some(precision),
                ..cuda.clone()
            }),
            other => other.clone(),
        }
    }

    /// Every precision in which this machine trains.
    pub(crate) fn trainings(&self) -> Vec<Self> {
        match self {
            Self::Cuda(_) => [
                Precision::Single,
                Precision::Mixed,
                Precision::Tf32,
                Precision::Bf16,
            ]
            .map(|precision| self.with(precision))
            .to_vec(),
            other => vec![other.clone()],
        }
    }

    /// The thread pools that compute its answers.
    pub(crate) fn pools(&self) -> Result<Arc<Pools>> {
        match self {
            Self::Cpu(cpu) => Ok(Arc::clone(&cpu.pools)),
            Self::Cuda(cuda) => Ok(Arc::clone(&cuda.pools)),
            Self::Reference => Ok(Arc::new(Pools::at(SimdLevel::current())?)),
        }
    }
}

/// Thread pools of one thread, of two, and of as many as the caller has, all at one SIMD level. Answers must
/// not depend on the number of threads.
#[derive(Debug)]
pub struct Pools {
    pub(crate) one: ThreadPool,
    pub(crate) two: ThreadPool,
    pub(crate) all: ThreadPool,
}

impl Pools {
    /// Pools at this level.
    ///
    /// # Errors
    /// `Unsupported` when this processor does not support the level.
    pub fn at(level: SimdLevel) -> Result<Self> {
        Ok(Self {
            one: level.pool(1)?,
            two: level.pool(2)?,
            all: level.pool(rayon::current_num_threads())?,
        })
    }
}

impl Cpu {
    /// This processor at a level.
    ///
    /// # Errors
    /// As [`Pools::at`].
    pub fn at(level: SimdLevel) -> Result<Self> {
        Ok(Self {
            level,
            pools: Arc::new(Pools::at(level)?),
            plan: None,
        })
    }

    /// Every SIMD level of this processor.
    ///
    /// # Errors
    /// As [`Pools::at`].
    pub fn all() -> Result<Vec<Subject>> {
        let levels = SimdLevel::available().into_iter();
        levels.map(|level| Ok(Subject::Cpu(Self::at(level)?))).collect()
    }

    fn variant(&self) -> String {
        let Some(plan) = self.plan else {
            return self.level.to_string();
        };
        let form = match plan.form {
            Form::Direct => format!("direct {:?}", plan.codebooks),
            Form::Table(precision) => format!("table {precision:?}"),
        };
        let rows = if plan.largest_matvec_batch > 0 {
            " row by row"
        } else {
            ""
        };
        format!("{} {form}{rows}", self.level)
    }

    /// Bytes per entry of fixed-point tables, if a product with `batch` rows of x uses such tables.
    pub(crate) fn table_bytes(&self, operation: Operation, batch: usize) -> Option<u32> {
        let plan = self.plan?;
        let used = match operation {
            Operation::Matvec => true,
            Operation::Matmul => batch <= plan.largest_matvec_batch,
            _ => false,
        };
        match plan.form {
            Form::Table(TablePrecision::I24) if used => Some(3),
            Form::Table(TablePrecision::I16) if used => Some(2),
            Form::Table(TablePrecision::I8) if used => Some(1),
            _ => None,
        }
    }
}

impl Cuda {
    /// The first GPU.
    ///
    /// # Errors
    /// A description of what is missing.
    pub fn first() -> std::result::Result<Subject, String> {
        let device = Device::open_guarded(0, None).map_err(|error| error.to_string())?;
        let cuda = Self::on(Arc::new(device), Activations::F16).map_err(|error| error.to_string())?;
        Ok(Subject::Cuda(cuda))
    }

    /// An opened GPU, with x and y in this format.
    ///
    /// # Errors
    /// As [`Pools::at`].
    pub fn on(device: Arc<Device>, activations: Activations) -> Result<Self> {
        Ok(Self {
            device,
            kernel: "",
            training: None,
            activations,
            pools: Arc::new(Pools::at(SimdLevel::current())?),
        })
    }
}

/// The machines of one backend, or why this machine has none; its cases are then waived.
#[derive(Clone)]
pub struct Machines {
    /// the backend's name
    pub backend: &'static str,
    /// all subjects together form one row of the check
    pub subjects: std::result::Result<Vec<Subject>, String>,
}

impl Machines {
    /// The machines of a backend on this computer.
    pub fn of(backend: BackendKind) -> Self {
        Self {
            backend: backend.name(),
            subjects: match backend {
                BackendKind::Reference => Ok(vec![Subject::Reference]),
                BackendKind::Cpu => Cpu::all().map_err(|error| error.to_string()),
                BackendKind::Cuda => Cuda::first().map(|cuda| vec![cuda]),
            },
        }
    }
}
