//! Launch plans of the kernels of training. They are plain numbers, so tests can run them on the CPU.

pub mod codes;
pub mod experts;
pub mod steps;

use aqlm_vocabulary::{Activation, AttentionSpec, LogitSpec, NormSpec, Scheme};

pub use super::super::llama::plan::Plan;

/// Threads of a block that works on elements or on one row.
const THREADS: usize = 256;
/// Threads of a block that works on one row of logits.
const WIDE_THREADS: usize = 512;
/// Rows of a block that gives each row a warp.
const WARPS: usize = 8;
/// Rows of a chunk of [`column_sums`].
const CHUNK: usize = aqlm_kernels::defines::column_sums::k1_chunks::CHUNK;

fn plan(kernel: &'static str, blocks: usize, integers: &[usize]) -> Plan {
    Plan {
        kernel,
        defines: Vec::new(),
        integers: integers.iter().map(|&n| n as i32).collect(),
        grid: [blocks as u32, 1],
        block: THREADS as u32,
        cluster: 1,
        shared_bytes: 0,
    }
}

/// A thread an element; `count` is the number of elements.
fn elementwise(kernel: &'static str, count: usize, integers: &[usize]) -> Plan {
    plan(kernel, count.div_ceil(THREADS), integers)
}

/// The two words of a double.
fn words(value: f64) -> [i32; 2] {
    let bits = value.to_bits();
    [bits as u32 as i32, (bits >> 32) as u32 as i32]
}

fn bits(value: f32) -> i32 {
    value.to_bits() as i32
}

/// Rows of an f32 table, times a factor. Pointers: table, tokens, hidden.
pub fn embed(width: usize, rows: usize, factor: f64) -> Plan {
    let mut plan = Plan {
        grid: [rows as u32, width.div_ceil(THREADS) as u32],
        ..plan("embed_rows/k1_elementwise", 1, &[width])
    };
    plan.integers.push(bits(factor as f32));
    plan
}

/// RMSNorm. Pointers: x, weight, y, roots.
pub fn norm(rows: usize, width: usize, spec: NormSpec) -> Plan {
    let mut plan = plan(
        "norm_rows/k1_warp_a_row",
        rows.div_ceil(WARPS),
        &[rows, width, usize::from(spec.one_plus)],
    );
    plan.integers.push(bits(spec.epsilon as f32));
    plan
}

/// Adds the gradient of RMSNorm's input. Pointers: x, weight, roots, `grad_y`, `grad_x`.
pub fn norm_back(rows: usize, width: usize, spec: NormSpec) -> Plan {
    plan(
        "norm_back/k1_warp_a_row",
        rows.div_ceil(WARPS),
        &[rows, width, usize::from(spec.one_plus)],
    )
}

/// How many chunks [`column_sums`] makes of `rows` rows.
pub fn column_chunks(rows: usize) -> usize {
    rows.div_ceil(CHUNK)
}

/// Sums of columns over chunks of rows; `norm` for the gradient of a norm's weight. Pointers: grad, x, roots,
/// sums.
pub fn column_sums(rows: usize, width: usize, norm: bool) -> Plan {
    Plan {
        defines: vec![("AQLM_NORM", usize::from(norm))],
        grid: [column_chunks(rows) as u32, width.div_ceil(32) as u32],
        shared_bytes: THREADS * 8,
        ..plan("column_sums/k1_chunks", 1, &[rows, width])
    }
}

/// Adds parts to f64 sums; `wide` for parts in f64. Pointers: parts, total.
pub fn add_parts(count: usize, parts: usize, wide: bool) -> Plan {
    Plan {
        defines: vec![("AQLM_WIDE", usize::from(wide))],
        ..elementwise("add_parts/k1_elementwise", count, &[count, parts])
    }
}

/// Rotation in place, or back, of the first `rotated` numbers of heads of `head`. Pointers: cosines, sines,
/// x.
pub fn rotate([rows, tokens]: [usize; 2], [heads, head, rotated]: [usize; 3], back: bool) -> Plan {
    let half = rotated / 2;
    let mut plan = elementwise(
        "rotate_rows/k1_pairs",
        rows * heads * half,
        &[rows, tokens, heads, head, half],
    );
    plan.integers.push(if back { -1 } else { 1 });
    plan
}

