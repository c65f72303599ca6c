use std::sync::Arc;

use aqlm_vocabulary::{
    AqlmError, BlockSpec, BlockWeights, LayerId, Linear, LinearWeight, NormPlace, NormSpec, QuantizedMatrix,
};
use ndarray::{Array1, Array2};

use super::super::{Buffer, Result};
use super::machine::Machine;
use super::quantized::Quantized;

#[derive(Clone)]
enum Weight {
    /// [out_features, in_features]
    Dense(Arc<Buffer<f32>>),
    Quantized(Quantized),
}

#[derive(Clone)]
struct Layer {
    weight: Weight,
    /// `[out_features]`
    bias: Option<Arc<Buffer<f32>>>,
}

/// A norm of a block.
pub(super) struct Norm<'a> {
    /// in the block's list
    pub(super) index: usize,
    pub(super) spec: NormSpec,
    pub(super) weight: &'a Buffer<f32>,
}

/// A transformer block on the device. Copies share what does not change.
#[derive(Clone)]
pub struct Block {
    pub(super) spec: Arc<BlockSpec>,
    /// their weights, in the order of the spec
    norms: Vec<Arc<Buffer<f32>>>,
    /// in the order of the spec
    layers: Vec<Layer>,
}

impl Block {
    /// Copies a block to the device.
    ///
    /// # Errors
    /// `Aqlm` with `Argument` when the spec's parts do not fit together, with `Shape` when the weights do not
    /// match the spec; `Memory`, `Driver`.
    pub fn new(machine: &Machine, spec: &BlockSpec, weights: &BlockWeights) -> Result<Self> {
        spec.check()?;
        spec.check_weights(weights)?;
        let vector = |values: &Array1<f32>, name: &str| -> Result<_> {
            Ok(Arc::new(machine.upload(&values.to_vec(), name)?))
        };
        let layer = |layer: &Linear| -> Result<Layer> {
            Ok(Layer {
                weight: match &layer.weight {
                    LinearWeight::Dense(weight) => {
                        let weight = weight.as_standard_layout();
                        let values = weight.as_slice().unwrap_or_default();
                        Weight::Dense(Arc::new(machine.upload(values, "a weight")?))
                    }
                    LinearWeight::Quantized(matrix) => Weight::Quantized(Quantized::new(machine, matrix)?),
                },
                bias: layer
                    .bias
                    .as_ref()
                    .map(|bias| vector(bias, "a bias"))
                    .transpose()?,
            })
        };
        Ok(Self {
            spec: Arc::new(spec.clone()),
            norms: (weights.norms.iter())
                .map(|norm| vector(norm, "a norm"))
                .collect::<Result<_>>()?,
            layers: weights.layers.iter().map(layer).collect::<Result<_>>()?,
        })
    }

    /// The block's parameters, back on the host.
    ///
    /// # Errors
    /// `Driver`.
    pub fn to_weights(&self, machine: &Machine) -> Result<BlockWeights> {
        let device = machine.device();
        let vector = |values: &Buffer<f32>| -> Result<_> { Ok(Array1::from(device.download(values)?)) };
        let layer = |id: LayerId| -> Result<Linear> {
            let layer = &self.layers[id.index()];
            Ok(Linear {
                weight: match &layer.weight {
                    Weight::Dense(weight) => {
                        let found = device.download(&**weight)?;
                        LinearWeight::Dense(matrix(self.spec.shape(id), found)?)
                    }
                    Weight::Quantized(quantized) => LinearWeight::Quantized(quantized.matrix(machine)?),
                },
                bias: layer.bias.as_deref().map(vector).transpose()?,
            })
        };
        Ok(BlockWeights {
            norms: (self.norms.iter())
                .map(|norm| vector(norm))
                .collect::<Result<_>>()?,
            layers: self.spec.layers().map(layer).collect::<Result<_>>()?,
        })
    }

    /// What the block computes.
    pub fn spec(&self) -> &BlockSpec {
        &self.spec
    }

