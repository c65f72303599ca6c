use std::sync::Arc;

use aqlm_engine::backends::BackendKind;
use aqlm_optimized::cpu::llama::{PlainParameter, PvMatrix as OnCpu};
use aqlm_optimized::cuda::Device;
use aqlm_optimized::cuda::training::{Machine, PlainParameter as OnGpuPlain, Precision, PvMatrix as OnGpu};
use aqlm_reference::Stepper;
use aqlm_reference::llama::PvMatrix;
use aqlm_vocabulary::{
    AdamDecay, AqlmError, ArchSpec, BlockSpec, ChangeBudget, CodeSettings, ModelTuning, Optimizer,
    QuantizedMatrix, Rates, Residuals, Rope, RopeScaling, Scheme, StepRule, Tuned, llama::LlamaBlock,
};
use ndarray::{Array1, Array2, Array3, Ix1, Ix2, Ix3, Ix4};

use super::vector_file::VectorFile;
use super::{Comparison, largest, relative_difference};
use aqlm_formats::{Error, Result};

/// Values pass through a few hundred roundings of f32 in the peer's program.
const VALUES: f64 = 1e-5;

/// A decision that this movement of a group, as a share of the root mean square of all groups, would change
/// is a near tie: the peer's f32 may decide it otherwise.
const NEAR_TIE: f64 = 1e-5;

/// The two quantized weights of a case, by the letter in its arrays' names.
const MATRICES: [&str; 2] = ["a", "b"];

/// The settings of a case.
#[derive(Debug, Clone, Copy)]
pub(super) struct PvSettings {
    pub(super) tuning: ModelTuning,
    pub(super) rates: Rates,
    pub(super) steps: usize,
}

impl PvSettings {
    /// From the numbers of an index: `betas` and `eps` of the continuous parameters, and the settings of
    /// codes.
    #[expect(clippy::too_many_arguments, reason = "the fields of one entry")]
    pub(super) fn new(
        [lamb, debias]: [bool; 2],
        betas: [f64; 2],
        code_betas: [f64; 2],
        eps: f64,
        rates: Rates,
        max_change: f64,
        trust_ratio: Option<f64>,
        beam: usize,
        delta_decay: f64,
        steps: usize,
    ) -> Self {
        let optimizer = |[beta1, beta2]: [f64; 2]| Optimizer {
            decay: AdamDecay { beta1, beta2, eps },
            rule: StepRule::Official { lamb, debias },
        };
        let codes = CodeSettings {
            lr: rates.code_lr,
            optimizer: optimizer(code_betas),
            max_change,
            budget: ChangeBudget::Matrix,
            trust_ratio,
            beam,
            residuals: Residuals::Place,
            delta_decay,
            ..CodeSettings::README
        };
        Self {
            tuning: ModelTuning {
                tuned: Tuned::ALL,
                optimizer: optimizer(betas),
                codes: Some(codes),
                seed: 0,
            },
            rates,
            steps,
        }
    }
}

/// A quantized weight on the backend that is checked. The reference runs beside the others, for its margins.
struct Matrix {
    exact: PvMatrix,
    subject: Matrices,
}

/// The same weight on a backend.
enum Matrices {
    Reference,
    Cpu(Box<OnCpu>),
    Cuda(Box<OnGpu>),
}

impl Matrices {
    /// One step; the matrix, its buffer and the number of groups that changed. `None` for the reference.
    fn step(
        &mut self,
        gradient: &Array2<f64>,
        rates: Rates,
        order: &[usize],
    ) -> Result<Option<(QuantizedMatrix, Vec<f64>, usize)>> {
        let narrow = gradient.mapv(|value| value as f32);
        match self {
            Self::Reference => Ok(None),
            Self::Cpu(cpu) => {
                let changed = cpu.step(&narrow, rates, order)?;
                let buffer = cpu.buffer().iter().map(|&value| f64::from(value)).collect();
                Ok(Some((cpu.matrix().clone(), buffer, changed)))
            }
            Self::Cuda(cuda) => {
                let values: Vec<f32> = narrow.iter().copied().collect();
                let changed = cuda.step(&values, rates, order).map_err(AqlmError::from)?;
                let buffer = cuda.buffer().map_err(AqlmError::from)?;
                let buffer = buffer.into_iter().map(f64::from).collect();
                Ok(Some((cuda.matrix().map_err(AqlmError::from)?, buffer, changed)))
            }
        }
    }
}

