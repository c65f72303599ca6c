use serde::{Deserialize, Serialize};

use crate::{AqlmError, BlockWeights, LayerId, Mlp, Result, Rope};

/// A whole model as data: everything about its shape that changes its arithmetic.
///
/// The project's code reads sizes, names and topology only from here. [`ArchSpec::check`] refuses what does
/// not fit together. Not every backend computes every model: see [`ArchSpec::require_rms_norms_and_halves`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ArchSpec {
    /// tokens in the vocabulary
    pub vocab_size: usize,
    /// width of the residual stream
    pub hidden_size: usize,
    /// longest context in the model's training
    pub max_position_embeddings: usize,
    /// first to last; blocks may differ
    pub blocks: Vec<BlockSpec>,
    /// factor applied to token embeddings; 1 in a Llama
    pub embedding_scale: f64,
    /// the norm before the head
    pub final_norm: NormSpec,
    /// what becomes of the products of states and output layer
    pub logits: LogitSpec,
    /// whether lm_head shares the embedding's weights
    pub tied: bool,
}

impl ArchSpec {
    /// A layer's path in a Hugging Face checkpoint, without `.weight`.
    pub fn layer_name(&self, block: usize, layer: LayerId) -> String {
        format!("model.layers.{block}.{}", self.blocks[block].linear(layer).name)
    }

    /// The name of one of a block's norm weights in a Hugging Face checkpoint.
    ///
    /// # Panics
    /// When the block has no norm there.
    pub fn norm_name(&self, block: usize, place: NormPlace) -> String {
        let (_, norm) = self.blocks[block].norm(place).expect("a norm of the block");
        format!("model.layers.{block}.{}.weight", norm.name)
    }

    /// Names of all of a block's norm weights in a Hugging Face checkpoint, in the order of the block's
    /// norms.
    pub fn norm_names(&self, block: usize) -> Vec<String> {
        let norms = self.blocks[block].norms.iter();
        norms.map(|norm| self.norm_name(block, norm.place)).collect()
    }

    /// Number of parameters of the norm before the head.
    pub fn final_norm_parameters(&self) -> usize {
        self.final_norm.parameters(self.hidden_size)
    }

    /// The first block's attention.
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
    /// its linear layers, in the order in which they are quantized; some never are, see [`Mlp::kept_dense`]
    pub linears: Vec<LinearSpec>,
    /// its norms, in the order of their places
    pub norms: Vec<BlockNorm>,
    /// its attention
    pub attention: AttentionSpec,
    /// its MLP
    pub mlp: Mlp,
    /// factor of what attention and MLP add to the residual stream; 1 in a Llama
    pub residual_scale: f64,
}

impl BlockSpec {
    /// All linear layers, in their order.
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

    /// The linear layers that can be quantized, in that order: all but routers and gates of shared experts.
    pub fn quantizable(&self) -> impl Iterator<Item = LayerId> + use<> {
        let dense = self.mlp.kept_dense();
        self.layers().filter(move |layer| !dense.contains(layer))
    }

    /// The layers of [`BlockSpec::quantizable`] grouped by input; each group shares a Hessian. Groups are in
    /// quantization order: a group's position is that of its first layer.
    pub fn groups(&self) -> Vec<Vec<LayerId>> {
        let mut groups: Vec<(Input, Vec<LayerId>)> = Vec::new();
        for layer in self.quantizable() {
            let reads = self.linear(layer).reads;
            match groups.iter_mut().find(|(input, _)| *input == reads) {
                Some((_, group)) => group.push(layer),
                None => groups.push((reads, vec![layer])),
            }
        }
        groups.into_iter().map(|(_, group)| group).collect()
    }

    /// The linear layers with this input, in quantization order.
    pub fn readers(&self, read: Input) -> Vec<LayerId> {
        self.layers()
            .filter(|&layer| self.linear(layer).reads == read)
            .collect()
    }

    /// Width of the residual stream.
    pub fn hidden_size(&self) -> usize {
        self.shape(self.attention.query).1
    }

    /// Width inside the MLP; inside the widest expert where there are several.
    pub fn intermediate_size(&self) -> usize {
        let widths = self.mlp.gated().into_iter().map(|mlp| self.shape(mlp.down).1);
        widths.max().unwrap_or(0)
    }

    /// The norm at this place, and its index in [`BlockSpec::norms`]; `None` if the block has none there.
    pub fn norm(&self, place: NormPlace) -> Option<(usize, &BlockNorm)> {
        self.norms
            .iter()
            .enumerate()
            .find(|(_, norm)| norm.place == place)
    }

