//! A block whose MLP is a mixture of experts: its construction from a plain block.

use crate::{Activation, BlockSpec, GatedMlp, Input, LayerId, LinearSpec, Mlp, RoutedMlp, SharedExpert};

/// How Hugging Face checkpoints name the layers of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertNames {
    /// `block_sparse_moe.gate`, `block_sparse_moe.experts.0.w1`, w3 (up) and w2 (down)
    Mixtral,
    /// `mlp.gate`, `mlp.experts.0.gate_proj`, up_proj and down_proj, `mlp.shared_expert.gate_proj`,
    /// `mlp.shared_expert_gate`
    Qwen,
}

impl ExpertNames {
    fn module(self) -> &'static str {
        match self {
            Self::Mixtral => "block_sparse_moe",
            Self::Qwen => "mlp",
        }
    }

    /// Of gate, up and down.
    fn layers(self) -> [&'static str; 3] {
        match self {
            Self::Mixtral => ["w1", "w3", "w2"],
            Self::Qwen => ["gate_proj", "up_proj", "down_proj"],
        }
    }
}

/// The parameters by which mixtures of experts differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Experts {
    /// number of experts
    pub count: usize,
    /// number of experts that a token passes
    pub used: usize,
    /// whether the weights of a token's experts add up to 1
    pub normalized: bool,
    /// width inside an expert
    pub intermediate_size: usize,
    /// width inside the shared expert, if there is one
    pub shared: Option<usize>,
    /// names of the layers
    pub names: ExpertNames,
}

