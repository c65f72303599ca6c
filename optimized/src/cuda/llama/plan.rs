//! Launch plans for the kernels of a Llama-family token other than its products. They are plain numbers, so
//! tests can run them on the CPU.

use aqlm_kernels::defines::attention_step::k1_split_context::{TOTALS, WARPS as STEP_WARPS};
use aqlm_vocabulary::{Activation, AttentionSpec, LogitSpec};

/// A launch of a kernel that takes pointers and then integers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// the kernel's id
    pub kernel: &'static str,
    /// compile-time constants
    pub defines: Vec<(&'static str, usize)>,
    /// the integer arguments after the pointers
    pub integers: Vec<i32>,
    /// blocks
    pub grid: [u32; 2],
    /// threads of a block
    pub block: u32,
    /// blocks of a cluster, along the grid's first axis
    pub cluster: u32,
    /// dynamic shared memory of a block
    pub shared_bytes: usize,
}

impl Plan {
    fn new(kernel: &'static str, grid: [usize; 2], block: u32) -> Self {
        Self {
            kernel,
            defines: Vec::new(),
            integers: Vec::new(),
            grid: grid.map(|blocks| blocks as u32),
            block,
            cluster: 1,
            shared_bytes: 0,
        }
    }
}

/// `head` rounded up to a multiple of 8: the width of a position in the cache.
pub fn padded_head(head: usize) -> usize {
    head.next_multiple_of(8)
}

/// Rows of the embedding table. Pointers: table, tokens, hidden.
pub fn embed(width: usize, rows: usize) -> Plan {
    Plan {
        integers: vec![width as i32],
        ..Plan::new("embed/k1_rows", [width.div_ceil(256), rows], 256)
    }
}

/// [`embed`] with a factor.
pub fn embed_scaled(width: usize, rows: usize, scale: f64) -> Plan {
    let mut plan = embed(width, rows);
    if scale != 1.0 {
        plan.defines.push(("AQLM_SCALED", 1));
        plan.integers.push(bits(scale));
    }
    plan
}

/// An f32 argument.
fn bits(value: f64) -> i32 {
    (value as f32).to_bits() as i32
}

/// The residual stream plus a layer's output, normalised. Pointers: weight, bias, delta, hidden, normed. Bias
/// and delta are read only if requested.
pub fn rms_norm(width: usize, rows: usize, eps: f64, delta: bool, bias: bool) -> Plan {
    let vector = if width.is_multiple_of(4) { 4 } else { 1 };
    let threads = (width / vector).next_multiple_of(32).clamp(32, 1024);
    Plan {
        defines: vec![
            ("AQLM_WIDTH", width),
            ("AQLM_VECTOR", vector),
            ("AQLM_THREADS", threads),
            ("AQLM_DELTA", usize::from(delta)),
            ("AQLM_BIAS", usize::from(delta && bias)),
        ],
        integers: vec![(eps as f32).to_bits() as i32],
        shared_bytes: 128,
        ..Plan::new("rms_norm/k1_block_a_row", [rows, 1], threads as u32)
    }
}

/// What [`residual_norm`] adds to the residual stream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Addition {
    /// outputs that are added; more than one for experts
    pub slots: usize,
    /// whether each has a factor of its own
    pub shares: bool,
    /// whether a bias comes with the only one
    pub bias: bool,
    /// epsilon of the norm of what is added, if it is normed
    pub after: Option<f64>,
    /// factor of what is added
    pub factor: f64,
}

/// The residual stream plus what layers or experts add, normalised with this epsilon or left as it is.
/// Pointers: weights of the norm before and of the norm after, bias, shares, delta, hidden, normed. What the
/// addition lacks is not read.
pub fn residual_norm(width: usize, rows: usize, added: Option<Addition>, before: Option<f64>) -> Plan {
    let threads = width.next_multiple_of(32).clamp(32, 1024);
    let has = |of: fn(Addition) -> bool| usize::from(added.is_some_and(of));
    let after = added.and_then(|added| added.after);
    Plan {
        defines: vec![
            ("AQLM_WIDTH", width),
            ("AQLM_THREADS", threads),
            ("AQLM_SLOTS", added.map_or(0, |added| added.slots)),
            ("AQLM_SHARES", has(|added| added.shares)),
            ("AQLM_BIAS", has(|added| added.bias)),
            ("AQLM_AFTER", has(|added| added.after.is_some())),
            ("AQLM_BEFORE", usize::from(before.is_some())),
        ],
        integers: vec![
            bits(before.unwrap_or(0.0)),
            bits(after.unwrap_or(0.0)),
            bits(added.map_or(1.0, |added| added.factor)),
        ],
        shared_bytes: 256,
        ..Plan::new("residual_norm/k1_block_a_row", [rows, 1], threads as u32)
    }
}