    /// The name of what makes the numbers at this place: its norm, or `before` if the block has none there.
    pub fn last_part<'s>(&'s self, place: NormPlace, before: &'s str) -> &'s str {
        self.norm(place).map_or(before, |(_, norm)| &norm.name)
    }

    /// The name of what the MLP adds: that of its last layer, or of all experts.
    pub fn mlp_output(&self) -> &str {
        match &self.mlp {
            Mlp::Dense(mlp) => &self.linear(mlp.down).name,
            Mlp::Routed(mlp) => self.linear(mlp.router).module(),
        }
    }

    /// The places of its norms, in order.
    pub fn norm_places(&self) -> Vec<NormPlace> {
        self.norms.iter().map(|norm| norm.place).collect()
    }

    /// Number of weights in all linear layers that can be quantized.
    pub fn parameters(&self) -> usize {
        self.quantizable()
            .map(|layer| self.shape(layer).0 * self.shape(layer).1)
            .sum()
    }

    /// The same block, but with biases on the layers whose input is in `inputs`.
    #[must_use]
    pub fn with_biases(mut self, inputs: &[Input]) -> Self {
        for linear in &mut self.linears {
            linear.bias |= inputs.contains(&linear.reads);
        }
        self
    }

    /// Rejects weights whose shapes differ from this block's, and experts with biases.
    ///
    /// # Errors
    /// `Shape` naming the first array that differs, `Argument` naming a layer of experts with a bias.
    pub fn check_weights(&self, weights: &BlockWeights) -> Result<()> {
        let norms: Vec<_> = weights.norms.iter().map(ndarray::Array1::len).collect();
        let layers: Vec<_> = weights.layers.iter().map(|layer| layer.weight.shape()).collect();
        self.check_shapes(&norms, &layers)?;
        let outside = |reads| matches!(reads, Input::Attention | Input::Attended);
        let biased = weights.layers.iter().map(|layer| layer.bias.is_some());
        let mut biased = self.linears.iter().zip(biased).filter(|(_, biased)| *biased);
        match biased.find(|(linear, _)| self.mlp.routed().is_some() && !outside(linear.reads)) {
            Some((linear, _)) => Err(AqlmError::argument(
                format!("bias of {}", linear.name),
                "none, as experts have none",
                "one",
            )),
            None => Ok(()),
        }
    }

    /// Rejects norm lengths or layer shapes, each (out_features, in_features), that differ from this block's.
    ///
    /// # Errors
    /// `Shape` naming the first array that differs.
    pub fn check_shapes(&self, norms: &[usize], layers: &[(usize, usize)]) -> Result<()> {
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
        check("norms of a block", &[self.norms.len()], &[norms.len()])?;
        for (norm, &len) in self.norms.iter().zip(norms) {
            check(&norm.name, &[norm.parameters()], &[len])?;
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
    /// its path inside the block, as in Hugging Face checkpoints: `self_attn.q_proj`
    pub name: String,
    /// (out_features, in_features)
    pub shape: (usize, usize),
    /// its input
    pub reads: Input,
    /// whether it has a bias
    pub bias: bool,
}

impl LinearSpec {
    /// Its name without the part of the block, for example `q_proj` or `experts.3.w1`.
    pub fn short_name(&self) -> &str {
        self.name.split_once('.').map_or(&self.name, |(_, rest)| rest)
    }

    /// The part of the block to which it belongs: `self_attn`, `mlp` or an expert.
    pub fn module(&self) -> &str {
        self.name
            .rsplit_once('.')
            .map_or(&self.name, |(module, _)| module)
    }
}

/// The input of a linear layer. Layers of one block with the same input share a Hessian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// the block's input after the norm before attention, if there is one, [tokens, hidden]
    Attention,
    /// attention's weighted averages of values, [tokens, heads x head_dim]
    Attended,
    /// the residual stream after the norm before the MLP, if there is one, [tokens, hidden]
    Mlp,
    /// the activation of the gate times up, [tokens, intermediate]; with experts, that of the shared one
    Activated,
    /// the rows of [`Input::Mlp`] that are routed to this expert, [tokens of the expert, hidden]
    Expert(u16),
    /// the activation of this expert's gate times its up, [tokens of the expert, intermediate]
    ExpertActivated(u16),
}

/// The arithmetic of a norm: an RMSNorm or a LayerNorm.
///
/// The parameters of a norm are one list: its weights, then its biases, if it has some.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct NormSpec {
    /// added to the mean square inside the root
    pub epsilon: f64,
    /// whether the result is multiplied by 1 + w instead of by the weight w
    pub one_plus: bool,
    /// whether the mean is subtracted first, as in a LayerNorm
    pub centered: bool,
    /// whether biases are added to the result
    pub biased: bool,
}

