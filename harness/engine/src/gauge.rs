//! The powers of two by which a block can be rescaled without changing its function.
//!
//! A norm's weight and the layers that read it, values and the output of attention, queries and keys, up and
//! down: in each pair, one may be multiplied by a power of two and the other divided, and every hidden state
//! keeps its bits. Checkpoints differ in these factors. The quantizer does not scale with them: Adam's steps
//! have an absolute length, scales have an absolute floor, and f16 has a range. So blocks are quantized,
//! tuned and rounded in one gauge, in which norms and rows have about unit size. They are stored in the gauge
//! of the source where f16 holds the rounded numbers exactly in it: any other rounding would make another
//! model of the blocks behind.

use aqlm_vocabulary::{
    AqlmError, ArchSpec, AttentionSpec, BlockSpec, BlockWeights, GatedMlp, LayerId, LinearWeight, Mlp,
    NEGLIGIBLE,
};
use ndarray::{Array2, Axis};

use aqlm_formats::model::Model;
use aqlm_formats::{Error, Result};

/// Smallest and largest norms of output groups' rows whose scales f16 can hold, with codebooks of a tenth
/// beside them and a power of two moved between the two. Training may move a scale by some factors of two.
const STORABLE: [f64; 2] = [1.0 / (1_u64 << 24) as f64, (1_u64 << 28) as f64];

/// The largest exponent of any factor, so that f32 holds every product.
const LARGEST: i32 = 60;

/// Exponents of the powers of two by which a block's parts are multiplied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gauge {
    /// of the norms, in the order of the block's spec
    norms: Vec<i32>,
    /// of each layer's weight
    weights: Vec<i32>,
    /// of each layer's output, and so of its bias
    outputs: Vec<i32>,
}

impl Gauge {
    /// Everything stays as it is.
    fn identity(spec: &BlockSpec) -> Self {
        Self {
            norms: vec![0; spec.norms.len()],
            weights: vec![0; spec.linears.len()],
            outputs: vec![0; spec.linears.len()],
        }
    }

    /// The way from the gauge of these weights to that of the quantizer, in which
    /// - the largest weight of each norm,
    /// - the largest norm of a row of attention's output and of up,
    /// - the ratio of the largest rows of queries and keys
    ///
    /// are as near to 1 as powers of two allow. Weights that differ from these only by their gauge get the
    /// same numbers. A block that is not plain, or that is quantized already, keeps its gauge.
    pub(crate) fn of(spec: &BlockSpec, weights: &BlockWeights) -> Self {
        let mut gauge = Self::identity(spec);
        let Mlp::Dense(GatedMlp { gate, up, down, .. }) = spec.mlp else {
            return gauge;
        };
        if spec.require_plain().is_err() {
            return gauge;
        }
        let mut largest = Vec::with_capacity(weights.layers.len());
        for layer in &weights.layers {
            let LinearWeight::Dense(weight) = &layer.weight else {
                return gauge;
            };
            largest.push(row_norms(weight, 1).into_iter().fold(0.0, f64::max));
        }
        let AttentionSpec {
            query,
            key,
            value,
            output,
            ..
        } = spec.attention;
        let largest = |layer: LayerId| largest[layer.index()];
        let norm = |norm: &ndarray::Array1<f32>| {
            nearest_exponent(
                norm.iter()
                    .fold(0.0, |most: f64, &w| most.max(f64::from(w).abs())),
            )
        };
        let attention = norm(&weights.norms[0]);
        let mlp = norm(&weights.norms[1]);
        // the product of queries and keys keeps its size: the ratio changes by powers of 4
        let heads = (exponent(largest(query) / largest(key)) + 1).div_euclid(2);
        let mixed = nearest_exponent(largest(output));
        let inner = nearest_exponent(largest(up));
        gauge.norms = vec![-attention, -mlp];
        // each with the factor of its input and that of its output
        let factors = [
            (query, -attention, -heads),
            (key, -attention, heads),
            (value, -attention, mixed),
            (output, mixed, 0),
            (gate, -mlp, 0),
            (up, -mlp, -inner - mlp),
            (down, -inner - mlp, 0),
        ];
        for (layer, input, output) in factors {
            gauge.weights[layer.index()] = output - input;
            gauge.outputs[layer.index()] = output;
        }
        let fits = |exponent: &i32| (-LARGEST..=LARGEST).contains(exponent);
        if gauge.norms.iter().chain(&gauge.weights).all(fits) {
            gauge
        } else {
            Self::identity(spec)
        }
    }

