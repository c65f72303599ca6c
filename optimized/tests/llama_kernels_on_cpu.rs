//! The kernels of a Llama-family token other than its products, run on the CPU by `kernels/shim/shim.h` and
//! compared with the reference.

mod shim;

use aqlm_check::limits::{Number, Rule};
use aqlm_optimized::cuda::llama::plan::{self, Addition, Plan, padded_head};
use aqlm_optimized::cuda::memory_rate::{copy_plan, read_plan};
use aqlm_reference::llama::{Rotary, attention, geglu, rms_norm, swiglu};
use aqlm_vocabulary::{
    Activation, AttentionSpec, BlockSpec, LogitSpec, Rope, RopeScaling, llama::LlamaBlock,
};
use half::f16;
use ndarray::{Array1, Array2, ArrayView2, Axis, s};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use shim::Launch;

fn run(plan: &Plan, buffers: &[Vec<u8>], output: usize, name: &str) -> Option<Vec<u8>> {
    let launch = Launch::from(plan);
    let buffers: Vec<&[u8]> = buffers.iter().map(Vec::as_slice).collect();
    let source = aqlm_kernels::kernel(plan.kernel).unwrap().source(None).unwrap();
    let found = shim::run(&launch, &source, &buffers, output, name)?;
    Some(found.unwrap_or_else(|outside| panic!("{}: a write {outside}", plan.kernel)))
}

/// Numbers that f16 represents exactly, so that only the kernel's own rounding is compared.
fn random(rng: &mut ChaCha8Rng, rows: usize, columns: usize) -> Array2<f64> {
    Array2::from_shape_simple_fn((rows, columns), || {
        let value: f64 = rng.sample(StandardNormal);
        f16::from_f64(value).to_f64()
    })
}

fn f16s<'a>(values: impl IntoIterator<Item = &'a f64>) -> Vec<u8> {
    let bytes = |value: &f64| f16::from_f64(*value).to_le_bytes();
    values.into_iter().flat_map(bytes).collect()
}

fn f32s<'a>(values: impl IntoIterator<Item = &'a f64>) -> Vec<u8> {
    let bytes = |value: &f64| (*value as f32).to_le_bytes();
    values.into_iter().flat_map(bytes).collect()
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn from_f16s(bytes: &[u8]) -> Vec<f64> {
    bytes
        .chunks_exact(2)
        .map(|pair| f16::from_le_bytes([pair[0], pair[1]]).to_f64())
        .collect()
}

fn from_f32s(bytes: &[u8]) -> Vec<f64> {
    bytes
        .chunks_exact(4)
        .map(|four| f64::from(f32::from_le_bytes([four[0], four[1], four[2], four[3]])))
        .collect()
}

/// Unwritten memory reads as NaN in f16 and in f32.
fn poison(bytes: usize) -> Vec<u8> {
    vec![0xff; bytes]
}

/// Checks that squared error over squares is at most that of `roundings` roundings to f16, half a unit in the
/// last place each. Arithmetic in f32 is 2^13 times finer.
fn close<'a>(found: &[f64], expected: impl IntoIterator<Item = &'a f64>, roundings: usize, what: &str) {
    let expected: Vec<f64> = expected.into_iter().copied().collect();
    assert_eq!(found.len(), expected.len(), "{what}");
    let error: f64 = found.iter().zip(&expected).map(|(a, b)| (a - b).powi(2)).sum();
    let squares: f64 = expected.iter().map(|b| b * b).sum();
    let nmse = error / squares;
    let limit = Rule::Independent.limit(Number::F16, roundings);
    assert!(
        nmse <= limit && squares > 0.0,
        "{what}: nmse {nmse:e}, limit {limit:e}"
    );
}

fn config(heads: usize, kv_heads: usize, head_dim: usize, window: Option<usize>) -> AttentionSpec {
    let block = BlockSpec::llama(LlamaBlock {
        hidden_size: 40,
        intermediate_size: 72,
        heads,
        kv_heads,
        head_dim,
        epsilon: 1e-5,
        rotary: Rope {
            theta: 1000.0,
            scaling: RopeScaling::None,
        },
        window,
    });
    block.attention
}

/// What attention of other families has.
#[derive(Debug, Clone, Copy)]
enum Family {
    Llama,
    /// a rotation of a part of each head; factor and cap of scores
    Capped,
    /// no rotation
    Unrotated,
}

