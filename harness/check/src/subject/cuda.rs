use std::sync::OnceLock;

use aqlm_optimized::cuda::llama::{Builder, Model, Options, Rung};
use aqlm_optimized::cuda::pack::pack;
use aqlm_optimized::cuda::{Activation, Activations, CudaError, Device, DeviceMatrix};
use aqlm_vocabulary::{AqlmError, QuantizedMatrix};
use half::{bf16, f16};
use ndarray::{Array1, Array2, Array3, ArrayView2, ArrayViewMut2};

use super::{Subject, Subjects, no};
use crate::cases::{Case, LlamaData, Operation};
use crate::limits::Number;
use aqlm_engine::backends::cuda::{losses, table};
use aqlm_formats::{Error, Result};

/// One kernel on the first GPU, or one way in which a whole model is computed there.
pub struct CudaSubject {
    device: &'static Device,
    kernel: &'static str,
    activations: Activations,
}

/// The ways in which a model computes a token.
const RUNGS: [(&str, Rung); 2] = [("plain", Rung::Plain), ("joined", Rung::Joined)];

fn whole_model(operation: Operation) -> bool {
    matches!(
        operation,
        Operation::BlockForward | Operation::ModelForward | Operation::Perplexity
    )
}

static DEVICE: OnceLock<std::result::Result<Device, String>> = OnceLock::new();

impl CudaSubject {
    /// Every kernel of the case's operation; one without a kernel where there is none, which answers
    /// `unsupported`.
    ///
    /// # Errors
    /// What is missing, when there is no device.
    pub fn all(case: &Case) -> Subjects {
        let device = DEVICE
            .get_or_init(|| Device::open_guarded(0, None).map_err(|error| error.to_string()))
            .as_ref()
            .map_err(Clone::clone)?;
        let of_op = || {
            aqlm_kernels::kernels()
                .iter()
                .filter(|kernel| kernel.op == case.operation.word())
        };
        let mut kernels: Vec<(&'static str, Activations)> = of_op()
            .map(|kernel| (kernel.id.as_str(), Activations::F16))
            .collect();
        kernels.extend(
            of_op()
                .filter(|kernel| kernel.bf16)
                .map(|kernel| (kernel.id.as_str(), Activations::Bf16)),
        );
        if whole_model(case.operation) {
            kernels.extend(RUNGS.map(|(name, _)| (name, Activations::F16)));
        }
        if kernels.is_empty() {
            kernels.push(("", Activations::F16));
        }
        Ok(kernels
            .into_iter()
            .map(|(kernel, activations)| -> Box<dyn Subject> {
                Box::new(Self {
                    device,
                    kernel,
                    activations,
                })
            })
            .collect())
    }
}

impl Subject for CudaSubject {
    fn backend(&self) -> &'static str {
        "cuda"
    }

    fn variant(&self) -> String {
        match self.activations {
            Activations::F16 => self.kernel.to_owned(),
            Activations::Bf16 => format!("{} bf16", self.kernel),
        }
    }

    fn number(&self) -> Number {
        match self.activations {
            Activations::F16 => Number::F16,
            Activations::Bf16 => Number::Bf16,
        }
    }

    fn decode(&self, matrix: &QuantizedMatrix, weight: &mut [f32]) -> Result<()> {
        if self.kernel.is_empty() {
            return no(self.backend(), Operation::Decode);
        }
        self.run(matrix, None::<std::iter::Empty<&f32>>, 1, weight.iter_mut())
    }

    fn matvec(&self, matrix: &QuantizedMatrix, x: &[f32], y: &mut [f32]) -> Result<()> {
        if self.kernel.is_empty() {
            return no(self.backend(), Operation::Matvec);
        }
        self.run(matrix, Some(x.iter()), 1, y.iter_mut())
    }

    fn matmul(
        &self,
        matrix: &QuantizedMatrix,
        x: ArrayView2<'_, f32>,
        mut y: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        if self.kernel.is_empty() {
            return no(self.backend(), Operation::Matmul);
        }
        self.run(matrix, Some(x.iter()), x.nrows(), y.iter_mut())
    }

    fn block_forward(&self, data: &LlamaData) -> Result<Array3<f64>> {
        let mut model = self.model(data).map_err(AqlmError::from)?;
        let mut y = Array3::from_elem(data.x.dim(), f64::NAN);
        for (x, mut y) in data.x.outer_iter().zip(y.outer_iter_mut()) {
            let rows: Vec<f32> = x.iter().copied().collect();
            for (y, found) in y
                .iter_mut()
                .zip(model.block_forward(0, &rows).map_err(AqlmError::from)?)
            {
                *y = f64::from(found);
            }
        }
        Ok(y)
    }

