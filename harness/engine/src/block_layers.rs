use aqlm_vocabulary::{BlockSpec, LayerId, QuantizedMatrix, Scheme};
use ndarray::{Array1, Array3, Array4};
use serde::{Deserialize, Serialize};

use crate::layer_jobs::{Gradients, Job, JobEvent, run_jobs};
use crate::ops::BlockOps;
use crate::pipeline_event::PipelineEvent;
use crate::presets::QuantizeSettings;
use crate::ranks::{Ranks, broadcast, owners};
use crate::runs::phases::{PhaseClock, PhaseSeconds};
use crate::runs::records::{LARGEST_SPECTRUM, LayerSummary};
use crate::runs::{MetricEvent, RunFolder};
use crate::spectrum::Spectrum;
use aqlm_formats::{Error, Result};

/// A layer after quantization.
pub(crate) type Finished = (LayerId, QuantizedMatrix, LayerSummary);

/// H of a group of layers.
pub(crate) struct GroupHessian<H> {
    pub(crate) hessian: H,
    /// calibration tokens of an expert that has fewer than inputs; `None` where there are enough
    pub(crate) own_tokens: Option<usize>,
}

impl<H> GroupHessian<H> {
    /// Of enough tokens.
    pub(crate) fn whole(hessian: H) -> Self {
        Self {
            hessian,
            own_tokens: None,
        }
    }
}

/// Which rank quantizes each layer of groups of a block's layers. A layer costs as much as it has weights.
pub(crate) fn layer_owners(spec: &BlockSpec, groups: &[Vec<LayerId>], ranks: &dyn Ranks) -> Vec<Vec<usize>> {
    let weights = |&layer: &LayerId| {
        let (rows, columns) = spec.linear(layer).shape;
        rows * columns
    };
    let costs: Vec<usize> = groups.iter().flatten().map(weights).collect();
    let mut owners = owners(&costs, ranks.size()).into_iter();
    let of_group = |group: &Vec<LayerId>| owners.by_ref().take(group.len()).collect();
    groups.iter().map(of_group).collect()
}