impl Family {
    fn put_into(self, spec: &mut AttentionSpec) {
        match self {
            Self::Llama => {}
            Self::Capped => {
                spec.rotated = spec.head_dim / 4 * 2;
                spec.scale *= 0.7;
                spec.cap = Some(1.5);
            }
            Self::Unrotated => spec.rotary = None,
        }
    }
}

/// Cosines and sines [positions, rotated / 2], in the kernels' format.
fn tables(spec: &AttentionSpec, positions: usize) -> [Vec<u8>; 2] {
    let Some(rotary) = &spec.rotary else {
        // must not be read
        return [(); 2].map(|()| poison(4));
    };
    let half = spec.rotated / 2;
    let theta = rotary.theta;
    let angle = |position: usize, i: usize| {
        let frequency = theta.powf(-(2.0 * i as f64) / spec.rotated as f64);
        f64::from(position as f32 * frequency as f32)
    };
    [f64::cos, f64::sin].map(|of: fn(f64) -> f64| {
        f32s(&Array2::from_shape_fn((positions, half), |(position, i)| {
            of(angle(position, i))
        }))
    })
}

/// Keys or values [positions, kv_heads x head] in the cache's layout: [kv_heads, capacity, padded].
fn cached(spec: &AttentionSpec, rows: &ArrayView2<'_, f64>, capacity: usize) -> Vec<f64> {
    let (head, padded) = (spec.head_dim, padded_head(spec.head_dim));
    let mut cache = vec![0.0; spec.kv_heads * capacity * padded];
    for (position, row) in rows.outer_iter().enumerate() {
        for (i, &value) in row.iter().enumerate() {
            cache[(i / head * capacity + position) * padded + i % head] = value;
        }
    }
    cache
}

#[test]
fn embeddings() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let table = random(&mut rng, 9, 300);
    let tokens = [8, 0, 3];
    let buffers = [f16s(&table), words(&tokens), poison(3 * 300 * 4)];
    let Some(found) = run(&plan::embed(300, 3), &buffers, 2, "embed") else {
        return;
    };
    let expected: Vec<f64> = tokens
        .iter()
        .flat_map(|&token| table.row(token as usize).to_vec())
        .collect();
    assert_eq!(from_f32s(&found), expected);
}

#[test]
fn norms() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    // Vector and scalar loads; several elements a thread; with and without a layer's output and its bias.
    for (width, rows, delta, bias) in [
        (4100, 2, true, true),
        (36, 3, true, false),
        (33, 2, false, false),
        (8200, 1, true, false),
    ] {
        let (hidden, change) = (random(&mut rng, rows, width), random(&mut rng, rows, width));
        let (weight, shift) = (random(&mut rng, 1, width), random(&mut rng, 1, width));
        let plan = plan::rms_norm(width, rows, 1e-5, delta, bias);
        let buffers = [
            f16s(&weight),
            f32s(&shift),
            f16s(&change),
            f32s(&hidden),
            poison(rows * width * 2),
        ];
        let mut expected = hidden.clone();
        if delta {
            expected += &change;
        }
        if bias {
            expected += &shift;
        }
        let Some(sum) = run(&plan, &buffers, 3, &format!("norm-sum-{width}")) else {
            return;
        };
        // The residual stream is f32: at least 2^13 times finer than a rounding to f16.
        let exact: Vec<f64> = expected.iter().map(|&value| f64::from(value as f32)).collect();
        close(&from_f32s(&sum), &exact, 1, "residual stream");
        let normed = rms_norm(expected.view(), weight.row(0), 1e-5);
        let Some(found) = run(&plan, &buffers, 4, &format!("norm-{width}")) else {
            return;
        };
        close(&from_f16s(&found), &normed, 1, "normed");
    }
}

#[test]
fn swiglus() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let (rows, width) = (2, 300);
    let [gate, up] = [312, 304].map(|stride| random(&mut rng, rows, stride));
    let biases = [(); 2].map(|()| random(&mut rng, 1, width));
    for bias in [false, true] {
        let buffers = [
            f32s(&biases[0]),
            f32s(&biases[1]),
            f16s(&gate),
            f16s(&up),
            poison(rows * width * 2),
        ];
        let plan = plan::swiglu(width, rows, [312, 304], bias);
        let Some(found) = run(&plan, &buffers, 4, &format!("swiglu-{bias}")) else {
            return;
        };
        let with = |x: &Array2<f64>, b: &Array2<f64>| {
            let x = x.slice(s![.., ..width]).to_owned();
            if bias { x + b } else { x }
        };
        let expected = swiglu(with(&gate, &biases[0]).view(), with(&up, &biases[1]).view());
        close(&from_f16s(&found), &expected, 1, "swiglu");
    }
}

