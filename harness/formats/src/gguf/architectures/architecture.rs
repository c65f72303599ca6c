use std::fmt;

use super::super::file::{Config, File};
use crate::Result;

/// An architecture of GGUF files: its names, and what its files differ in from a plain Llama's.
pub(in super::super) struct Architecture {
    /// `general.architecture`
    pub(in super::super) name: &'static str,
    /// fields that it reads beyond those of all architectures, without its name in front
    pub(in super::super) reads: &'static [&'static str],
    /// parts of a block whose names are not those of a plain Llama: in GGUF, and in a Hugging Face folder
    pub(in super::super) parts: &'static [(&'static str, &'static str)],
    /// names of experts
    pub(in super::super) experts: Experts,
    /// the field of the norms' epsilon, and its key in config.json
    pub(in super::super) epsilon: (&'static str, &'static str),
    /// whether the two halves of each head's queries and keys are interleaved, for a rotation of neighbours
    pub(in super::super) interleaved: bool,
    /// whether the weights of norms have a 1 added to them
    pub(in super::super) one_plus: bool,
    /// whether only a part of each head may be rotated
    pub(in super::super) partial: bool,
    /// changes the configuration of a plain Llama, whose family it has to name
    pub(in super::super) config: fn(&File<'_>, &mut Config) -> Result<()>,
}

/// Names of experts in a Hugging Face folder.
pub(in super::super) struct Experts {
    /// the layer that chooses among them
    pub(in super::super) router: &'static str,
    /// what stands before an expert's number
    pub(in super::super) module: &'static str,
    /// of gate, up and down
    pub(in super::super) layers: [&'static str; 3],
}

impl Architecture {
    /// A plain Llama's, and Qwen's names of experts: what the others start from.
    pub(super) const PLAIN: Self = Self {
        name: "",
        reads: &[],
        parts: &[],
        experts: Experts {
            router: "mlp.gate",
            module: "mlp.experts",
            layers: ["gate_proj", "up_proj", "down_proj"],
        },
        epsilon: ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
        interleaved: false,
        one_plus: false,
        partial: false,
        config: |_, _| Ok(()),
    };
}

impl fmt::Debug for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}