    fn model_forward(&self, data: &LlamaData) -> Result<(Vec<Array2<f64>>, Array2<f64>)> {
        let mut model = self.model(data).map_err(AqlmError::from)?;
        let whole = data
            .tokens
            .iter()
            .map(|tokens| Ok(Self::logits(&mut model, tokens, false).map_err(AqlmError::from)?))
            .collect::<Result<Vec<_>>>()?;
        let steps = Self::logits(&mut model, &data.tokens[0], true).map_err(AqlmError::from)?;
        Ok((whole, steps))
    }

    fn perplexity(&self, data: &LlamaData) -> Result<Vec<Array1<f64>>> {
        let mut model = self.model(data).map_err(AqlmError::from)?;
        data.tokens
            .iter()
            .map(|tokens| {
                model.reset();
                losses(
                    &model.forward(tokens).map_err(AqlmError::from)?,
                    data.config.vocab_size,
                    tokens,
                )
            })
            .collect()
    }
}

impl CudaSubject {
    /// The model of a case.
    fn model(&self, data: &LlamaData) -> std::result::Result<Model<'static>, CudaError> {
        let rung = RUNGS.iter().find(|(name, _)| *name == self.kernel);
        let options = Options {
            positions: data.x.dim().1,
            prompts: true,
            rung: rung.map_or(Rung::Plain, |&(_, rung)| rung),
        };
        let mut builder = Builder::new(self.device, &data.config, options)?;
        for block in &data.blocks {
            builder.push(block)?;
        }
        builder.finish(
            &table(&data.embedding, "the embedding")?,
            &data.norm.to_vec(),
            Some(&table(&data.lm_head, "lm_head")?),
        )
    }

    /// The logits of a sequence, [tokens, vocab].
    fn logits(
        model: &mut Model<'_>,
        tokens: &[u32],
        one_by_one: bool,
    ) -> std::result::Result<Array2<f64>, CudaError> {
        model.reset();
        let vocab = model.arch().vocab_size;
        let mut logits = Vec::with_capacity(tokens.len() * vocab);
        if one_by_one {
            for &token in tokens {
                logits.extend(model.step(token)?);
            }
        } else {
            logits = model.forward(tokens)?;
        }
        Ok(Array2::from_shape_fn((tokens.len(), vocab), |(t, token)| {
            logits
                .get(t * vocab + token)
                .map_or(f64::NAN, |&logit| f64::from(logit))
        }))
    }

    /// The kernel's output, row-major, into `y`; NaN where it wrote nothing.
    fn run<'a>(
        &self,
        matrix: &QuantizedMatrix,
        x: Option<impl Iterator<Item = &'a f32>>,
        batch: usize,
        y: impl Iterator<Item = &'a mut f32>,
    ) -> Result<()> {
        match self.activations {
            Activations::F16 => {
                let x = x.map(exactly_f16).transpose()?;
                let result = self.run_in(matrix, x.as_deref(), batch)?;
                y.zip(result).for_each(|(y, result)| *y = result.to_f32());
            }
            Activations::Bf16 => {
                // The limits allow for the rounding of x.
                let x: Option<Vec<bf16>> = x.map(|x| x.map(|&x| bf16::from_f32(x)).collect());
                let result = self.run_in(matrix, x.as_deref(), batch)?;
                y.zip(result).for_each(|(y, result)| *y = result.to_f32());
            }
        }
        Ok(())
    }

    fn run_in<T: Activation>(
        &self,
        matrix: &QuantizedMatrix,
        x: Option<&[T]>,
        batch: usize,
    ) -> Result<Vec<T>> {
        let run = || -> std::result::Result<Vec<T>, CudaError> {
            let packed =
                pack(self.kernel, matrix, self.device.target(), batch)?.with_activations(self.activations)?;
            let matrix = DeviceMatrix::new(self.device, &packed)?;
            let x = x
                .map(|x| Ok::<_, CudaError>(self.device.upload(x)?.named("x")))
                .transpose()?;
            let mut result = self.device.upload(&vec![T::NAN; packed.y_len()])?.named("y");
            matrix.start(self.device, x.as_ref(), &mut result, false)?;
            self.device.download(&result)
        };
        run().map_err(|error| match error {
            CudaError::Aqlm(error) => error.into(),
            other => Error::argument(self.kernel, "a result", other.to_string()),
        })
    }
}

/// x in f16, where that loses nothing.
fn exactly_f16<'a>(x: impl Iterator<Item = &'a f32>) -> Result<Vec<f16>> {
    x.map(|&x| {
        let narrow = f16::from_f32(x);
        if narrow.to_f32() == x {
            Ok(narrow)
        } else {
            Err(AqlmError::Unsupported("x has numbers that f16 does not hold".into()).into())
        }
    })
    .collect()
}