#[test]
fn gates_by_gelu() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let [gate, up] = [(); 2].map(|()| random(&mut rng, 2, 300));
    let plan = plan::gated(Activation::GeluTanh, 300, 2, [300; 2], false);
    let unread = || poison(4);
    let buffers = [unread(), unread(), f16s(&gate), f16s(&up), poison(2 * 300 * 2)];
    let Some(found) = run(&plan, &buffers, 4, "gelu") else {
        return;
    };
    close(&from_f16s(&found), &geglu(gate.view(), up.view()), 1, "geglu");
}

/// Experts' outputs with factors, a norm of what is added, no norm of the sum, nothing added.
#[test]
fn additions_to_the_residual_stream() {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    for (index, (width, rows, slots, after, before)) in [
        (300, 1, 3, false, true),
        (1100, 2, 1, true, true),
        (36, 2, 1, true, false),
        (36, 2, 0, false, false),
    ]
    .into_iter()
    .enumerate()
    {
        let (hidden, weight) = (random(&mut rng, rows, width), random(&mut rng, 2, width));
        let (shift, shares) = (random(&mut rng, 1, width), random(&mut rng, 1, slots));
        let delta = random(&mut rng, rows * slots, width);
        let (shared, bias) = (slots > 1, slots == 1);
        let added = (slots > 0).then_some(Addition {
            slots,
            shares: shared,
            bias,
            after: after.then_some(1e-3),
            factor: 0.7,
        });
        let mut change = Array2::zeros((rows, width));
        for row in 0..rows {
            for slot in 0..slots {
                let share = if shared { shares[[0, slot]] } else { 1.0 };
                change
                    .row_mut(row)
                    .scaled_add(share, &delta.row(row * slots + slot));
            }
            if bias {
                change.row_mut(row).scaled_add(1.0, &shift.row(0));
            }
        }
        if after {
            change = rms_norm(change.view(), weight.row(1), 1e-3);
        }
        let expected = &hidden + &(0.7 * change);
        let plan = plan::residual_norm(width, rows, added, before.then_some(1e-5));
        let buffers = [
            f16s(weight.row(0)),
            f16s(weight.row(1)),
            f32s(&shift),
            f32s(&shares),
            f16s(&delta),
            f32s(&hidden),
            poison(rows * width * 2),
        ];
        let name = format!("residual-{index}");
        let Some(sum) = run(&plan, &buffers, 5, &name) else {
            return;
        };
        // The residual stream is f32: at least 2^13 times finer than a rounding to f16.
        close(&from_f32s(&sum), &expected, 1, "residual stream");
        let normed = if before {
            rms_norm(expected.view(), weight.row(0), 1e-5)
        } else {
            expected
        };
        let Some(found) = run(&plan, &buffers, 6, &name) else {
            return;
        };
        close(&from_f16s(&found), &normed, 1, "normed");
    }
}

/// Norms of each head and of whole rows, with biases, and values that only get theirs.
#[test]
fn norms_of_queries_and_keys() {
    let mut rng = ChaCha8Rng::seed_from_u64(10);
    let spec = config(4, 2, 12, None);
    let rows = 2;
    for (index, (norms, bias)) in [
        ([Some((12, 1e-3)), Some((12, 1e-2))], true),
        ([Some((48, 1e-3)), Some((24, 1e-3))], false),
        ([None, Some((12, 1e-3))], true),
    ]
    .into_iter()
    .enumerate()
    {
        let widths = [48, 24, 24];
        let projected = widths.map(|width| random(&mut rng, rows, width));
        let biases = widths.map(|width| random(&mut rng, 1, width));
        let weights = [0, 1].map(|of| random(&mut rng, 1, norms[of].map_or(1, |(width, _)| width)));
        let mut buffers: Vec<Vec<u8>> = weights.iter().map(f16s).collect();
        buffers.extend(biases.iter().map(f32s));
        buffers.extend(projected.iter().map(f16s));
        let plan = plan::head_norm(&spec, rows, norms, bias);
        for of in 0..3 {
            let Some(found) = run(&plan, &buffers, 5 + of, &format!("heads-{index}")) else {
                return;
            };
            let mut expected = projected[of].clone();
            if bias {
                expected += &biases[of];
            }
            if let Some(Some((width, epsilon))) = norms.get(of) {
                let pieces = expected
                    .into_shape_with_order((rows * widths[of] / width, *width))
                    .unwrap();
                expected = rms_norm(pieces.view(), weights[of].row(0), *epsilon);
            }
            close(&from_f16s(&found), &expected, 1, "queries, keys or values");
        }
    }
}