/// The activated gate times up. Pointers: gate, up, y.
pub fn gate(count: usize, activation: Activation) -> Plan {
    Plan {
        defines: gelu(activation),
        ..elementwise("gate_rows/k1_elementwise", count, &[count])
    }
}

/// The gradients of [`gate`]. Pointers: gate, up, grad (then the gradient of up), `grad_gate`.
pub fn gate_back(count: usize, activation: Activation) -> Plan {
    Plan {
        defines: gelu(activation),
        ..elementwise("gate_back/k1_elementwise", count, &[count])
    }
}

fn gelu(activation: Activation) -> Vec<(&'static str, usize)> {
    vec![("AQLM_GELU", usize::from(activation == Activation::GeluTanh))]
}

/// Adds a multiple of numbers to others; `wide` for f64. Pointers: from, to.
pub fn add_scaled(count: usize, factor: f64, wide: bool) -> Plan {
    let mut plan = Plan {
        defines: vec![("AQLM_WIDE", usize::from(wide))],
        ..elementwise("add_scaled/k1_elementwise", count, &[count])
    };
    plan.integers.extend(words(factor));
    plan
}

/// Adds a bias to every row. Pointers: bias, x.
pub fn add_bias(rows: usize, width: usize) -> Plan {
    elementwise("add_bias/k1_elementwise", rows * width, &[rows * width, width])
}

/// The integers that describe the groups of a quantized matrix.
fn groups(scheme: Scheme, in_features: usize) -> [usize; 5] {
    [
        in_features / scheme.in_group_size,
        scheme.num_codebooks,
        scheme.codebook_size(),
        scheme.out_group_size,
        scheme.in_group_size,
    ]
}

/// A decoded weight. Pointers: codes, codebooks, scales, weight.
pub fn decode(scheme: Scheme, out_features: usize, in_features: usize) -> Plan {
    let count = out_features * in_features;
    let [in_groups, books, states, go, gi] = groups(scheme, in_features);
    elementwise(
        "decode_rows/k1_elementwise",
        count,
        &[count, in_groups, books, states, go, gi],
    )
}

/// Gradients of codebooks. Pointers: starts, groups, scales, gradient, sums.
pub fn codeword_sums(scheme: Scheme, out_features: usize, in_features: usize) -> Plan {
    let [in_groups, books, states, go, gi] = groups(scheme, in_features);
    let total = out_features / go * in_groups;
    // Enough threads for the groups of an average codeword, one element each.
    let threads = (total / states * go * gi).next_power_of_two().clamp(32, THREADS);
    Plan {
        block: threads as u32,
        shared_bytes: threads * 8,
        ..plan(
            "codeword_sums/k1_block_a_codeword",
            books * states,
            &[total, states, in_groups, go, gi],
        )
    }
}

/// Gradients of scales. Pointers: codes, codebooks, gradient, sums.
pub fn scale_sums(scheme: Scheme, out_features: usize, in_features: usize) -> Plan {
    Plan {
        shared_bytes: THREADS * 8,
        ..plan(
            "scale_sums/k1_block_a_group",
            out_features / scheme.out_group_size,
            &groups(scheme, in_features),
        )
    }
}

/// f64 rounded to f32. Pointers: from, to.
pub fn narrow(count: usize) -> Plan {
    elementwise("narrow_rows/k1_elementwise", count, &[count])
}

/// f32 rounded to bf16 in place. Pointers: x.
pub fn round(count: usize) -> Plan {
    elementwise("round_rows/k1_elementwise", count, &[count])
}

/// f32 rounded to bf16, or bf16 `back` to f32. Pointers: from, to.
pub fn bf16(count: usize, back: bool) -> Plan {
    Plan {
        defines: vec![("AQLM_BACK", usize::from(back))],
        ..elementwise("bf16_rows/k1_elementwise", count, &[count])
    }
}

