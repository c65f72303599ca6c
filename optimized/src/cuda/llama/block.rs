use std::borrow::Cow;

use aqlm_vocabulary::{
    AqlmError, BlockSpec, BlockWeights, GatedMlp, LayerId, Linear, LinearWeight, Mlp, RoutedMlp,
};
use half::f16;
use ndarray::s;

use super::super::{Buffer, Device, Result};
use super::experts::{Experts, Use};
use super::group::{Group, Layout, dense_values};
use super::narrowed;
use super::norms::Norms;
use super::plan::padded_head;

/// One block's weights and its cache.
pub(super) struct Block {
    pub(super) spec: BlockSpec,
    pub(super) norms: Norms,
    /// queries, keys, values
    pub(super) qkv: Group,
    pub(super) output: Group,
    pub(super) mlp: MlpLayers,
    /// which of the model's rotations it has
    pub(super) rotation: Option<usize>,
    /// [kv_heads, positions, padded head]
    pub(super) keys: Buffer<f16>,
    pub(super) values: Buffer<f16>,
}

/// The MLP of a block.
pub(super) enum MlpLayers {
    Dense(Box<Gated>),
    Routed(Box<Routed>),
}

/// A gated MLP.
pub(super) struct Gated {
    /// gate, up
    pub(super) gate_up: Group,
    pub(super) down: Group,
}

/// A mixture of experts.
pub(super) struct Routed {
    /// [experts, hidden], and below it the gate of the shared expert, if there is one
    pub(super) router: Buffer<f16>,
    pub(super) gate_up: Experts,
    pub(super) down: Experts,
    pub(super) shared: Option<Gated>,
}

impl Block {
    pub(super) fn new(
        device: &Device,
        spec: &BlockSpec,
        weights: &BlockWeights,
        positions: usize,
        layout: Layout,
        rotation: Option<usize>,
    ) -> Result<Self> {
        spec.check()?;
        spec.check_weights(weights)?;
        let attention = &spec.attention;
        let (projections, widths) = attention.projections();
        let group = |layers: &[LayerId], widths: &[usize]| {
            let linears = parts(weights, layers, widths)?;
            Group::new(
                device,
                &linears.iter().map(AsRef::as_ref).collect::<Vec<_>>(),
                layout,
            )
        };
        let gated = |mlp: &GatedMlp| -> Result<Gated> {
            let inner = spec.shape(mlp.down).1;
            Ok(Gated {
                gate_up: group(&[mlp.gate, mlp.up], &[inner; 2])?,
                down: group(&[mlp.down], &[spec.hidden_size()])?,
            })
        };
        let mlp = match &spec.mlp {
            Mlp::Dense(mlp) => MlpLayers::Dense(Box::new(gated(mlp)?)),
            Mlp::Routed(mlp) => MlpLayers::Routed(Box::new(Routed {
                router: router(device, mlp, weights)?,
                gate_up: experts(device, spec, mlp, weights, layout, true)?,
                down: experts(device, spec, mlp, weights, layout, false)?,
                shared: mlp.shared.as_ref().map(|shared| gated(&shared.mlp)).transpose()?,
            })),
        };
        let cached = attention.kv_heads * positions * padded_head(attention.head_dim);
        Ok(Self {
            spec: spec.clone(),
            norms: Norms::new(device, spec, weights)?,
            qkv: group(&projections, &widths)?,
            output: group(&[attention.output], &[spec.hidden_size()])?,
            mlp,
            rotation,
            keys: device.zeros(cached)?.named("keys"),
            values: device.zeros(cached)?.named("values"),
        })
    }

    /// A copy of the block in memory of its own, as a block that differs at most in its window and rotation.
    pub(super) fn duplicate(&self, spec: &BlockSpec, rotation: Option<usize>) -> Result<Self> {
        Ok(Self {
            spec: spec.clone(),
            norms: self.norms.duplicate()?,
            qkv: self.qkv.duplicate()?,
            output: self.output.duplicate()?,
            mlp: match &self.mlp {
                MlpLayers::Dense(mlp) => MlpLayers::Dense(Box::new(mlp.duplicate()?)),
                MlpLayers::Routed(mlp) => MlpLayers::Routed(Box::new(Routed {
                    router: mlp.router.try_clone()?,
                    gate_up: mlp.gate_up.duplicate()?,
                    down: mlp.down.duplicate()?,
                    shared: mlp.shared.as_ref().map(Gated::duplicate).transpose()?,
                })),
            },
            rotation,
            keys: self.keys.try_clone()?,
            values: self.values.try_clone()?,
        })
    }
}

