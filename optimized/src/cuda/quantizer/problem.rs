use std::sync::Arc;

use aqlm_vocabulary::{AqlmError, QuantizedMatrix};
use ndarray::Array2;

use super::codes::{Codebooks, Decoding, Form, Quantized};
use super::machine::{Machine, Precision, THREADS, halves};
use super::outer::Outer;
use crate::cpu::quantizer::{WIDE, check_hessian};
use crate::cuda::error::check_lengths;
use crate::cuda::{Buffer, Result};

/// One layer's weight and the metric of its error.
pub(super) struct Problem {
    pub(super) rows: usize,
    pub(super) width: usize,
    /// [out_features, in_features]
    pub(super) weight: Buffer<f32>,
    /// H, [in_features, in_features]
    pub(super) hessian: Arc<Buffer<f32>>,
    /// W H, [out_features, in_features]
    pub(super) weight_image: Buffer<f32>,
    /// the same in f64, kept only if a product with H is cheap
    pub(super) wide: Option<Wide>,
}

/// A small problem in f64.
pub(super) struct Wide {
    pub(super) weight: Buffer<f64>,
    pub(super) hessian: Buffer<f64>,
    pub(super) weight_image: Buffer<f64>,
    /// for what the host does
    pub(super) on_host: Array2<f64>,
}

impl Problem {
    /// # Errors
    /// `Shape` when H is not square in the weight's inputs.
    pub(super) fn new(machine: &Machine, weight: &Array2<f32>, hessian: &Array2<f64>) -> Result<Self> {
        let on_device = machine.upload_rows(hessian, "H in f64")?;
        Self::with(machine, weight, hessian, &on_device)
    }

    /// [`Problem::new`] for an H that is on the device already.
    pub(super) fn with(
        machine: &Machine,
        weight: &Array2<f32>,
        hessian: &Array2<f64>,
        on_device: &Buffer<f64>,
    ) -> Result<Self> {
        check_hessian(hessian, weight.ncols())?;
        let (rows, width) = weight.dim();
        let weight = machine.upload_rows(weight, "the weight")?;
        let narrow = machine.narrow(on_device)?;
        let weight_image = machine.image(&weight, &narrow, width, Precision::Full)?;
        let wide = if rows * width * width <= WIDE {
            let weight = machine.widen(&weight)?;
            Some(Wide {
                weight_image: machine.image(&weight, on_device, width, Precision::Full)?,
                weight,
                hessian: on_device.try_clone()?,
                on_host: hessian.clone(),
            })
        } else {
            None
        };
        Ok(Self {
            rows,
            width,
            weight,
            hessian: Arc::new(narrow),
            weight_image,
            wide,
        })
    }

    /// Other rows under the same H. Codebooks are not updated for them, so H in f64 is not kept.
    ///
    /// # Errors
    /// `Length` when the rows have another number of inputs.
    pub(super) fn retargeted(&self, machine: &Machine, target: &Array2<f32>) -> Result<Self> {
        check_lengths(&[("inputs of rows", self.width, target.ncols())])?;
        self.with_target(machine, machine.upload_rows(target, "the target")?)
    }

    /// The same for a target on the device.
    pub(super) fn with_target(&self, machine: &Machine, weight: Buffer<f32>) -> Result<Self> {
        let weight_image = machine.image(&weight, &self.hessian, self.width, Precision::Full)?;
        Ok(Self {
            rows: weight.len() / self.width.max(1),
            width: self.width,
            weight,
            hessian: Arc::clone(&self.hessian),
            weight_image,
            wide: None,
        })
    }

    /// # Errors
    /// `Shape` when the matrix's shape differs from the weight's.
    pub(super) fn check(&self, matrix: &QuantizedMatrix) -> Result<()> {
        let found = [matrix.out_features(), matrix.in_features()];
        if found == [self.rows, self.width] {
            return Ok(());
        }
        Err(AqlmError::Shape {
            what: "weight".into(),
            expected: found.to_vec(),
            found: vec![self.rows, self.width],
        }
        .into())
    }

    /// D H, or H_O D H.
    pub(super) fn image(
        &self,
        machine: &Machine,
        outer: Option<&Outer>,
        dense: &Buffer<f32>,
        precision: Precision,
    ) -> Result<Buffer<f32>> {
        let image = machine.image(dense, &self.hessian, self.width, precision)?;
        match outer {
            Some(outer) => outer.left(machine, &image, self.width, precision),
            None => Ok(image),
        }
    }

    /// tr(W H W^T).
    pub(super) fn norm(&self, machine: &Machine) -> Result<f64> {
        machine.inner(&self.weight_image, &self.weight)
    }
}

/// A quantized matrix, its error, the error's image, and the loss, on the device. Under a two-sided objective
/// the image is H_O E H and the loss tr(H_O E H E^T).
pub struct Trial {
    pub(super) matrix: Quantized,
    /// E = W - Q
    pub(super) error: Buffer<f32>,
    /// E H
    pub(super) image: Buffer<f32>,
    /// tr(E H E^T)
    pub(super) loss: f64,
    /// |E|^2
    pub(super) square: f64,
}

impl Trial {
    /// Computes error, image and loss from the matrix.
    pub(super) fn new(machine: &Machine, problem: &Problem, matrix: Quantized) -> Result<Self> {
        Self::under(machine, problem, None, matrix)
    }

    /// The same under a two-sided objective, if there is an H_O.
    pub(super) fn under(
        machine: &Machine,
        problem: &Problem,
        outer: Option<&Outer>,
        matrix: Quantized,
    ) -> Result<Self> {
        let mut error = machine.fresh(problem.rows * problem.width, "the error")?;
        machine.decode(
            &Decoding {
                subtract: true,
                ..Decoding::of(&matrix.form)
            },
            Some(&problem.weight),
            &matrix.codes,
            Codebooks::Wide(&matrix.codebooks),
            Some(&matrix.scales),
            &mut error,
        )?;
        let image = problem.image(machine, outer, &error, Precision::Full)?;
        let loss = machine.inner(&image, &error)?;
        let square = machine.inner(&error, &error)?;
        Ok(Self {
            matrix,
            error,
            image,
            loss,
            square,
        })
    }

    pub(super) fn form(&self) -> Form {
        self.matrix.form
    }

    /// Moves every scale to the minimum of its output group's loss.
    pub(super) fn rescale(&mut self, machine: &Machine, problem: &Problem) -> Result<()> {
        let form = self.form();
        let losses = machine.fresh::<f64>(form.out_groups, "losses of output groups")?;
        let scales = self.matrix.scales.try_clone()?;
        let [low, high] = halves(0.0);
        machine.run(
            "layer_rescale/k1_block_a_group",
            &[("AQLM_WIDE", 0)],
            [form.out_groups, 1, THREADS, THREADS * 8],
            &[
                machine.address(&problem.weight),
                machine.address(&problem.weight_image),
                machine.address(&self.error),
                machine.address(&self.image),
                machine.address(&scales),
                machine.address(&losses),
            ],
            &[form.rows() / form.out_groups.max(1) * form.width(), low, high],
        )?;
        self.matrix.scales = scales.into();
        self.loss = machine.download(&losses)?.iter().sum();
        self.square = machine.inner(&self.error, &self.error)?;
        Ok(())
    }
}