/// Adds the lower triangle of a matrix in f32 to that of f64 sums. Pointers: part, total.
pub fn add_triangle(width: usize) -> Plan {
    Plan {
        grid: [width.div_ceil(THREADS) as u32, width as u32],
        ..plan("add_triangle/k1_elementwise", 1, &[width])
    }
}

/// Squared distances of rows; with a factor, factor (a - b) replaces a. Pointers: a, b, sums.
pub fn row_squares(rows: usize, width: usize, factor: Option<f32>) -> Plan {
    let mut plan = Plan {
        defines: vec![("AQLM_GRADIENT", usize::from(factor.is_some()))],
        shared_bytes: THREADS * 8,
        ..plan("row_squares/k1_block_a_row", rows, &[rows, width])
    };
    plan.integers.push(bits(factor.unwrap_or(0.0)));
    plan
}

/// The largest magnitude of each row, and its first number that is not finite. Pointers: x, largest, bad.
pub fn row_scan(rows: usize, width: usize) -> Plan {
    plan("row_scan/k1_warp_a_row", rows.div_ceil(WARPS), &[rows, width])
}

/// The gradient of an embedding. Pointers: tokens, starts, rows, gradient, sums.
pub fn token_sums(distinct: usize, width: usize) -> Plan {
    plan("token_sums/k1_block_a_token", distinct, &[width])
}

/// Logits from products of states and output layer, in place. Pointers: logits.
pub fn finish_logits(count: usize, spec: LogitSpec) -> Plan {
    of_logits("finish_logits/k1_elementwise", count, spec)
}

/// The gradients of [`finish_logits`], in place. Pointers: logits, grad.
pub fn finish_back(count: usize, spec: LogitSpec) -> Plan {
    of_logits("finish_back/k1_elementwise", count, spec)
}

fn of_logits(kernel: &'static str, count: usize, spec: LogitSpec) -> Plan {
    let mut plan = elementwise(kernel, count, &[count]);
    let cap = spec.cap.unwrap_or(0.0) as f32;
    plan.integers.extend([bits(spec.scale as f32), bits(cap)]);
    plan
}

/// A kernel that turns rows of logits into losses, and with a scale into gradients.
fn losses(kernel: &'static str, rows: usize, integers: &[usize], scale: Option<f64>) -> Plan {
    let mut plan = Plan {
        defines: vec![("AQLM_GRADIENT", usize::from(scale.is_some()))],
        block: WIDE_THREADS as u32,
        shared_bytes: WIDE_THREADS * 8,
        ..plan(kernel, rows, integers)
    };
    plan.integers.extend(words(scale.unwrap_or(0.0)));
    plan
}

/// The loss of each row's token. Pointers: logits, targets, losses.
pub fn token_loss(rows: usize, vocab: usize, scale: Option<f64>) -> Plan {
    losses("token_loss/k1_block_a_row", rows, &[vocab], scale)
}

/// The divergence of each row from a teacher's. Pointers: logits, teacher, losses.
pub fn teacher_loss(rows: usize, vocab: usize, scale: Option<f64>) -> Plan {
    losses("teacher_loss/k1_block_a_row", rows, &[vocab], scale)
}

/// The divergence of each row from a teacher's likeliest tokens. Pointers: logits, tokens, known, rest,
/// before, losses.
pub fn top_loss(rows: usize, vocab: usize, listed: usize, scale: Option<f64>) -> Plan {
    losses("top_loss/k1_block_a_row", rows, &[vocab, listed], scale)
}

/// Next-token distributions of two models at each row. Pointers: dense, model, targets, numbers, same.
pub fn compare_rows(rows: usize, vocab: usize) -> Plan {
    Plan {
        block: WIDE_THREADS as u32,
        shared_bytes: WIDE_THREADS * 8,
        ..plan("compare_rows/k1_block_a_row", rows, &[vocab])
    }
}

/// The kernels of attention over whole sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionPass {
    /// Pointers: q, k, v, out, stats.
    Forward,
    /// Pointers: q, k, v, grad, stats, delta, `grad_q`.
    Queries,
    /// Pointers: q, k, v, grad, stats, delta, `grad_k`, `grad_v`.
    KeysAndValues,
}

