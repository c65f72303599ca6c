use ndarray::{Array1, Array2, ArrayViewMut1, ArrayViewMut4};

use crate::decode;
use aqlm_vocabulary::{AqlmError, BlockWeights, LayerKind, Linear, LinearWeight, QuantizedMatrix, Result};

/// The weight of a linear layer in f64.
#[derive(Debug, Clone, PartialEq)]
#[allow(
    clippy::large_enum_variant,
    reason = "seven to a block: the size of the enum itself does not matter"
)]
pub enum ResidentWeight {
    /// [out_features, in_features]
    Dense(Array2<f64>),
    /// quantized, beside its decoded form
    Quantized {
        /// codes, codebooks and scales
        matrix: QuantizedMatrix,
        /// what they decode to, [out_features, in_features]
        decoded: Array2<f64>,
    },
}

impl ResidentWeight {
    /// Quantized weight, decoded here.
    pub fn quantized(matrix: QuantizedMatrix) -> Self {
        let decoded = decode(&matrix);
        Self::Quantized { matrix, decoded }
    }

    /// The weight that products use, [out_features, in_features].
    pub fn decoded(&self) -> &Array2<f64> {
        match self {
            Self::Dense(weight) => weight,
            Self::Quantized { decoded, .. } => decoded,
        }
    }
}

/// A linear layer in f64: y = x W^T + b.
#[derive(Debug, Clone, PartialEq)]
pub struct ResidentLinear {
    /// [out_features, in_features]
    pub weight: ResidentWeight,
    /// `[out_features]`
    pub bias: Option<Array1<f64>>,
}

/// A transformer block in f64: what [`BlockWeights`] become when they are computed with.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// RMSNorm before attention, `[hidden]`
    pub input_layernorm: Array1<f64>,
    /// RMSNorm before the MLP, `[hidden]`
    pub post_attention_layernorm: Array1<f64>,
    /// in the order of [`LayerKind::ALL`]; private, so that no decoded form outlives its codebooks
    layers: [ResidentLinear; 7],
}

impl Block {
    /// A block of parts that are in f64 already, the layers in the order of [`LayerKind::ALL`].
    pub fn new(
        input_layernorm: Array1<f64>,
        post_attention_layernorm: Array1<f64>,
        layers: [ResidentLinear; 7],
    ) -> Self {
        Self {
            input_layernorm,
            post_attention_layernorm,
            layers,
        }
    }

    /// The f64 form of stored weights; quantized layers are decoded.
    pub fn from_weights(weights: &BlockWeights) -> Self {
        let widened = |values: &Array1<f32>| values.mapv(f64::from);
        let layers = LayerKind::ALL.map(|kind| {
            let layer = weights.layer(kind);
            let weight = match &layer.weight {
                LinearWeight::Dense(weight) => ResidentWeight::Dense(weight.mapv(f64::from)),
                LinearWeight::Quantized(matrix) => ResidentWeight::quantized(matrix.clone()),
            };
            ResidentLinear {
                weight,
                bias: layer.bias.as_ref().map(widened),
            }
        });
        Self::new(
            widened(&weights.input_layernorm),
            widened(&weights.post_attention_layernorm),
            layers,
        )
    }

    /// The form that travels and is stored: norms, biases and dense weights rounded to f32, which loses
    /// nothing that came from there; quantized layers as they are.
    pub fn to_weights(&self) -> BlockWeights {
        let narrowed = |values: &Array1<f64>| values.mapv(|value| value as f32);
        BlockWeights {
            input_layernorm: narrowed(&self.input_layernorm),
            post_attention_layernorm: narrowed(&self.post_attention_layernorm),
            layers: LayerKind::ALL.map(|kind| {
                let layer = self.layer(kind);
                let weight = match &layer.weight {
                    ResidentWeight::Dense(weight) => LinearWeight::Dense(weight.mapv(|value| value as f32)),
                    ResidentWeight::Quantized { matrix, .. } => LinearWeight::Quantized(matrix.clone()),
                };
                Linear {
                    weight,
                    bias: layer.bias.as_ref().map(narrowed),
                }
            }),
        }
    }

    /// One linear layer.
    pub fn layer(&self, kind: LayerKind) -> &ResidentLinear {
        &self.layers[kind as usize]
    }

    /// One layer's weight as products use it, [out_features, in_features].
    pub fn weight(&self, kind: LayerKind) -> &Array2<f64> {
        self.layer(kind).weight.decoded()
    }

    /// One layer's codes, codebooks and scales; `None` for a dense layer.
    pub fn quantized(&self, kind: LayerKind) -> Option<&QuantizedMatrix> {
        match &self.layer(kind).weight {
            ResidentWeight::Quantized { matrix, .. } => Some(matrix),
            ResidentWeight::Dense(_) => None,
        }
    }

    /// Replaces one layer's weight by a quantized one; the bias stays.
    ///
    /// # Errors
    /// `Shape` when the new weight has another shape than the old one.
    pub fn set_layer(&mut self, kind: LayerKind, matrix: QuantizedMatrix) -> Result<()> {
        let expected = self.weight(kind).shape().to_vec();
        let found = vec![matrix.out_features(), matrix.in_features()];
        if expected != found {
            return Err(AqlmError::Shape {
                what: kind.path().into(),
                expected,
                found,
            });
        }
        self.layers[kind as usize].weight = ResidentWeight::quantized(matrix);
        Ok(())
    }

    /// Changes one layer's codebooks and scales, and decodes it again; does nothing to a dense layer.
    pub(super) fn tune(
        &mut self,
        kind: LayerKind,
        change: impl FnOnce(ArrayViewMut4<'_, f64>, ArrayViewMut1<'_, f64>),
    ) {
        if let ResidentWeight::Quantized { matrix, decoded } = &mut self.layers[kind as usize].weight {
            matrix.tune(change);
            *decoded = decode(matrix);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::test_data::{block, config, quantized, random};

    #[test]
    fn weights_round_trip() {
        let mut rng = random(1);
        let config = config(2, None);
        let mut stored = block(&mut rng, &config, true).to_weights();
        let (out, inputs) = config.layer_shape(LayerKind::UpProj);
        stored.layer_mut(LayerKind::UpProj).weight =
            LinearWeight::Quantized(quantized(&mut rng, out, inputs));
        let resident = Block::from_weights(&stored);
        assert_eq!(resident.to_weights(), stored);
        assert!(resident.quantized(LayerKind::UpProj).is_some());
        assert!(resident.quantized(LayerKind::QProj).is_none());
    }

    #[test]
    fn a_layer_of_another_shape_is_refused() {
        let mut rng = random(2);
        let config = config(2, None);
        let mut block = block(&mut rng, &config, true);
        let matrix = quantized(&mut rng, 16, 12);
        assert!(matches!(
            block.set_layer(LayerKind::KProj, matrix.clone()),
            Err(AqlmError::Shape { what, .. }) if what == "self_attn.k_proj"
        ));
        let bias = block.layer(LayerKind::QProj).bias.clone();
        assert_eq!(block.set_layer(LayerKind::QProj, matrix.clone()), Ok(()));
        assert_eq!(block.quantized(LayerKind::QProj), Some(&matrix));
        assert_eq!(block.layer(LayerKind::QProj).bias, bias);
    }
}
