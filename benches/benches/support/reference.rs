use aqlm_check::cases::{LlamaCase, LlamaData};
use aqlm_check::limits::Number;
use aqlm_check::{Clusters, Gradients, Subject};
use aqlm_formats::Result;
use aqlm_reference as reference;
use aqlm_reference::llama::{
    Block, Rotary, block_backward, block_finetune, block_forward, block_forward_traced, model_forward,
    token_losses,
};
use aqlm_vocabulary::{
    BlockWeights, FinetuneReport, LayerReport, LayerSettings, QuantizedMatrix, StreamKey, Update,
};
use ndarray::{Array1, Array2, Array3, ArrayView2, Axis};

/// The reference, to be timed like any backend.
pub(crate) struct ReferenceSubject;

impl Subject for ReferenceSubject {
    fn backend(&self) -> &'static str {
        "reference"
    }

    fn variant(&self) -> String {
        "f64".into()
    }

    fn number(&self) -> Number {
        Number::F64
    }

    fn hessian(&self, parts: &[ArrayView2<'_, f32>]) -> Result<Array2<f64>> {
        let mut hessian = reference::Hessian::new(parts.first().map_or(0, ArrayView2::ncols));
        for part in parts {
            hessian.add(part.mapv(f64::from).view())?;
        }
        Ok(hessian.mean())
    }

    fn kmeans(&self, points: &Array2<f32>, start: &Array2<f32>, iterations: usize) -> Result<Clusters> {
        let settings = reference::KMeansSettings::new(iterations);
        let found = reference::kmeans(points.mapv(f64::from).view(), start.mapv(f64::from), &settings);
        Ok(Clusters {
            centroids: found.centroids,
            assignments: found.assignments,
            inertia: found.inertia,
        })
    }

    fn residual_init(
        &self,
        weight: &Array2<f32>,
        settings: &LayerSettings,
        key: StreamKey,
    ) -> Result<QuantizedMatrix> {
        Ok(reference::residual_init(&weight.mapv(f64::from), settings, key)?)
    }

    fn em_init(
        &self,
        weight: &Array2<f32>,
        hessian: &Array2<f64>,
        settings: &LayerSettings,
        rounds: usize,
        key: StreamKey,
    ) -> Result<QuantizedMatrix> {
        let weight = weight.mapv(f64::from);
        Ok(reference::em_init(&weight, hessian, settings, rounds, key)?)
    }

    fn beam_search(
        &self,
        weight: &Array2<f32>,
        hessian: &Array2<f64>,
        matrix: &QuantizedMatrix,
        order: &[(usize, usize)],
        beam: usize,
    ) -> Result<QuantizedMatrix> {
        let codes = reference::beam_search(&weight.mapv(f64::from), hessian, matrix, order, beam)?;
        Ok(QuantizedMatrix {
            codes,
            ..matrix.clone()
        })
    }

    fn codebook_update(
        &self,
        weight: &Array2<f32>,
        hessian: &Array2<f64>,
        matrix: &QuantizedMatrix,
        update: &Update,
    ) -> Result<QuantizedMatrix> {
        Ok(reference::update(
            &weight.mapv(f64::from),
            hessian,
            matrix,
            update,
        )?)
    }

    fn layer_quantize(
        &self,
        weight: &Array2<f32>,
        hessian: &Array2<f64>,
        settings: &LayerSettings,
        key: StreamKey,
    ) -> Result<(QuantizedMatrix, LayerReport)> {
        let weight = weight.mapv(f64::from);
        Ok(reference::layer_quantize(
            &weight,
            hessian,
            settings,
            key,
            &mut |_| (),
        )?)
    }

    fn block_forward(&self, data: &LlamaData) -> Result<Array3<f64>> {
        let (block, rotary) = block(data);
        let mut y = Array3::zeros(data.x.dim());
        for (mut y, x) in y.outer_iter_mut().zip(data.x.outer_iter()) {
            y.assign(&block_forward(&block, &rotary, x.mapv(f64::from).view()));
        }
        Ok(y)
    }

    fn block_backward(&self, data: &LlamaData) -> Result<Gradients> {
        let (block, rotary) = block(data);
        let mut gradients: Option<Gradients> = None;
        for (i, (x, grad_y)) in data.x.outer_iter().zip(data.grad_y.outer_iter()).enumerate() {
            let (x, grad_y) = (x.mapv(f64::from), grad_y.mapv(f64::from));
            let (_, trace) = block_forward_traced(&block, &rotary, x.view());
            let one = block_backward(&block, &rotary, &trace, grad_y.view());
            let sum = gradients.get_or_insert_with(|| Gradients {
                x: Array3::zeros(data.x.dim()),
                layers: one
                    .layers
                    .iter()
                    .map(|layer| Array2::zeros(layer.dim()))
                    .collect(),
                biases: vec![None; one.biases.len()],
                norms: [Array1::zeros(x.ncols()), Array1::zeros(x.ncols())],
            });
            sum.x.index_axis_mut(Axis(0), i).assign(&one.x);
            for (sum, layer) in sum.layers.iter_mut().zip(&one.layers) {
                *sum += layer;
            }
            sum.norms[0] += &one.input_layernorm;
            sum.norms[1] += &one.post_attention_layernorm;
        }
        Ok(gradients.unwrap_or_else(|| Gradients {
            x: Array3::zeros(data.x.dim()),
            layers: Vec::new(),
            biases: Vec::new(),
            norms: [Array1::zeros(0), Array1::zeros(0)],
        }))
    }

    fn block_finetune(
        &self,
        case: &LlamaCase,
        data: &LlamaData,
        targets: &Array3<f32>,
        key: StreamKey,
    ) -> Result<(BlockWeights, FinetuneReport)> {
        let (mut block, rotary) = block(data);
        let wide =
            |x: &Array3<f32>| -> Vec<Array2<f64>> { x.outer_iter().map(|x| x.mapv(f64::from)).collect() };
        let report = block_finetune(
            &mut block,
            &rotary,
            &wide(&data.x),
            &wide(targets),
            case.validation(),
            &case.finetune(),
            key,
            &mut |_| (),
        )?;
        Ok((block.to_weights(), report))
    }

    fn model_forward(&self, data: &LlamaData) -> Result<(Vec<Array2<f64>>, Array2<f64>)> {
        let model = data.model();
        let logits = data
            .tokens
            .iter()
            .map(|tokens| Ok(model_forward(&model, tokens)?))
            .collect::<Result<_>>()?;
        Ok((logits, Array2::zeros((0, 0))))
    }

    fn perplexity(&self, data: &LlamaData) -> Result<Vec<Array1<f64>>> {
        let (logits, _) = self.model_forward(data)?;
        logits
            .iter()
            .zip(&data.tokens)
            .map(|(logits, tokens)| {
                let predicting = logits.slice(ndarray::s![..tokens.len() - 1, ..]);
                Ok(token_losses(predicting, &tokens[1..])?)
            })
            .collect()
    }
}

fn block(data: &LlamaData) -> (Block, Rotary) {
    let rotary = Rotary::new(data.config.attention(), data.x.dim().1);
    (data.block(0), rotary)
}
