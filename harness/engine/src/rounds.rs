//! The rounds in which a block's layers are quantized, and the Hessians of each.
//!
//! Layers with the same input share a Hessian. Those of one round share a pass over the calibration data and
//! see the same block. The Hessians of a round are made a few at a time, so that they fit in memory.
//!
//! An expert's Hessian is the mean over the tokens that the router sends to it. With fewer tokens than inputs
//! it is singular, and the layer would be fitted to these tokens alone. It is then completed with the mean of
//! all experts: as many samples of that mean are added as are missing from one sample an input.

use aqlm_vocabulary::{BlockSpec, Input, LayerId};

use crate::QuantizeSettings;
use crate::block_layers::{Finished, GroupHessian, layer_owners, quantize_layers};
use crate::held::Held;
use crate::hessians::sums_of_held;
use crate::layer_jobs::Gradients;
use crate::ops::{BlockOps, PartSums};
use crate::pipeline_event::PipelineEvent;
use crate::ranks::{Ranks, hand_out, share};
use crate::runs::RunFolder;
use crate::runs::phases::PhaseClock;
use crate::targets::Targets;
use aqlm_formats::Result;

/// Most numbers of the Hessians that are held at a time, unless a single one has more: 8 GiB.
pub(crate) const MOST_NUMBERS: usize = 1 << 30;

/// Layers that read the same.
type Group = Vec<LayerId>;

/// A block's groups in rounds. Without `true_sequential`, all layers see the block before quantization. With
/// it, a round has the layers whose inputs arise in one step of the block's computation, and sees all earlier
/// rounds quantized.
pub(crate) fn rounds(spec: &BlockSpec, true_sequential: bool) -> Vec<Vec<Group>> {
    let groups = spec.groups();
    if !true_sequential {
        return vec![groups];
    }
    let step = |group: &Group| match spec.linear(group[0]).reads {
        Input::Attention => 0,
        Input::Attended => 1,
        Input::Mlp | Input::Expert(_) => 2,
        Input::Activated | Input::ExpertActivated(_) => 3,
    };
    let same = |a: &Group, b: &Group| step(a) == step(b);
    groups.chunk_by(same).map(<[Group]>::to_vec).collect()
}

/// Consecutive groups whose Hessians have at most `most` numbers together, or a single group.
fn at_once<'g>(spec: &BlockSpec, groups: &'g [Group], most: usize) -> Vec<&'g [Group]> {
    let numbers = |group: &Group| spec.shape(group[0]).1.pow(2);
    let (mut parts, mut start, mut held) = (Vec::new(), 0, 0);
    for (index, group) in groups.iter().enumerate() {
        if index > start && held + numbers(group) > most {
            parts.push(&groups[start..index]);
            (start, held) = (index, 0);
        }
        held += numbers(group);
    }
    parts.push(&groups[start..]);
    parts
}

/// Whether only some tokens pass a group's layers.
fn is_of_experts(spec: &BlockSpec, group: &Group) -> bool {
    matches!(
        spec.linear(group[0]).reads,
        Input::Expert(_) | Input::ExpertActivated(_)
    )
}

/// What the layers of a round are made of and where its results go.
pub(crate) struct Round<'a, M: BlockOps> {
    pub(crate) machine: &'a M,
    /// index of the block
    pub(crate) index: usize,
    /// the block that the round sees
    pub(crate) block: &'a M::Block,
    pub(crate) inputs: &'a M::Hidden,
    pub(crate) held: &'a Held,
    /// for objectives that need them
    pub(crate) gradients: Option<&'a Gradients>,
    pub(crate) settings: &'a QuantizeSettings,
    pub(crate) folder: &'a RunFolder,
    pub(crate) ranks: &'a dyn Ranks,
    /// most numbers of the Hessians that are held at a time
    pub(crate) most_numbers: usize,
}

/// Sums over all experts, of their inputs and of their activated gates.
struct Pools<H> {
    inputs: Option<H>,
    activated: Option<H>,
}

