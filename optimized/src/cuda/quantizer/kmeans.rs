use std::sync::Arc;

use super::codes::Summed;
use super::machine::{Machine, THREADS};
use crate::cpu::quantizer::KMeans;
use crate::cuda::{Buffer, Device, Result};

/// Iterations between convergence tests, as in the official engine.
const CHECK_EVERY: usize = 10;

/// Points of one block of the kernel, by the length of a point.
fn points_of_block(len: usize) -> usize {
    128 * match len {
        0..=8 => 4,
        9..=16 => 2,
        _ => 1,
    }
}

/// Clusters on the device.
pub(super) struct Clusters {
    /// [k, len]
    pub(super) centroids: Buffer<f32>,
    /// `[n]`
    pub(super) codes: Buffer<u16>,
}

/// Lloyd's k-means on `points` [n, len] from the centroids `init` [k, len], on the device; as
/// [`cpu::quantizer::kmeans`](crate::cpu::quantizer::kmeans).
///
/// # Errors
/// `Driver`, `Compile`.
///
/// # Panics
/// With more than 2^16 centroids.
pub fn kmeans(
    device: &Arc<Device>,
    points: &[f32],
    len: usize,
    init: &[f32],
    max_iterations: usize,
) -> Result<KMeans> {
    assert!(init.len() / len <= 1 << 16, "codes have 16 bits");
    let machine = Machine::new(Arc::clone(device))?;
    let on_device = machine.upload(points, "points")?;
    let init = machine.upload(init, "centroids")?;
    let clusters = machine.cluster(&on_device, len, init, max_iterations)?;
    let (centroids, codes) = (
        machine.download(&clusters.centroids)?,
        machine.download(&clusters.codes)?,
    );
    let distances = points.chunks_exact(len).zip(&codes).map(|(point, &code)| {
        let centroid = &centroids[usize::from(code) * len..][..len];
        let squares = point
            .iter()
            .zip(centroid)
            .map(|(x, c)| (f64::from(*x) - f64::from(*c)).powi(2));
        squares.sum::<f64>()
    });
    let inertia = distances.sum::<f64>() / codes.len().max(1) as f64;
    Ok(KMeans {
        centroids,
        assignments: codes.into_iter().map(u32::from).collect(),
        inertia,
    })
}

impl Machine {
    pub(super) fn cluster(
        &self,
        points: &Buffer<f32>,
        len: usize,
        mut centroids: Buffer<f32>,
        max_iterations: usize,
    ) -> Result<Clusters> {
        let (count, states) = (points.len() / len, centroids.len() / len);
        let mut codes = self.zeros::<u16>(count, "assignments")?;
        // Whether an assignment changed, whether a centroid moved: since the last look.
        let mut moved = self.zeros::<i32>(2, "whether clusters moved")?;
        self.assign(points, len, &centroids, &mut codes, &mut moved)?;
        let summed = Summed {
            width: len,
            inputs: 1,
            group: [1, len],
            power: 0,
            of_input: false,
        };
        for iteration in 1..=max_iterations {
            let look = iteration % CHECK_EVERY == 0;
            if look {
                moved = self.zeros(2, "whether clusters moved")?;
            }
            let places = self.places(&codes, count, states)?;
            let sums = self.scatter(points, None, &places, &summed)?;
            self.move_to_means(&sums, &places, &mut centroids, 0, &mut moved)?;
            let before = if look { self.download(&moved)?[0] } else { 1 };
            self.assign(points, len, &centroids, &mut codes, &mut moved)?;
            if look && (before == 0 || self.download(&moved)?[1] == 0) {
                break;
            }
        }
        Ok(Clusters { centroids, codes })
    }

