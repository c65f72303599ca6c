use std::path::PathBuf;

use aqlm_optimized::cuda::llama::{Builder, Model, Options, Rung, Stage};
use aqlm_optimized::cuda::{CudaError, Device};
use aqlm_vocabulary::AqlmError;
use aqlm_vocabulary::{
    ArchSpec, BlockSpec, BlockWeights, Input, LayerId, Linear, LinearWeight, NormSpec, Purpose,
    QuantizedMatrix, Scheme, stream,
};
use half::f16;
use ndarray::{Array1, Array2, Array3, Array4};
use rand::RngExt;
use rayon::prelude::*;

use super::shapes::LlamaShape;
use super::{memory_rate, times};
use aqlm_check::cases::Operation;
use aqlm_check::limits::{Number, Sizes};
use aqlm_check::{Against, CrossOptions, Machines, Outcome, cross_check, matrix_bytes};
use aqlm_engine::backends::BackendKind;
use aqlm_engine::runs::records::{DecodeReport, StageRow};
use aqlm_formats::{Error, Result};

/// Number of tokens in the comparison of the chosen rung with the plain one, on a model of one block.
const COMPARED_TOKENS: usize = 12;

/// Options of the measurement.
#[derive(Debug, Clone)]
pub(crate) struct DecodeOptions {
    /// the model whose shapes are used
    pub shape: LlamaShape,
    /// the scheme of every linear layer in its blocks
    pub scheme: Scheme,
    /// number of positions that a token attends to, itself included
    pub context: usize,
    /// the method that computes a token
    pub rung: Rung,
    /// number of replays of the token's graph
    pub replays: usize,
    /// seed of codes, codebooks and tables
    pub seed: u64,
    /// folder with alternative sources of the kernels
    pub kernel_folder: Option<PathBuf>,
}

