use aqlm_vocabulary::{AqlmError, Linear, LinearWeight, QuantizedMatrix};
use cudarc::driver::DevicePtrMut;
use half::f16;

use super::super::dispatch::experts_resident;
use super::super::pack::Slots;
use super::super::{Buffer, Device, DeviceMatrix, Result};
use super::group::{Layout, dense_values};
use super::rung::Rung;
use super::{address, narrowed, plan, run};

/// Layers of all experts that read the same input inside an expert: gates and ups, or downs. A launch
/// computes those of the experts that a router chose on the device; the weights of the others are not
/// touched.
pub(super) struct Experts {
    stacks: Vec<Stack>,
    /// where each layer starts in the output of a slot
    offsets: Vec<usize>,
    /// numbers from the output of one slot to that of the next
    stride: usize,
    slots: usize,
    count: usize,
}

enum Stack {
    /// several layers of each expert in one launch, or one
    Quantized(DeviceMatrix),
    /// one layer of each expert, [experts, out_features, in_features]
    Dense {
        weight: Buffer<f16>,
        shape: [usize; 2],
        /// numbers from the input of one slot to that of the next
        x_stride: usize,
    },
}

/// How experts read and write.
#[derive(Debug, Clone, Copy)]
pub(super) struct Use {
    /// experts of a token
    pub(super) slots: usize,
    /// whether all read the same input
    pub(super) same_x: bool,
}

impl Experts {
    /// From the layers of each expert, as many and of the same shapes for all. If some layer of an expert is
    /// quantized and the same layer of another is not, or they differ in their scheme, all are decoded to
    /// f16.
    ///
    /// # Errors
    /// As [`Group::new`](super::group::Group::new).
    pub(super) fn new(device: &Device, experts: &[Vec<&Linear>], layout: Layout, of: Use) -> Result<Self> {
        let Some(first) = experts.first() else {
            return Err(AqlmError::argument("experts", "at least one", 0).into());
        };
        let plain = layout.rung == Rung::Plain;
        let (compute, target) = (device.compute(), device.target());
        let slots = |y_stride| Slots {
            count: of.slots,
            same_x: of.same_x,
            y_stride,
        };
        let quantized: Vec<Option<Vec<&QuantizedMatrix>>> = (0..first.len())
            .map(|layer| of_one_scheme(experts.iter().map(|expert| expert[layer])))
            .collect();
        if first.len() > 1
            && layout.rung >= Rung::Joined
            && let Some(all) = quantized.iter().cloned().collect::<Option<Vec<_>>>()
        {
            let each: Vec<Vec<&QuantizedMatrix>> = (0..experts.len())
                .map(|expert| all.iter().map(|layer| layer[expert]).collect())
                .collect();
            if let Some(packed) = experts_resident(&each, slots(None), compute, target, plain)? {
                return Ok(Self {
                    stacks: vec![Stack::Quantized(DeviceMatrix::of_experts(device, &packed)?)],
                    offsets: packed.offsets,
                    stride: packed.y_stride,
                    slots: of.slots,
                    count: experts.len(),
                });
            }
        }
        // Kernels read and write 16 bytes at a time at most.
        let rows: Vec<usize> = first.iter().map(|linear| linear.weight.shape().0).collect();
        let starts = rows.iter().scan(0, |next, rows| {
            let start = *next;
            *next += rows.next_multiple_of(8);
            Some(start)
        });
        let offsets: Vec<usize> = starts.collect();
        let stride = match rows[..] {
            [only] => only,
            _ => rows.iter().map(|rows| rows.next_multiple_of(8)).sum(),
        };
        let stack = |(layer, quantized): (usize, Option<Vec<&QuantizedMatrix>>)| -> Result<Stack> {
            if let Some(matrices) = quantized {
                let each: Vec<_> = matrices.into_iter().map(|matrix| vec![matrix]).collect();
                if let Some(packed) = experts_resident(&each, slots(Some(stride)), compute, target, plain)? {
                    return Ok(Stack::Quantized(DeviceMatrix::of_experts(device, &packed)?));
                }
            }
            let (out_features, in_features) = first[layer].weight.shape();
            let mut values = Vec::with_capacity(experts.len() * out_features * in_features);
            for expert in experts {
                values.extend(narrowed(&dense_values(expert[layer]), "a weight of an expert")?);
            }
            Ok(Stack::Dense {
                weight: device.upload(&values)?.named("dense weights of experts"),
                shape: [out_features, in_features],
                x_stride: if of.same_x { 0 } else { in_features },
            })
        };
        Ok(Self {
            stacks: quantized
                .into_iter()
                .enumerate()
                .map(stack)
                .collect::<Result<_>>()?,
            offsets,
            stride,
            slots: of.slots,
            count: experts.len(),
        })
    }