    /// The way back.
    fn inverse(&self) -> Self {
        let negative =
            |exponents: &[i32]| -> Vec<i32> { exponents.iter().map(|exponent| -exponent).collect() };
        Self {
            norms: negative(&self.norms),
            weights: negative(&self.weights),
            outputs: negative(&self.outputs),
        }
    }

    /// The weights in the new gauge.
    ///
    /// # Errors
    /// `NotFinite` when a scale leaves the range of its type.
    pub(crate) fn apply(&self, mut weights: BlockWeights) -> Result<BlockWeights> {
        let factor = |exponent: i32| f64::powi(2.0, exponent);
        let times = |exponent: i32| move |value: f32| (f64::from(value) * factor(exponent)) as f32;
        for (norm, &exponent) in weights.norms.iter_mut().zip(&self.norms) {
            norm.mapv_inplace(times(exponent));
        }
        for ((layer, &exponent), &output) in weights.layers.iter_mut().zip(&self.weights).zip(&self.outputs) {
            match &mut layer.weight {
                LinearWeight::Dense(weight) if exponent != 0 => weight.mapv_inplace(times(exponent)),
                LinearWeight::Dense(_) => {}
                LinearWeight::Quantized(matrix) => {
                    *matrix = matrix.clone().times_power_of_two(exponent)?;
                }
            }
            if let Some(bias) = &mut layer.bias {
                bias.mapv_inplace(times(output));
            }
        }
        Ok(weights)
    }

    /// A rounded block of `model` in the gauge that this one came from; `None` if rounding there would change
    /// it.
    ///
    /// # Errors
    /// `NotFinite` when a scale leaves the range of its type.
    pub(crate) fn undo(
        &self,
        model: &Model,
        block: usize,
        rounded: &BlockWeights,
    ) -> Result<Option<BlockWeights>> {
        let mut moved = self.inverse().apply(rounded.clone())?;
        for layer in &mut moved.layers {
            if let LinearWeight::Quantized(matrix) = &mut layer.weight {
                let Some(exact) = matrix.exact_in_f16() else {
                    return Ok(None);
                };
                *matrix = exact;
            }
        }
        let stored = model.rounded_for_storage(block, moved.clone())?;
        Ok((stored == moved).then_some(stored))
    }
}

/// Rejects a block with a row, other than one of zeros, whose scale f16 cannot hold beside the layer's
/// others.
///
/// # Errors
/// `Layer` naming the row.
pub(crate) fn storable(
    arch: &ArchSpec,
    block: usize,
    weights: &BlockWeights,
    out_group_size: usize,
) -> Result<()> {
    for layer in arch.blocks[block].quantizable() {
        let LinearWeight::Dense(weight) = &weights.layer(layer).weight else {
            continue;
        };
        let norms = row_norms(weight, out_group_size);
        let largest = norms.iter().copied().fold(0.0, f64::max);
        let least = (NEGLIGIBLE * largest).max(STORABLE[0]);
        let held = |norm: f64| norm == 0.0 || (least..=STORABLE[1]).contains(&norm);
        if let Some(group) = norms.iter().position(|&norm| !held(norm)) {
            return Err(Error::Layer {
                layer: arch.layer_name(block, layer),
                source: AqlmError::argument(
                    format!("row {}", group * out_group_size),
                    format!(
                        "zeros or a norm in {least:.2e}..{:.2e}, as f16 has to hold its scale beside the layer's \
                         largest, {largest:.2e}",
                        STORABLE[1]
                    ),
                    format!("{:.2e}", norms[group]),
                ),
            });
        }
    }
    Ok(())
}

/// The norm of each group of `rows` rows.
fn row_norms(weight: &Array2<f32>, rows: usize) -> Vec<f64> {
    let norm = |group: ndarray::ArrayView2<'_, f32>| {
        group
            .iter()
            .map(|&w| f64::from(w) * f64::from(w))
            .sum::<f64>()
            .sqrt()
    };
    weight.axis_chunks_iter(Axis(0), rows).map(norm).collect()
}

/// floor(log2 x); 0 for anything but positive numbers.
fn exponent(x: f64) -> i32 {
    if !(x.is_normal() && x > 0.0) {
        return 0;
    }
    // the bits of the exponent, so that powers of two add to the result exactly
    (x.to_bits() >> 52) as i32 - 1023
}

/// The power of two nearest to x in ratio, as its exponent; 0 for anything but positive numbers.
fn nearest_exponent(x: f64) -> i32 {
    exponent(x * std::f64::consts::SQRT_2)
}
