//! RMSNorms, and what is added to the residual stream before them.

use aqlm_vocabulary::{BlockSpec, BlockWeights, NormPlace, NormSpec};
use cudarc::driver::sys;
use half::f16;

use super::super::{Buffer, Device, Result};
use super::plan::{self, Addition};
use super::{address, narrowed, run};

/// One norm's weight.
pub(super) struct Norm {
    /// what it multiplies by: the weight, or 1 + the weight
    weight: Buffer<f16>,
    epsilon: f64,
}

impl Norm {
    /// # Errors
    /// `NotFinite` for a weight beyond f16, `Driver`.
    pub(super) fn new(device: &Device, spec: NormSpec, weight: &[f32]) -> Result<Self> {
        let one = if spec.one_plus { 1.0 } else { 0.0 };
        let factors: Vec<f32> = weight.iter().map(|weight| one + weight).collect();
        Ok(Self {
            weight: device.upload(&narrowed(&factors, "a norm")?)?.named("a norm"),
            epsilon: spec.epsilon,
        })
    }

    /// A copy in memory of its own.
    pub(super) fn duplicate(&self) -> Result<Self> {
        Ok(Self {
            weight: self.weight.try_clone()?,
            epsilon: self.epsilon,
        })
    }
}

/// The norms of a block, each where it has one.
pub(super) struct Norms {
    pub(super) before_attention: Option<Norm>,
    pub(super) after_attention: Option<Norm>,
    pub(super) before_mlp: Option<Norm>,
    pub(super) after_mlp: Option<Norm>,
    /// of queries and of keys
    heads: [Option<Norm>; 2],
}

impl Norms {
    /// # Errors
    /// As [`Norm::new`].
    pub(super) fn new(device: &Device, spec: &BlockSpec, weights: &BlockWeights) -> Result<Self> {
        let at = |place| match spec.norm(place) {
            Some((index, norm)) => Norm::new(device, norm.norm, &weights.norms[index].to_vec()).map(Some),
            None => Ok(None),
        };
        Ok(Self {
            before_attention: at(NormPlace::BeforeAttention)?,
            after_attention: at(NormPlace::AfterAttention)?,
            before_mlp: at(NormPlace::BeforeMlp)?,
            after_mlp: at(NormPlace::AfterMlp)?,
            heads: [at(NormPlace::Query)?, at(NormPlace::Key)?],
        })
    }

    /// A copy in memory of its own.
    pub(super) fn duplicate(&self) -> Result<Self> {
        let copy = |norm: &Option<Norm>| norm.as_ref().map(Norm::duplicate).transpose();
        Ok(Self {
            before_attention: copy(&self.before_attention)?,
            after_attention: copy(&self.after_attention)?,
            before_mlp: copy(&self.before_mlp)?,
            after_mlp: copy(&self.after_mlp)?,
            heads: [copy(&self.heads[0])?, copy(&self.heads[1])?],
        })
    }

    /// Whether queries or keys are normed.
    pub(super) fn of_heads(&self) -> bool {
        self.heads.iter().any(Option::is_some)
    }

    /// Norms queries and keys of `rows` rows in place and adds all three biases, if there are any. `biases`
    /// and `projected` are those of queries, keys and values.
    pub(super) fn start_heads(
        &self,
        device: &Device,
        spec: &BlockSpec,
        rows: usize,
        biases: Option<[sys::CUdeviceptr; 3]>,
        projected: [sys::CUdeviceptr; 3],
        overlap: bool,
    ) -> Result<()> {
        let norms = [0, 1].map(|of| {
            self.heads[of]
                .as_ref()
                .map(|norm| (norm.weight.len(), norm.epsilon))
        });
        let plan = plan::head_norm(&spec.attention, rows, norms, biases.is_some());
        // What the kernel does not read may be any address.
        let weight = |of: usize| {
            self.heads[of]
                .as_ref()
                .map_or(projected[0], |norm| address(device, &norm.weight))
        };
        let mut pointers = vec![weight(0), weight(1)];
        pointers.extend(biases.unwrap_or([projected[0]; 3]));
        pointers.extend(projected);
        run(device, &plan, &pointers, overlap)
    }
}

/// What must still be added to the residual stream: the last outputs of layers.
#[derive(Clone, Copy)]
pub(super) struct Added<'a> {
    /// of the layer
    pub(super) bias: Option<&'a Buffer<f32>>,
    /// of the sum, before it is added
    pub(super) after: Option<&'a Norm>,
    pub(super) factor: f64,
    /// outputs; more than one for experts
    pub(super) slots: usize,
    /// the outputs' factors, in device memory
    pub(super) shares: Option<sys::CUdeviceptr>,
}

/// Where rows of the residual stream are.
#[derive(Clone, Copy)]
pub(super) struct Stream {
    pub(super) width: usize,
    pub(super) rows: usize,
    pub(super) hidden: sys::CUdeviceptr,
    pub(super) delta: sys::CUdeviceptr,
    pub(super) normed: sys::CUdeviceptr,
}

impl Stream {
    /// Adds to the residual stream what is still to be added, and norms it, or copies it where there is no
    /// norm.
    pub(super) fn start(
        &self,
        device: &Device,
        added: Option<&Added<'_>>,
        norm: Option<&Norm>,
        overlap: bool,
    ) -> Result<()> {
        let Self {
            width,
            rows,
            hidden,
            delta,
            normed,
        } = *self;
        let bias = added.and_then(|added| added.bias);
        let bias_or = bias.map_or(hidden, |bias| address(device, bias));
        let plain = added.is_none_or(|added| {
            added.after.is_none() && added.factor == 1.0 && added.slots == 1 && added.shares.is_none()
        });
        if let Some(norm) = norm.filter(|_| plain) {
            let plan = plan::rms_norm(width, rows, norm.epsilon, added.is_some(), bias.is_some());
            let pointers = [address(device, &norm.weight), bias_or, delta, hidden, normed];
            return run(device, &plan, &pointers, overlap);
        }
        let addition = added.map(|added| Addition {
            slots: added.slots,
            shares: added.shares.is_some(),
            bias: bias.is_some(),
            after: added.after.map(|norm| norm.epsilon),
            factor: added.factor,
        });
        let plan = plan::residual_norm(width, rows, addition, norm.map(|norm| norm.epsilon));
        let weight_or = |norm: Option<&Norm>| norm.map_or(hidden, |norm| address(device, &norm.weight));
        let shares = added.and_then(|added| added.shares);
        let pointers = [
            weight_or(norm),
            weight_or(added.and_then(|added| added.after)),
            bias_or,
            shares.unwrap_or(hidden),
            delta,
            hidden,
            normed,
        ];
        run(device, &plan, &pointers, overlap)
    }
}
