use std::fmt;

use aqlm_reference::llama::{Block, Model};
use aqlm_vocabulary::{
    ArchSpec, BlockSpec, BlockWeights, FinetuneSettings, Input, LayerId, Linear, LinearWeight, NormSpec,
    Purpose, Rope, RopeScaling, Scheme, Stream, StreamKey, llama::LlamaBlock, stream,
};
use ndarray::{Array, Array1, Array2, Array3, Axis, Dimension, ShapeBuilder};
use rand::RngExt;

use super::id::Fields;
use super::parts::Parts;
use super::product::random_matrix;
use super::routers;
use super::values::{Values, normal};
use super::words;
use crate::limits::Sizes;
use aqlm_formats::Result;

words! {
    /// How positions are encoded.
    Positions, "rope" {
        /// plain RoPE
        Plain = "plain",
        /// all frequencies divided
        Linear = "linear",
        /// Llama 3.1's blend
        Llama3 = "llama3",
        /// dynamic NTK, beyond half of the case's tokens
        Dynamic = "dynamic",
        /// YaRN
        Yarn = "yarn",
    }
}

words! {
    /// Whether linear layers have biases.
    Biases, "biases" {
        /// none
        Without = "nobias",
        /// all
        With = "bias",
    }
}

/// A small Llama: the cases of blocks and whole models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LlamaCase {
    /// width of the residual stream
    pub hidden: usize,
    /// width inside SwiGLU
    pub intermediate: usize,
    /// number of key and value heads
    pub kv_heads: usize,
    /// query heads per key and value head
    pub heads_per_kv_head: usize,
    /// half the width of a head
    pub half_head: usize,
    /// sequences
    pub sequences: usize,
    /// tokens per sequence
    pub tokens: usize,
    /// sliding window; 0 for none
    pub window: usize,
    /// biases
    pub biases: Biases,
    /// position encoding
    pub positions: Positions,
    /// parts that a plain Llama lacks; not in the id of a plain one
    pub parts: Parts,
    /// scheme of the quantized layers, up_proj and o_proj; must divide their sides
    pub scheme: Scheme,
}

/// Vocabulary size of every small Llama.
pub const VOCABULARY: usize = 50;

/// Number of blocks of every small Llama.
pub const BLOCKS: usize = 2;

/// A whole small model and token sequences of equal length.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaData {
    /// the model's shape
    pub config: ArchSpec,
    /// the model's blocks
    pub blocks: Vec<BlockWeights>,
    /// [vocabulary, hidden]
    pub embedding: Array2<f32>,
    /// final norm, `[hidden]`
    pub norm: Array1<f32>,
    /// [vocabulary, hidden]
    pub lm_head: Array2<f32>,
    /// token sequences
    pub tokens: Vec<Vec<u32>>,
    /// hidden states with outliers, [sequences, tokens, hidden]
    pub x: Array3<f32>,
    /// a gradient of the same shape
    pub grad_y: Array3<f32>,
}

impl LlamaData {
    /// The whole model as a reference model.
    pub fn model(&self) -> Model {
        Model {
            arch: self.config.clone(),
            embedding: self.embedding.mapv(f64::from),
            blocks: (0..self.blocks.len()).map(|index| self.block(index)).collect(),
            norm: self.norm.mapv(f64::from),
            lm_head: self.lm_head.mapv(f64::from),
        }
    }

    /// One block as a reference block.
    ///
    /// # Panics
    /// When the model has no block `index`.
    pub fn block(&self, index: usize) -> Block {
        Block::from_weights(&self.config.blocks[index], &self.blocks[index])
            .expect("plain blocks, and weights drawn in their shapes")
    }
}

impl fmt::Display for LlamaCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}x{}-k{}-q{}-d{}-n{}-t{}-w{}-{}-{}-{}{}",
            self.hidden,
            self.intermediate,
            self.kv_heads,
            self.heads_per_kv_head,
            2 * self.half_head,
            self.sequences,
            self.tokens,
            self.window,
            self.biases,
            self.positions,
            match self.parts {
                Parts::Llama => String::new(),
                parts => format!("{parts}-"),
            },
            self.scheme
        )
    }
}