impl BlockSpec {
    /// The same block, but with experts, without biases and with the same activation, instead of its MLP.
    ///
    /// The layers of attention keep their places. The layers of the MLP are grouped by the step of
    /// computation in which their inputs arise: first router, gates and ups, then all downs.
    ///
    /// # Panics
    /// When the layers of the dense MLP are not the last ones, or the block has more than 65535 layers.
    #[must_use]
    pub fn with_experts(mut self, experts: &Experts) -> Self {
        let hidden = self.hidden_size();
        let gated = self.mlp.gated();
        let activation = gated.first().map_or(Activation::Silu, |mlp| mlp.activation);
        let attention = &self.attention;
        let last = [attention.query, attention.key, attention.value, attention.output]
            .into_iter()
            .max();
        self.linears.truncate(last.map_or(0, |last| last.index() + 1));
        let module = experts.names.module();
        let names = experts.names.layers();
        let linears = &mut self.linears;
        let mut push = |name: String, shape, reads| {
            let id = u16::try_from(linears.len()).expect("fewer layers than a number of 16 bits counts");
            linears.push(LinearSpec {
                name,
                shape,
                reads,
                bias: false,
            });
            LayerId(id)
        };
        let router = push(format!("{module}.gate"), (experts.count, hidden), Input::Mlp);
        let shared_gate = experts
            .shared
            .map(|_| push(format!("{module}.shared_expert_gate"), (1, hidden), Input::Mlp));
        let shared = format!("{module}.shared_expert");
        let expert = |index: usize| format!("{module}.experts.{index}");
        let mut gate_and_up = |of: &str, inner, reads| {
            [0, 1].map(|part: usize| push(format!("{of}.{}", names[part]), (inner, hidden), reads))
        };
        let of_shared = experts
            .shared
            .map(|inner| gate_and_up(&shared, inner, Input::Mlp));
        let inner = experts.intermediate_size;
        let of_experts: Vec<[LayerId; 2]> = (0..experts.count)
            .map(|index| gate_and_up(&expert(index), inner, Input::Expert(index as u16)))
            .collect();
        let mut down = |of: &str, inner, reads| push(format!("{of}.{}", names[2]), (hidden, inner), reads);
        let gated = |[gate, up]: [LayerId; 2], down| GatedMlp {
            activation,
            gate,
            up,
            down,
        };
        let shared = experts.shared.zip(of_shared).zip(shared_gate);
        let name = format!("{module}.shared_expert");
        let shared = shared.map(|((inner, of_shared), gate)| SharedExpert {
            gate,
            mlp: gated(of_shared, down(&name, inner, Input::Activated)),
        });
        let of_experts = of_experts.into_iter().enumerate().map(|(index, gate_and_up)| {
            let reads = Input::ExpertActivated(index as u16);
            gated(gate_and_up, down(&expert(index), inner, reads))
        });
        self.mlp = Mlp::Routed(RoutedMlp {
            router,
            experts: of_experts.collect(),
            used: experts.used,
            normalized: experts.normalized,
            shared,
        });
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AqlmError;
    use crate::llama;

    fn block(shared: Option<usize>, names: ExpertNames) -> BlockSpec {
        llama::tests::block().with_experts(&Experts {
            count: 3,
            used: 2,
            normalized: true,
            intermediate_size: 6,
            shared,
            names,
        })
    }

    #[test]
    fn names_are_those_of_hugging_face() {
        let names = |block: &BlockSpec| -> Vec<String> {
            block.linears[4..]
                .iter()
                .map(|linear| linear.name.clone())
                .collect()
        };
        let mixtral = block(None, ExpertNames::Mixtral);
        assert_eq!(mixtral.check(), Ok(()));
        assert_eq!(
            names(&mixtral)[..4],
            ["gate", "experts.0.w1", "experts.0.w3", "experts.1.w1"]
                .map(|name| format!("block_sparse_moe.{name}"))
        );
        assert_eq!(names(&mixtral)[7], "block_sparse_moe.experts.0.w2");
        assert_eq!(mixtral.linears[11].short_name(), "experts.0.w2");
        let qwen = block(Some(10), ExpertNames::Qwen);
        assert_eq!(qwen.check(), Ok(()));
        assert_eq!(
            names(&qwen)[..5],
            [
                "mlp.gate",
                "mlp.shared_expert_gate",
                "mlp.shared_expert.gate_proj",
                "mlp.shared_expert.up_proj",
                "mlp.experts.0.gate_proj"
            ]
        );
        assert_eq!(qwen.intermediate_size(), 10);
    }

    #[test]
    fn an_expert_has_hessians_of_its_own_and_routers_none() {
        let block = block(Some(10), ExpertNames::Qwen);
        let groups = block.groups();
        // attention 2, the shared expert 2, three experts 2 each
        assert_eq!(groups.len(), 10);
        assert_eq!(groups[2], [LayerId(6), LayerId(7)]);
        assert_eq!(groups[3], [LayerId(8), LayerId(9)]);
        assert_eq!(groups[6], [LayerId(14)]);
        assert_eq!(groups[7], [LayerId(15)]);
        let routers = block.mlp.kept_dense();
        assert_eq!(routers, [LayerId(4), LayerId(5)]);
        assert!(!groups.concat().iter().any(|layer| routers.contains(layer)));
        // attention 32 + 32 + 64 + 64, a shared expert of width 10, three of width 6
        assert_eq!(block.parameters(), 64 + 32 + 32 + 64 + 3 * 80 + 3 * 3 * 48);
    }

    #[test]
    fn experts_that_do_not_fit_together_are_named() {
        type Change = fn(&mut BlockSpec, &mut RoutedMlp);
        let changes: [(Change, &str); 7] = [
            (|_, mlp| mlp.used = 4, "experts of a token"),
            (|_, mlp| mlp.used = 0, "experts of a token"),
            (|_, mlp| mlp.router = LayerId(99), "layer of a block"),
            (|_, mlp| mlp.experts.truncate(2), "router"),
            (|_, mlp| mlp.experts[1].up = mlp.experts[0].up, "gate and up"),
            (|block, _| block.linears[17].bias = true, "bias"),
            (|block, _| block.linears[15].shape = (9, 6), "output"),
        ];
        for (change, named) in changes {
            let mut block = block(Some(10), ExpertNames::Qwen);
            let mut mlp = block.mlp.routed().cloned().expect("experts");
            change(&mut block, &mut mlp);
            block.mlp = Mlp::Routed(mlp);
            let refused = block.check();
            assert!(
                matches!(&refused, Err(AqlmError::Argument { what, .. }) if what.contains(named)),
                "{named}: {refused:?}"
            );
        }
    }

    #[test]
    fn experts_are_no_part_of_a_plain_block() {
        let refused = block(None, ExpertNames::Mixtral).require_plain();
        assert!(
            matches!(&refused, Err(AqlmError::Unsupported(part)) if part.contains("experts")),
            "{refused:?}"
        );
    }
}