/// Norms of queries and keys in place, each of pieces as wide as its weights, and biases of queries, keys and
/// values. `norms` are width and epsilon of the norm of queries and of that of keys. Pointers: the weights of
/// both, the biases of q, k and v, then q, k and v.
pub fn head_norm(spec: &AttentionSpec, rows: usize, norms: [Option<(usize, f64)>; 2], bias: bool) -> Plan {
    let all = [spec.query_width(), spec.key_width()];
    let widths = [0, 1].map(|of| norms[of].map_or(all[of], |(width, _)| width));
    let pieces = [0, 1].map(|of| all[of] / widths[of]);
    let threads = widths[0].max(widths[1]).next_multiple_of(32).clamp(32, 1024);
    let mut integers = [pieces[0], pieces[1], widths[0], widths[1], all[1]]
        .map(|n| n as i32)
        .to_vec();
    integers.extend(norms.map(|norm| bits(norm.map_or(1.0, |(_, epsilon)| epsilon))));
    Plan {
        defines: vec![
            ("AQLM_THREADS", threads),
            ("AQLM_BIAS", usize::from(bias)),
            (
                "AQLM_NORMS",
                usize::from(norms[0].is_some()) + 2 * usize::from(norms[1].is_some()),
            ),
        ],
        integers,
        shared_bytes: 128,
        ..Plan::new(
            "head_norm/k1_block_a_piece",
            [pieces[0] + pieces[1] + usize::from(bias), rows],
            threads as u32,
        )
    }
}

/// The experts of a token. Pointers: scores, chosen, shares. With `shared`, the last score is that of the
/// gate of the expert that every token passes.
pub fn route(experts: usize, used: usize, normalized: bool, shared: bool) -> Plan {
    Plan {
        defines: vec![
            ("AQLM_EXPERT_COUNT", experts),
            ("AQLM_USED", used),
            ("AQLM_NORMALIZED", usize::from(normalized)),
            ("AQLM_SHARED_EXPERT", usize::from(shared)),
        ],
        ..Plan::new("route/k1_one_warp", [1, 1], 32)
    }
}

/// Factor and cap of `count` logits, in place; `None` where they stay as they are. Pointers: logits.
pub fn scale_logits(count: usize, spec: LogitSpec) -> Option<Plan> {
    (spec != LogitSpec::PLAIN).then(|| Plan {
        integers: vec![count as i32, bits(spec.scale), bits(spec.cap.unwrap_or(0.0))],
        ..Plan::new("scale_logits/k1_elementwise", [count.div_ceil(256), 1], 256)
    })
}

/// The constants of a rotation that is not one of whole heads.
fn add_rotation(spec: &AttentionSpec, plan: &mut Plan) {
    if spec.rotary.is_none() {
        plan.defines.push(("AQLM_ROTATED", 0));
    } else if spec.rotated != spec.head_dim {
        plan.defines.push(("AQLM_ROTATED", spec.rotated));
    }
}

/// Factor and cap of scores that are not a Llama's.
fn add_scores(spec: &AttentionSpec, plan: &mut Plan) {
    if spec.scale != AttentionSpec::usual_scale(spec.head_dim) || spec.cap.is_some() {
        plan.defines.push(("AQLM_SCORES", 1));
        plan.integers
            .extend([bits(spec.scale), bits(spec.cap.unwrap_or(0.0))]);
    }
}

/// Rotation of a prompt's `rows` rows from position `first` on, into a cache of `capacity` positions.
/// Pointers: cosines, sines, the biases of q, k and v, then q, k, v, keys, values.
pub fn rope(spec: &AttentionSpec, rows: usize, first: usize, capacity: usize, bias: bool) -> Plan {
    let (heads, kv_heads, head) = (spec.heads, spec.kv_heads, spec.head_dim);
    let mut plan = Plan {
        defines: vec![
            ("AQLM_HEAD", head),
            ("AQLM_PADDED", padded_head(head)),
            ("AQLM_BIAS", usize::from(bias)),
        ],
        integers: [heads, kv_heads, first, capacity].map(|n| n as i32).to_vec(),
        ..Plan::new(
            "rope/k1_pairs",
            [rows, (heads + 2 * kv_heads).min(65_535)],
            (head / 2).next_multiple_of(32).min(128) as u32,
        )
    };
    add_rotation(spec, &mut plan);
    plan
}

/// A prompt's queries over the cache. Pointers: keys, values, q, out.
pub fn attention(spec: &AttentionSpec, rows: usize, first: usize, capacity: usize) -> Plan {
    const WARPS: usize = 4;
    let mut plan = Plan {
        defines: vec![
            ("AQLM_HEAD", spec.head_dim),
            ("AQLM_PADDED", padded_head(spec.head_dim)),
        ],
        integers: [
            rows,
            spec.heads,
            spec.kv_heads,
            first,
            capacity,
            spec.window.unwrap_or(0),
        ]
        .map(|n| n as i32)
        .to_vec(),
        ..Plan::new(
            "attention/k1_warp_a_query",
            [rows.div_ceil(WARPS), spec.heads],
            WARPS as u32 * 32,
        )
    };
    add_scores(spec, &mut plan);
    plan
}