/// Corners of all operations on blocks and models.
pub(crate) const CORNERS: &[&str] = &[
    // sequence longer than a span of queries; window shorter than the sequence; more heads than keys; single
    // tokens and heads
    "40x72-k4-q1-d12-n3-t70-w0-nobias-plain-2x3g4o2-s1",
    "40x72-k2-q2-d12-n2-t70-w9-bias-linear-2x3g4o2-s2",
    "40x72-k1-q6-d12-n1-t37-w75-nobias-llama3-1x4g4-s3",
    "40x72-k2-q2-d12-n2-t70-w0-nobias-dynamic-2x3g4-s6",
    "40x72-k2-q1-d12-n2-t70-w0-nobias-yarn-2x3g4-s7",
    "4x2-k1-q1-d4-n1-t2-w0-nobias-plain-1x1g4-s4",
    "36x22-k2-q1-d8-n4-t5-w1-bias-plain-3x2g4-s5",
    // the parts of other families
    "40x72-k2-q2-d12-n2-t70-w0-nobias-plain-qwen3-2x3g4-s8",
    "40x72-k2-q2-d12-n2-t37-w9-bias-llama3-qwen3-2x3g4-s9",
    "40x72-k2-q2-d12-n2-t37-w0-nobias-plain-olmo2-2x3g4o2-s10",
    "40x72-k2-q2-d12-n2-t37-w0-bias-plain-granite-2x3g4-s11",
    "40x72-k2-q2-d12-n2-t37-w0-nobias-plain-smollm3-2x3g4-s12",
    "40x72-k2-q2-d12-n2-t37-w9-nobias-plain-phi3-2x3g4o2-s13",
    "40x72-k2-q2-d12-n2-t70-w9-nobias-plain-gemma2-2x3g4-s14",
    "40x72-k2-q2-d12-n2-t70-w9-nobias-plain-gemma3-2x3g4-s15",
    "36x22-k2-q1-d8-n4-t5-w1-nobias-plain-gemma3-3x2g4-s16",
    "40x72-k2-q2-d12-n2-t70-w0-bias-plain-stablelm-2x3g4-s20",
    "36x22-k2-q1-d8-n4-t5-w1-nobias-plain-stablelm-3x2g4-s21",
    "40x72-k2-q2-d12-n2-t70-w9-bias-llama3-glm-2x3g4-s22",
    // experts, some without tokens in the last case
    "40x72-k2-q2-d12-n2-t70-w0-nobias-plain-mixtral-2x3g4o2-s17",
    "40x72-k2-q2-d12-n2-t37-w9-bias-llama3-qwen2moe-2x3g4-s18",
    "36x22-k2-q1-d8-n1-t2-w0-nobias-plain-mixtral-3x2g4-s19",
];

/// Ids of blocks with one, two and six query heads for each key head; windows that are absent, short, and
/// longer than a sequence; three sequences of 70 tokens, which is longer than one span of queries.
pub const THREE_BLOCKS: [&str; 3] = [
    "block_forward-40x72-k4-q1-d12-n3-t70-w0-nobias-plain-2x3g4o2-s1",
    "block_forward-40x72-k2-q2-d12-n3-t70-w9-bias-linear-2x3g4o2-s2",
    "block_forward-40x72-k1-q6-d12-n3-t70-w75-nobias-llama3-2x3g4o2-s3",
];

