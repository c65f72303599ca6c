use std::sync::Arc;

use aqlm_vocabulary::{AqlmError, Linear, LinearWeight, QuantizedMatrix};
use cudarc::driver::DevicePtrMut;
use half::f16;

use crate::cpu::quantizer::decode;

use super::super::dispatch::{join_resident, pack_resident};
use super::super::pack::Op;
use super::super::{Blas, Buffer, Device, DeviceMatrix, Result};
use super::rung::Rung;
use super::{address, further, narrowed, plan, run};

/// How layers are laid out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// rows of a chunk of a prompt; 0 if prompts are processed token by token
    pub(super) prompt_rows: usize,
    /// how one row is computed
    pub(super) rung: Rung,
}

enum Weight {
    /// [out_features, in_features]
    Dense(Buffer<f16>),
    Quantized(Box<Layouts>),
}

/// A quantized matrix in the layout of each of its uses.
struct Layouts {
    /// for one row; `None` if the group's matrices are joined
    step: Option<DeviceMatrix>,
    /// for a chunk of a prompt
    prompt: Option<DeviceMatrix>,
}

struct Layer {
    weight: Weight,
    shape: [usize; 2],
}

/// Linear layers that read the same input.
pub(super) struct Group {
    layers: Vec<Layer>,
    joined: Option<DeviceMatrix>,
    /// where each layer starts in the output of one row
    offsets: Vec<usize>,
    /// elements of one row's output, padding included
    width: usize,
    /// `[out_features]` each, zeros for layers without; `None` when no layer has one
    biases: Option<Vec<Buffer<f32>>>,
}

impl Group {
    /// # Errors
    /// `Aqlm` with `NotFinite` for numbers beyond f16, `Driver` when memory runs out, and the kernels'
    /// refusals.
    pub(super) fn new(device: &Device, linears: &[&Linear], layout: Layout) -> Result<Self> {
        let matrices: Vec<&QuantizedMatrix> = linears
            .iter()
            .filter_map(|linear| match &linear.weight {
                LinearWeight::Quantized(matrix) => Some(matrix),
                LinearWeight::Dense(_) => None,
            })
            .collect();
        let joinable = linears.len() > 1 && matrices.len() == linears.len() && layout.rung >= Rung::Joined;
        let joined = if joinable {
            join_resident(&matrices, device.compute(), device.target())?
        } else {
            None
        };
        let joined = match joined {
            Some(joined) => Some((DeviceMatrix::new(device, &joined.packed)?, joined.offsets)),
            None => None,
        };
        let layers = linears
            .iter()
            .map(|linear| Layer::new(device, linear, layout, joined.is_none()))
            .collect::<Result<Vec<_>>>()?;
        let rows = linears.iter().map(|linear| linear.weight.shape().0);
        let (joined, offsets) = joined.map_or_else(
            || {
                let starts = rows.clone().scan(0, |next, rows| {
                    let start = *next;
                    // Kernels write rows in pairs of 16 bytes at most.
                    *next += rows.next_multiple_of(8);
                    Some(start)
                });
                (None, starts.collect::<Vec<_>>())
            },
            |(matrix, offsets)| (Some(matrix), offsets),
        );
        let width = joined.as_ref().map_or_else(
            || offsets.last().copied().unwrap_or(0) + rows.clone().next_back().unwrap_or(0),
            |matrix| matrix.shape().0,
        );
        let biases = if linears.iter().any(|linear| linear.bias.is_some()) {
            let upload = |linear: &&Linear| -> Result<_> {
                let zeros = vec![0.0; linear.weight.shape().0];
                let values = linear.bias.as_ref().map_or(zeros, |bias| bias.to_vec());
                Ok(device.upload(&values)?.named("a bias"))
            };
            Some(linears.iter().map(upload).collect::<Result<Vec<_>>>()?)
        } else {
            None
        };
        Ok(Self {
            layers,
            joined,
            offsets,
            width,
            biases,
        })
    }

    /// A copy of the layers in memory of its own.
    pub(super) fn duplicate(&self) -> Result<Self> {
        let copy = |matrix: &Option<DeviceMatrix>| matrix.as_ref().map(DeviceMatrix::duplicate).transpose();
        let layer = |layer: &Layer| {
            let weight = match &layer.weight {
                Weight::Dense(weight) => Weight::Dense(weight.try_clone()?),
                Weight::Quantized(layouts) => Weight::Quantized(Box::new(Layouts {
                    step: copy(&layouts.step)?,
                    prompt: copy(&layouts.prompt)?,
                })),
            };
            Ok(Layer { weight, ..*layer })
        };
        Ok(Self {
            layers: self.layers.iter().map(layer).collect::<Result<_>>()?,
            joined: copy(&self.joined)?,
            offsets: self.offsets.clone(),
            width: self.width,
            biases: self
                .biases
                .as_ref()
                .map(|biases| biases.iter().map(Buffer::try_clone).collect::<Result<_>>())
                .transpose()?,
        })
    }

    /// Elements of one row's output.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// The offset of layer `index` in one row's output.
    pub(super) fn offset(&self, index: usize) -> usize {
        self.offsets[index]
    }

    /// Layer `index`'s bias, if any layer has one.
    pub(super) fn bias(&self, index: usize) -> Option<&Buffer<f32>> {
        self.biases.as_ref().map(|biases| &biases[index])
    }

    /// Whether any layer has a bias.
    pub(super) fn has_bias(&self) -> bool {
        self.biases.is_some()
    }

