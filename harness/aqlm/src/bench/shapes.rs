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
}

impl LlamaShape {
    /// The name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Llama2x7b => "llama-2-7b",
            Self::Llama2x13b => "llama-2-13b",
            Self::Llama2x70b => "llama-2-70b",
        }
    }

    /// The configuration in the model's checkpoint (meta-llama/Llama-2-7b-hf and the other sizes).
    pub(crate) fn config(self) -> ArchSpec {
        let (hidden_size, intermediate_size, blocks, heads, kv_heads) = match self {
            Self::Llama2x7b => (4096, 11008, 32, 32, 32),
            Self::Llama2x13b => (5120, 13824, 40, 40, 40),
            Self::Llama2x70b => (8192, 28672, 80, 64, 8),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_the_parameters_that_the_models_are_named_for() {
        for (shape, billions) in [
            (LlamaShape::Llama2x7b, 6.48),
            (LlamaShape::Llama2x13b, 12.69),
            (LlamaShape::Llama2x70b, 68.45),
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
