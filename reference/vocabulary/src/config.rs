use std::fmt;

use serde::{Deserialize, Serialize};

/// The seven linear layers of a Llama block, in the order in which they are quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerKind {
    /// queries, [heads x head_dim, hidden]
    QProj,
    /// keys, [kv_heads x head_dim, hidden]
    KProj,
    /// values, [kv_heads x head_dim, hidden]
    VProj,
    /// attention output, [hidden, heads x head_dim]
    OProj,
    /// the gate of SwiGLU, [intermediate, hidden]
    GateProj,
    /// the other input of SwiGLU, [intermediate, hidden]
    UpProj,
    /// its output, [hidden, intermediate]
    DownProj,
}

impl LayerKind {
    /// All seven, in the order in which they are quantized.
    pub const ALL: [Self; 7] = [
        Self::QProj,
        Self::KProj,
        Self::VProj,
        Self::OProj,
        Self::GateProj,
        Self::UpProj,
        Self::DownProj,
    ];

    /// The layer's path inside its block, as Hugging Face checkpoints name it.
    pub fn path(self) -> &'static str {
        match self {
            Self::QProj => "self_attn.q_proj",
            Self::KProj => "self_attn.k_proj",
            Self::VProj => "self_attn.v_proj",
            Self::OProj => "self_attn.o_proj",
            Self::GateProj => "mlp.gate_proj",
            Self::UpProj => "mlp.up_proj",
            Self::DownProj => "mlp.down_proj",
        }
    }

    /// Its last part: `q_proj` and so on.
    pub fn name(self) -> &'static str {
        self.path().rsplit('.').next().unwrap_or_default()
    }
}

impl fmt::Display for LayerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

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

/// The numbers of a Llama-family model that change its arithmetic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LlamaConfig {
    /// tokens in the vocabulary
    pub vocab_size: usize,
    /// width of the residual stream
    pub hidden_size: usize,
    /// width inside SwiGLU
    pub intermediate_size: usize,
    /// number of blocks
    pub num_hidden_layers: usize,
    /// query heads
    pub num_attention_heads: usize,
    /// key and value heads; fewer than query heads is grouped-query attention
    pub num_key_value_heads: usize,
    /// width of one head
    pub head_dim: usize,
    /// epsilon inside the root of RMSNorm
    pub rms_norm_eps: f64,
    /// rotary position embedding
    pub rope: Rope,
    /// tokens a position attends to, itself included; `None` is all earlier ones
    pub sliding_window: Option<usize>,
    /// whether lm_head is the embedding
    pub tie_word_embeddings: bool,
    /// longest context the model was trained for
    pub max_position_embeddings: usize,
}

impl LlamaConfig {
    /// (out_features, in_features) of a linear layer.
    pub fn layer_shape(&self, layer: LayerKind) -> (usize, usize) {
        let queries = self.num_attention_heads * self.head_dim;
        let keys = self.num_key_value_heads * self.head_dim;
        match layer {
            LayerKind::QProj => (queries, self.hidden_size),
            LayerKind::KProj | LayerKind::VProj => (keys, self.hidden_size),
            LayerKind::OProj => (self.hidden_size, queries),
            LayerKind::GateProj | LayerKind::UpProj => (self.intermediate_size, self.hidden_size),
            LayerKind::DownProj => (self.hidden_size, self.intermediate_size),
        }
    }

    /// Query heads that share one key and value head.
    pub fn heads_per_kv_head(&self) -> usize {
        self.num_attention_heads / self.num_key_value_heads
    }
}