    /// The nearest centroid of every point; the second of `changed` becomes 1 if one changes.
    fn assign(
        &self,
        points: &Buffer<f32>,
        len: usize,
        centroids: &Buffer<f32>,
        codes: &mut Buffer<u16>,
        changed: &mut Buffer<i32>,
    ) -> Result<()> {
        let states = centroids.len() / len;
        let forms = self.forms(centroids, [1, len], None)?;
        self.nearest(
            points,
            centroids,
            &forms,
            codes,
            (changed, 1),
            Nearest {
                len,
                inputs: 1,
                states,
                keep: false,
            },
        )
    }

    /// Squared lengths of codewords [2^B, go gi] under the metric of each input group: [input groups, 2^B].
    pub(super) fn forms(
        &self,
        codewords: &Buffer<f32>,
        [go, gi]: [usize; 2],
        metrics: Option<Metrics<'_>>,
    ) -> Result<Buffer<f32>> {
        let states = codewords.len() / (go * gi);
        let count = metrics.as_ref().map_or(1, |metrics| metrics.count);
        let forms = self.fresh::<f32>(count * states, "squared lengths of codewords")?;
        self.forms_into(
            self.address(codewords),
            states,
            [go, gi],
            metrics,
            self.address(&forms),
            1,
        )?;
        Ok(forms)
    }

    /// [`Machine::forms`] of the codewords at an address; the forms of consecutive input groups lie `apart`
    /// codebooks apart.
    pub(super) fn forms_into(
        &self,
        codewords: cudarc::driver::sys::CUdeviceptr,
        states: usize,
        [go, gi]: [usize; 2],
        metrics: Option<Metrics<'_>>,
        to: cudarc::driver::sys::CUdeviceptr,
        apart: usize,
    ) -> Result<()> {
        let (kind, at, stride, next, count) = match metrics {
            None => (0, 0, 0, 0, 1),
            Some(metrics) => (
                if metrics.lower { 2 } else { 1 },
                super::machine::further::<f32>(self.address(metrics.matrix), metrics.first),
                metrics.stride,
                metrics.next,
                metrics.count,
            ),
        };
        self.run(
            "layer_forms/k1_thread_a_codeword",
            &[("AQLM_METRIC", kind)],
            [states.div_ceil(THREADS), count, THREADS, 0],
            &[codewords, at, to],
            &[states, go, gi, stride, next, apart],
        )
    }

    /// For every point the codeword of the least form - 2 <x, c>.
    pub(super) fn nearest(
        &self,
        points: &Buffer<f32>,
        codewords: &Buffer<f32>,
        forms: &Buffer<f32>,
        codes: &mut Buffer<u16>,
        (changed, at): (&mut Buffer<i32>, usize),
        nearest: Nearest,
    ) -> Result<()> {
        let len = nearest.len;
        let rows = codes.len() / nearest.inputs;
        self.run(
            "layer_score/k1_tiles",
            &[("AQLM_LEN", len)],
            [
                rows.div_ceil(points_of_block(len)),
                nearest.inputs,
                128,
                128 * (len + 1) * 4,
            ],
            &[
                self.address(points),
                self.address(codewords),
                self.address(forms),
                self.address(codes),
                super::machine::further::<i32>(self.address(changed), at),
            ],
            &[rows, nearest.inputs, nearest.states, usize::from(nearest.keep)],
        )
    }
}

/// Metrics of input groups: blocks of a matrix.
#[derive(Clone, Copy)]
pub(super) struct Metrics<'a> {
    pub(super) matrix: &'a Buffer<f32>,
    /// the first block's first number
    pub(super) first: usize,
    /// numbers from row to row, and from block to block
    pub(super) stride: usize,
    pub(super) next: usize,
    pub(super) count: usize,
    /// lower triangular: the metric is L L^T
    pub(super) lower: bool,
}

/// An assignment of points [rows, input groups, len].
#[derive(Debug, Clone, Copy)]
pub(super) struct Nearest {
    pub(super) len: usize,
    pub(super) inputs: usize,
    pub(super) states: usize,
    /// keep a point's codeword unless another is strictly nearer
    pub(super) keep: bool,
}