impl LlamaCase {
    /// Sizes from which limits count their terms.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            rows: self.sequences * self.tokens,
            path: self.terms(),
            roundings: self.roundings(),
            cuts: Self::CUTS,
            hidden: self.hidden,
            blocks: BLOCKS,
            vocabulary: VOCABULARY,
            steps: self.steps(),
            ..Sizes::of_matrix(self.scheme, self.hidden)
        }
    }

    /// Number of fine-tuning steps.
    fn steps(&self) -> usize {
        let settings = self.finetune();
        settings.epochs * self.sequences.div_ceil(settings.batch)
    }

    pub(super) fn parse(fields: &mut Fields<'_>) -> Result<Self> {
        let (hidden, intermediate) = fields.shape()?;
        let kv_heads = fields.number('k', 1..=64)? as usize;
        let heads_per_kv_head = fields.number('q', 1..=64)? as usize;
        let head = fields.number('d', 2..=256)? as usize;
        if !head.is_multiple_of(2) {
            return fields.refuse("an even width of a head", &format!("d{head}"));
        }
        let sequences = fields.number('n', 1..=64)? as usize;
        let tokens = fields.number('t', 2..=4096)? as usize;
        let window = fields.number('w', 0..=4096)? as usize;
        let (biases, positions) = (fields.word()?, fields.word()?);
        let parts = fields.optional_word(Parts::Llama);
        let scheme = fields.scheme()?;
        let case = Self {
            hidden,
            intermediate,
            kv_heads,
            heads_per_kv_head,
            half_head: head / 2,
            sequences,
            tokens,
            window,
            biases,
            positions,
            parts,
            scheme,
        };
        let block = case.config().blocks.remove(0);
        for layer in quantized(&block) {
            let (out, inputs) = block.shape(layer);
            if let Err(error) = scheme.groups(out, inputs) {
                return fields.refuse(
                    &format!("a scheme that cuts {}: {error}", block.linear(layer).short_name()),
                    &scheme.to_string(),
                );
            }
        }
        Ok(case)
    }

    /// The model's shape.
    pub fn config(&self) -> ArchSpec {
        let mut arch = ArchSpec::llama(VOCABULARY, 4096, BLOCKS, self.plain_block());
        self.parts.put_into(&mut arch, self.tokens);
        arch
    }

    /// The shape of each block without the parts of other families.
    fn plain_block(&self) -> BlockSpec {
        BlockSpec::llama(LlamaBlock {
            hidden_size: self.hidden,
            intermediate_size: self.intermediate,
            heads: self.kv_heads * self.heads_per_kv_head,
            kv_heads: self.kv_heads,
            head_dim: 2 * self.half_head,
            epsilon: 1e-5,
            rotary: Rope {
                theta: 1000.0,
                scaling: match self.positions {
                    Positions::Plain => RopeScaling::None,
                    Positions::Linear => RopeScaling::Linear { factor: 4.0 },
                    Positions::Llama3 => RopeScaling::Llama3 {
                        factor: 8.0,
                        low_freq_factor: 1.0,
                        high_freq_factor: 4.0,
                        original_max_position_embeddings: 64,
                    },
                    Positions::Dynamic => RopeScaling::Dynamic {
                        factor: 3.0,
                        max_position_embeddings: self.tokens.div_ceil(2),
                    },
                    Positions::Yarn => RopeScaling::Yarn {
                        factor: 4.0,
                        original_max_position_embeddings: 256,
                        beta_fast: 16.0,
                        beta_slow: 1.0,
                        truncate: true,
                        attention_factor: 1.14,
                    },
                },
            },
            window: (self.window > 0).then_some(self.window),
        })
    }

    /// Total length of the sums behind one output of a block: both norms, the products of attention and MLP,
    /// scores and softmax.
    pub fn terms(&self) -> usize {
        let heads = self.kv_heads * self.heads_per_kv_head * 2 * self.half_head;
        let plain = 4 * self.hidden + self.intermediate + heads + 2 * self.half_head + 2 * self.tokens;
        plain
            + self
                .parts
                .terms(self.hidden, self.intermediate, &self.plain_block().attention)
    }

    /// Number of values that are rounded to f16 along the path through a block, outputs included, when
    /// products are in f16 and sums in f32.
    ///
    /// Attention: norm weight and result; q or k, its weight and its rotation; value and its weight; the
    /// result; o_proj, its codebook, scale and result. MLP: norm weight and result; gate and up, each with
    /// its weight or codebook and scale; their product; down and its weight. Kernels that sum a group in f16
    /// round once per term of half a group, in o_proj and up_proj. The 5 roundings each of queries and keys
    /// act through scores. Scores have a standard deviation of at most 2 here (biases double the square), so
    /// these roundings count 4 times.
    pub fn roundings(&self) -> usize {
        let inner = self.scheme.num_codebooks * self.scheme.in_group_size;
        let (attention, scores, mlp) = (12, 2 * 5 * 4, 13);
        attention + scores + mlp + inner
    }

    /// Number of factors of products that are rounded along the path through a block when factors are in TF32
    /// and everything else is in f32.
    ///
    /// Attention: the input and the weight of q and of k, and q and k themselves, which act through scores:
    /// those count 4 times, as in [`LlamaCase::roundings`]; the input and the weight of v; the probabilities
    /// and v; the input and the weight of o_proj. MLP: the inputs and the weights of gate, up and down.
    pub const CUTS: usize = 6 * 4 + 2 + 2 + 2 + 6;

    /// The operation's own random streams.
    pub fn key(&self, seed: u64) -> StreamKey {
        StreamKey {
            seed,
            block: 1,
            layer: None,
        }
    }

    /// Settings of fine-tuning with few steps.
    pub fn finetune(&self) -> FinetuneSettings {
        FinetuneSettings {
            lr: 3e-3,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            epochs: 3,
            batch: 2,
            patience: 2,
            codebooks: true,
            scales: true,
            norms: true,
        }
    }

    /// Number of fine-tuning sequences that only validate.
    pub fn validation(&self) -> usize {
        usize::from(self.sequences > 1)
    }

    /// The data for a seed.
    ///
    /// # Panics
    /// When no draw of routers is clear about every token: a case with experts and thousands of tokens.
    pub fn data(&self, seed: u64) -> LlamaData {
        let config = self.config();
        let mut rng = stream(seed, 2, None, Purpose::TestData);
        let blocks = config
            .blocks
            .iter()
            .map(|spec| self.block(&mut rng, spec))
            .collect();
        let shape = (self.sequences, self.tokens, self.hidden);
        let x = gaussian(&mut rng, shape).mapv(|x| if x > 2.3 { 10.0 * x } else { x });
        let tokens = (0..self.sequences)
            .map(|_| {
                (0..self.tokens)
                    .map(|_| rng.random_range(0..VOCABULARY as u32))
                    .collect()
            })
            .collect();
        let mut data = LlamaData {
            blocks,
            embedding: gaussian(&mut rng, (VOCABULARY, self.hidden)),
            norm: norm_parameters(&mut rng, self.hidden, config.final_norm),
            lm_head: gaussian(&mut rng, (VOCABULARY, self.hidden)) / (self.hidden as f32).sqrt(),
            tokens,
            x,
            grad_y: gaussian(&mut rng, shape),
            config,
        };
        if data.config.blocks.iter().any(|spec| spec.mlp.routed().is_some()) {
            let embedding = data.embedding.mapv(f64::from) * data.config.embedding_scale;
            let rows = data.tokens.iter().flatten().map(|&token| token as usize);
            let rows = embedding.select(Axis(0), &rows.collect::<Vec<_>>());
            let embedded = rows
                .into_shape_with_order(data.x.dim())
                .expect("as many tokens as hidden states");
            routers::draw(&data.config, &mut data.blocks, &data.x, &embedded, seed);
        }
        data
    }

    /// A block whose weights keep activations near unit size.
    fn block(&self, rng: &mut Stream, spec: &BlockSpec) -> BlockWeights {
        let quantized = quantized(spec);
        BlockWeights {
            norms: spec
                .norms
                .iter()
                .map(|norm| norm_parameters(rng, norm.width, norm.norm))
                .collect(),
            layers: spec
                .layers()
                .map(|layer| {
                    let (out, inputs) = spec.shape(layer);
                    let root = (inputs as f32).sqrt();
                    let weight = if quantized.contains(&layer) {
                        let (out_groups, in_groups) = (
                            out / self.scheme.out_group_size,
                            inputs / self.scheme.in_group_size,
                        );
                        let mut matrix =
                            random_matrix(self.scheme, out_groups, in_groups, Values::Repeated, rng);
                        // scales of about 0.05 become weights of about 1 / sqrt(inputs)
                        matrix.tune(|_, mut scales| scales *= 10.0 / f64::from(root));
                        LinearWeight::Quantized(matrix)
                    } else {
                        LinearWeight::Dense(gaussian(rng, (out, inputs)) / root)
                    };
                    // Without rotation, adding one vector to all keys changes no probability. The gradient of
                    // that bias is zero then, and its rounding errors have nothing to be relative to.
                    let without_effect = layer == spec.attention.key && spec.attention.rotary.is_none();
                    // experts have no biases
                    let reads = spec.linear(layer).reads;
                    let in_attention = matches!(reads, Input::Attention | Input::Attended);
                    let may_have = in_attention || spec.mlp.dense().is_some();
                    let with = self.biases == Biases::With && !without_effect && may_have;
                    let bias = with.then(|| gaussian(rng, out));
                    Linear { weight, bias }
                })
                .collect(),
        }
    }
}

/// The layers that are quantized: one in attention, one in the MLP or its last expert.
///
/// # Panics
/// Never: a block has an MLP.
pub fn quantized(block: &BlockSpec) -> [LayerId; 2] {
    let gated = block.mlp.gated();
    let last = gated.last().expect("a block has an MLP");
    [block.attention.output, last.up]
}

/// Parameters of a norm: weights with which it multiplies by numbers around 1, then biases.
fn norm_parameters(rng: &mut Stream, width: usize, spec: NormSpec) -> Array1<f32> {
    let one = if spec.one_plus { 0.0 } else { 1.0 };
    let mut parameters: Array1<f32> = 0.2 * gaussian(rng, spec.parameters(width));
    parameters
        .iter_mut()
        .take(width)
        .for_each(|weight| *weight += one);
    parameters
}

fn gaussian<D: Dimension>(rng: &mut Stream, shape: impl ShapeBuilder<Dim = D>) -> Array<f32, D> {
    Array::from_shape_simple_fn(shape, || normal(rng) as f32)
}