/// Quantizes groups of layers of a block, each group under the Hessian of its input, spread over the ranks.
/// Returns all layers in their order, on every rank. `observe` sees what this rank does, and every layer when
/// it is done.
///
/// # Errors
/// `Layer` for a layer whose codebooks or scales f16 cannot hold. Errors of the machine; `Rank`.
#[expect(
    clippy::too_many_arguments,
    reason = "each is a different thing, and a struct would only rename them"
)]
pub(crate) fn quantize_layers<M: BlockOps>(
    machine: &M,
    index: usize,
    block: &M::Block,
    gradients: Option<&Gradients>,
    groups: &[Vec<LayerId>],
    hessians: &[GroupHessian<M::Hessian>],
    settings: &QuantizeSettings,
    folder: &RunFolder,
    ranks: &dyn Ranks,
    clock: &mut PhaseClock,
    observe: &mut dyn FnMut(PipelineEvent<'_>),
) -> Result<Vec<Finished>> {
    let spec = &machine.config().blocks[index];
    let owners = layer_owners(spec, groups, ranks).concat();
    let done = |summary: &LayerSummary, observe: &mut dyn FnMut(PipelineEvent<'_>)| {
        folder.metric(MetricEvent::Layer {
            summary: summary.clone(),
        })?;
        observe(PipelineEvent::LayerDone(summary));
        Ok::<_, Error>(())
    };

    // All start before the first layer, so that the last layers seldom wait for theirs.
    let layers = groups.concat();
    let mut spectra = Vec::with_capacity(groups.len());
    let mut group_of = Vec::with_capacity(layers.len());
    let mut jobs = Vec::with_capacity(layers.len());
    for (group, hessian) in groups.iter().zip(hessians) {
        let first = jobs.len();
        for &layer in group {
            let mine = owners[jobs.len()] == ranks.rank();
            jobs.push(mine.then_some(Job {
                machine,
                index,
                block,
                gradients,
                layer,
                hessian: &hessian.hessian,
                settings,
            }));
        }
        let mine = jobs[first..].iter().any(Option::is_some);
        let known = mine && spec.linear(group[0]).shape.1 <= LARGEST_SPECTRUM;
        group_of.extend(group.iter().map(|_| spectra.len()));
        spectra.push(known.then(|| machine.spectrum(&hessian.hessian)).transpose()?);
    }
    clock.book(|phases| &mut phases.rest);
    let mut own: Vec<Option<Finished>> = (0..jobs.len()).map(|_| None).collect();
    let mut phases = PhaseSeconds::default();
    let mut on_event = |event: JobEvent| {
        match event {
            JobEvent::Step(place, event) => observe(PipelineEvent::Layer {
                block: index,
                layer: spec.linear(layers[place]).short_name(),
                event,
            }),
            JobEvent::Done(place, quantized) => {
                phases.add(&quantized.phases);
                let name = machine.config().layer_name(index, layers[place]);
                let spectrum = spectra[group_of[place]].as_mut();
                let eigenvalues = spectrum.map(Spectrum::eigenvalues).transpose()?;
                let own_tokens = hessians[group_of[place]].own_tokens;
                let (matrix, summary) = quantized.summarized(name, own_tokens, eigenvalues);
                done(&summary, observe)?;
                own[place] = Some((layers[place], matrix, summary));
            }
        }
        Ok(())
    };
    run_jobs(machine, &jobs, &mut on_event)?;
    clock.book_shares(&phases);
    let mut finished = Vec::with_capacity(owners.len());
    for (own, owner) in own.into_iter().zip(owners) {
        let message = match &own {
            Some(own) if ranks.size() > 1 => Some(to_bytes(own)?),
            _ => None,
        };
        finished.push(if let Some(own) = own {
            if message.is_some() {
                broadcast(ranks, owner, message)?;
            }
            own
        } else {
            let theirs = from_bytes(&broadcast(ranks, owner, None)?)?;
            done(&theirs.2, observe)?;
            theirs
        });
    }
    clock.book(|phases| &mut phases.rest);
    Ok(finished)
}

/// What precedes the numbers of a layer in a message.
#[derive(Serialize, Deserialize)]
struct Head {
    layer: LayerId,
    summary: LayerSummary,
    scheme: Scheme,
    codes: (usize, usize, usize),
}

/// A layer as a message: the length of its head in bytes (8), the head as JSON, codes, codebooks and scales,
/// little-endian.
fn to_bytes((layer, matrix, summary): &Finished) -> Result<Vec<u8>> {
    let head = Head {
        layer: *layer,
        summary: summary.clone(),
        scheme: matrix.scheme(),
        codes: matrix.codes().dim(),
    };
    let head = serde_json::to_vec(&head).map_err(|error| json(&error))?;
    let mut bytes = (head.len() as u64).to_le_bytes().to_vec();
    bytes.extend(head);
    for code in matrix.codes() {
        bytes.extend(code.to_le_bytes());
    }
    for number in matrix.codebooks().iter().chain(matrix.scales()) {
        bytes.extend(number.to_le_bytes());
    }
    Ok(bytes)
}

fn json(error: &serde_json::Error) -> Error {
    Error::Internal(format!("a layer between ranks: {error}"))
}

fn from_bytes(bytes: &[u8]) -> Result<Finished> {
    let short = || Error::Internal("a layer between ranks that ends early".into());
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(short)?;
    let length = u64::from_le_bytes(*length) as usize;
    let (head, rest) = rest.split_at_checked(length).ok_or_else(short)?;
    let Head {
        layer,
        summary,
        scheme,
        codes: shape,
    } = serde_json::from_slice(head).map_err(|error| json(&error))?;
    let of_codes = size_of::<u16>() * shape.0 * shape.1 * shape.2;
    let (codes, rest) = rest.split_at_checked(of_codes).ok_or_else(short)?;
    let codebooks = (
        scheme.num_codebooks,
        scheme.codebook_size(),
        scheme.out_group_size,
        scheme.in_group_size,
    );
    let of_codebooks = size_of::<f64>() * codebooks.0 * codebooks.1 * codebooks.2 * codebooks.3;
    let (entries, scales) = rest.split_at_checked(of_codebooks).ok_or_else(short)?;
    let numbers = |bytes: &[u8]| -> Vec<f64> {
        let (numbers, _) = bytes.as_chunks::<8>();
        numbers.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect()
    };
    let (codes, _) = codes.as_chunks::<2>();
    let codes = codes.iter().map(|&bytes| u16::from_le_bytes(bytes)).collect();
    let matrix = QuantizedMatrix::new(
        scheme,
        Array3::from_shape_vec(shape, codes).map_err(|_| short())?,
        Array4::from_shape_vec(codebooks, numbers(entries)).map_err(|_| short())?,
        Array1::from(numbers(scales)),
    )?;
    Ok((layer, matrix, summary))
}
