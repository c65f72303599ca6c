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
}