    /// Replaces one layer's weight by a quantized one and keeps the bias.
    ///
    /// # Errors
    /// `Aqlm` with `Shape` when the new weight's shape differs from the old one's; `Memory`, `Driver`.
    pub fn set_layer(&mut self, machine: &Machine, layer: LayerId, matrix: &QuantizedMatrix) -> Result<()> {
        let expected = self.spec.shape(layer);
        let found = (matrix.out_features(), matrix.in_features());
        if expected != found {
            return Err(AqlmError::Shape {
                what: self.spec.linear(layer).name.clone(),
                expected: vec![expected.0, expected.1],
                found: vec![found.0, found.1],
            }
            .into());
        }
        self.layers[layer.index()].weight = Weight::Quantized(Quantized::new(machine, matrix)?);
        Ok(())
    }

    /// One layer's weight in f32, on the host, [out_features, in_features].
    ///
    /// # Errors
    /// `Driver`.
    pub fn weight_on_host(&self, machine: &Machine, layer: LayerId) -> Result<Array2<f32>> {
        let weight = self.weight(machine, layer)?;
        matrix(self.spec.shape(layer), machine.device().download(&*weight)?)
    }

    /// One layer's weight in f32; a quantized one is decoded anew.
    pub(super) fn weight(&self, machine: &Machine, layer: LayerId) -> Result<Arc<Buffer<f32>>> {
        match &self.layers[layer.index()].weight {
            Weight::Dense(weight) => Ok(Arc::clone(weight)),
            Weight::Quantized(quantized) => Ok(Arc::new(quantized.decoded(machine)?)),
        }
    }

    /// All weights in f32, in the order of the spec.
    ///
    /// # Errors
    /// `Memory`, `Driver`.
    pub fn decoded(&self, machine: &Machine) -> Result<Decoded> {
        let weights = self.spec.layers().map(|layer| self.weight(machine, layer));
        Ok(Decoded {
            weights: weights.collect::<Result<_>>()?,
        })
    }

    /// The norm at this place; `None` if the block has none there.
    pub(super) fn norm(&self, place: NormPlace) -> Option<Norm<'_>> {
        let (index, norm) = self.spec.norm(place)?;
        Some(Norm {
            index,
            spec: norm.norm,
            weight: &self.norms[index],
        })
    }

    /// Replaces the weight of the norm at this place, where there is one.
    pub(super) fn set_norm(&mut self, place: NormPlace, weight: Buffer<f32>) {
        if let Some((index, _)) = self.spec.norm(place) {
            self.norms[index] = Arc::new(weight);
        }
    }

    pub(super) fn bias(&self, layer: LayerId) -> Option<&Buffer<f32>> {
        self.layers[layer.index()].bias.as_deref()
    }

    /// One layer's quantized form; `None` for a dense layer.
    pub(super) fn quantized(&self, layer: LayerId) -> Option<&Quantized> {
        match &self.layers[layer.index()].weight {
            Weight::Quantized(quantized) => Some(quantized),
            Weight::Dense(_) => None,
        }
    }

    pub(super) fn quantized_mut(&mut self, layer: LayerId) -> Option<&mut Quantized> {
        match &mut self.layers[layer.index()].weight {
            Weight::Quantized(quantized) => Some(quantized),
            Weight::Dense(_) => None,
        }
    }
}

/// The weights of a block in f32.
pub struct Decoded {
    weights: Vec<Arc<Buffer<f32>>>,
}

impl Decoded {
    pub(super) fn weight(&self, layer: LayerId) -> &Buffer<f32> {
        &self.weights[layer.index()]
    }
}

/// Numbers as a matrix.
pub(super) fn matrix(shape: (usize, usize), values: Vec<f32>) -> Result<Array2<f32>> {
    let found = values.len();
    Array2::from_shape_vec(shape, values).map_err(|_| {
        AqlmError::Shape {
            what: "a matrix from the device".into(),
            expected: vec![shape.0, shape.1],
            found: vec![found],
        }
        .into()
    })
}
