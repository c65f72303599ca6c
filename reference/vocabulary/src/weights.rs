use ndarray::{Array1, Array2};

use crate::{LayerId, QuantizedMatrix};

/// The weight of a linear layer, [out_features, in_features].
#[derive(Debug, Clone, PartialEq)]
pub enum LinearWeight {
    /// as trained; f32 holds every f16, bf16 and f32 checkpoint exactly
    Dense(Array2<f32>),
    /// additively quantized
    Quantized(QuantizedMatrix),
}

impl LinearWeight {
    /// (out_features, in_features).
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Self::Dense(weight) => weight.dim(),
            Self::Quantized(matrix) => (matrix.out_features(), matrix.in_features()),
        }
    }
}

/// A linear layer: y = x W^T + b.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    /// [out_features, in_features]
    pub weight: LinearWeight,
    /// `[out_features]`; only families with attention_bias have one, and it is never quantized
    pub bias: Option<Array1<f32>>,
}

/// One block's parameters, as exchanged between storage and backends. Each backend converts them to its own
/// resident form.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockWeights {
    /// the norms' weights, in the order of the block's [`BlockSpec`](crate::BlockSpec)
    pub norms: Vec<Array1<f32>>,
    /// the linear layers, in the order of the block's [`BlockSpec`](crate::BlockSpec)
    pub layers: Vec<Linear>,
}

impl BlockWeights {
    /// One linear layer.
    ///
    /// # Panics
    /// When the block has no such layer.
    pub fn layer(&self, layer: LayerId) -> &Linear {
        &self.layers[layer.index()]
    }

    /// One linear layer, mutable.
    ///
    /// # Panics
    /// When the block has no such layer.
    pub fn layer_mut(&mut self, layer: LayerId) -> &mut Linear {
        &mut self.layers[layer.index()]
    }

    /// The quantized layers.
    pub fn quantized(&self) -> Vec<LayerId> {
        (0..)
            .map(LayerId)
            .zip(&self.layers)
            .filter(|(_, linear)| matches!(linear.weight, LinearWeight::Quantized(_)))
            .map(|(layer, _)| layer)
            .collect()
    }
}

/// A whole model's parameters, as exchanged between storage and backends.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelWeights {
    /// [vocab, hidden]
    pub embedding: Array2<f32>,
    /// the decoder layers, first to last
    pub blocks: Vec<BlockWeights>,
    /// the RMSNorm before the head, `[hidden]`
    pub norm: Array1<f32>,
    /// [vocab, hidden]; `None` if tied to the embedding
    pub lm_head: Option<Array2<f32>>,
}

impl ModelWeights {
    /// The quantized layers of each block.
    pub fn quantized(&self) -> Vec<Vec<LayerId>> {
        self.blocks.iter().map(BlockWeights::quantized).collect()
    }
}
