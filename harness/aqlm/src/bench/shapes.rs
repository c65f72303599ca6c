use aqlm_vocabulary::{LlamaConfig, Rope, RopeScaling};

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
}

impl LlamaShape {
    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Llama2x7b => "llama-2-7b",
            Self::Llama2x13b => "llama-2-13b",
            Self::Llama2x70b => "llama-2-70b",
        }
    }

    /// The configuration that its checkpoint has (meta-llama/Llama-2-7b-hf and its siblings).
    pub(crate) fn config(self) -> LlamaConfig {
        let (hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads) =
            match self {
                Self::Llama2x7b => (4096, 11008, 32, 32, 32),
                Self::Llama2x13b => (5120, 13824, 40, 40, 40),
                Self::Llama2x70b => (8192, 28672, 80, 64, 8),
            };
        LlamaConfig {
            vocab_size: 32_000,
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim: 128,
            rms_norm_eps: 1e-5,
            rope: Rope {
                theta: 10_000.0,
                scaling: RopeScaling::None,
            },
            sliding_window: None,
            tie_word_embeddings: false,
            max_position_embeddings: 4096,
        }
    }
}

#[cfg(test)]
mod tests {
    use aqlm_vocabulary::LayerKind;

    use super::LlamaShape;

    #[test]
    fn shapes_have_the_parameters_that_the_models_are_named_for() {
        for (shape, billions) in [
            (LlamaShape::Llama2x7b, 6.48),
            (LlamaShape::Llama2x13b, 12.69),
            (LlamaShape::Llama2x70b, 68.45),
        ] {
            let config = shape.config();
            let block: usize = LayerKind::ALL
                .iter()
                .map(|&kind| config.layer_shape(kind))
                .map(|(rows, columns)| rows * columns)
                .sum();
            let found = (block * config.num_hidden_layers) as f64 / 1e9;
            assert!((found - billions).abs() < 0.005, "{found}");
        }
    }
}