/// The largest scores, of equals the first ones, and factors that add up to 1 or not; a score that is not a
/// number is chosen last.
#[test]
fn routes() {
    let mut scores = vec![-1.0; 70];
    (scores[3], scores[33], scores[69], scores[40]) = (f64::NAN, 2.0, 2.0, 3.0);
    let mut all = scores.clone();
    all.push(0.5);
    let exponentials: f64 = scores
        .iter()
        .filter(|score| !score.is_nan())
        .map(|score| score.exp())
        .sum();
    for (normalized, shared) in [(true, true), (false, false)] {
        let plan = plan::route(70, 4, normalized, shared);
        let buffers = [f32s(&all), words(&[77; 4]), poison(5 * 4)];
        let name = format!("route-{normalized}");
        let Some(chosen) = run(&plan, &buffers, 1, &name) else {
            return;
        };
        assert_eq!(chosen, words(&[40, 33, 69, 0]));
        let Some(shares) = run(&plan, &buffers, 2, &name) else {
            return;
        };
        let own = [3.0_f64, 2.0, 2.0, -1.0].map(f64::exp);
        let whole = if normalized {
            own.iter().sum()
        } else {
            exponentials
        };
        let mut expected: Vec<f64> = own.iter().map(|own| own / whole).collect();
        if shared {
            expected.push(1.0 / (1.0 + (-0.5_f64).exp()));
        }
        close(&from_f32s(&shares)[..expected.len()], &expected, 1, "shares");
    }
    // With only scores that are no numbers, the choice is still distinct experts.
    let buffers = [f32s(&vec![f64::NAN; 3]), words(&[77; 2]), poison(3 * 4)];
    let chosen = run(&plan::route(3, 2, true, false), &buffers, 1, "route-nan");
    assert!(chosen.is_none_or(|chosen| chosen == words(&[0, 1])));
}

#[test]
fn logits_with_a_factor_and_a_cap() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let logits = random(&mut rng, 1, 300);
    for cap in [None, Some(1.2)] {
        let spec = LogitSpec { scale: 0.6, cap };
        let plan = plan::scale_logits(300, spec).unwrap();
        let Some(found) = run(&plan, &[f32s(&logits)], 0, "logits") else {
            return;
        };
        let of = |logit: f64| cap.map_or(0.6 * logit, |cap| cap * (0.6 * logit / cap).tanh());
        close(&from_f32s(&found), &logits.mapv(of), 1, "logits");
    }
    assert_eq!(plan::scale_logits(300, LogitSpec::PLAIN), None);
}

#[test]
fn dense_products() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    // Vector loads (with a remainder past the loads in flight) and scalar loads, into f32 and f16.
    for (out_features, in_features, rows, wide) in
        [(19, 2200, 2, true), (9, 37, 3, false), (8, 264, 1, false)]
    {
        let weight = random(&mut rng, out_features, in_features) / 4.0;
        let x = random(&mut rng, rows, in_features);
        let bytes = if wide { 4 } else { 2 };
        let buffers = [f16s(&weight), f16s(&x), poison(rows * out_features * bytes)];
        let plan = plan::dense(out_features, in_features, rows, wide);
        let Some(found) = run(&plan, &buffers, 2, &format!("dense-{in_features}")) else {
            return;
        };
        let found = if wide {
            from_f32s(&found)
        } else {
            from_f16s(&found)
        };
        close(&found, &x.dot(&weight.t()), 1, "dense");
    }
}

