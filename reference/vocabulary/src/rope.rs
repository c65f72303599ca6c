use serde::{Deserialize, Serialize};

/// How rotation angles grow with position.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    /// base of the geometric series of wavelengths
    pub theta: f64,
    /// modification of the frequencies for long contexts
    pub scaling: RopeScaling,
}

/// The modifications of RoPE's frequencies that the project implements.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum RopeScaling {
    /// plain RoPE
    None,
    /// every frequency divided by `factor`
    Linear {
        /// factor by which the context grows
        factor: f64,
    },
    /// Llama 3.1's: frequencies of long wavelengths are divided by `factor`, those of short ones kept, with a
    /// linear blend between
    Llama3 {
        /// factor by which the context grows
        factor: f64,
        /// wavelengths above original context / this factor have their frequency divided
        low_freq_factor: f64,
        /// wavelengths below original context / this factor keep their frequency
        high_freq_factor: f64,
        /// context length before the extension
        original_max_position_embeddings: usize,
    },
    /// Dynamic NTK: plain RoPE up to the model's context, and a larger theta for longer sequences, so that
    /// the slowest frequency is divided by about the growth of the sequence. The frequencies of all positions
    /// depend on the sequence's length.
    Dynamic {
        /// how fast theta grows with the sequence
        factor: f64,
        /// context up to which RoPE is plain
        max_position_embeddings: usize,
    },
    /// YaRN (Peng et al. 2023): pairs that turn often keep their frequency, pairs that turn rarely have it
    /// divided by `factor`, with a blend linear in the pair's index between; cosines and sines are scaled
    Yarn {
        /// factor by which the context grows
        factor: f64,
        /// context length before the extension
        original_max_position_embeddings: usize,
        /// turns over the original context above which a pair keeps its frequency
        beta_fast: f64,
        /// turns over the original context below which a pair's frequency is divided
        beta_slow: f64,
        /// whether the blend's ends are rounded outward to whole pairs
        truncate: bool,
        /// factor of cosines and sines, and thereby of both queries and keys
        attention_factor: f64,
    },
    /// LongRoPE (Ding et al. 2024): every pair's frequency is divided by a factor of its own, of one list up
    /// to the original context and of another beyond it; cosines and sines are scaled. The frequencies of all
    /// positions depend on the sequence's length.
    Long {
        /// divisors of sequences up to the original context, one a pair
        short: Vec<f64>,
        /// divisors of longer sequences, one a pair
        long: Vec<f64>,
        /// context length before the extension
        original_max_position_embeddings: usize,
        /// factor of cosines and sines, and thereby of both queries and keys
        attention_factor: f64,
    },
}