impl Gated {
    fn duplicate(&self) -> Result<Self> {
        Ok(Self {
            gate_up: self.gate_up.duplicate()?,
            down: self.down.duplicate()?,
        })
    }
}

impl MlpLayers {
    /// Numbers that gates and ups give for one row.
    pub(super) fn gate_up_width(&self) -> usize {
        match self {
            Self::Dense(mlp) => mlp.gate_up.width(),
            Self::Routed(mlp) => {
                let shared = mlp.shared.as_ref().map_or(0, |shared| shared.gate_up.width());
                mlp.gate_up.width().max(shared)
            }
        }
    }
}

/// The layers that compute these parts of a row: each its own, or cut out of the one layer that computes all.
///
/// # Errors
/// `Unsupported` when a part ends inside a group of outputs.
fn parts<'w>(
    weights: &'w BlockWeights,
    layers: &[LayerId],
    widths: &[usize],
) -> Result<Vec<Cow<'w, Linear>>> {
    if layers.len() == 1 || layers.iter().any(|layer| *layer != layers[0]) {
        return Ok(layers
            .iter()
            .map(|&layer| Cow::Borrowed(weights.layer(layer)))
            .collect());
    }
    let whole = weights.layer(layers[0]);
    let mut start = 0;
    let cut = |&width: &usize| {
        let rows = start..start + width;
        start += width;
        let weight = match &whole.weight {
            LinearWeight::Dense(weight) => LinearWeight::Dense(weight.slice(s![rows.clone(), ..]).to_owned()),
            LinearWeight::Quantized(matrix) => {
                let group = matrix.scheme().out_group_size;
                if !rows.start.is_multiple_of(group) || !rows.end.is_multiple_of(group) {
                    return Err(AqlmError::Unsupported(format!(
                        "on a GPU, a layer for several parts of which one ends inside a group of {group} outputs"
                    ))
                    .into());
                }
                let groups: Vec<usize> = (rows.start / group..rows.end / group).collect();
                LinearWeight::Quantized(matrix.of_out_groups(&groups))
            }
        };
        let bias = whole.bias.as_ref().map(|bias| bias.slice(s![rows]).to_owned());
        Ok(Cow::Owned(Linear { weight, bias }))
    };
    widths.iter().map(cut).collect()
}

/// Gates and ups of all experts, or their downs.
fn experts(
    device: &Device,
    spec: &BlockSpec,
    mlp: &RoutedMlp,
    weights: &BlockWeights,
    layout: Layout,
    gate_up: bool,
) -> Result<Experts> {
    let of_one = |expert: &GatedMlp| {
        if gate_up {
            parts(
                weights,
                &[expert.gate, expert.up],
                &[spec.shape(expert.down).1; 2],
            )
        } else {
            parts(weights, &[expert.down], &[spec.hidden_size()])
        }
    };
    let all = mlp.experts.iter().map(of_one).collect::<Result<Vec<_>>>()?;
    let all: Vec<Vec<&Linear>> = all
        .iter()
        .map(|expert| expert.iter().map(AsRef::as_ref).collect())
        .collect();
    let of = Use {
        slots: mlp.used,
        same_x: gate_up,
    };
    Experts::new(device, &all, layout, of)
}

/// The router, and below it the gate of the shared expert.
fn router(device: &Device, mlp: &RoutedMlp, weights: &BlockWeights) -> Result<Buffer<f16>> {
    let mut values = dense_values(weights.layer(mlp.router));
    if let Some(shared) = &mlp.shared {
        values.extend(dense_values(weights.layer(shared.gate)));
    }
    Ok(device.upload(&narrowed(&values, "a router")?)?.named("a router"))
}
