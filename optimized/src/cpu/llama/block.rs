use std::sync::OnceLock;

use aqlm_vocabulary::{
    AqlmError, BlockSpec, BlockWeights, LayerId, Linear, LinearWeight, QuantizedMatrix, Result,
};
use ndarray::{Array1, Array2, ArrayViewMut1, ArrayViewMut4};

use crate::cpu::PackedMatrix;
use crate::cpu::quantizer::{decode, decode_into};

/// The weight of a linear layer in this backend's form.
#[derive(Debug, Clone)]
#[expect(
    clippy::large_enum_variant,
    reason = "a few a block: the box would cost more than it saves"
)]
pub enum Weight {
    /// [out_features, in_features]
    Dense(Array2<f32>),
    /// additively quantized
    Quantized(QuantizedLayer),
}

/// A quantized weight. Its dense form, for products with many rows, and its packed form, for products with
/// one row, are made on first use.
#[derive(Debug, Clone)]
pub struct QuantizedLayer {
    /// private, so that no decoded form outlives its codebooks
    matrix: QuantizedMatrix,
    decoded: OnceLock<Array2<f32>>,
    packed: OnceLock<PackedMatrix>,
}

impl QuantizedLayer {
    /// A layer that is not decoded yet.
    pub fn new(matrix: QuantizedMatrix) -> Self {
        Self {
            matrix,
            decoded: OnceLock::new(),
            packed: OnceLock::new(),
        }
    }

    /// Codes, codebooks and scales.
    pub fn matrix(&self) -> &QuantizedMatrix {
        &self.matrix
    }

    /// The decoded weight, [out_features, in_features].
    pub fn decoded(&self) -> &Array2<f32> {
        self.decoded.get_or_init(|| decode(&self.matrix))
    }

    /// The layout for products with one row, by the measured choice for its scheme.
    ///
    /// # Errors
    /// `NotFinite` when a codebook entry or scale is beyond the range of its storage.
    pub fn packed(&self) -> Result<&PackedMatrix> {
        if let Some(packed) = self.packed.get() {
            return Ok(packed);
        }
        let packed = PackedMatrix::with_best_plan(&self.matrix)?;
        Ok(self.packed.get_or_init(|| packed))
    }

    /// Drops the decoded and the packed form; the next use makes them again.
    pub(super) fn release(&mut self) {
        self.decoded = OnceLock::new();
        self.packed = OnceLock::new();
    }

    /// Changes codebooks and scales, and decodes again in place.
    pub(super) fn tune(&mut self, change: impl FnOnce(ArrayViewMut4<'_, f64>, ArrayViewMut1<'_, f64>)) {
        self.matrix.tune(change);
        self.packed = OnceLock::new();
        if let Some(mut decoded) = self.decoded.take() {
            decode_into(&self.matrix, &mut decoded);
            self.decoded = OnceLock::from(decoded);
        }
    }
}

/// A linear layer: y = x W^T + b.
#[derive(Debug, Clone)]
pub struct Layer {
    /// [out_features, in_features]
    pub weight: Weight,
    /// `[out_features]`
    pub bias: Option<Array1<f32>>,
}

/// A resident transformer block, the form of [`BlockWeights`] for computation.
#[derive(Debug, Clone)]
pub struct Block {
    /// what it computes
    spec: BlockSpec,
    /// the weights of its RMSNorms, in the order of the spec, standard layout
    pub norms: Vec<Array1<f32>>,
    /// in the order of the spec
    layers: Vec<Layer>,
}

impl Block {
    /// The resident form of stored weights.
    ///
    /// # Errors
    /// Those of [`BlockSpec::check`]; `Shape` when the weights do not match the spec.
    pub fn from_weights(spec: &BlockSpec, weights: &BlockWeights) -> Result<Self> {
        spec.check()?;
        spec.check_weights(weights)?;
        let standard = |values: &Array1<f32>| values.as_standard_layout().into_owned();
        let resident = |layer: &Linear| {
            let weight = match &layer.weight {
                LinearWeight::Dense(weight) => Weight::Dense(weight.as_standard_layout().into_owned()),
                LinearWeight::Quantized(matrix) => Weight::Quantized(QuantizedLayer::new(matrix.clone())),
            };
            Layer {
                weight,
                bias: layer.bias.clone(),
            }
        };
        Ok(Self {
            spec: spec.clone(),
            norms: weights.norms.iter().map(standard).collect(),
            layers: weights.layers.iter().map(resident).collect(),
        })
    }

    /// The form for transfer and storage.
    pub fn to_weights(&self) -> BlockWeights {
        let stored = |layer: &Layer| {
            let weight = match &layer.weight {
                Weight::Dense(weight) => LinearWeight::Dense(weight.clone()),
                Weight::Quantized(quantized) => LinearWeight::Quantized(quantized.matrix.clone()),
            };
            Linear {
                weight,
                bias: layer.bias.clone(),
            }
        };
        BlockWeights {
            norms: self.norms.clone(),
            layers: self.layers.iter().map(stored).collect(),
        }
    }

    /// What the block computes.
    pub fn spec(&self) -> &BlockSpec {
        &self.spec
    }

    /// One linear layer.
    pub fn layer(&self, layer: LayerId) -> &Layer {
        &self.layers[layer.index()]
    }

    /// One layer's weight in the form for products, [out_features, in_features]; the first call decodes it.
    pub fn weight(&self, layer: LayerId) -> &Array2<f32> {
        match &self.layer(layer).weight {
            Weight::Dense(weight) => weight,
            Weight::Quantized(quantized) => quantized.decoded(),
        }
    }

    /// One layer's quantized form; `None` for a dense layer.
    pub fn quantized(&self, layer: LayerId) -> Option<&QuantizedLayer> {
        match &self.layer(layer).weight {
            Weight::Quantized(quantized) => Some(quantized),
            Weight::Dense(_) => None,
        }
    }

    /// Drops the decoded and the packed forms of all quantized layers.
    pub(super) fn release(&mut self) {
        for layer in &mut self.layers {
            if let Weight::Quantized(quantized) = &mut layer.weight {
                quantized.release();
            }
        }
    }

    /// [`Block::quantized`], mutable.
    pub(super) fn quantized_mut(&mut self, layer: LayerId) -> Option<&mut QuantizedLayer> {
        match &mut self.layers[layer.index()].weight {
            Weight::Quantized(quantized) => Some(quantized),
            Weight::Dense(_) => None,
        }
    }

    /// Replaces one layer's weight by a quantized one and keeps the bias.
    ///
    /// # Errors
    /// `Shape` when the new weight's shape differs from the old one's.
    pub fn set_layer(&mut self, layer: LayerId, matrix: QuantizedMatrix) -> Result<()> {
        let expected = match &self.layer(layer).weight {
            Weight::Dense(weight) => weight.dim(),
            Weight::Quantized(quantized) => (quantized.matrix.out_features(), quantized.matrix.in_features()),
        };
        let found = (matrix.out_features(), matrix.in_features());
        if expected != found {
            return Err(AqlmError::Shape {
                what: self.spec.linear(layer).name.clone(),
                expected: vec![expected.0, expected.1],
                found: vec![found.0, found.1],
            });
        }
        self.layers[layer.index()].weight = Weight::Quantized(QuantizedLayer::new(matrix));
        Ok(())
    }
}