/// Builds a model with random weights on the first GPU and times one token. Without a GPU, the report gives
/// the reason in `reason`.
///
/// Before timing, the same process runs `aqlm check` of a small model with this scheme on this device. It
/// also compares one block of the full shapes in the chosen rung with the plain kernels. If either fails,
/// nothing is timed.
///
/// # Errors
/// `Device` when the device is too small or reports an error; shapes that the scheme does not divide.
pub(crate) fn bench_decode(options: &DecodeOptions, progress: &mut dyn FnMut(&str)) -> Result<DecodeReport> {
    let config = options.shape.config();
    if options.context == 0 || options.context > config.max_position_embeddings {
        return Err(Error::argument(
            "--context",
            &format!("1 to {}", config.max_position_embeddings),
            options.context.to_string(),
        ));
    }
    let mut report = DecodeReport {
        model: options.shape.name().to_owned(),
        scheme: options.scheme.to_string(),
        context: options.context,
        device: None,
        outcome: Outcome::Waived,
        reason: None,
        nmse: None,
        memory: None,
        least_bytes: least_bytes(&config, options.scheme, options.context)?,
        roofline_us: None,
        us: None,
        tokens_per_second: None,
        stages: Vec::new(),
    };
    let device = match Device::open(0, options.kernel_folder.as_deref()) {
        Ok(device) => device,
        Err(CudaError::Absent(reason)) => {
            report.reason = Some(reason);
            return Ok(report);
        }
        Err(error) => return Err(AqlmError::from(error).into()),
    };
    report.device = Some(device.name().map_err(AqlmError::from)?);

    progress("checking a small model against the reference");
    // In the shape of tiny-stories-4m, for which builds without NVRTC contain kernels.
    let parts = match options.shape.parts() {
        "llama" => String::new(),
        parts => format!("{parts}-"),
    };
    let case = format!(
        "model_forward-256x704-k8-q1-d32-n2-t20-w0-nobias-plain-{parts}{}-s{}",
        options.scheme, options.seed
    );
    let small = cross_check(
        &CrossOptions::of_case(case.parse()?, vec![Machines::of(BackendKind::Cuda)]),
        &mut |_| {},
    )?;
    if !small.holds() {
        report.outcome = Outcome::Fail;
        report.reason = Some(format!(
            "a small model differs from the reference: aqlm check --backend cuda --case {case}"
        ));
        return Ok(report);
    }
    progress("making weights");
    let block = random_block(&config, options);
    let [embedding, head] = [1, 2].map(|table| random_table(&config, options.seed + table));
    let tables = [embedding.as_slice(), head.as_slice()];
    progress("comparing one block with the plain kernels");
    let one = ArchSpec {
        blocks: config.blocks[..1].to_vec(),
        ..config.clone()
    };
    let compared = [Rung::Plain, options.rung]
        .into_iter()
        .map(|rung| logits(&device, &one, &block, tables, rung))
        .collect::<Result<Vec<_>>>()?;
    let wide = |logits: &[f32]| -> Vec<f64> { logits.iter().map(|&logit| f64::from(logit)).collect() };
    let ways = Against {
        operation: Operation::ModelForward,
        number: Number::F16,
        sizes: Sizes::of_matrix(options.scheme, config.hidden_size),
    };
    let compared = ways.nmse("two ways", &wide(&compared[1]), &wide(&compared[0]))?;
    report.nmse = Some([compared.value, compared.limit]);
    if !compared.holds() {
        report.outcome = Outcome::Fail;
        report.reason = Some(format!(
            "one block against the plain kernels: normalised squared error {:.3e}, limit {:.1e}",
            compared.value, compared.limit
        ));
        return Ok(report);
    }
    report.outcome = Outcome::Pass;
    if options.replays == 0 {
        return Ok(report);
    }

    let rate = memory_rate(&device).map_err(AqlmError::from)?;
    report.memory = Some(rate);
    report.roofline_us = Some(rate.least_us(report.least_bytes));
    progress("filling the device");
    let mut model = resident(&device, &config, &block, tables, options.rung, options.context)?;
    let pattern = random_values(4096, options.seed, 0);
    model
        .pretend(options.context - 1, &pattern)
        .map_err(AqlmError::from)?;
    progress("timing");
    let token = 1;
    let timing = model
        .time(token, options.replays, &|_| true)
        .map_err(AqlmError::from)?;
    report.us = Some(times(timing));
    report.tokens_per_second = Some(1e6 / timing.median);
    for stage in Stage::ALL {
        let (launches, bytes) = model.work(stage, options.context - 1);
        if launches == 0 {
            continue;
        }
        let timing = model
            .time(token, options.replays.min(50), &|one| one == stage)
            .map_err(AqlmError::from)?;
        report.stages.push(StageRow {
            stage: format!("{stage:?}").to_lowercase(),
            launches,
            us: timing.median,
            bytes,
            roofline_us: rate.least_us(bytes),
        });
    }
    Ok(report)
}

fn logits(
    device: &Device,
    config: &ArchSpec,
    block: &BlockWeights,
    tables: [&[f16]; 2],
    rung: Rung,
) -> Result<Vec<f32>> {
    let mut model = resident(device, config, block, tables, rung, COMPARED_TOKENS)?;
    let tokens: Vec<u32> = (0..COMPARED_TOKENS as u32).map(|i| i * 2677 % 32_000).collect();
    Ok(model.forward(&tokens).map_err(AqlmError::from)?)
}

/// A model whose blocks are all copies of one, each in its own memory.
fn resident<'d>(
    device: &'d Device,
    config: &ArchSpec,
    block: &BlockWeights,
    [embedding, head]: [&[f16]; 2],
    rung: Rung,
    positions: usize,
) -> Result<Model<'d>> {
    let options = Options {
        positions,
        prompts: false,
        rung,
    };
    let mut builder = Builder::new(device, config, options).map_err(AqlmError::from)?;
    builder.push(block).map_err(AqlmError::from)?;
    for _ in 1..config.blocks.len() {
        builder.repeat().map_err(AqlmError::from)?;
    }
    let norm = vec![unit(config.final_norm); config.hidden_size];
    let head = (!config.tied).then_some(head);
    Ok(builder.finish(embedding, &norm, head).map_err(AqlmError::from)?)
}

/// The weight with which a norm multiplies by 1.
fn unit(norm: NormSpec) -> f32 {
    if norm.one_plus { 0.0 } else { 1.0 }
}

