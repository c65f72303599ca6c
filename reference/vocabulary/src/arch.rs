use serde::{Deserialize, Serialize};

use crate::{AqlmError, BlockWeights, LayerId, Result, Rope};

/// A whole model as data: everything about its shape that changes its arithmetic.
///
/// Code of the project reads sizes, names and topology from here and nowhere else. What a model may ask for
/// is wider than what is computed: see [`ArchSpec::require_plain`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ArchSpec {
    /// tokens in the vocabulary
    pub vocab_size: usize,
    /// width of the residual stream
    pub hidden_size: usize,
    /// longest context the model was trained for
    pub max_position_embeddings: usize,
    /// first to last; they may differ
    pub blocks: Vec<BlockSpec>,
    /// what token embeddings are multiplied by; 1 in a Llama
    pub embedding_scale: f64,
    /// the norm before the head
    pub final_norm: NormSpec,
    /// logits are cap tanh(logit / cap)
    pub logit_cap: Option<f64>,
    /// whether lm_head is the embedding
    pub tied: bool,
}

impl ArchSpec {
    /// A layer's path in a Hugging Face checkpoint, without `.weight`.
    pub fn layer_name(&self, block: usize, layer: LayerId) -> String {
        format!("model.layers.{block}.{}", self.blocks[block].linear(layer).name)
    }

    /// Names of a block's norm weights in a Hugging Face checkpoint: before attention, before the MLP.
    pub fn norm_names(&self, block: usize) -> [String; 2] {
        let named = |norm: &String| format!("model.layers.{block}.{norm}.weight");
        self.blocks[block].norms.before.each_ref().map(named)
    }

    /// The attention whose rotary tables serve all blocks, the first's; [`ArchSpec::require_plain`] makes
    /// sure that they can.
    ///
    /// # Panics
    /// When the model has no blocks.
    pub fn attention(&self) -> &AttentionSpec {
        &self.blocks[0].attention
    }
}

/// One transformer block as data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockSpec {
    /// its linear layers, in the order in which they are quantized
    pub linears: Vec<LinearSpec>,
    /// its RMSNorms
    pub norms: BlockNorms,
    /// its attention
    pub attention: AttentionSpec,
    /// its MLP
    pub mlp: GatedMlp,
}

impl BlockSpec {
    /// All linear layers, in the order in which they are quantized.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = LayerId> + use<> {
        (0..self.linears.len() as u16).map(LayerId)
    }

    /// One linear layer.
    ///
    /// # Panics
    /// When the block has no such layer.
    pub fn linear(&self, layer: LayerId) -> &LinearSpec {
        &self.linears[layer.index()]
    }

    /// (out_features, in_features) of a linear layer.
    pub fn shape(&self, layer: LayerId) -> (usize, usize) {
        self.linear(layer).shape
    }

    /// The linear layers by what they read, one Hessian for each group, in the order in which they are
    /// quantized: a group comes where its first layer does.
    pub fn groups(&self) -> Vec<Vec<LayerId>> {
        let mut groups: Vec<Vec<LayerId>> = Vec::new();
        for layer in self.layers() {
            if !groups.iter().any(|group| group.contains(&layer)) {
                groups.push(self.readers(self.linear(layer).reads));
            }
        }
        groups
    }

    /// The linear layers that read this, in the order in which they are quantized.
    pub fn readers(&self, read: Input) -> Vec<LayerId> {
        self.layers()
            .filter(|&layer| self.linear(layer).reads == read)
            .collect()
    }

    /// Width of the residual stream.
    pub fn hidden_size(&self) -> usize {
        self.shape(self.attention.query).1
    }

    /// Width inside the MLP.
    pub fn intermediate_size(&self) -> usize {
        self.shape(self.mlp.gate).0
    }

    /// Weights of all linear layers together.
    pub fn parameters(&self) -> usize {
        self.linears
            .iter()
            .map(|linear| linear.shape.0 * linear.shape.1)
            .sum()
    }

    /// The same block, whose layers that read one of `inputs` have biases.
    #[must_use]
    pub fn with_biases(mut self, inputs: &[Input]) -> Self {
        for linear in &mut self.linears {
            linear.bias |= inputs.contains(&linear.reads);
        }
        self
    }

    /// Refuses weights of another shape than this block's.
    ///
    /// # Errors
    /// `Shape` naming the first array that differs.
    pub fn check_weights(&self, weights: &BlockWeights) -> Result<()> {
        let norms = [
            weights.input_layernorm.len(),
            weights.post_attention_layernorm.len(),
        ];
        let layers: Vec<_> = weights.layers.iter().map(|layer| layer.weight.shape()).collect();
        self.check_shapes(norms, &layers)
    }

    /// Refuses a block whose norms have other lengths or whose layers other shapes, (out_features,
    /// in_features) each, than this block's.
    ///
    /// # Errors
    /// `Shape` naming the first array that differs.
    pub fn check_shapes(&self, norms: [usize; 2], layers: &[(usize, usize)]) -> Result<()> {
        let check = |what: &str, expected: &[usize], found: &[usize]| {
            if expected == found {
                return Ok(());
            }
            Err(AqlmError::Shape {
                what: what.into(),
                expected: expected.to_vec(),
                found: found.to_vec(),
            })
        };
        for (name, len) in self.norms.before.iter().zip(norms) {
            check(name, &[self.hidden_size()], &[len])?;
        }
        check("layers of a block", &[self.linears.len()], &[layers.len()])?;
        for (linear, &found) in self.linears.iter().zip(layers) {
            check(
                &linear.name,
                &<[usize; 2]>::from(linear.shape),
                &<[usize; 2]>::from(found),
            )?;
        }
        Ok(())
    }
}

