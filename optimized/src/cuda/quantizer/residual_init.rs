use std::sync::Arc;

use aqlm_vocabulary::{LayerSettings, Purpose, QuantizedMatrix, StreamKey, sample_distinct};
use ndarray::Array2;

use super::codes::{Decoding, Form, Quantized};
use super::kmeans::Clusters;
use super::machine::{Machine, THREADS, further};
use crate::cuda::{Buffer, Device, Result};

/// Added to every scale, so that dividing a row of zeros by its scale gives zeros (the official engine's
/// value).
const TINY_SCALE: f64 = 1e-9;

/// Initial codes and codebooks of a layer by residual k-means, on the device; as
/// [`cpu::quantizer::residual_init`](crate::cpu::quantizer::residual_init).
///
/// # Errors
/// `NotDivisible` when the weight [out_features, in_features] cannot be cut into the scheme's groups.
pub fn residual_init(
    device: &Arc<Device>,
    weight: &Array2<f32>,
    settings: &LayerSettings,
    key: StreamKey,
) -> Result<QuantizedMatrix> {
    let machine = Machine::new(Arc::clone(device))?;
    let weight_on_device = machine.upload_rows(weight, "the weight")?;
    let first = machine.initialize(&weight_on_device, weight.dim(), settings, key, |_, _| Ok(()))?;
    machine.download_matrix(&first)
}

/// What a refinement of a codebook sees: all groups' residuals [out_groups, in_groups, go gi], and scales.
pub(super) struct Residuals<'a> {
    pub(super) form: Form,
    pub(super) groups: &'a Buffer<f32>,
    pub(super) scales: &'a Buffer<f64>,
}

impl Machine {
    /// Residual k-means that calls `refine` after each codebook, before the codebook is subtracted.
    pub(super) fn initialize(
        &self,
        weight: &Buffer<f32>,
        (rows, width): (usize, usize),
        settings: &LayerSettings,
        key: StreamKey,
        mut refine: impl FnMut(&mut Clusters, &Residuals<'_>) -> Result<()>,
    ) -> Result<Quantized> {
        let scheme = settings.scheme;
        let (out_groups, in_groups) = scheme.groups(rows, width)?;
        let form = Form {
            scheme,
            out_groups,
            in_groups,
        };
        let (groups, states, len) = (form.groups(), form.states(), form.len());
        let squares = self.part_products(weight, weight, rows * width / out_groups.max(1))?;
        let scales: Vec<f64> = squares.iter().map(|square| square.sqrt() + TINY_SCALE).collect();
        let scales = self.upload(&scales, "scales")?;
        let mut residual = self.normalised(weight, &form, &scales)?;
        let codes = self.fresh::<u16>(form.codebooks() * groups, "codes")?;
        let narrow = self.fresh::<f32>(form.codebooks() * states * len, "codebooks in f32")?;
        let mut rng = key.stream(Purpose::Initialization);
        let one = Decoding {
            rows: groups,
            width: len,
            groups,
            codebooks: 1,
            states,
            group: [1, len],
            subtract: true,
            skipped: None,
        };
        for m in 0..form.codebooks() {
            let sample = sample_distinct(&mut rng, groups, states);
            let start: Vec<u32> = sample
                .iter()
                .cycle()
                .take(states)
                .map(|&group| group as u32)
                .collect();
            let start = self.rows_of(&residual, len, &start)?;
            let mut clusters = self.cluster(&residual, len, start, settings.kmeans_iterations)?;
            refine(
                &mut clusters,
                &Residuals {
                    form,
                    groups: &residual,
                    scales: &scales,
                },
            )?;
            self.decode_onto(&one, &mut residual, &clusters.codes, &clusters.centroids)?;
            self.copy::<u16>(
                self.address(&clusters.codes),
                further::<u16>(self.address(&codes), m * groups),
                groups,
            )?;
            self.copy::<f32>(
                self.address(&clusters.centroids),
                further::<f32>(self.address(&narrow), m * states * len),
                states * len,
            )?;
        }
        Ok(Quantized {
            form,
            codes: codes.into(),
            codebooks: self.widen(&narrow)?.into(),
            scales: scales.into(),
        })
    }

    /// The weight over its scales, group after group: [out_groups, in_groups, go gi].
    pub(super) fn normalised(
        &self,
        weight: &Buffer<f32>,
        form: &Form,
        scales: &Buffer<f64>,
    ) -> Result<Buffer<f32>> {
        let groups = self.fresh(weight.len(), "groups over their scales")?;
        self.run(
            "layer_groups/k1_thread_a_weight",
            &[],
            [weight.len().div_ceil(THREADS), 1, THREADS, 0],
            &[self.address(weight), self.address(scales), self.address(&groups)],
            &[
                weight.len(),
                form.in_groups,
                form.scheme.out_group_size,
                form.scheme.in_group_size,
            ],
        )?;
        Ok(groups)
    }

    /// Some rows of a matrix of this width.
    pub(super) fn rows_of(&self, matrix: &Buffer<f32>, width: usize, rows: &[u32]) -> Result<Buffer<f32>> {
        let columns: Vec<u32> = (0..width as u32).collect();
        let columns = self.upload(&columns, "columns")?;
        let rows = self.upload(rows, "rows")?;
        self.permuted(matrix, Some(&rows), &columns)
    }
}