/// A block of random codes, codewords and scales that keep activations near unit size. Routers are dense.
fn random_block(config: &ArchSpec, options: &DecodeOptions) -> BlockWeights {
    let spec = &config.blocks[0];
    let dense = spec.mlp.kept_dense();
    BlockWeights {
        norms: spec
            .norms
            .iter()
            .map(|norm| Array1::from_elem(norm.width, unit(norm.norm)))
            .collect(),
        layers: spec
            .layers()
            .map(|layer| {
                let (rows, columns) = spec.shape(layer);
                let weight = if dense.contains(&layer) {
                    LinearWeight::Dense(random_router(options, layer, rows, columns))
                } else {
                    LinearWeight::Quantized(random_matrix(options, layer, rows, columns))
                };
                Linear { weight, bias: None }
            })
            .collect(),
    }
}

/// Uniform weights with which scores have about unit size.
fn random_router(options: &DecodeOptions, layer: LayerId, rows: usize, columns: usize) -> Array2<f32> {
    let mut rng = stream(options.seed, 0, Some(layer), Purpose::TestData);
    let side = (3.0 / columns as f32).sqrt();
    Array2::from_shape_simple_fn((rows, columns), || rng.random_range(-side..side))
}

fn random_matrix(options: &DecodeOptions, layer: LayerId, rows: usize, columns: usize) -> QuantizedMatrix {
    let scheme = options.scheme;
    let mut rng = stream(options.seed, 0, Some(layer), Purpose::TestData);
    let (m, size) = (scheme.num_codebooks, scheme.codebook_size());
    let groups = (rows / scheme.out_group_size, columns / scheme.in_group_size, m);
    let codes = Array3::from_shape_simple_fn(groups, || rng.random_range(0..size as u32) as u16);
    let shape = (m, size, scheme.out_group_size, scheme.in_group_size);
    // Uniform with a variance of 1 / M, so that the weights' variance is their scale squared.
    let side = (3.0 / m as f64).sqrt();
    let codebooks =
        Array4::from_shape_simple_fn(shape, || f16::from_f64(rng.random_range(-side..side)).to_f64());
    let scale = f16::from_f64(1.0 / (columns as f64).sqrt()).to_f64();
    QuantizedMatrix::new(scheme, codes, codebooks, Array1::from_elem(groups.0, scale))
        .expect("made for the scheme, of finite numbers")
}

/// Embedding or head [vocab, hidden].
fn random_table(config: &ArchSpec, seed: u64) -> Vec<f16> {
    (0..config.vocab_size)
        .into_par_iter()
        .flat_map_iter(|row| random_values(config.hidden_size, seed, row))
        .collect()
}

/// Numbers between -1 and 1; `row` selects one of several streams of a seed.
fn random_values(count: usize, seed: u64, row: usize) -> Vec<f16> {
    let mut rng = stream(seed, row, None, Purpose::TestData);
    (0..count)
        .map(|_| f16::from_f32(rng.random_range(-1.0..1.0)))
        .collect()
}

/// The layers that a token passes, of which experts are those with the lowest numbers: all have one shape.
fn passed(block: &BlockSpec) -> impl Iterator<Item = LayerId> + '_ {
    let used = block.mlp.routed().map_or(0, |mlp| mlp.used);
    block
        .layers()
        .filter(move |&layer| match block.linear(layer).reads {
            Input::Expert(expert) | Input::ExpertActivated(expert) => usize::from(expert) < used,
            _ => true,
        })
}

/// Minimum bytes that a token reads.
fn least_bytes(config: &ArchSpec, scheme: Scheme, context: usize) -> Result<usize> {
    let mut bytes = 2 * config.vocab_size * config.hidden_size;
    for block in &config.blocks {
        let seen = block
            .attention
            .window
            .map_or(context, |window| window.min(context));
        let cache = 2 * 2 * seen * block.attention.key_width();
        bytes += 4 * config.hidden_size + cache;
        let dense = block.mlp.kept_dense();
        for layer in passed(block) {
            let (rows, columns) = block.shape(layer);
            bytes += if dense.contains(&layer) {
                2 * rows * columns
            } else {
                matrix_bytes(scheme, scheme.groups(rows, columns)?)
            };
        }
    }
    Ok(bytes)
}