    /// Number of launches for one row.
    pub(super) fn launches(&self) -> usize {
        if self.joined.is_some() {
            1
        } else {
            self.layers.len()
        }
    }

    /// Bytes read for one row.
    pub(super) fn step_bytes(&self) -> usize {
        let of_layer = |layer: &Layer| match &layer.weight {
            Weight::Dense(weight) => weight.len() * 2,
            Weight::Quantized(layouts) => layouts.step.as_ref().map_or(0, DeviceMatrix::bytes),
        };
        self.joined
            .as_ref()
            .map_or_else(|| self.layers.iter().map(of_layer).sum(), DeviceMatrix::bytes)
    }

    /// Starts all layers on one row: x starts with `[in_features]`, and y has at least [`Group::width`] from
    /// element `at` on.
    pub(super) fn step(
        &self,
        device: &Device,
        x: &Buffer<f16>,
        y: &mut Buffer<f16>,
        at: usize,
        overlap: bool,
    ) -> Result<()> {
        if let Some(joined) = &self.joined {
            return joined.start_on(
                device,
                device.stream(),
                Some(&x.slice(..joined.shape().1)),
                &mut y.slice_mut(at..at + self.width),
                overlap,
            );
        }
        for (layer, &offset) in self.layers.iter().zip(&self.offsets) {
            layer.step(device, x, y, at + offset, overlap)?;
        }
        Ok(())
    }

    /// Starts layer `index` on `rows` rows: x `[rows, in_features]`, y `[rows, out_features]`.
    pub(super) fn prompt(
        &self,
        index: usize,
        device: &Device,
        blas: Option<&Arc<Blas>>,
        x: &Buffer<f16>,
        y: &mut Buffer<f16>,
        rows: usize,
    ) -> Result<()> {
        let layer = &self.layers[index];
        let [out_features, in_features] = layer.shape;
        match &layer.weight {
            Weight::Dense(weight) => dense(device, blas, weight, x, y, [out_features, in_features, rows]),
            Weight::Quantized(layouts) => match &layouts.prompt {
                Some(matrix) => matrix.start(device, Some(x), y, false),
                None => Err(AqlmError::argument(
                    "model",
                    "one that was made for prompts",
                    "one for single tokens",
                )
                .into()),
            },
        }
    }
}

/// Y = X W^T in f16 through cuBLAS, or without cuBLAS by the kernel for single rows.
fn dense(
    device: &Device,
    blas: Option<&Arc<Blas>>,
    weight: &Buffer<f16>,
    x: &Buffer<f16>,
    y: &mut Buffer<f16>,
    [out_features, in_features, rows]: [usize; 3],
) -> Result<()> {
    if let Some(blas) = blas {
        return blas.start(weight, x, y, [out_features, in_features, rows]);
    }
    let pointers = [address(device, weight), address(device, x), address(device, y)];
    run(
        device,
        &plan::dense(out_features, in_features, rows, false),
        &pointers,
        false,
    )
}

/// A layer's weight, row by row; a quantized one is decoded.
pub(super) fn dense_values(linear: &Linear) -> Vec<f32> {
    match &linear.weight {
        LinearWeight::Dense(weight) => weight.iter().copied().collect(),
        LinearWeight::Quantized(matrix) => decode(matrix).iter().copied().collect(),
    }
}

impl Layer {
    fn new(device: &Device, linear: &Linear, layout: Layout, alone: bool) -> Result<Self> {
        let (out_features, in_features) = linear.weight.shape();
        let weight = match &linear.weight {
            LinearWeight::Dense(_) => Weight::Dense(
                device
                    .upload(&narrowed(&dense_values(linear), "a weight")?)?
                    .named("a dense weight"),
            ),
            LinearWeight::Quantized(matrix) => {
                let plain = layout.rung == Rung::Plain;
                let load = |op, rows| {
                    let packed = pack_resident(op, matrix, rows, device.compute(), device.target(), plain)?;
                    DeviceMatrix::new(device, &packed)
                };
                let step = alone.then(|| load(Op::Matvec, 1));
                let prompt = (layout.prompt_rows > 0).then(|| load(Op::Matmul, layout.prompt_rows));
                Weight::Quantized(Box::new(Layouts {
                    step: step.transpose()?,
                    prompt: prompt.transpose()?,
                }))
            }
        };
        Ok(Self {
            weight,
            shape: [out_features, in_features],
        })
    }

    fn step(
        &self,
        device: &Device,
        x: &Buffer<f16>,
        y: &mut Buffer<f16>,
        offset: usize,
        overlap: bool,
    ) -> Result<()> {
        let [out_features, in_features] = self.shape;
        let mut y = y.slice_mut(offset..offset + out_features);
        match &self.weight {
            Weight::Dense(weight) => {
                let y = y.device_ptr_mut(device.stream()).0;
                let pointers = [address(device, weight), address(device, x), y];
                run(
                    device,
                    &plan::dense(out_features, in_features, 1, false),
                    &pointers,
                    overlap,
                )
            }
            Weight::Quantized(layouts) => match &layouts.step {
                Some(matrix) => {
                    let x = x.slice(..in_features);
                    matrix.start_on(device, device.stream(), Some(&x), &mut y, overlap)
                }
                None => {
                    Err(AqlmError::Internal("a layer of a joined group was started by itself".into()).into())
                }
            },
        }
    }
}

/// The address of layer `index`'s part of one row's output.
pub(super) fn part(
    device: &Device,
    group: &Group,
    index: usize,
    y: &Buffer<f16>,
) -> cudarc::driver::sys::CUdeviceptr {
    further(address(device, y), group.offset(index))
}
