use std::sync::{Mutex, PoisonError};

use aqlm_optimized::cpu::llama::{BlockGradients, Rotary, Wanted, block_backward, block_forward_traced};
use aqlm_optimized::cpu::{
    CodebookPrecision, Form, PackedMatrix, Plan, SimdLevel, TablePrecision, quantizer,
};
use aqlm_vocabulary::{
    AqlmError, ArchSpec, BlockWeights, FinetuneReport, LayerReport, LayerSettings, QuantizedMatrix,
    StreamKey, Update,
};
use ndarray::{Array1, Array2, Array3, ArrayView2, ArrayViewMut2};

use super::{Clusters, Gradients, Subject};
use crate::cases::{Case, LlamaCase, LlamaData, Operation, Problem};
use crate::limits::Number;
use aqlm_engine::alternate::alternate;
use aqlm_engine::backends::{CpuBackend, CpuLayers};
use aqlm_engine::evaluate::streamed;
use aqlm_engine::ops::{Alone, BlockOps, LayerOps, ModelOps, Weights};
use aqlm_engine::tune_block;
use aqlm_formats::Result;

/// The CPU backend at one SIMD level and, for products, one plan.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CpuSubject {
    plan: Plan,
    /// whether the case is a product, so that the plan's form and storage matter
    product: bool,
}

/// The level is forced for the whole process, so one operation runs at a time.
static LEVEL: Mutex<()> = Mutex::new(());

impl CpuSubject {
    /// Every level of this machine; for products also every form and storage.
    pub fn all(case: &Case) -> Vec<Box<dyn Subject>> {
        let mut subjects: Vec<Box<dyn Subject>> = Vec::new();
        let mut add = |plan, product| subjects.push(Box::new(Self { plan, product }));
        for level in SimdLevel::available() {
            let plan = |form, codebooks, largest_matvec_batch| Plan {
                level,
                form,
                codebooks,
                largest_matvec_batch,
            };
            let Problem::Product(problem) = case.problem else {
                add(plan(Form::Direct, CodebookPrecision::Auto, 0), false);
                continue;
            };
            let mut forms = vec![
                (Form::Direct, CodebookPrecision::F32),
                (Form::Direct, CodebookPrecision::F16),
            ];
            if problem.scheme.nbits <= 8 {
                use TablePrecision::{F32, I8, I16, I24};
                forms.extend([F32, I24, I16, I8].map(|table| (Form::Table(table), CodebookPrecision::Auto)));
            }
            let batches: &[usize] = if case.operation == Operation::Matmul {
                &[0, 4096]
            } else {
                &[0]
            };
            for (form, codebooks) in forms {
                for &batch in batches {
                    add(plan(form, codebooks, batch), true);
                }
            }
        }
        subjects
    }

    fn packed(&self, matrix: &QuantizedMatrix) -> Result<PackedMatrix> {
        Ok(PackedMatrix::new(matrix, &self.plan)?)
    }

    /// Runs with this level forced. The level is let go of even when `f` panics.
    fn at_level<T>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        struct Forced;
        impl Drop for Forced {
            fn drop(&mut self) {
                // Letting go of a level is never refused.
                let _ = SimdLevel::force(None);
            }
        }
        let _alone = LEVEL.lock().unwrap_or_else(PoisonError::into_inner);
        SimdLevel::force(Some(self.plan.level))?;
        let _forced = Forced;
        f()
    }
}

