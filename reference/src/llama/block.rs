use ndarray::{Array1, Array2, ArrayViewMut1, ArrayViewMut4};

use crate::decode;
use aqlm_vocabulary::{
    AqlmError, BlockSpec, BlockWeights, LayerId, Linear, LinearWeight, NormPlace, QuantizedMatrix, Result,
};

/// The weight of a linear layer in f64.
#[derive(Debug, Clone, PartialEq)]
#[allow(
    clippy::large_enum_variant,
    reason = "a few to a block: the size of the enum itself does not matter"
)]
pub enum ResidentWeight {
    /// [out_features, in_features]
    Dense(Array2<f64>),
    /// quantized, with its decoded form
    Quantized {
        /// codes, codebooks and scales
        matrix: QuantizedMatrix,
        /// the decoded matrix, [out_features, in_features]
        decoded: Array2<f64>,
    },
}

impl ResidentWeight {
    /// A quantized weight, which is decoded here.
    pub fn quantized(matrix: QuantizedMatrix) -> Self {
        let decoded = decode(&matrix);
        Self::Quantized { matrix, decoded }
    }

    /// The weight used in products, [out_features, in_features].
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

/// A transformer block in f64: the resident form of [`BlockWeights`].
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// the block's shape and arithmetic
    spec: BlockSpec,
    /// the weights of its RMSNorms, in the order of the spec
    pub norms: Vec<Array1<f64>>,
    /// in the order of the spec; private, so that no decoded form outlives its codebooks
    layers: Vec<ResidentLinear>,
}

impl Block {
    /// A block from parts in f64, with norms and layers in the order of the spec.
    ///
    /// # Errors
    /// Those of [`BlockSpec::check`]; `Shape` when the parts do not fit the spec.
    pub fn new(spec: &BlockSpec, norms: Vec<Array1<f64>>, layers: Vec<ResidentLinear>) -> Result<Self> {
        spec.check()?;
        let shapes: Vec<_> = layers.iter().map(|layer| layer.weight.decoded().dim()).collect();
        let widths: Vec<_> = norms.iter().map(Array1::len).collect();
        spec.check_shapes(&widths, &shapes)?;
        Ok(Self {
            spec: spec.clone(),
            norms,
            layers,
        })
    }

    /// The f64 form of stored weights; quantized layers are decoded.
    ///
    /// # Errors
    /// As [`Block::new`].
    pub fn from_weights(spec: &BlockSpec, weights: &BlockWeights) -> Result<Self> {
        let widened = |values: &Array1<f32>| values.mapv(f64::from);
        let resident = |layer: &Linear| {
            let weight = match &layer.weight {
                LinearWeight::Dense(weight) => ResidentWeight::Dense(weight.mapv(f64::from)),
                LinearWeight::Quantized(matrix) => ResidentWeight::quantized(matrix.clone()),
            };
            ResidentLinear {
                weight,
                bias: layer.bias.as_ref().map(widened),
            }
        };
        Self::new(
            spec,
            weights.norms.iter().map(widened).collect(),
            weights.layers.iter().map(resident).collect(),
        )
    }

    /// The form for storage: norms, biases and dense weights rounded to f32, which is exact for values that
    /// came from f32. Quantized layers are unchanged.
    pub fn to_weights(&self) -> BlockWeights {
        let narrowed = |values: &Array1<f64>| values.mapv(|value| value as f32);
        let stored = |layer: &ResidentLinear| {
            let weight = match &layer.weight {
                ResidentWeight::Dense(weight) => LinearWeight::Dense(weight.mapv(|value| value as f32)),
                ResidentWeight::Quantized { matrix, .. } => LinearWeight::Quantized(matrix.clone()),
            };
            Linear {
                weight,
                bias: layer.bias.as_ref().map(narrowed),
            }
        };
        BlockWeights {
            norms: self.norms.iter().map(narrowed).collect(),
            layers: self.layers.iter().map(stored).collect(),
        }
    }

    /// The block's shape and arithmetic.
    pub fn spec(&self) -> &BlockSpec {
        &self.spec
    }

    /// The weights of the norm at this place, `[width]`; `None` if the block has none there.
    pub fn norm(&self, place: NormPlace) -> Option<&Array1<f64>> {
        self.spec.norm(place).map(|(index, _)| &self.norms[index])
    }

    /// One linear layer.
    pub fn layer(&self, layer: LayerId) -> &ResidentLinear {
        &self.layers[layer.index()]
    }

    /// One layer's weight as used in products, [out_features, in_features].
    pub fn weight(&self, layer: LayerId) -> &Array2<f64> {
        self.layer(layer).weight.decoded()
    }

    /// One layer's codes, codebooks and scales; `None` for a dense layer.
    pub fn quantized(&self, layer: LayerId) -> Option<&QuantizedMatrix> {
        match &self.layer(layer).weight {
            ResidentWeight::Quantized { matrix, .. } => Some(matrix),
            ResidentWeight::Dense(_) => None,
        }
    }

    /// Replaces one layer's weight by a quantized one; the bias stays.
    ///
    /// # Errors
    /// `Shape` when the new weight has another shape than the old one.
    pub fn set_layer(&mut self, layer: LayerId, matrix: QuantizedMatrix) -> Result<()> {
        let expected = self.weight(layer).shape().to_vec();
        let found = vec![matrix.out_features(), matrix.in_features()];
        if expected != found {
            return Err(AqlmError::Shape {
                what: self.spec.linear(layer).name.clone(),
                expected,
                found,
            });
        }
        self.layers[layer.index()].weight = ResidentWeight::quantized(matrix);
        Ok(())
    }

    /// Changes one layer's codebooks and scales, and decodes it again; does nothing to a dense layer.
    pub(super) fn tune(
        &mut self,
        layer: LayerId,
        change: impl FnOnce(ArrayViewMut4<'_, f64>, ArrayViewMut1<'_, f64>),
    ) {
        if let ResidentWeight::Quantized { matrix, decoded } = &mut self.layers[layer.index()].weight {
            matrix.tune(change);
            *decoded = decode(matrix);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::test_data::{block, config, quantized, random};
    use aqlm_vocabulary::llama::{KEY, QUERY, UP};

    #[test]
    fn weights_round_trip() {
        let mut rng = random(1);
        let config = config(2, None);
        let mut stored = block(&mut rng, &config, true).to_weights();
        let (out, inputs) = config.shape(UP);
        stored.layer_mut(UP).weight = LinearWeight::Quantized(quantized(&mut rng, out, inputs));
        let resident = Block::from_weights(&config, &stored).unwrap();
        assert_eq!(resident.to_weights(), stored);
        assert!(resident.quantized(UP).is_some());
        assert!(resident.quantized(QUERY).is_none());
    }

    #[test]
    fn a_layer_of_another_shape_is_refused() {
        let mut rng = random(2);
        let config = config(2, None);
        let mut block = block(&mut rng, &config, true);
        let matrix = quantized(&mut rng, 16, 12);
        assert!(matches!(
            block.set_layer(KEY, matrix.clone()),
            Err(AqlmError::Shape { what, .. }) if what == "self_attn.k_proj"
        ));
        let bias = block.layer(QUERY).bias.clone();
        assert_eq!(block.set_layer(QUERY, matrix.clone()), Ok(()));
        assert_eq!(block.quantized(QUERY), Some(&matrix));
        assert_eq!(block.layer(QUERY).bias, bias);
    }
}