impl<M: BlockOps> Round<'_, M> {
    /// Quantizes the groups of a round. Returns all layers in their order, on every rank. Completes the
    /// targets with the block that the round sees, if some are missing.
    ///
    /// # Errors
    /// As [`quantize_layers`].
    pub(crate) fn quantize(
        &self,
        groups: &[Group],
        targets: &mut Targets<M>,
        clock: &mut PhaseClock,
        observe: &mut dyn FnMut(PipelineEvent<'_>),
    ) -> Result<Vec<Finished>> {
        let spec = &self.machine.config().blocks[self.index];
        let mut finished = Vec::new();
        let mut pools = Pools {
            inputs: None,
            activated: None,
        };
        // groups of experts with too few tokens wait until the mean of all experts is known
        let mut waiting = Vec::new();
        for groups in at_once(spec, groups, self.most_numbers) {
            let mut sums = self.sums(groups, targets, clock)?;
            let samples = if groups.iter().any(|group| is_of_experts(spec, group)) {
                share(self.ranks, 0, || {
                    Ok(sums
                        .iter()
                        .map(|sum| self.machine.samples(sum))
                        .collect::<Vec<_>>())
                })?
            } else {
                vec![usize::MAX; groups.len()]
            };
            let (mut ready, mut hessians) = (Vec::new(), Vec::new());
            for ((group, mut sum), samples) in groups.iter().zip(sums.drain(..)).zip(samples) {
                let linear = spec.linear(group[0]);
                let pool = match linear.reads {
                    Input::Expert(_) => &mut pools.inputs,
                    Input::ExpertActivated(_) => &mut pools.activated,
                    _ => {
                        ready.push(group.clone());
                        hessians.push(GroupHessian::whole(sum));
                        continue;
                    }
                };
                if self.ranks.is_first() {
                    let pool = pool.get_or_insert_with(|| self.machine.hessian(self.block, group[0]));
                    let numbers = sum.take();
                    pool.add(&numbers)?;
                    sum.add(&numbers)?;
                }
                if samples < linear.shape.1 {
                    waiting.push((group.clone(), samples));
                } else {
                    ready.push(group.clone());
                    hessians.push(GroupHessian::whole(sum));
                }
            }
            finished.extend(self.layers(&ready, hessians, clock, observe)?);
        }
        let scarce: Vec<Group> = waiting.iter().map(|(group, _)| group.clone()).collect();
        let mut own_tokens = waiting.iter().map(|&(_, samples)| samples);
        for groups in at_once(spec, &scarce, self.most_numbers) {
            let sums = self.sums(groups, targets, clock)?;
            let mut hessians = Vec::with_capacity(groups.len());
            for ((group, mut sum), own) in groups.iter().zip(sums).zip(own_tokens.by_ref()) {
                let linear = spec.linear(group[0]);
                let pool = match linear.reads {
                    Input::Expert(_) => &pools.inputs,
                    _ => &pools.activated,
                };
                // only the first rank has pools
                if let Some(pool) = pool {
                    self.machine.add_mean_of(&mut sum, pool, linear.shape.1 - own)?;
                }
                hessians.push(GroupHessian {
                    hessian: sum,
                    own_tokens: Some(own),
                });
            }
            finished.extend(self.layers(groups, hessians, clock, observe)?);
        }
        finished.sort_by_key(|&(layer, ..)| layer);
        Ok(finished)
    }

    /// H of each group, whole on the first rank.
    fn sums(
        &self,
        groups: &[Group],
        targets: &mut Targets<M>,
        clock: &mut PhaseClock,
    ) -> Result<Vec<M::Hessian>> {
        clock.book(|phases| &mut phases.rest);
        let firsts: Vec<LayerId> = groups.iter().map(|group| group[0]).collect();
        let sums = sums_of_held(
            self.machine,
            self.block,
            self.inputs,
            self.held,
            &firsts,
            self.ranks,
            Some(targets).filter(|targets| !targets.is_whole()),
        )?;
        clock.book(|phases| &mut phases.hessians);
        Ok(sums)
    }

    /// Gives the Hessians to the ranks that need them, and quantizes the layers.
    fn layers(
        &self,
        groups: &[Group],
        mut hessians: Vec<GroupHessian<M::Hessian>>,
        clock: &mut PhaseClock,
        observe: &mut dyn FnMut(PipelineEvent<'_>),
    ) -> Result<Vec<Finished>> {
        clock.book(|phases| &mut phases.rest);
        let spec = &self.machine.config().blocks[self.index];
        let mut owners = layer_owners(spec, groups, self.ranks);
        for (group, owners) in hessians.iter_mut().zip(&mut owners) {
            owners.sort_unstable();
            owners.dedup();
            hand_out(self.ranks, &mut group.hessian, owners)?;
        }
        clock.book(|phases| &mut phases.hessians);
        quantize_layers(
            self.machine,
            self.index,
            self.block,
            self.gradients,
            groups,
            &hessians,
            self.settings,
            self.folder,
            self.ranks,
            clock,
            observe,
        )
    }
}

#[cfg(test)]
mod tests {
    use aqlm_formats::model::Model;
    use aqlm_vocabulary::llama::LlamaBlock;
    use aqlm_vocabulary::{
        ArchSpec, BlockWeights, ExpertNames, Experts, Linear, LinearWeight, Purpose, QuantizedMatrix, Rope,
        RopeScaling, Scheme, Stream, stream,
    };
    use ndarray::{Array, Array1, Array3, Dimension, ShapeBuilder};
    use rand::RngExt;

    use super::*;
    use crate::backends::CpuBackend;
    use crate::ranks::Alone;
    use crate::{Preset, RunDescription};

    fn plain() -> BlockSpec {
        BlockSpec::llama(LlamaBlock {
            hidden_size: 8,
            intermediate_size: 12,
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
            epsilon: 1e-5,
            rotary: Rope {
                theta: 1e4,
                scaling: RopeScaling::None,
            },
            window: None,
        })
    }

    fn experts() -> BlockSpec {
        plain().with_experts(&Experts {
            count: 3,
            used: 2,
            normalized: true,
            intermediate_size: 6,
            shared: Some(10),
            names: ExpertNames::Qwen,
        })
    }

    #[test]
    fn a_round_is_a_step_of_the_computation() {
        let sizes = |spec: &BlockSpec, true_sequential| -> Vec<usize> {
            rounds(spec, true_sequential).iter().map(Vec::len).collect()
        };
        assert_eq!(sizes(&plain(), false), [4]);
        assert_eq!(sizes(&plain(), true), [1, 1, 1, 1]);
        assert_eq!(sizes(&experts(), false), [10]);
        assert_eq!(sizes(&experts(), true), [1, 1, 4, 4]);
    }

    #[test]
    fn hessians_fill_the_memory_and_no_more() {
        let spec = experts();
        let groups = spec.groups();
        // sides 8 8 | 8 8 | 8 8 | 10 6 | 6 6
        let parts = at_once(&spec, &groups, 140);
        assert_eq!(
            parts.iter().map(|part| part.len()).collect::<Vec<_>>(),
            [2, 2, 2, 2, 2]
        );
        assert_eq!(parts.concat(), groups);
        assert_eq!(at_once(&spec, &groups, 1).len(), groups.len());
        assert_eq!(at_once(&spec, &groups, 10_000), [&groups[..]]);
    }

    fn random<D: Dimension>(rng: &mut Stream, shape: impl ShapeBuilder<Dim = D>) -> Array<f32, D> {
        Array::from_shape_simple_fn(shape, || rng.random_range(-1.0..1.0))
    }

    /// The layers of a random block with experts after calibration on three sequences of so many tokens, each
    /// with its own number of tokens where that was too few.
    fn quantized(tokens: usize, most_numbers: usize) -> Vec<(LayerId, QuantizedMatrix, Option<usize>)> {
        let arch = ArchSpec::llama(10, 64, 1, experts());
        let spec = &arch.blocks[0];
        let mut rng = stream(1, 0, None, Purpose::TestData);
        let linear = |layer| Linear {
            weight: LinearWeight::Dense(random(&mut rng, spec.shape(layer))),
            bias: None,
        };
        let weights = BlockWeights {
            layers: spec.layers().map(linear).collect(),
            norms: vec![Array1::ones(8); 2],
        };
        let inputs: Array3<f32> = random(&mut rng, (3, tokens, 8));
        let machine = CpuBackend::new(&arch, tokens).unwrap();
        let mut settings = QuantizeSettings::preset(Preset::Official, Scheme::new(1, 1, 2).unwrap());
        settings.layer.max_rounds = 1;
        let folder = tempfile::tempdir().unwrap();
        let (model, kind) = (Model::embedded().unwrap(), machine.kind());
        let description =
            RunDescription::new(&model, folder.path(), &[], &settings, kind, machine.device()).unwrap();
        let folder = RunFolder::open(&folder.path().join("run"), &description, false).unwrap();
        let round = Round {
            machine: &machine,
            index: 0,
            block: &machine.load_block(0, &weights).unwrap(),
            inputs: &inputs.into(),
            held: &Held::all(&machine, vec![tokens; 3], 0..3),
            gradients: None,
            settings: &settings,
            folder: &folder,
            ranks: &Alone,
            most_numbers,
        };
        let mut clock = PhaseClock::start();
        let mut targets = Targets::new(&machine, round.inputs).unwrap();
        let observe = &mut |_: PipelineEvent<'_>| ();
        let finished = round
            .quantize(&spec.groups(), &mut targets, &mut clock, observe)
            .unwrap();
        let (found, expected) = (
            targets.into_outputs(),
            machine.block_forward(round.block, round.inputs),
        );
        assert_eq!(found.to_array().unwrap(), expected.unwrap().to_array().unwrap());
        finished
            .into_iter()
            .map(|(layer, matrix, summary)| (layer, matrix, summary.own_tokens))
            .collect()
    }

    #[test]
    fn all_experts_are_quantized_alike_in_any_memory() {
        let whole = quantized(40, MOST_NUMBERS);
        let layers: Vec<LayerId> = whole.iter().map(|(layer, ..)| *layer).collect();
        assert_eq!(layers, experts().quantizable().collect::<Vec<_>>());
        assert!(whole.iter().all(|(_, _, own)| own.is_none()));
        assert_eq!(quantized(40, 140), whole);
        assert_eq!(quantized(40, 1), whole);
    }

    #[test]
    fn experts_with_few_tokens_are_named_and_share_the_mean() {
        let whole = quantized(2, MOST_NUMBERS);
        let spec = experts();
        let own = |layer: LayerId| whole.iter().find(|(other, ..)| *other == layer).unwrap().2;
        let mlp = spec.mlp.routed().unwrap();
        // 6 tokens pass two experts each, and none of the three has the 8 that gate and up need
        let tokens: Vec<Option<usize>> = mlp.experts.iter().map(|expert| own(expert.gate)).collect();
        assert_eq!(tokens.iter().map(|tokens| tokens.unwrap()).sum::<usize>(), 12);
        for (expert, tokens) in mlp.experts.iter().zip(tokens) {
            assert_eq!(own(expert.up), tokens);
            assert_eq!(own(expert.down), tokens.filter(|&tokens| tokens < 6));
        }
        let others = |layer| own(layer).is_none();
        assert!((0..4).map(LayerId).all(others));
        assert!(mlp.shared.as_ref().is_some_and(|shared| others(shared.mlp.down)));
        assert_eq!(quantized(2, 1), whole);
    }
}