/// One linear layer of a block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinearSpec {
    /// its path inside the block, as Hugging Face checkpoints name it: `self_attn.q_proj`
    pub name: String,
    /// (out_features, in_features)
    pub shape: (usize, usize),
    /// what it reads
    pub reads: Input,
    /// whether it has a bias
    pub bias: bool,
}

impl LinearSpec {
    /// The last part of its name: `q_proj` and so on.
    pub fn short_name(&self) -> &str {
        self.name.rsplit_once('.').map_or(&self.name, |(_, last)| last)
    }

    /// The part of the block that it belongs to: `self_attn` or `mlp`.
    pub fn module(&self) -> &str {
        self.name
            .rsplit_once('.')
            .map_or(&self.name, |(module, _)| module)
    }
}

/// What a linear layer reads. Layers of one block that read the same share a Hessian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// the block's input behind the norm before attention, [tokens, hidden]
    Attention,
    /// what attention gathered, [tokens, heads x head_dim]
    Attended,
    /// the residual stream behind the norm before the MLP, [tokens, hidden]
    Mlp,
    /// the activation of the gate times up, [tokens, intermediate]
    Activated,
}

/// The arithmetic of an RMSNorm.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct NormSpec {
    /// added to the mean square inside the root
    pub epsilon: f64,
    /// whether the result is multiplied by 1 + w instead of by the weight w
    pub one_plus: bool,
}

/// The RMSNorms of a block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockNorms {
    /// the arithmetic of all of them
    pub norm: NormSpec,
    /// names inside the block, without `.weight`, of those before attention and before the MLP
    pub before: [String; 2],
    /// names of those behind attention and behind the MLP, before the residual stream takes the result
    pub after: Option<[String; 2]>,
}

/// Causal attention with grouped queries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttentionSpec {
    /// query heads
    pub heads: usize,
    /// key and value heads; fewer than query heads is grouped-query attention
    pub kv_heads: usize,
    /// width of one head
    pub head_dim: usize,
    /// rotary position embedding; `None` for a block without positions
    pub rotary: Option<Rope>,
    /// tokens a position attends to, itself included; `None` is all earlier ones
    pub window: Option<usize>,
    /// RMSNorm of each head's queries and keys
    pub query_key_norm: Option<NormSpec>,
    /// scores are cap tanh(score / cap)
    pub cap: Option<f64>,
    /// queries, [heads x head_dim, hidden]
    pub query: LayerId,
    /// keys, [kv_heads x head_dim, hidden]
    pub key: LayerId,
    /// values, [kv_heads x head_dim, hidden]
    pub value: LayerId,
    /// attention's output, [hidden, heads x head_dim]
    pub output: LayerId,
}

impl AttentionSpec {
    /// Query heads that share one key and value head.
    pub fn heads_per_kv_head(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Width of all queries of a token.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all keys of a token, and of all values.
    pub fn key_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// down(activation(gate x) * up x).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatedMlp {
    /// of the gate
    pub activation: Activation,
    /// the gate, [intermediate, hidden]
    pub gate: LayerId,
    /// what it multiplies, [intermediate, hidden]
    pub up: LayerId,
    /// the MLP's output, [hidden, intermediate]
    pub down: LayerId,
}

/// The function of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x / (1 + e^-x): with it the MLP is SwiGLU (Shazeer 2020)
    Silu,
    /// GELU by its approximation with tanh (Hendrycks and Gimpel 2016)
    GeluTanh,
}
