use std::time::Instant;

use aqlm_reference::{limit_db, rate_distortion_limit};
use aqlm_vocabulary::{BlockSpec, LayerEvent, LayerId, QuantizedMatrix, Scheme, StreamKey};
use ndarray::{Array1, Array3, Array4};
use serde::{Deserialize, Serialize};

use crate::QuantizeSettings;
use crate::alternate::alternate;
use crate::ops::{BlockOps, LayerOps};
use crate::pipeline_event::PipelineEvent;
use crate::ranks::{Ranks, broadcast, owners};
use crate::runs::phases::PhaseClock;
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
    let mut spectra = Vec::with_capacity(groups.len());
    let mut first = 0;
    for (group, hessian) in groups.iter().zip(hessians) {
        let mine = owners[first..first + group.len()].contains(&ranks.rank());
        first += group.len();
        let known = mine && spec.linear(group[0]).shape.1 <= LARGEST_SPECTRUM;
        spectra.push(known.then(|| machine.spectrum(&hessian.hessian)).transpose()?);
    }
    let mut own = Vec::with_capacity(owners.len());
    for ((group, hessian), spectrum) in groups.iter().zip(hessians).zip(&mut spectra) {
        for &layer in group {
            if owners[own.len()] != ranks.rank() {
                own.push(None);
                continue;
            }
            let job = Job {
                machine,
                index,
                block,
                layer,
                hessian,
                spectrum: spectrum.as_mut(),
                settings,
            };
            let finished = job.quantize(clock, observe)?;
            done(&finished.2, observe)?;
            own.push(Some(finished));
        }
    }
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

/// One layer to quantize.
struct Job<'a, M: BlockOps> {
    machine: &'a M,
    /// index of the block
    index: usize,
    block: &'a M::Block,
    layer: LayerId,
    hessian: &'a GroupHessian<M::Hessian>,
    /// eigenvalues of the Hessian; `None` if it is too large for them
    spectrum: Option<&'a mut Spectrum>,
    settings: &'a QuantizeSettings,
}

impl<M: BlockOps> Job<'_, M> {
    fn quantize(
        self,
        clock: &mut PhaseClock,
        observe: &mut dyn FnMut(PipelineEvent<'_>),
    ) -> Result<Finished> {
        let Self {
            machine,
            index,
            block,
            layer,
            hessian,
            spectrum,
            settings,
        } = self;
        let started = Instant::now();
        let config = machine.config();
        let linear = config.blocks[index].linear(layer);
        let key = StreamKey {
            seed: settings.seed,
            block: index,
            layer: Some(layer),
        };
        clock.book(|phases| &mut phases.rest);
        let mut on_event = |event| {
            clock.book(|phases| match event {
                LayerEvent::Initialized { .. } => &mut phases.initialisation,
                LayerEvent::Updated { .. } => &mut phases.codebook_update,
                LayerEvent::Searched { .. } => &mut phases.beam_search,
            });
            observe(PipelineEvent::Layer {
                block: index,
                layer: linear.short_name(),
                event,
            });
        };
        let problem = machine.layer_problem(block, layer, &hessian.hessian, &settings.layer)?;
        let (matrix, report) = alternate(machine.layers(), &problem, &settings.layer, key, &mut on_event)?;
        let name = config.layer_name(index, layer);
        let stored = matrix.rounded_to_f16().map_err(|source| Error::Layer {
            layer: name.clone(),
            source,
        })?;
        let stored = machine.layers().trial(&problem, stored)?;
        let relative_layer_error = machine.layers().loss(&problem, &stored);
        drop(problem);
        let eigenvalues = spectrum.map(Spectrum::eigenvalues).transpose()?;
        let summary = LayerSummary {
            name,
            relative_layer_error,
            limit_db: eigenvalues.and_then(|eigenvalues| {
                let limit = rate_distortion_limit(eigenvalues, matrix.bits_per_parameter());
                let distance = limit_db(relative_layer_error, limit);
                distance.is_finite().then_some(distance)
            }),
            own_tokens: hessian.own_tokens,
            seconds: started.elapsed().as_secs_f64(),
            bits_per_parameter: matrix.bits_per_parameter(),
            parameters: matrix.out_features() * matrix.in_features(),
            report,
        };
        Ok((layer, matrix, summary))
    }
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
