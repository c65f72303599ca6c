use super::preconditioner::Preconditioner;
use crate::cuda::quantizer::codes::{Codebooks, Decoding, Places, Quantized, Summed};
use crate::cuda::quantizer::machine::{Machine, Precision, THREADS, halves};
use crate::cuda::quantizer::problem::{Problem, Trial, Wide};
use crate::cuda::{Buffer, Result};

/// Maximum number of unknowns whose whole normal matrix is factored, on the host.
const FACTORED: usize = 1024;

/// Updates codebooks and scales alternately, `rounds` times, entirely in f64, for problems so small that H
/// was kept in f64; as the CPU does, step by step.
///
/// # Errors
/// `NotPositiveDefinite` when H is indefinite.
pub(super) fn descend(
    machine: &Machine,
    problem: &Problem,
    wide: &Wide,
    trial: Trial,
    places: &Places,
    steps: usize,
    rounds: usize,
) -> Result<Trial> {
    let mut state = State::new(machine, problem, wide, trial.matrix.clone())?;
    let before = state.loss(machine)?;
    for round in 0..rounds.max(1) {
        state.move_codebooks(machine, places, steps)?;
        if round < rounds {
            state.rescale(machine)?;
        }
    }
    // The state has accumulated the roundings of all steps, so the loss is recomputed from the matrix.
    let matrix = state.matrix;
    let after = State::new(machine, problem, wide, matrix.clone())?.loss(machine)?;
    if after < before {
        Trial::new(machine, problem, matrix)
    } else {
        Ok(trial)
    }
}

/// E = W - Q and E H in f64.
struct State<'a> {
    wide: &'a Wide,
    width: usize,
    matrix: Quantized,
    error: Buffer<f64>,
    image: Buffer<f64>,
    /// trace of H
    trace: f64,
}

impl<'a> State<'a> {
    fn new(machine: &Machine, problem: &Problem, wide: &'a Wide, matrix: Quantized) -> Result<Self> {
        let mut error = machine.fresh::<f64>(problem.rows * problem.width, "the error in f64")?;
        machine.decode(
            &Decoding {
                subtract: true,
                ..Decoding::of(&matrix.form)
            },
            Some(&wide.weight),
            &matrix.codes,
            Codebooks::Wide(&matrix.codebooks),
            Some(&matrix.scales),
            &mut error,
        )?;
        let image = machine.image(&error, &wide.hessian, problem.width, Precision::Full)?;
        Ok(Self {
            wide,
            width: problem.width,
            matrix,
            error,
            image,
            trace: wide.on_host.diag().sum(),
        })
    }

    fn loss(&self, machine: &Machine) -> Result<f64> {
        machine.inner(&self.image, &self.error)
    }

    /// The rounding error of tr(D H D^T): epsilon in each element of H, whose largest eigenvalue is at most
    /// its trace. For D in the null space of H, tr(D H D^T) is nothing but this error.
    fn resolution(&self, machine: &Machine, dense: &Buffer<f64>) -> Result<f64> {
        Ok(self.resolution_of_one() * machine.inner(dense, dense)?)
    }

    fn resolution_of_one(&self) -> f64 {
        4.0 * f64::EPSILON * self.trace
    }

    /// At most `steps` steps of conjugate gradients.
    fn move_codebooks(&mut self, machine: &Machine, places: &Places, steps: usize) -> Result<()> {
        let form = self.matrix.form;
        let gi = form.scheme.in_group_size;
        let decoding = Decoding::of(&form);
        let summed = Summed {
            width: form.width(),
            inputs: form.in_groups,
            group: decoding.group,
            power: 1,
            of_input: false,
        };
        let scales = self.matrix.scales.clone();
        let unknowns = form.codebooks() * form.states() * gi;
        let preconditioner = if unknowns <= FACTORED {
            Preconditioner::whole(&self.wide.on_host, &machine.download_matrix(&self.matrix)?)?
        } else {
            let blocks = machine.diagonal_blocks(&self.wide.hessian, form.width(), gi)?;
            Preconditioner::of_places(machine, &blocks, &scales, places, form.in_groups, gi)?
        };
        let mut residual = machine.scatter(&self.image, Some(&scales), places, &summed)?;
        let mut preconditioned = preconditioner.apply(machine, &residual)?;
        let mut direction = preconditioned.try_clone()?;
        let mut slope = machine.inner(&residual, &preconditioned)?;
        let mut codebooks = self.matrix.codebooks.try_clone()?;
        let mut loss = self.loss(machine)?;
        let mut fresh = true;
        for _ in 0..steps {
            if loss <= self.resolution(machine, &self.error)? {
                break;
            }
            let mut dense = machine.fresh::<f64>(self.error.len(), "a decoded direction")?;
            machine.decode(
                &decoding,
                None,
                &self.matrix.codes,
                Codebooks::Wide(&direction),
                Some(&scales),
                &mut dense,
            )?;
            let dense_image = machine.image(&dense, &self.wide.hessian, self.width, Precision::Full)?;
            let curvature = machine.inner(&dense_image, &dense)?;
            let step = slope / curvature;
            let mut error = self.error.try_clone()?;
            let mut image = self.image.try_clone()?;
            machine.combine(-step, &dense, 1.0, &mut error)?;
            machine.combine(-step, &dense_image, 1.0, &mut image)?;
            let reached = machine.inner(&image, &error)?;
            // Also false for NaN. In the null space of H, slopes and curvatures are pure rounding errors.
            if curvature > self.resolution(machine, &dense)? && reached < loss {
                loss = reached;
                (self.error, self.image) = (error, image);
                machine.combine(step, &direction, 1.0, &mut codebooks)?;
                residual = machine.scatter(&self.image, Some(&scales), places, &summed)?;
                preconditioned = preconditioner.apply(machine, &residual)?;
                fresh = false;
            } else if fresh {
                break;
            } else {
                fresh = true;
            }
            let next_slope = machine.inner(&residual, &preconditioned)?;
            if fresh {
                direction = preconditioned.try_clone()?;
            } else {
                machine.combine(1.0, &preconditioned, next_slope / slope, &mut direction)?;
            }
            slope = next_slope;
        }
        self.matrix.codebooks = codebooks.into();
        Ok(())
    }

    /// Moves every scale to the minimum of its output group's loss.
    fn rescale(&mut self, machine: &Machine) -> Result<()> {
        let form = self.matrix.form;
        let scales = self.matrix.scales.try_clone()?;
        let losses = machine.fresh::<f64>(form.out_groups, "losses of output groups")?;
        let [low, high] = halves(self.resolution_of_one());
        machine.run(
            "layer_rescale/k1_block_a_group",
            &[("AQLM_WIDE", 1)],
            [form.out_groups, 1, THREADS, THREADS * 8],
            &[
                machine.address(&self.wide.weight),
                machine.address(&self.wide.weight_image),
                machine.address(&self.error),
                machine.address(&self.image),
                machine.address(&scales),
                machine.address(&losses),
            ],
            &[form.scheme.out_group_size * form.width(), low, high],
        )?;
        self.matrix.scales = scales.into();
        Ok(())
    }
}