/// A parameter that is not quantized.
enum Plain {
    Reference(Array1<f64>, Stepper),
    Cpu(PlainParameter),
    Cuda(Box<OnGpuPlain>),
}

impl Plain {
    /// Its values after a step.
    fn step(&mut self, gradient: &Array1<f64>, lr: f64) -> Result<Array1<f64>> {
        match self {
            Self::Reference(values, stepper) => {
                stepper.step(lr, values.view_mut(), gradient);
                Ok(values.clone())
            }
            Self::Cpu(parameter) => {
                parameter.step(gradient, lr);
                Ok(parameter.values().clone())
            }
            Self::Cuda(parameter) => {
                parameter.step(&gradient.to_vec(), lr).map_err(AqlmError::from)?;
                Ok(Array1::from(parameter.values().map_err(AqlmError::from)?))
            }
        }
    }
}

/// The first GPU, with guard bytes. Single matrices need no model, so its shape is the smallest.
pub(super) fn first_gpu() -> Result<Arc<Machine>> {
    let block = BlockSpec::llama(LlamaBlock {
        hidden_size: 8,
        intermediate_size: 8,
        heads: 1,
        kv_heads: 1,
        head_dim: 8,
        epsilon: 1e-5,
        rotary: Rope {
            theta: 1e4,
            scaling: RopeScaling::None,
        },
        window: None,
    });
    let arch = ArchSpec::llama(2, 1, 1, block);
    let device = Device::open_guarded(0, None).map_err(AqlmError::from)?;
    let machine = Machine::new(Arc::new(device), &arch, 1, Precision::Single);
    Ok(Arc::new(machine.map_err(AqlmError::from)?))
}

/// The largest differences of each kind, over all steps that were compared.
#[derive(Default)]
struct Worst {
    codes: f64,
    changed: f64,
    codebooks: f64,
    scales: f64,
    buffers: f64,
    plain: f64,
}

impl Worst {
    fn raise(to: &mut f64, value: f64) {
        *to = largest([*to, value]);
    }

    fn comparisons(self) -> Vec<Comparison> {
        vec![
            Comparison::new(
                "codes that differ, by the relative margin of their choice",
                self.codes,
                NEAR_TIE,
            ),
            Comparison::new("groups changed, difference", self.changed, 0.0),
            Comparison::new("codebooks, relative", self.codebooks, VALUES),
            Comparison::new("scales, relative", self.scales, VALUES),
            Comparison::new("buffers, relative", self.buffers, VALUES),
            Comparison::new("the plain parameter, relative", self.plain, VALUES),
        ]
    }
}