#[test]
fn the_likeliest_token() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut logits = random(&mut rng, 1, 3000);
    // The first of equals, whichever thread reads it.
    for at in [2999, 1700, 1701, 1025 + 1024] {
        logits[[0, at]] = 9.0;
    }
    let plan = plan::argmax(3000);
    let state = [6, 1, 1, 0];
    let buffers = [f32s(&logits), words(&[77; 9]), words(&state)];
    let Some(chosen) = run(&plan, &buffers, 1, "argmax-chosen") else {
        return;
    };
    assert_eq!(chosen, words(&[77, 77, 77, 77, 77, 77, 1700, 77, 77]));
    let Some(state) = run(&plan, &buffers, 2, "argmax-state") else {
        return;
    };
    assert_eq!(state, words(&[7, 1700, 1, 0]));
    // Even with only NaN, or only minus infinity, the result is a token.
    for value in [f64::NAN, f64::NEG_INFINITY] {
        let buffers = [f32s(&vec![value; 3000]), words(&[77; 9]), words(&[0, 1, 0, 0])];
        let Some(state) = run(&plan, &buffers, 2, "argmax-nan") else {
            return;
        };
        assert_eq!(state, words(&[0, 0, 0, 0]));
    }
}

#[test]
fn memory_is_read_and_copied_whole() {
    // 5 tiles on 3 blocks: one block takes a single tile.
    let (block, loads, blocks, tiles) = (64, 4, 3, 5);
    let array: Vec<u32> = (0..tiles * block as usize * loads * 4)
        .map(|i| (i as u32).wrapping_mul(0x9e37_79b9))
        .collect();
    let buffers = [words(&array), poison(blocks * 4)];
    let Some(sums) = run(
        &read_plan(block, loads, blocks, tiles),
        &buffers,
        1,
        "stream-read",
    ) else {
        return;
    };
    let tile = array.len() / tiles;
    let sum = |from: usize| {
        array
            .chunks(tile)
            .skip(from)
            .step_by(blocks)
            .flatten()
            .fold(0, |sum: u32, word| sum.wrapping_add(*word))
    };
    assert_eq!(sums, words(&[sum(0), sum(1), sum(2)]));
    let buffers = [words(&array), poison(array.len() * 4)];
    let copied = run(
        &copy_plan(block, loads, blocks, tiles),
        &buffers,
        1,
        "stream-copy",
    );
    assert_eq!(copied, Some(words(&array)));
}

/// Queries, keys and values of a text.
struct Projected {
    /// outputs of their layers
    all: [Array2<f64>; 3],
    biases: [Array2<f64>; 3],
    /// with their biases, queries and keys rotated from position 0 on
    rotated: [Array2<f64>; 3],
}

fn projected(
    rng: &mut ChaCha8Rng,
    spec: &AttentionSpec,
    tokens: usize,
    capacity: usize,
    bias: bool,
) -> Projected {
    let (queries, keys) = (spec.query_width(), spec.key_width());
    let all = [queries, keys, keys].map(|width| random(rng, tokens, width));
    let biases = [queries, keys, keys].map(|width| random(rng, 1, width));
    let mut rotated = all.clone();
    if bias {
        for (rows, bias) in rotated.iter_mut().zip(&biases) {
            *rows += bias;
        }
    }
    let rotary = Rotary::new(spec, capacity);
    for rows in &mut rotated[..2] {
        rotary.rotate(spec, rows, 0);
    }
    Projected { all, biases, rotated }
}

