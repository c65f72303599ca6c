use serde::{Deserialize, Serialize};

/// How rotation angles grow with position.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    /// base of the geometric series of wavelengths
    pub theta: f64,
    /// what long-context variants do to the frequencies
    pub scaling: RopeScaling,
}

/// Changes to RoPE's frequencies that the project implements.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum RopeScaling {
    /// plain RoPE
    None,
    /// every frequency divided by `factor`
    Linear {
        /// by how much the context grows
        factor: f64,
    },
    /// Llama 3.1's: long wavelengths divided by `factor`, short ones kept, a linear blend between
    Llama3 {
        /// by how much the context grows
        factor: f64,
        /// wavelengths above original context / this are divided
        low_freq_factor: f64,
        /// wavelengths below original context / this are kept
        high_freq_factor: f64,
        /// context length before the extension
        original_max_position_embeddings: usize,
    },
}