/// Maximum query heads that a block holds in registers, and maximum blocks of a cluster.
const MOST_QUERIES: usize = 4;
const MOST_SPLITS: usize = 8;

/// A new token's attention with its rotation and the write to the cache, for a device with this many
/// `multiprocessors`. The context is split only if the device has clusters. Pointers: keys, values, cosines,
/// sines, the biases of q, k and v, state, q, k, v, out.
///
/// # Panics
/// Never: 1 divides every number of heads.
pub fn attention_step(
    spec: &AttentionSpec,
    capacity: usize,
    bias: bool,
    multiprocessors: usize,
    clusters: bool,
) -> Plan {
    let group = spec.heads_per_kv_head();
    let queries = (1..=MOST_QUERIES)
        .rev()
        .find(|&queries| group.is_multiple_of(queries))
        .expect("1 divides every group");
    let parts = group / queries;
    let blocks = spec.kv_heads * parts;
    let mut splits = 1;
    // Blocks for at least 90 % of the multiprocessors. More parts cost more in merging than they gain.
    while clusters && splits < MOST_SPLITS && blocks * splits * 10 < multiprocessors * 9 {
        splits *= 2;
    }
    let padded = padded_head(spec.head_dim);
    let record = padded + TOTALS;
    let mut plan = Plan {
        defines: vec![
            ("AQLM_HEAD", spec.head_dim),
            ("AQLM_LANES", (padded / 8).next_power_of_two()),
            ("AQLM_QUERIES", queries),
            ("AQLM_SPLITS", splits),
            ("AQLM_BIAS", usize::from(bias)),
        ],
        integers: [parts, capacity, spec.window.unwrap_or(0)]
            .map(|n| n as i32)
            .to_vec(),
        cluster: splits as u32,
        shared_bytes: 4 * padded + 4 * queries * (padded + (STEP_WARPS + splits) * record),
        ..Plan::new(
            "attention_step/k1_split_context",
            [splits, blocks],
            STEP_WARPS as u32 * 32,
        )
    };
    add_rotation(spec, &mut plan);
    add_scores(spec, &mut plan);
    plan
}

/// SwiGLU. Pointers: the biases of gate and up, gate, up, out. `strides` are those of rows of gate and up.
pub fn swiglu(width: usize, rows: usize, strides: [usize; 2], bias: bool) -> Plan {
    Plan {
        defines: vec![("AQLM_BIAS", usize::from(bias))],
        integers: [width, strides[0], strides[1]].map(|n| n as i32).to_vec(),
        ..Plan::new("swiglu/k1_elementwise", [width.div_ceil(256), rows], 256)
    }
}

/// [`swiglu`] with another activation of the gate.
pub fn gated(activation: Activation, width: usize, rows: usize, strides: [usize; 2], bias: bool) -> Plan {
    let mut plan = swiglu(width, rows, strides, bias);
    if activation == Activation::GeluTanh {
        plan.defines.push(("AQLM_GELU", 1));
    }
    plan
}

/// y = W x of chosen experts, whose f16 weights follow one another. Strides are those of x and y from one
/// slot to the next. Pointers: weights, x, y, chosen.
pub fn dense_experts(out_features: usize, in_features: usize, slots: usize, strides: [usize; 2]) -> Plan {
    let mut plan = dense(out_features, in_features, slots, false);
    plan.defines.push(("AQLM_EXPERTS", 1));
    plan.integers.extend(strides.map(|stride| stride as i32));
    plan
}

/// y = W x for an f16 weight, into f32 (`wide`) or f16. Pointers: weight, x, y.
pub fn dense(out_features: usize, in_features: usize, rows: usize, wide: bool) -> Plan {
    const WARPS: usize = 8;
    let vector = if in_features.is_multiple_of(8) { 8 } else { 1 };
    Plan {
        defines: vec![("AQLM_VECTOR", vector), ("AQLM_WIDE", usize::from(wide))],
        integers: vec![out_features as i32, in_features as i32],
        ..Plan::new(
            "dense/k1_warp_a_row",
            [out_features.div_ceil(WARPS), rows],
            WARPS as u32 * 32,
        )
    }
}

/// The likeliest of `count` tokens. Pointers: logits, chosen, state.
pub fn argmax(count: usize) -> Plan {
    const THREADS: u32 = 1024;
    Plan {
        integers: vec![count as i32],
        shared_bytes: THREADS as usize * 8,
        ..Plan::new("argmax/k1_one_block", [1, 1], THREADS)
    }
}
