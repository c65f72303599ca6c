use std::sync::Arc;

use aqlm_vocabulary::{LayerSettings, QuantizedMatrix, StreamKey};
use ndarray::Array2;

use super::codebook_update::Preconditioner;
use super::codes::{Decoding, Summed};
use super::kmeans::{Clusters, Metrics, Nearest};
use super::machine::{Machine, THREADS};
use super::residual_init::Residuals;
use crate::cpu::quantizer::{check_hessian, diagonal_blocks};
use crate::cuda::{Buffer, Device, Result};

/// Output-aware EM initialisation on the device; as
/// [`cpu::quantizer::em_init`](crate::cpu::quantizer::em_init).
///
/// # Errors
/// `NotDivisible` when the weight cannot be cut into the scheme's groups, `Shape` when H is not
/// [in_features, in_features], `NotPositiveDefinite` when a block H_jj is indefinite.
pub fn em_init(
    device: &Arc<Device>,
    weight: &Array2<f32>,
    hessian: &Array2<f64>,
    settings: &LayerSettings,
    rounds: usize,
    key: StreamKey,
) -> Result<QuantizedMatrix> {
    check_hessian(hessian, weight.ncols())?;
    let machine = Machine::new(Arc::clone(device))?;
    let on_device = machine.upload_rows(weight, "the weight")?;
    settings.scheme.groups(weight.nrows(), weight.ncols())?;
    let blocks = Blocks::new(&machine, hessian, settings.scheme.in_group_size)?;
    let first = machine.initialize(&on_device, weight.dim(), settings, key, |clusters, residuals| {
        blocks.refine(&machine, clusters, residuals, rounds)
    })?;
    machine.download_matrix(&first)
}

/// H_jj of every input group, [in_groups, gi, gi].
pub(super) struct Blocks {
    wide: Buffer<f64>,
    narrow: Buffer<f32>,
}

impl Blocks {
    pub(super) fn new(machine: &Machine, hessian: &Array2<f64>, gi: usize) -> Result<Self> {
        let wide = machine.upload(&diagonal_blocks(hessian, gi).concat(), "blocks of H")?;
        Ok(Self {
            narrow: machine.narrow(&wide)?,
            wide,
        })
    }

    /// `rounds` rounds: every group takes its nearest codeword in the metric of its input group, then every
    /// codeword moves to the minimum of its groups' objective.
    pub(super) fn refine(
        &self,
        machine: &Machine,
        clusters: &mut Clusters,
        residuals: &Residuals<'_>,
        rounds: usize,
    ) -> Result<()> {
        let form = residuals.form;
        let (go, gi, len) = (form.scheme.out_group_size, form.scheme.in_group_size, form.len());
        let inputs = form.in_groups;
        let metrics = Metrics {
            matrix: &self.narrow,
            first: 0,
            stride: gi,
            next: gi * gi,
            count: inputs,
            lower: false,
        };
        let mut unused = machine.zeros::<i32>(1, "whether codes changed")?;
        for _ in 0..rounds {
            let forms = machine.forms(&clusters.centroids, [go, gi], Some(metrics))?;
            let images = self.images(machine, residuals.groups, residuals)?;
            machine.nearest(
                &images,
                &clusters.centroids,
                &forms,
                &mut clusters.codes,
                (&mut unused, 0),
                Nearest {
                    len,
                    inputs,
                    states: form.states(),
                    keep: true,
                },
            )?;
            drop(images);
            let places = machine.places(&clusters.codes, form.groups(), form.states())?;
            let preconditioner =
                Preconditioner::of_places(machine, &self.wide, residuals.scales, &places, inputs, gi)?;
            // Solved for the change, so that even a metric made definite by a jitter gives a downhill step.
            let mut errors = residuals.groups.try_clone()?;
            machine.decode_onto(
                &Decoding {
                    rows: form.groups(),
                    width: len,
                    groups: form.groups(),
                    codebooks: 1,
                    states: form.states(),
                    group: [1, len],
                    subtract: true,
                    skipped: None,
                },
                &mut errors,
                &clusters.codes,
                &clusters.centroids,
            )?;
            let slopes = machine.scatter(
                &self.images(machine, &errors, residuals)?,
                Some(residuals.scales),
                &places,
                &Summed {
                    width: inputs * len,
                    inputs,
                    group: [1, len],
                    power: 2,
                    of_input: false,
                },
            )?;
            let change = preconditioner.apply(machine, &slopes)?;
            let mut centroids = machine.widen(&clusters.centroids)?;
            machine.combine(1.0, &change, 1.0, &mut centroids)?;
            clusters.centroids = machine.narrow(&centroids)?;
        }
        Ok(())
    }

    /// x H_jj for every group.
    fn images(
        &self,
        machine: &Machine,
        groups: &Buffer<f32>,
        residuals: &Residuals<'_>,
    ) -> Result<Buffer<f32>> {
        let images = machine.fresh(groups.len(), "groups' images")?;
        let scheme = residuals.form.scheme;
        machine.run(
            "layer_metric/k1_thread_a_number",
            &[],
            [groups.len().div_ceil(THREADS), 1, THREADS, 0],
            &[
                machine.address(groups),
                machine.address(&self.narrow),
                machine.address(&images),
            ],
            &[
                groups.len(),
                residuals.form.in_groups,
                scheme.out_group_size,
                scheme.in_group_size,
            ],
        )?;
        Ok(images)
    }
}