/// How the passes of attention compute their products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionForm {
    /// in f32, in tiles of this many rows
    Tiles(usize),
    /// on tensor cores, in tf32
    Tensor,
}

impl AttentionForm {
    /// The form for a device with this much shared memory in a block: tensor cores if `tf32` and they fit,
    /// else the largest tiles that do; `None` when heads are too wide.
    pub fn fitting(head: usize, shared_bytes: usize, tf32: bool) -> Option<Self> {
        let fits = |form: &Self| attention_bytes(AttentionPass::KeysAndValues, head, *form) <= shared_bytes;
        let tensor = tf32.then_some(Self::Tensor);
        let tiles = [64, 32, 16].map(Self::Tiles);
        let mut forms = tensor.into_iter().chain(tiles);
        forms.find(fits).filter(|_| head <= 256)
    }
}

fn attention_bytes(pass: AttentionPass, head: usize, form: AttentionForm) -> usize {
    let numbers = match form {
        AttentionForm::Tiles(tile) => {
            let tiles = match pass {
                AttentionPass::Forward => 2,
                AttentionPass::Queries => 3,
                AttentionPass::KeysAndValues => 4,
            };
            tiles * tile * (head.next_multiple_of(16) + 1) + tile * (tile + 1)
        }
        AttentionForm::Tensor => {
            let (rows, more) = match pass {
                AttentionPass::Forward => (64 + 64, 0),
                AttentionPass::Queries => (2 * 64 + 2 * 32, 0),
                AttentionPass::KeysAndValues => (2 * 64 + 2 * 32, 2 * 32),
            };
            rows * (head.next_multiple_of(8) + 4) + more
        }
    };
    numbers * size_of::<f32>()
}

/// A pass of attention over `sequences` sequences of `tokens` tokens.
pub fn attention(
    pass: AttentionPass,
    spec: &AttentionSpec,
    [sequences, tokens]: [usize; 2],
    form: AttentionForm,
) -> Plan {
    let heads = match pass {
        AttentionPass::Forward | AttentionPass::Queries => spec.heads,
        AttentionPass::KeysAndValues => spec.kv_heads,
    };
    let (kernel, rows, block, tile) = match form {
        AttentionForm::Tiles(tile) => {
            let kernel = match pass {
                AttentionPass::Forward => "attention_rows/k1_tiles",
                AttentionPass::Queries => "attention_back_q/k1_tiles",
                AttentionPass::KeysAndValues => "attention_back_kv/k1_tiles",
            };
            (kernel, tile, 256, Some(("AQLM_TILE", tile)))
        }
        AttentionForm::Tensor => {
            let kernel = match pass {
                AttentionPass::Forward => "attention_rows/k2_tensor",
                AttentionPass::Queries => "attention_back_q/k2_tensor",
                AttentionPass::KeysAndValues => "attention_back_kv/k2_tensor",
            };
            (kernel, 64, 128, None)
        }
    };
    let window = spec.window.unwrap_or(0);
    let capped = spec.cap.map(|_| ("AQLM_CAPPED", 1));
    let mut plan = Plan {
        defines: [Some(("AQLM_HEAD", spec.head_dim)), tile, capped]
            .into_iter()
            .flatten()
            .collect(),
        block,
        shared_bytes: attention_bytes(pass, spec.head_dim, form),
        ..plan(
            kernel,
            tokens.div_ceil(rows) * sequences * heads,
            &[sequences, tokens, spec.heads, spec.kv_heads, window],
        )
    };
    let cap = spec.cap.unwrap_or(0.0) as f32;
    plan.integers.extend([bits(spec.scale as f32), bits(cap)]);
    plan
}

/// Inner products of attention's result and its gradient. Pointers: out, grad, delta.
pub fn attention_delta(pairs: usize, head: usize) -> Plan {
    plan(
        "attention_delta/k1_warp_a_head",
        pairs.div_ceil(WARPS),
        &[pairs, head],
    )
}