/// A prompt through rope and attention, in two chunks, compared with the reference's attention on rotated
/// queries and keys.
#[test]
fn prompts() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    for (heads, kv_heads, head_dim, window, bias, family) in [
        (4, 2, 12, None, true, Family::Llama),
        (3, 1, 64, Some(4), false, Family::Llama),
        (2, 2, 34, None, false, Family::Llama),
        (2, 1, 34, None, true, Family::Capped),
        (2, 2, 12, None, true, Family::Unrotated),
    ] {
        let (tokens, first, capacity) = (9, 5, 11);
        let mut config = config(heads, kv_heads, head_dim, window);
        family.put_into(&mut config);
        let Projected {
            all,
            biases,
            rotated: [q, k, v],
        } = projected(&mut rng, &config, tokens, capacity, bias);

        let rows = tokens - first;
        let [cosines, sines] = tables(&config, capacity);
        let [old_keys, old_values] =
            [&k, &v].map(|of| f16s(&cached(&config, &of.slice(s![..first, ..]), capacity)));
        let part = |i: usize| f16s(all[i].slice(s![first.., ..]).iter());
        let buffers = [
            cosines,
            sines,
            f32s(&biases[0]),
            f32s(&biases[1]),
            f32s(&biases[2]),
            part(0),
            part(1),
            part(2),
            old_keys,
            old_values,
        ];
        let plan = plan::rope(&config, rows, first, capacity, bias);
        let name = format!("rope-{head_dim}-{family:?}");
        let Some(rotated) = run(&plan, &buffers, 5, &name) else {
            return;
        };
        close(
            &from_f16s(&rotated),
            q.slice(s![first.., ..]).iter(),
            1,
            "queries",
        );
        let Some(new_keys) = run(&plan, &buffers, 8, &name) else {
            return;
        };
        let Some(new_values) = run(&plan, &buffers, 9, &name) else {
            return;
        };
        close(
            &from_f16s(&new_keys),
            &cached(&config, &k.view(), capacity),
            1,
            "keys",
        );
        close(
            &from_f16s(&new_values),
            &cached(&config, &v.view(), capacity),
            1,
            "values",
        );
        let buffers = [new_keys, new_values, rotated, poison(rows * heads * head_dim * 2)];
        let plan = plan::attention(&config, rows, first, capacity);
        let Some(found) = run(&plan, &buffers, 3, &format!("attention-{head_dim}-{family:?}")) else {
            return;
        };
        let expected = attention(&config, q.slice(s![first.., ..]), k.view(), v.view(), first);
        // Queries, keys, values and the result are rounded once. Scores of a few units amplify the rounding
        // of the first two.
        close(&from_f16s(&found), &expected, 8, "attention");
    }
}

/// A new token over a cache, with whole and split contexts, shared keys, windows, empty caches and
/// remainders.
#[test]
fn steps() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for (index, (heads, kv_heads, head_dim, window, position, bias, multiprocessors, family)) in [
        (2, 2, 64, None, 150, false, 3, Family::Llama),
        (4, 2, 12, None, 37, true, 6, Family::Llama),
        (6, 1, 128, None, 70, false, 2, Family::Llama),
        (8, 1, 40, Some(9), 30, true, 1, Family::Llama),
        (2, 1, 4, None, 0, false, 2, Family::Llama),
        (2, 2, 64, None, 1, false, 6, Family::Llama),
        (4, 2, 40, None, 37, true, 6, Family::Capped),
        (2, 2, 12, None, 21, true, 1, Family::Unrotated),
    ]
    .into_iter()
    .enumerate()
    {
        let capacity = position + 2;
        let mut config = config(heads, kv_heads, head_dim, window);
        family.put_into(&mut config);
        let queries = heads * head_dim;
        let Projected {
            all,
            biases,
            rotated: [q, k, v],
        } = projected(&mut rng, &config, position + 1, capacity, bias);
        let new = |i: usize| f16s(all[i].row(position).iter());
        let [cosines, sines] = tables(&config, capacity);
        let [old_keys, old_values] =
            [&k, &v].map(|of| f16s(&cached(&config, &of.slice(s![..position, ..]), capacity)));
        let buffers = [
            old_keys,
            old_values,
            cosines,
            sines,
            f32s(&biases[0]),
            f32s(&biases[1]),
            f32s(&biases[2]),
            words(&[position as u32, 0, 0, 0]),
            new(0),
            new(1),
            new(2),
            poison(queries * 2),
        ];
        let plan = plan::attention_step(&config, capacity, bias, multiprocessors, true);
        let name = format!("step-{index}");
        let Some(found) = run(&plan, &buffers, 11, &name) else {
            return;
        };
        let row = q.row(position).insert_axis(Axis(0));
        let expected: Array1<f64> =
            attention(&config, row, k.view(), v.view(), position).index_axis_move(Axis(0), 0);
        close(
            &from_f16s(&found),
            &expected,
            8,
            &format!("{name}, {} splits", plan.cluster),
        );
        for (buffer, of) in [(0, &k), (1, &v)] {
            let Some(cache) = run(&plan, &buffers, buffer, &name) else {
                return;
            };
            close(
                &from_f16s(&cache),
                &cached(&config, &of.view(), capacity),
                1,
                "cache",
            );
        }
    }
}