impl Subject for CpuSubject {
    fn backend(&self) -> &'static str {
        "cpu"
    }

    fn variant(&self) -> String {
        let Plan {
            level,
            form,
            codebooks,
            largest_matvec_batch,
        } = self.plan;
        if !self.product {
            return level.to_string();
        }
        let form = match form {
            Form::Direct => format!("direct {codebooks:?}"),
            Form::Table(precision) => format!("table {precision:?}"),
        };
        let rows = if largest_matvec_batch > 0 {
            " row by row"
        } else {
            ""
        };
        format!("{level} {form}{rows}")
    }

    fn number(&self) -> Number {
        Number::F32
    }

    fn decode(&self, matrix: &QuantizedMatrix, weight: &mut [f32]) -> Result<()> {
        Ok(self.packed(matrix)?.decode_into(0..matrix.groups().0, weight)?)
    }

    fn matvec(&self, matrix: &QuantizedMatrix, x: &[f32], y: &mut [f32]) -> Result<()> {
        Ok(self.packed(matrix)?.matvec(x, y)?)
    }

    fn matmul(
        &self,
        matrix: &QuantizedMatrix,
        x: ArrayView2<'_, f32>,
        y: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        Ok(self.packed(matrix)?.matmul_into(x, y)?)
    }

    fn table_bytes(&self, operation: Operation, batch: usize) -> Option<u32> {
        let used = match operation {
            Operation::Matvec => true,
            Operation::Matmul => batch <= self.plan.largest_matvec_batch,
            _ => false,
        };
        match self.plan.form {
            Form::Table(TablePrecision::I24) if used => Some(3),
            Form::Table(TablePrecision::I16) if used => Some(2),
            Form::Table(TablePrecision::I8) if used => Some(1),
            _ => None,
        }
    }

    fn table_error(&self, matrix: &QuantizedMatrix, x: &[f32]) -> Result<f64> {
        Ok(f64::from(self.packed(matrix)?.table_error_bound(x)?))
    }

    fn hessian(&self, parts: &[ArrayView2<'_, f32>]) -> Result<Array2<f64>> {
        self.at_level(|| {
            let mut hessian = quantizer::Hessian::new(parts.first().map_or(0, ArrayView2::ncols));
            parts.iter().try_for_each(|part| hessian.add(*part))?;
            Ok(hessian.mean())
        })
    }

    fn kmeans(&self, points: &Array2<f32>, start: &Array2<f32>, iterations: usize) -> Result<Clusters> {
        self.at_level(|| {
            let (points, len): (Vec<f32>, usize) = (points.iter().copied().collect(), points.ncols());
            let found = quantizer::kmeans(&points, len, start.iter().copied().collect(), iterations);
            let count = found.centroids.len();
            let shaped = Array2::from_shape_vec(start.dim(), found.centroids);
            Ok(Clusters {
                centroids: shaped
                    .map_err(|_| AqlmError::Shape {
                        what: "centroids".into(),
                        expected: start.shape().to_vec(),
                        found: vec![count],
                    })?
                    .mapv(f64::from),
                assignments: found.assignments.iter().map(|&k| k as usize).collect(),
                inertia: found.inertia,
            })
        })
    }

    fn residual_init(
        &self,
        weight: &Array2<f32>,
        settings: &LayerSettings,
        key: StreamKey,
    ) -> Result<QuantizedMatrix> {
        self.at_level(|| Ok(quantizer::residual_init(weight, settings, key)?))
    }

    fn em_init(
        &self,
        weight: &Array2<f32>,
        hessian: &Array2<f64>,
        settings: &LayerSettings,
        rounds: usize,
        key: StreamKey,
    ) -> Result<QuantizedMatrix> {
        self.at_level(|| Ok(quantizer::em_init(weight, hessian, settings, rounds, key)?))
    }

    fn beam_search(
        &self,
        weight: &Array2<f32>,
        hessian: &Array2<f64>,
        matrix: &QuantizedMatrix,
        order: &[(usize, usize)],
        beam: usize,
    ) -> Result<QuantizedMatrix> {
        self.at_level(|| {
            let codes = quantizer::beam_search(weight, hessian, matrix, order, beam)?;
            let (codebooks, scales) = (matrix.codebooks.clone(), matrix.scales.clone());
            Ok(QuantizedMatrix::new(matrix.scheme, codes, codebooks, scales)?)
        })
    }

    fn codebook_update(
        &self,
        weight: &Array2<f32>,
        hessian: &Array2<f64>,
        matrix: &QuantizedMatrix,
        update: &Update,
    ) -> Result<QuantizedMatrix> {
        self.at_level(|| Ok(quantizer::update(weight, hessian, matrix, update)?))
    }

    fn layer_quantize(
        &self,
        weight: &Array2<f32>,
        hessian: &Array2<f64>,
        settings: &LayerSettings,
        key: StreamKey,
    ) -> Result<(QuantizedMatrix, LayerReport)> {
        self.at_level(|| {
            let problem = CpuLayers.problem(weight, hessian, settings)?;
            alternate(&CpuLayers, &problem, settings, key, &mut |_| ())
        })
    }

    fn block_forward(&self, data: &LlamaData) -> Result<Array3<f64>> {
        self.at_level(|| {
            let backend = backend(data)?;
            let block = backend.load_block(0, &data.blocks[0])?;
            let y = backend.block_forward(&block, &data.x.clone().into())?;
            Ok(y.to_array()?.mapv(f64::from))
        })
    }

    fn block_backward(&self, data: &LlamaData) -> Result<Gradients> {
        self.at_level(|| {
            let rotary = Rotary::new(data.config.attention(), data.x.dim().1);
            let block = backend(data)?.load_block(0, &data.blocks[0])?;
            let wanted = Wanted::all(block.spec());
            let (_, trace) = block_forward_traced(&block, &rotary, data.x.view());
            let mut sum = BlockGradients::zeros(&block, &wanted);
            let x = block_backward(&block, &rotary, &trace, data.grad_y.view(), &wanted, &mut sum);
            // Absent where it was wanted: shapes of zero, which no comparison takes for the right ones.
            let wide = |weight: &Option<Array2<f32>>| {
                weight
                    .as_ref()
                    .map_or_else(|| Array2::zeros((0, 0)), |weight| weight.mapv(f64::from))
            };
            Ok(Gradients {
                x: x.map_or_else(|| Array3::zeros((0, 0, 0)), |x| x.mapv(f64::from)),
                layers: sum.weights.iter().map(wide).collect(),
                biases: sum.biases,
                norms: [sum.input_layernorm, sum.post_attention_layernorm],
            })
        })
    }

    fn block_finetune(
        &self,
        case: &LlamaCase,
        data: &LlamaData,
        targets: &Array3<f32>,
        key: StreamKey,
    ) -> Result<(BlockWeights, FinetuneReport)> {
        self.at_level(|| {
            let backend = backend(data)?;
            let mut block = backend.load_block(0, &data.blocks[0])?;
            let report = tune_block(
                &backend,
                &mut block,
                &data.x.clone().into(),
                &targets.clone().into(),
                case.validation(),
                &case.finetune(),
                key,
                &Alone,
                &mut |_| (),
            )?;
            Ok((backend.store_block(&block)?, report))
        })
    }

    fn model_forward(&self, data: &LlamaData) -> Result<(Vec<Array2<f64>>, Array2<f64>)> {
        self.at_level(|| {
            let backend = backend(data)?;
            let mut model = backend.model(data, &mut |_| ())?;
            let whole = data
                .tokens
                .iter()
                .map(|tokens| model.logits(tokens))
                .collect::<Result<Vec<_>>>()?;
            // The first sequence again, token by token through the cache.
            let mut steps = Array2::zeros((data.tokens[0].len(), data.lm_head.nrows()));
            let mut session = model.session()?;
            for (&token, mut row) in data.tokens[0].iter().zip(steps.outer_iter_mut()) {
                row.assign(&session.next(token)?);
            }
            Ok((whole, steps))
        })
    }

    fn perplexity(&self, data: &LlamaData) -> Result<Vec<Array1<f64>>> {
        self.at_level(|| {
            let sequences: Vec<&[u32]> = data.tokens.iter().map(Vec::as_slice).collect();
            Ok(streamed(&backend(data)?, data, &sequences, false, &mut |_| ())?.losses)
        })
    }
}

impl Weights for LlamaData {
    fn config(&self) -> &ArchSpec {
        &self.config
    }

    fn embedding(&self) -> Result<Array2<f32>> {
        Ok(self.embedding.clone())
    }

    fn block(&self, index: usize) -> Result<BlockWeights> {
        Ok(self.blocks[index].clone())
    }

    fn final_norm(&self) -> Result<Array1<f32>> {
        Ok(self.norm.clone())
    }

    fn lm_head(&self) -> Result<Array2<f32>> {
        Ok(self.lm_head.clone())
    }
}

fn backend(data: &LlamaData) -> Result<CpuBackend> {
    CpuBackend::new(&data.config, data.x.dim().1)
}
