//! Which blocks have experts, and which.

use aqlm_vocabulary::{ArchSpec, ExpertNames, Experts};
use serde_json::{Map, Value};

use super::fields::Fields;
use crate::Result;

/// The two names of the number of experts. Qwen's classes of transformers 4.57 read the first one, Mixtral's
/// the second one. In transformers 5, Mixtral and Qwen3 read both, and Qwen3 writes the second one.
const COUNTS: [&str; 2] = ["num_experts", "num_local_experts"];

/// Most experts of a block, so that 16 bits hold the number of its layers.
const MOST: usize = 4096;

/// Most experts of all blocks, ten times those of the largest models: more are damage, and would fill the
/// memory with names before a tensor is missed.
const MOST_IN_ALL: usize = 1 << 18;

/// What transformers does for a family with fields absent from config.json.
pub(super) struct ExpertDefaults {
    /// number of experts
    pub(super) count: usize,
    /// number of experts that a token passes
    pub(super) used: usize,
    /// the key of the width inside an expert, and its default
    pub(super) width: (&'static str, Option<usize>),
    /// names of tensors
    pub(super) names: ExpertNames,
}

/// The experts of a model; their weights add up to 1, and none is shared.
///
/// # Errors
/// `Field` for values that are missing, of the wrong type or contradictory.
pub(super) fn experts(fields: &Fields<'_>, defaults: &ExpertDefaults) -> Result<Experts> {
    let mut found = None;
    for key in COUNTS {
        let Some(count) = fields.optional_size(key)? else {
            continue;
        };
        if count > MOST || found.is_some_and(|found| found != count) {
            let other = "and the same as num_experts, where both are given";
            return Err(fields.wrong(key, format!("a whole number of 1 to {MOST}, {other}")));
        }
        found = Some(count);
    }
    let count = found.unwrap_or(defaults.count);
    let blocks = fields.size("num_hidden_layers")?;
    if count.saturating_mul(blocks) > MOST_IN_ALL {
        let expected =
            format!("at most {MOST_IN_ALL} experts in all blocks, of which there are {count} in one");
        return Err(fields.wrong("num_hidden_layers", expected));
    }
    let used = fields.optional_size("num_experts_per_tok")?;
    let used = used.unwrap_or(defaults.used);
    if used > count {
        let expected = format!("at most the number of experts, {count}");
        return Err(fields.wrong("num_experts_per_tok", expected));
    }
    let (key, width) = defaults.width;
    let width = fields.optional_size(key)?.or(width);
    let width = width.ok_or_else(|| fields.wrong(key, "a whole number"))?;
    Ok(Experts {
        count,
        used,
        normalized: true,
        intermediate_size: width,
        shared: None,
        names: defaults.names,
    })
}

/// Puts experts into the blocks for which `sparse` says so.
pub(super) fn set_experts(arch: &mut ArchSpec, experts: &Experts, sparse: &[bool]) {
    for (block, &sparse) in arch.blocks.iter_mut().zip(sparse) {
        if sparse {
            *block = block.clone().with_experts(experts);
        }
    }
}

/// For each block, whether it has experts: every `decoder_sparse_step`-th but those of `mlp_only_layers`.
pub(super) fn sparse_blocks(fields: &Fields<'_>, blocks: usize) -> Result<Vec<bool>> {
    let step = fields.optional_size("decoder_sparse_step")?.unwrap_or(1);
    let dense: Option<Vec<u64>> = match fields.get("mlp_only_layers") {
        None => Some(Vec::new()),
        Some(value) => value
            .as_array()
            .and_then(|list| list.iter().map(Value::as_u64).collect()),
    };
    let dense = dense.ok_or_else(|| fields.wrong("mlp_only_layers", "a list of numbers of blocks"))?;
    Ok((0..blocks)
        .map(|block| (block + 1).is_multiple_of(step) && !dense.contains(&(block as u64)))
        .collect())
}

/// Writes the number of experts under every name that a release of transformers reads.
pub(super) fn write_count(config: &mut Map<String, Value>, arch: &ArchSpec) {
    if let Some(mlp) = arch.blocks.iter().find_map(|block| block.mlp.routed()) {
        for key in COUNTS {
            config.insert(key.into(), mlp.experts.len().into());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::model::ModelConfig;

    #[test]
    fn the_count_is_written_as_every_release_reads_it() {
        let config = json!({"model_type": "qwen3_moe", "vocab_size": 9, "hidden_size": 16, "intermediate_size": 8,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_local_experts": 3, "num_experts_per_tok": 1,
            "moe_intermediate_size": 4});
        let read =
            |config: &Value| ModelConfig::from_text(Path::new("config.json"), &config.to_string()).unwrap();
        let arch = read(&config).arch;
        let mut written = config.as_object().unwrap().clone();
        write_count(&mut written, &arch);
        assert_eq!(written["num_experts"], json!(3));
        assert_eq!(written["num_local_experts"], json!(3));
        assert_eq!(read(&Value::Object(written)).arch, arch);
    }
}