/// A few steps of the official optimizer with two quantized weights and one plain parameter. A step in which
/// both programs decide a near tie differently ends the comparison, since all later steps differ.
pub(super) fn pv_case(
    settings: &PvSettings,
    groups_changed: &[Vec<usize>],
    file: &VectorFile,
    backend: BackendKind,
    gpu: Option<&Arc<Machine>>,
) -> Result<Vec<Comparison>> {
    let mut matrices = Vec::new();
    for letter in MATRICES {
        let start = matrix(file, 0, letter)?;
        let subject = match (backend, gpu) {
            (BackendKind::Cpu, _) => Matrices::Cpu(Box::new(OnCpu::new(start.clone(), settings.tuning)?)),
            (_, Some(gpu)) => {
                let found = OnGpu::new(gpu, &start, settings.tuning);
                Matrices::Cuda(Box::new(found.map_err(AqlmError::from)?))
            }
            _ => Matrices::Reference,
        };
        let exact = PvMatrix::new(start, settings.tuning)?;
        matrices.push(Matrix { exact, subject });
    }
    let start: Array1<f64> = file.array_n::<Ix1>("0.norm")?;
    let mut plain = match (backend, gpu) {
        (BackendKind::Cpu, _) => Plain::Cpu(PlainParameter::new(start, &settings.tuning)),
        (_, Some(gpu)) => {
            let found = OnGpuPlain::new(gpu, &start.to_vec(), &settings.tuning);
            Plain::Cuda(Box::new(found.map_err(AqlmError::from)?))
        }
        _ => {
            let stepper = Stepper::new(settings.tuning.optimizer, start.len());
            Plain::Reference(start, stepper)
        }
    };

    let mut worst = Worst::default();
    for step in 1..=settings.steps {
        let orders = file.array_n::<Ix2>(&format!("{step}.order"))?;
        let mut diverged = false;
        for (number, (letter, matrix)) in MATRICES.iter().zip(&mut matrices).enumerate() {
            let name = |part: &str| format!("{step}.{letter}.{part}");
            let gradient = file.array_n::<Ix2>(&name("grad"))?;
            let order: Vec<usize> = orders.row(number).iter().map(|&m| m as usize).collect();
            check_order(file, step, &order, matrix.exact.matrix().scheme().num_codebooks)?;
            let recoded = matrix.exact.step(&gradient, settings.rates, &order)?;
            let found = matrix.subject.step(&gradient, settings.rates, &order)?;
            let (found, buffer, changed) = found.unwrap_or_else(|| {
                let exact = &matrix.exact;
                let buffer = exact.buffer().iter().copied().collect();
                (exact.matrix().clone(), buffer, recoded.changed)
            });
            let codes: Array3<f64> = file.array_n::<Ix3>(&name("codes"))?;
            let mut differ = false;
            let squares: f64 = matrix.exact.buffer().iter().map(|value| value * value).sum();
            let size = (squares / recoded.margins.len() as f64).sqrt();
            for ((o, j), &margin) in recoded.margins.indexed_iter() {
                let same = |m: usize| f64::from(found.codes()[[o, j, m]]) == codes[[o, j, m]];
                if !(0..found.scheme().num_codebooks).all(same) {
                    differ = true;
                    Worst::raise(&mut worst.codes, margin / size);
                }
            }
            let off = |found: &mut dyn Iterator<Item = &f64>, part: &str| -> Result<f64> {
                let found: Vec<f64> = found.copied().collect();
                Ok(relative_difference(&found, &file.array(&name(part))?))
            };
            Worst::raise(
                &mut worst.codebooks,
                off(&mut found.codebooks().iter(), "codebooks")?,
            );
            Worst::raise(&mut worst.scales, off(&mut found.scales().iter(), "scales")?);
            if !differ {
                Worst::raise(&mut worst.buffers, off(&mut buffer.iter(), "buffer")?);
                if let Some(&expected) = groups_changed.get(step - 1).and_then(|counts| counts.get(number)) {
                    Worst::raise(&mut worst.changed, changed.abs_diff(expected) as f64);
                }
            }
            diverged |= differ;
        }
        let gradient = file.array_n::<Ix1>(&format!("{step}.norm.grad"))?;
        let values = plain.step(&gradient, settings.rates.lr)?;
        let expected = file.array(&format!("{step}.norm"))?;
        Worst::raise(&mut worst.plain, relative_difference(&values, &expected));
        if diverged {
            break;
        }
    }
    Ok(worst.comparisons())
}

/// The quantized weight after a step.
fn matrix(file: &VectorFile, step: usize, letter: &str) -> Result<QuantizedMatrix> {
    let name = |part: &str| format!("{step}.{letter}.{part}");
    let codebooks = file.array_n::<Ix4>(&name("codebooks"))?;
    let (num_codebooks, size, out_group, in_group) = codebooks.dim();
    let scheme = Scheme::with_out_group(num_codebooks, size.ilog2(), in_group, out_group)?;
    let codes: Array3<f64> = file.array_n::<Ix3>(&name("codes"))?;
    let scales: Array1<f64> = file.array(&name("scales"))?.iter().copied().collect();
    let buffer: Array2<f64> = file.array_n::<Ix2>(&name("buffer"))?;
    let matrix = QuantizedMatrix::new(scheme, codes.mapv(|code| code as u16), codebooks, scales)?;
    let shape = (matrix.out_features(), matrix.in_features());
    if buffer.dim() != shape {
        return Err(Error::Field {
            path: file.path().into(),
            field: name("buffer"),
            expected: format!("{shape:?}"),
            found: format!("{:?}", buffer.dim()),
        });
    }
    Ok(matrix)
}

/// Rejects an order that is no permutation of the codebooks.
fn check_order(file: &VectorFile, step: usize, order: &[usize], num_codebooks: usize) -> Result<()> {
    let mut sorted = order.to_vec();
    sorted.sort_unstable();
    if sorted.iter().copied().eq(0..num_codebooks) {
        return Ok(());
    }
    Err(Error::Field {
        path: file.path().into(),
        field: format!("{step}.order"),
        expected: format!("0 to {} in some order", num_codebooks - 1),
        found: format!("{order:?}"),
    })
}
