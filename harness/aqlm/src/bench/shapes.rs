use std::path::Path;

use aqlm_formats::huggingface::config::ModelConfig;
use aqlm_vocabulary::llama::LlamaBlock;
use aqlm_vocabulary::{ArchSpec, BlockSpec, Rope, RopeScaling};

/// Models whose exact shapes can be filled with random weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LlamaShape {
    /// 32 blocks of width 4096
    #[value(name = "llama-2-7b")]
    Llama2x7b,
    /// 40 blocks of width 5120
    #[value(name = "llama-2-13b")]
    Llama2x13b,
    /// 80 blocks of width 8192, eight query heads a key head
    #[value(name = "llama-2-70b")]
    Llama2x70b,
    /// 32 blocks of width 4096, four query heads a key head, a window of 4096
    #[value(name = "mistral-7b")]
    Mistral7b,
    /// Mistral with 8 experts a block, of which a token passes 2
    #[value(name = "mixtral-8x7b")]
    Mixtral8x7b,
    /// 36 blocks of width 4096, norms of queries and keys
    #[value(name = "qwen3-8b")]
    Qwen3x8b,
    /// 48 blocks of width 2048 with 128 experts, of which a token passes 8
    #[value(name = "qwen3-30b-a3b")]
    Qwen3x30bA3b,
    /// 42 blocks of width 3584, norms around attention and MLP, GeGLU, caps, a window in every other block
    #[value(name = "gemma-2-9b")]
    Gemma2x9b,
    /// 32 blocks of width 3072, fused layers, heads of 96
    #[value(name = "phi-3-mini")]
    Phi3Mini,
}

impl LlamaShape {
    /// The name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Llama2x7b => "llama-2-7b",
            Self::Llama2x13b => "llama-2-13b",
            Self::Llama2x70b => "llama-2-70b",
            Self::Mistral7b => "mistral-7b",
            Self::Mixtral8x7b => "mixtral-8x7b",
            Self::Qwen3x8b => "qwen3-8b",
            Self::Qwen3x30bA3b => "qwen3-30b-a3b",
            Self::Gemma2x9b => "gemma-2-9b",
            Self::Phi3Mini => "phi-3-mini",
        }
    }

    /// The parts that a small model of the check must have to stand for this one (a word of its cases' ids).
    pub(crate) fn parts(self) -> &'static str {
        match self {
            Self::Llama2x7b | Self::Llama2x13b | Self::Llama2x70b | Self::Mistral7b => "llama",
            Self::Mixtral8x7b | Self::Qwen3x30bA3b => "mixtral",
            Self::Qwen3x8b => "qwen3",
            Self::Gemma2x9b => "gemma2",
            Self::Phi3Mini => "phi3",
        }
    }

    /// The configuration in the model's checkpoint: meta-llama/Llama-2-7b-hf and the other sizes,
    /// mistralai/Mistral-7B-v0.1 and Mixtral-8x7B-v0.1, Qwen/Qwen3-8B and Qwen3-30B-A3B, google/gemma-2-9b,
    /// microsoft/Phi-3-mini-4k-instruct.
    pub(crate) fn config(self) -> ArchSpec {
        let (hidden_size, intermediate_size, blocks, heads, kv_heads) = match self {
            Self::Llama2x7b => (4096, 11008, 32, 32, 32),
            Self::Llama2x13b => (5120, 13824, 40, 40, 40),
            Self::Llama2x70b => (8192, 28672, 80, 64, 8),
            Self::Mistral7b => return parsed(MISTRAL_7B),
            Self::Mixtral8x7b => return parsed(MIXTRAL_8X7B),
            Self::Qwen3x8b => return parsed(QWEN3_8B),
            Self::Qwen3x30bA3b => return parsed(QWEN3_30B_A3B),
            Self::Gemma2x9b => return parsed(GEMMA_2_9B),
            Self::Phi3Mini => return parsed(PHI_3_MINI),
        };
        let block = BlockSpec::llama(LlamaBlock {
            hidden_size,
            intermediate_size,
            heads,
            kv_heads,
            head_dim: 128,
            epsilon: 1e-5,
            rotary: Rope {
                theta: 10_000.0,
                scaling: RopeScaling::None,
            },
            window: None,
        });
        ArchSpec::llama(32_000, 4096, blocks, block)
    }
}

/// The fields of config.json that decide the shape.
const MISTRAL_7B: &str = r#"{"architectures": ["MistralForCausalLM"], "model_type": "mistral",
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "max_position_embeddings": 32768, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
    "sliding_window": 4096, "tie_word_embeddings": false, "vocab_size": 32000}"#;
const MIXTRAL_8X7B: &str = r#"{"architectures": ["MixtralForCausalLM"], "model_type": "mixtral",
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": null,
    "tie_word_embeddings": false, "vocab_size": 32000}"#;
const QWEN3_8B: &str = r#"{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 128,
    "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "max_position_embeddings": 40960, "rms_norm_eps": 1e-06,
    "rope_theta": 1000000, "attention_bias": false, "use_sliding_window": false, "sliding_window": null,
    "tie_word_embeddings": false, "vocab_size": 151936}"#;
const QWEN3_30B_A3B: &str = r#"{"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
    "head_dim": 128, "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
    "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "num_experts": 128,
    "num_experts_per_tok": 8, "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "max_position_embeddings": 40960, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "attention_bias": false, "use_sliding_window": false, "sliding_window": null,
    "tie_word_embeddings": false, "vocab_size": 151936}"#;
const GEMMA_2_9B: &str = r#"{"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "head_dim": 256,
    "hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42, "num_attention_heads": 16,
    "num_key_value_heads": 8, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 4096,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "vocab_size": 256000}"#;
const PHI_3_MINI: &str = r#"{"architectures": ["Phi3ForCausalLM"], "model_type": "phi3",
    "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0, "rope_scaling": null, "sliding_window": 2047, "tie_word_embeddings": false,
    "vocab_size": 32064}"#;

/// # Panics
/// Never for the texts of this file, all of which the tests read.
fn parsed(text: &str) -> ArchSpec {
    let config = ModelConfig::from_text(Path::new("config.json"), text);
    config.expect("the tests read all texts of this file").arch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_the_parameters_that_the_models_are_named_for() {
        for (shape, billions) in [
            (LlamaShape::Llama2x7b, 6.48),
            (LlamaShape::Llama2x13b, 12.69),
            (LlamaShape::Llama2x70b, 68.45),
            (LlamaShape::Mistral7b, 6.98),
            (LlamaShape::Mixtral8x7b, 46.44),
            (LlamaShape::Qwen3x8b, 6.95),
            (LlamaShape::Qwen3x30bA3b, 29.90),
            (LlamaShape::Gemma2x9b, 8.32),
            (LlamaShape::Phi3Mini, 3.62),
        ] {
            let weights: usize = shape.config().blocks.iter().map(BlockSpec::parameters).sum();
            let found = weights as f64 / 1e9;
            assert!((found - billions).abs() < 0.005, "{found}");
        }
    }
    #[test]
    fn shapes_are_those_of_the_papers_tables() {
        for shape in [
            LlamaShape::Llama2x7b,
            LlamaShape::Llama2x13b,
            LlamaShape::Llama2x70b,
        ] {
            let known = aqlm_engine::tables::model(shape.name()).expect("a model of golden/paper");
            known.check_shape(&shape.config()).expect("the same shape");
            assert_eq!(known.block_parameters(), shape.config().blocks[0].parameters());
        }
    }
}