impl NormSpec {
    /// A Llama's RMSNorm.
    pub const fn rms(epsilon: f64) -> Self {
        Self {
            epsilon,
            one_plus: false,
            centered: false,
            biased: false,
        }
    }

    /// A LayerNorm with biases.
    pub const fn layer(epsilon: f64) -> Self {
        Self {
            centered: true,
            biased: true,
            ..Self::rms(epsilon)
        }
    }

    /// Number of parameters of a norm with this many weights.
    pub const fn parameters(self, width: usize) -> usize {
        if self.biased { 2 * width } else { width }
    }

    /// Number of weights of a norm with this many parameters.
    pub const fn width(self, parameters: usize) -> usize {
        if self.biased { parameters / 2 } else { parameters }
    }
}

/// What a norm of a block is applied to. The order is that of computation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormPlace {
    /// the block's input, before attention
    BeforeAttention,
    /// queries, before their rotation
    Query,
    /// keys, before their rotation
    Key,
    /// attention's output, before it is added to the residual stream
    AfterAttention,
    /// the residual stream, before the MLP
    BeforeMlp,
    /// the MLP's output, before it is added to the residual stream
    AfterMlp,
}

/// One norm of a block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockNorm {
    /// what it is applied to
    pub place: NormPlace,
    /// its name inside the block, without `.weight`
    pub name: String,
    /// number of its weights. A row of several times as many numbers is normed piece by piece: with
    /// `head_dim` weights, each head of queries or keys has a mean square of its own.
    pub width: usize,
    /// its arithmetic
    pub norm: NormSpec,
}

impl BlockNorm {
    /// Number of its parameters.
    pub fn parameters(&self) -> usize {
        self.norm.parameters(self.width)
    }
}

/// What becomes of the products l of final states and output layer: logits are scale l, and with a cap cap
/// tanh(scale l / cap).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LogitSpec {
    /// factor
    pub scale: f64,
    /// limit of the logits' absolute values
    pub cap: Option<f64>,
}

impl LogitSpec {
    /// The products themselves, as in a Llama.
    pub const PLAIN: Self = Self {
        scale: 1.0,
        cap: None,
    };
}

/// Causal attention with grouped queries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttentionSpec {
    /// query heads
    pub heads: usize,
    /// key and value heads; fewer than query heads in grouped-query attention
    pub kv_heads: usize,
    /// width of one head
    pub head_dim: usize,
    /// rotary position embedding; `None` for a block without position encoding
    pub rotary: Option<Rope>,
    /// how many numbers of each head are rotated, from its first one on; even
    pub rotated: usize,
    /// whether a pair that is rotated together is two neighbours, not a number of the first half of the
    /// rotated part and one of the second
    pub neighbours: bool,
    /// number of positions that a position attends to, itself included; `None` for all earlier ones
    pub window: Option<usize>,
    /// factor of the products of queries and keys; 1 / sqrt(head_dim) in a Llama
    pub scale: f64,
    /// if set, scaled scores become cap tanh(score / cap)
    pub cap: Option<f64>,
    /// queries, [heads x head_dim, hidden]; the same layer as keys and values where one layer computes all
    /// three, with its rows in this order
    pub query: LayerId,
    /// keys, [kv_heads x head_dim, hidden]
    pub key: LayerId,
    /// values, [kv_heads x head_dim, hidden]
    pub value: LayerId,
    /// attention's output, [hidden, heads x head_dim]
    pub output: LayerId,
}

impl AttentionSpec {
    /// Number of query heads that share one key and value head.
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

    /// The layers of queries, keys and values, and how many of their outputs each of the three takes.
    pub fn projections(&self) -> ([LayerId; 3], [usize; 3]) {
        let widths = [self.query_width(), self.key_width(), self.key_width()];
        ([self.query, self.key, self.value], widths)
    }

    /// The factor of scores in a Llama, 1 / sqrt(head_dim).
    pub fn usual_scale(head_dim: usize) -> f64 {
        1.0 / (head_dim as f64).sqrt()
    }
}
