//! Names of the tensors outside the blocks, and of all that a model has. Names inside a block are in the
//! block's spec.

use std::collections::BTreeSet;

use aqlm_vocabulary::{ArchSpec, NormSpec};

pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(crate) const FINAL_NORM: &str = "model.norm.weight";
pub(crate) const LM_HEAD: &str = "lm_head.weight";

/// The name of a norm's biases, given that of its weights.
pub(crate) fn bias_name(weights: &str) -> String {
    format!("{}bias", weights.strip_suffix("weight").unwrap_or(weights))
}

/// Names of all tensors of a dense model, and of its head even if that is the embedding.
pub(crate) fn needed_tensors(arch: &ArchSpec) -> BTreeSet<String> {
    let mut needed: BTreeSet<String> = [EMBEDDING, LM_HEAD].map(String::from).into();
    let mut add = |name: &str, spec: NormSpec| {
        needed.insert(name.into());
        if spec.biased {
            needed.insert(bias_name(name));
        }
    };
    add(FINAL_NORM, arch.final_norm);
    for (block, spec) in arch.blocks.iter().enumerate() {
        for (name, norm) in arch.norm_names(block).iter().zip(&spec.norms) {
            add(name, norm.norm);
        }
    }
    for (block, spec) in arch.blocks.iter().enumerate() {
        for layer in spec.layers() {
            let name = arch.layer_name(block, layer);
            needed.insert(format!("{name}.weight"));
            if spec.linear(layer).bias {
                needed.insert(format!("{name}.bias"));
            }
        }
    }
    needed
}