    /// A copy in memory of its own.
    pub(super) fn duplicate(&self) -> Result<Self> {
        let copy = |stack: &Stack| -> Result<Stack> {
            Ok(match stack {
                Stack::Quantized(matrix) => Stack::Quantized(matrix.duplicate()?),
                Stack::Dense {
                    weight,
                    shape,
                    x_stride,
                } => Stack::Dense {
                    weight: weight.try_clone()?,
                    shape: *shape,
                    x_stride: *x_stride,
                },
            })
        };
        Ok(Self {
            stacks: self.stacks.iter().map(copy).collect::<Result<_>>()?,
            offsets: self.offsets.clone(),
            ..*self
        })
    }

    /// Elements of the outputs of all slots.
    pub(super) fn width(&self) -> usize {
        self.slots * self.stride
    }

    /// Numbers from the output of one slot to that of the next.
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// The offset of layer `index` in a slot's output.
    pub(super) fn offset(&self, index: usize) -> usize {
        self.offsets[index]
    }

    /// Number of launches.
    pub(super) fn launches(&self) -> usize {
        self.stacks.len()
    }

    /// Bytes of the chosen experts.
    pub(super) fn step_bytes(&self) -> usize {
        let of_stack = |stack: &Stack| match stack {
            Stack::Quantized(matrix) => matrix.launch_bytes(),
            Stack::Dense { weight, .. } => weight.len() * 2 / self.count * self.slots,
        };
        self.stacks.iter().map(of_stack).sum()
    }

    /// Starts the layers of the chosen experts: x starts with `[in_features]` or [slots, in_features], y with
    /// [slots, stride].
    pub(super) fn step(
        &self,
        device: &Device,
        x: &Buffer<f16>,
        y: &mut Buffer<f16>,
        chosen: &Buffer<u32>,
        overlap: bool,
    ) -> Result<()> {
        for (stack, &offset) in self.stacks.iter().zip(&self.offsets) {
            let mut y = y.slice_mut(offset..);
            match stack {
                Stack::Quantized(matrix) => matrix.start_chosen(device, x, &mut y, chosen, overlap)?,
                Stack::Dense {
                    weight,
                    shape: [out_features, in_features],
                    x_stride,
                } => {
                    let strides = [*x_stride, self.stride];
                    let plan = plan::dense_experts(*out_features, *in_features, self.slots, strides);
                    let y = y.device_ptr_mut(device.stream()).0;
                    let pointers = [
                        address(device, weight),
                        address(device, x),
                        y,
                        address(device, chosen),
                    ];
                    run(device, &plan, &pointers, overlap)?;
                }
            }
        }
        Ok(())
    }
}

/// The matrices of these layers if all are quantized in one scheme.
fn of_one_scheme<'a>(layers: impl Iterator<Item = &'a Linear>) -> Option<Vec<&'a QuantizedMatrix>> {
    let matrices = layers
        .map(|linear| match &linear.weight {
            LinearWeight::Quantized(matrix) => Some(matrix),
            LinearWeight::Dense(_) => None,
        })
        .collect::<Option<Vec<_>>>()?;
    let one = matrices
        .iter()
        .all(|matrix| matrix.scheme() == matrices[0].scheme());
    one.then_some(matrices)
}
