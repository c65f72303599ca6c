//! The kernels of training, run on the CPU by `kernels/shim/shim.h` and compared with the reference.

#[path = "shim/numbers.rs"]
mod numbers;
mod shim;

use aqlm_check::limits::{Number, Rule};
use aqlm_optimized::cuda::llama::plan::Plan;
use aqlm_optimized::cuda::training::plan::steps::{Kept, Step, step};
use aqlm_optimized::cuda::training::plan::{self, AttentionForm, AttentionPass};
use aqlm_reference::Stepper;
use aqlm_reference::llama as reference;
use aqlm_reference::{decode, llama::quantized_gradients};
use aqlm_vocabulary::llama::LlamaBlock;
use aqlm_vocabulary::{
    Activation, AdamDecay, AttentionSpec, BlockSpec, NormSpec, Optimizer, QuantizedMatrix, Rope, RopeScaling,
    Scheme, StepRule,
};
use ndarray::{Array1, Array2, Array3, Array4, Axis, s};
use numbers::{close, f32s, f64s, from_f32s, from_f64s, poison, random, run, within, words};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

/// The norm of a Llama.
const PLAIN_NORM: NormSpec = NormSpec::rms(1e-5);

fn spec(heads: usize, kv_heads: usize, head_dim: usize, window: Option<usize>) -> AttentionSpec {
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

/// Attention and its gradients over two sequences: shared keys, windows, caps, widths that fill no tile, one
/// tile and several.
#[test]
fn attention_forward_and_back() {
    use AttentionForm::{Tensor, Tiles};
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    for (index, (heads, kv_heads, head_dim, window, tokens, form, cap)) in [
        (2, 1, 12, None, 37, Tiles(16), None),
        (2, 2, 34, Some(9), 40, Tiles(16), None),
        (3, 1, 64, Some(1), 33, Tiles(32), None),
        (2, 1, 8, Some(70), 70, Tiles(64), None),
        (2, 1, 12, None, 70, Tensor, None),
        (1, 1, 34, Some(9), 100, Tensor, None),
        (2, 1, 16, Some(1), 33, Tensor, None),
        (2, 1, 12, Some(9), 40, Tiles(16), Some(1.5)),
        (2, 1, 16, None, 70, Tensor, Some(1.5)),
    ]
    .into_iter()
    .enumerate()
    {
        let mut spec = spec(heads, kv_heads, head_dim, window);
        if cap.is_some() {
            (spec.cap, spec.scale) = (cap, 0.9 * spec.scale);
        }
        let rows = 2 * tokens;
        let q = random(&mut rng, rows, heads * head_dim);
        let [k, v] = [(); 2].map(|()| random(&mut rng, rows, kv_heads * head_dim));
        let grad = random(&mut rng, rows, heads * head_dim);
        let mut expected = Array2::zeros(q.dim());
        let [mut grad_q, mut grad_k, mut grad_v] = [&q, &k, &v].map(|x| Array2::zeros(x.dim()));
        for first in [0, tokens] {
            let own = s![first..first + tokens, ..];
            let (q, k, v) = (q.slice(own), k.slice(own), v.slice(own));
            expected
                .slice_mut(own)
                .assign(&reference::attention(&spec, q, k, v, 0));
            let of_inputs = reference::attention_backward(&spec, q, k, v, grad.slice(own));
            let of_inputs = <[Array2<f64>; 3]>::from(of_inputs);
            for (to, from) in [&mut grad_q, &mut grad_k, &mut grad_v].into_iter().zip(of_inputs) {
                to.slice_mut(own).assign(&from);
            }
        }
        let name = format!("training-attention-{index}");
        let shape = [2, tokens];
        let forward = plan::attention(AttentionPass::Forward, &spec, shape, form);
        let mut buffers = vec![
            f32s(&q),
            f32s(&k),
            f32s(&v),
            poison(q.len() * 4),
            poison(rows * heads * 4),
        ];
        let Some(found) = run(&forward, &buffers, 3, &name) else {
            return;
        };
        // On tensor cores queries, keys, probabilities and values are rounded to TF32. The first two act
        // through scores of a few units. A gradient has these behind it and as many more of its own, twice.
        let limit = |back: usize| match form {
            Tiles(_) => Rule::Squares.limit(Number::F32, 4 * (head_dim + tokens)),
            Tensor => Rule::Independent.limit(Number::Tf32, (2 * 4 + 2) * back),
        };
        within(limit(1), &from_f32s(&found), &expected, "attention");
        let stats = run(&forward, &buffers, 4, &name).unwrap();
        let pairs = rows * heads;
        let delta = [found, f32s(&grad), poison(pairs * 4)];
        let delta = run(&plan::attention_delta(pairs, head_dim), &delta, 2, &name).unwrap();
        buffers.truncate(3);
        buffers.extend([f32s(&grad), stats, delta]);
        let mut for_queries = buffers.clone();
        for_queries.push(poison(q.len() * 4));
        let queries = plan::attention(AttentionPass::Queries, &spec, shape, form);
        let found = from_f32s(&run(&queries, &for_queries, 6, &name).unwrap());
        buffers.extend([poison(k.len() * 4), poison(v.len() * 4)]);
        let keys = plan::attention(AttentionPass::KeysAndValues, &spec, shape, form);
        let found_k = from_f32s(&run(&keys, &buffers, 6, &name).unwrap());
        if window == Some(1) {
            // Softmax over one score is one, so queries and keys have no influence.
            assert!(found.iter().chain(&found_k).all(|&x| x == 0.0));
        } else {
            within(limit(4), &found, &grad_q, "gradient of queries");
            within(limit(4), &found_k, &grad_k, "gradient of keys");
        }
        let found = from_f32s(&run(&keys, &buffers, 7, &name).unwrap());
        within(limit(4), &found, &grad_v, "gradient of values");
    }
}

#[test]
fn norms_forward_and_back() {
    let mut rng = ChaCha8Rng::seed_from_u64(12);
    let (rows, width) = (300, 70);
    let (x, grad) = (random(&mut rng, rows, width), random(&mut rng, rows, width));
    let (weight, before) = (random(&mut rng, 1, width), random(&mut rng, rows, width));
    let buffers = [
        f32s(&x),
        f32s(&weight),
        poison(rows * width * 4),
        poison(rows * 4),
    ];
    let forward = plan::norm(rows, width, PLAIN_NORM);
    let Some(found) = run(&forward, &buffers, 2, "training-norm") else {
        return;
    };
    let expected = reference::rms_norm(x.view(), weight.row(0), 1e-5);
    close(&from_f32s(&found), &expected, width, "norm");
    let roots = run(&forward, &buffers, 3, "training-norm").unwrap();
    let (grad_x, grad_weight) = reference::rms_norm_backward(x.view(), weight.row(0), 1e-5, grad.view());
    let buffers = [f32s(&x), f32s(&weight), roots.clone(), f32s(&grad), f32s(&before)];
    let found = run(
        &plan::norm_back(rows, width, PLAIN_NORM),
        &buffers,
        4,
        "training-norm",
    )
    .unwrap();
    close(&from_f32s(&found), &(grad_x + &before), width, "gradient of x");
    let chunks = plan::column_chunks(rows);
    let buffers = [f32s(&grad), f32s(&x), roots, poison(chunks * width * 8)];
    let parts = run(
        &plan::column_sums(rows, width, true),
        &buffers,
        3,
        "training-norm",
    )
    .unwrap();
    let total = f64s(before.row(0));
    let found = run(
        &plan::add_parts(width, chunks, true),
        &[parts, total],
        1,
        "training-norm",
    )
    .unwrap();
    close(
        &from_f64s(&found),
        &(grad_weight + before.row(0)),
        width,
        "gradient of the weight",
    );
    let buffers = [f32s(&grad), f32s(&x), f32s(&x), poison(chunks * width * 8)];
    let parts = run(
        &plan::column_sums(rows, width, false),
        &buffers,
        3,
        "training-bias",
    )
    .unwrap();
    let total = vec![0; width * 8];
    let found = run(
        &plan::add_parts(width, chunks, true),
        &[parts, total],
        1,
        "training-bias",
    )
    .unwrap();
    close(
        &from_f64s(&found),
        &grad.sum_axis(Axis(0)),
        1,
        "gradient of a bias",
    );
}

#[test]
fn gates_forward_and_back() {
    let mut rng = ChaCha8Rng::seed_from_u64(13);
    let (rows, width) = (3, 111);
    let [gate, up, grad] = [(); 3].map(|()| random(&mut rng, rows, width));
    let count = rows * width;
    let buffers = [f32s(&gate), f32s(&up), poison(count * 4)];
    let Some(found) = run(&plan::gate(count, Activation::Silu), &buffers, 2, "training-gate") else {
        return;
    };
    close(
        &from_f32s(&found),
        &reference::swiglu(gate.view(), up.view()),
        8,
        "gate",
    );
    let (of_gate, of_up) = reference::swiglu_backward(gate.view(), up.view(), grad.view());
    let buffers = [f32s(&gate), f32s(&up), f32s(&grad), poison(count * 4)];
    for (output, expected) in [(2, of_up), (3, of_gate)] {
        let found = run(
            &plan::gate_back(count, Activation::Silu),
            &buffers,
            output,
            "training-gate",
        )
        .unwrap();
        close(&from_f32s(&found), &expected, 16, "gradients of a gate");
    }
}

/// A scheme, and a matrix with one scale of zero.
fn quantized(rng: &mut ChaCha8Rng, text: &str, out_groups: usize, in_groups: usize) -> QuantizedMatrix {
    let scheme: Scheme = text.parse().unwrap();
    let (books, states) = (scheme.num_codebooks, scheme.codebook_size());
    let (go, gi) = (scheme.out_group_size, scheme.in_group_size);
    let codes = Array3::from_shape_simple_fn((out_groups, in_groups, books), || {
        rng.random_range(0..states) as u16
    });
    let codebooks =
        Array4::from_shape_simple_fn((books, states, go, gi), || rng.sample::<f64, _>(StandardNormal));
    let mut scales: Array1<f64> = Array1::from_shape_simple_fn(out_groups, || rng.sample(StandardNormal));
    scales[1] = 0.0;
    QuantizedMatrix::new(scheme, codes, codebooks, scales).unwrap()
}

#[test]
fn codebooks_are_decoded_and_their_gradients_summed() {
    let mut rng = ChaCha8Rng::seed_from_u64(14);
    for (index, (text, out_groups, in_groups)) in [("2x3g4", 9, 5), ("1x8g8", 20, 30), ("3x2g2o2", 7, 6)]
        .into_iter()
        .enumerate()
    {
        let matrix = quantized(&mut rng, text, out_groups, in_groups);
        let scheme = matrix.scheme();
        let (out, inputs) = (matrix.out_features(), matrix.in_features());
        let codes: Vec<u8> = matrix
            .codes()
            .iter()
            .flat_map(|code| code.to_le_bytes())
            .collect();
        let [codebooks, scales] = [f64s(matrix.codebooks()), f64s(matrix.scales())];
        let name = format!("training-codebooks-{index}");
        let buffers = [
            codes.clone(),
            codebooks.clone(),
            scales.clone(),
            poison(out * inputs * 4),
        ];
        let Some(found) = run(&plan::decode(scheme, out, inputs), &buffers, 3, &name) else {
            return;
        };
        close(&from_f32s(&found), &decode(&matrix), 1, "decoded");

        let gradient = random(&mut rng, out, inputs);
        let (of_codebooks, of_scales) = quantized_gradients(&matrix, &gradient);
        // The groups of each codeword, as the host sorts them.
        let (mut starts, mut groups) = (Vec::new(), Vec::new());
        for m in 0..scheme.num_codebooks {
            let book = matrix.codes().index_axis(Axis(2), m);
            let mut count = 0;
            starts.push(0);
            for k in 0..scheme.codebook_size() {
                for (group, &code) in book.iter().enumerate() {
                    if usize::from(code) == k {
                        groups.push(group as u32);
                        count += 1;
                    }
                }
                starts.push(count);
            }
        }
        let before = vec![0; matrix.codebooks().len() * 8];
        let buffers = [words(&starts), words(&groups), scales, f32s(&gradient), before];
        let found = run(&plan::codeword_sums(scheme, out, inputs), &buffers, 4, &name).unwrap();
        close(&from_f64s(&found), &of_codebooks, 1, "gradient of codebooks");
        let buffers = [codes, codebooks, f32s(&gradient), vec![0; out_groups * 8]];
        let found = run(&plan::scale_sums(scheme, out, inputs), &buffers, 3, &name).unwrap();
        close(&from_f64s(&found), &of_scales, 1, "gradient of scales");
    }
}

#[test]
fn losses_and_their_gradients() {
    let mut rng = ChaCha8Rng::seed_from_u64(15);
    let (rows, vocab, listed) = (3, 700, 5);
    let (logits, teacher) = (random(&mut rng, rows, vocab), random(&mut rng, rows, vocab));
    let scale = 0.25;
    let targets = [699, 0, 17];
    let wide = poison(rows * 8);
    let check = |plan: &dyn Fn(Option<f64>) -> Plan,
                 others: &[Vec<u8>],
                 expected: (Array1<f64>, Array2<f64>),
                 name: &str| {
        for with in [None, Some(scale)] {
            let mut buffers = vec![f32s(&logits)];
            buffers.extend(others.iter().cloned());
            buffers.push(wide.clone());
            let last = buffers.len() - 1;
            let Some(found) = run(&plan(with), &buffers, last, name) else {
                return;
            };
            close(&from_f64s(&found), &expected.0, 16, name);
            let found = from_f32s(&run(&plan(with), &buffers, 0, name).unwrap());
            if with.is_some() {
                close(&found, &(scale * &expected.1), 64, name);
            } else {
                assert_eq!(found, logits.iter().copied().collect::<Vec<_>>(), "{name}");
            }
        }
    };
    check(
        &|scale| plan::token_loss(rows, vocab, scale),
        &[words(&targets)],
        reference::cross_entropy(logits.view(), &targets).unwrap(),
        "training-token-loss",
    );
    check(
        &|scale| plan::teacher_loss(rows, vocab, scale),
        &[f32s(&teacher)],
        reference::kl_divergence(logits.view(), teacher.view()).unwrap(),
        "training-teacher-loss",
    );
    let top = aqlm_vocabulary::TopTokens {
        tokens: Array2::from_shape_fn((rows, listed), |(r, i)| (100 * i + 7 * r) as u32),
        log_probabilities: Array2::from_shape_fn((rows, listed), |(r, i)| -2.0 - (r + i) as f32 / 4.0),
        rest: Array1::from(vec![0.5, 0.0, 0.25]),
    };
    check(
        &|scale| plan::top_loss(rows, vocab, listed, scale),
        &[
            words(&top.tokens.iter().copied().collect::<Vec<_>>()),
            top.log_probabilities
                .iter()
                .flat_map(|x| x.to_le_bytes())
                .collect(),
            top.rest.iter().flat_map(|x| x.to_le_bytes()).collect(),
            poison(rows * listed * 4),
        ],
        reference::top_kl_divergence(logits.view(), &top).unwrap(),
        "training-top-loss",
    );
}

/// The numbers of an array as they are kept.
fn kept<'a>(wide: bool, values: impl IntoIterator<Item = &'a f64>) -> Vec<u8> {
    if wide { f64s(values) } else { f32s(values) }
}

#[test]
fn two_models_compared_at_each_row() {
    let mut rng = ChaCha8Rng::seed_from_u64(21);
    let (rows, vocab) = (4, 700);
    let mut dense = random(&mut rng, rows, vocab);
    let mut model = &dense + &(0.5 * &random(&mut rng, rows, vocab));
    model.mapv_inplace(|logit| f64::from(logit as f32));
    // Two tokens of the first row are equally likely in the dense model, and so are they in the model: the
    // smaller id counts in both. In the second row the two models' first ones differ.
    let least = f64::NEG_INFINITY;
    for (row, ids) in [(0, [650, 3]), (1, [5, 600])] {
        for id in ids {
            dense[[row, id]] = 6.0;
        }
    }
    for id in [3, 650] {
        model[[0, id]] = 5.0;
    }
    model[[1, 600]] = 9.0;
    // A token without probability in the dense model counts nothing.
    dense[[2, 44]] = least;
    let targets = [699, 0, 17, 3];
    let of = |output| {
        let buffers = [
            f32s(&dense),
            f32s(&model),
            words(&targets),
            poison(rows * 4 * 8),
            poison(rows * 4),
        ];
        run(
            &plan::compare_rows(rows, vocab),
            &buffers,
            output,
            "training-compare-rows",
        )
    };
    let Some(numbers) = of(3) else {
        return;
    };
    let numbers = from_f64s(&numbers);
    let same: Vec<u8> = of(4).unwrap().into_iter().step_by(4).collect();
    let log_softmax = |row: ndarray::ArrayView1<'_, f64>| {
        let most = row.fold(least, |most, &logit| most.max(logit));
        let sum: f64 = row.iter().map(|logit| (logit - most).exp()).sum();
        row.mapv(|logit| logit - most - sum.ln())
    };
    for (row, &target) in targets.iter().enumerate() {
        let (p, q) = (log_softmax(dense.row(row)), log_softmax(model.row(row)));
        let kl: f64 = p
            .iter()
            .zip(&q)
            .filter(|(p, _)| **p > least)
            .map(|(p, q)| p.exp() * (p - q))
            .sum();
        let top = p.fold(least, |most, &p| most.max(p)).exp();
        let expected = [kl, -p[target as usize], -q[target as usize], top];
        for (found, expected) in numbers[4 * row..4 * row + 4].iter().zip(expected) {
            // sums of 700 numbers in f64, in another order
            let limit = 700.0 * f64::EPSILON * (1.0 + expected.abs());
            assert!((found - expected).abs() <= limit, "{row}: {found}, {expected}");
        }
        let first = |row: ndarray::ArrayView1<'_, f64>| {
            let mut best = 0;
            row.iter()
                .enumerate()
                .for_each(|(id, &logit)| best = if logit > row[best] { id } else { best });
            best
        };
        let expected = first(dense.row(row)) == first(model.row(row));
        assert_eq!(same[row] == 1, expected, "{row}");
    }
    assert_eq!((same[0], same[1]), (1, 0));
}

/// Steps of every rule, for parameters of f64 and f32, with first moments and without.
#[test]
fn parameters_move_as_the_optimizer_says() {
    let mut rng = ChaCha8Rng::seed_from_u64(16);
    // more than one tile of LAMB
    let count = 5000;
    let official = |lamb, debias| StepRule::Official { lamb, debias };
    for (index, (rule, wide, lean)) in [
        (StepRule::Adam, true, false),
        (StepRule::Adam, false, true),
        (official(false, true), false, false),
        (official(true, true), true, false),
        (official(true, false), false, true),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("training-steps-{index}");
        let decay = AdamDecay {
            beta1: if lean { 0.0 } else { 0.9 },
            ..AdamDecay::PAPER
        };
        let optimizer = Optimizer { decay, rule };
        let [values, gradient, first] = [(); 3].map(|()| random(&mut rng, 1, count));
        let second = random(&mut rng, 1, count).mapv(|x| f64::from((x * x) as f32));
        let mut exact = Stepper::resumed(
            optimizer,
            2,
            first.iter().copied().collect(),
            second.iter().copied().collect(),
        );
        let mut expected = values.clone();
        exact.step(0.01, expected.view_mut(), &gradient);
        let (exact_first, exact_second) = exact.moments();

        let kept_first = if lean { Vec::new() } else { kept(wide, &first) };
        let start = [
            kept(wide, &values),
            kept(wide, &gradient),
            kept_first,
            kept(wide, &second),
        ];
        let from = |bytes: &[u8]| if wide { from_f64s(bytes) } else { from_f32s(bytes) };
        let number = if wide { Number::F64 } else { Number::F32 };
        let check = |found: &[u8], expected: &mut dyn Iterator<Item = &f64>, what: &str| {
            let found = from(found);
            within(
                Rule::Squares.limit(number, 8),
                &found,
                expected,
                &format!("{name}: {what}"),
            );
        };
        let found = match step(count, &optimizer, 0.01, 3, Kept { wide, lean }) {
            Step::Adam(plan) => {
                let Some(found) = run_all(&plan, &start, &[0, 1, 2, 3], &name) else {
                    return;
                };
                found
            }
            Step::Lamb {
                moments,
                ratio,
                update,
                squares,
            } => {
                let mut buffers = start.to_vec();
                buffers.push(poison(squares * 8));
                let Some(after) = run_all(&moments, &buffers, &[2, 3, 4], &name) else {
                    return;
                };
                let [first, second, squares] = <[Vec<u8>; 3]>::try_from(after).unwrap();
                let ratio = run(&ratio, &[squares, poison(8)], 1, &name).unwrap();
                let buffers = [
                    start[0].clone(),
                    start[1].clone(),
                    first.clone(),
                    second.clone(),
                    ratio,
                ];
                let mut found = run_all(&update, &buffers, &[0, 1], &name).unwrap();
                found.extend([first, second]);
                found
            }
        };
        check(&found[0], &mut expected.iter(), "values");
        assert!(from(&found[1]).iter().all(|&g| g == 0.0), "{name}");
        if !lean {
            check(&found[2], &mut exact_first.iter(), "first");
        }
        check(&found[3], &mut exact_second.iter(), "second");
    }
    let values = root_of(&random(&mut rng, 1, 300));
    let narrow = run(
        &plan::narrow(300),
        &[f64s(&values), poison(300 * 4)],
        1,
        "training-narrow",
    );
    let expected: Vec<f64> = values.iter().map(|&x| f64::from(x as f32)).collect();
    assert_eq!(from_f32s(&narrow.unwrap()), expected);
}

/// Several buffers after a launch.
fn run_all(plan: &Plan, buffers: &[Vec<u8>], outputs: &[usize], name: &str) -> Option<Vec<Vec<u8>>> {
    outputs
        .iter()
        .map(|&output| run(plan, buffers, output, name))
        .collect()
}

/// Numbers that f32 does not represent exactly.
fn root_of(values: &Array2<f64>) -> Array2<f64> {
    values.mapv(|x| x.abs().sqrt())
}

#[test]
fn rows_are_compared_scanned_rounded_and_rotated() {
    let mut rng = ChaCha8Rng::seed_from_u64(17);
    let (rows, width) = (9, 40);
    let (a, b) = (random(&mut rng, rows, width), random(&mut rng, rows, width));
    let buffers = [f32s(&a), f32s(&b), poison(2 * rows * 8)];
    let plan = plan::row_squares(rows, width, Some(0.5));
    let Some(found) = run(&plan, &buffers, 2, "training-squares") else {
        return;
    };
    let difference = &a - &b;
    let mut expected = (&difference * &difference).sum_axis(Axis(1)).to_vec();
    expected.extend((&b * &b).sum_axis(Axis(1)));
    close(&from_f64s(&found), &expected, 1, "squares");
    let found = run(&plan, &buffers, 0, "training-squares").unwrap();
    close(&from_f32s(&found), &(0.5 * &difference), 2, "gradient");

    let mut broken = a.clone();
    broken[[2, 33]] = f64::NEG_INFINITY;
    broken[[2, 35]] = f64::NAN;
    broken[[4, 0]] = f64::NAN;
    let buffers = [f32s(&broken), poison(rows * 4), poison(rows * 4)];
    let found = from_f32s(&run(&plan::row_scan(rows, width), &buffers, 2, "training-scan").unwrap());
    let mut expected = vec![width as f64; rows];
    (expected[2], expected[4]) = (33.0, 0.0);
    assert_eq!(found, expected);
    let found = from_f32s(&run(&plan::row_scan(rows, width), &buffers, 1, "training-scan").unwrap());
    let largest = |row: usize| broken.row(row).iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    assert_eq!(found, (0..rows).map(largest).collect::<Vec<_>>());

    let found = from_f32s(&run(&plan::round(rows * width), &[f32s(&a)], 0, "training-round").unwrap());
    let expected: Vec<f64> = a.iter().map(|&x| half::bf16::from_f64(x).to_f64()).collect();
    assert_eq!(found, expected);

    let spec = spec(4, 1, 10, None);
    let tokens = 3;
    let rotary = reference::Rotary::new(&spec, tokens);
    let table = |of: fn(f64) -> f64| {
        let theta = spec.rotary.as_ref().unwrap().theta;
        let angle = |(position, i): (usize, usize)| {
            of(f64::from(
                position as f32 * theta.powf(-(2.0 * i as f64) / 10.0) as f32,
            ))
        };
        f32s(&Array2::from_shape_fn((tokens, 5), angle))
    };
    let buffers = [table(f64::cos), table(f64::sin), f32s(&a)];
    let turned = run(
        &plan::rotate([rows, tokens], [4, 10, 10], false),
        &buffers,
        2,
        "training-rotate",
    )
    .unwrap();
    let mut expected = a.clone();
    for mut sequence in expected.axis_chunks_iter_mut(Axis(0), tokens) {
        let mut own = sequence.to_owned();
        rotary.rotate(&spec, &mut own, 0);
        sequence.assign(&own);
    }
    close(&from_f32s(&turned), &expected, 4, "rotated");
    let buffers = [table(f64::cos), table(f64::sin), turned];
    let back = run(
        &plan::rotate([rows, tokens], [4, 10, 10], true),
        &buffers,
        2,
        "training-rotate",
    )
    .unwrap();
    close(&from_f32s(&back), &a, 4, "rotated back");
}

#[test]
fn embeddings_and_biases() {
    let mut rng = ChaCha8Rng::seed_from_u64(18);
    let (vocab, width) = (6, 300);
    let table = random(&mut rng, vocab, width);
    let tokens = [5, 0, 5, 2];
    let buffers = [f32s(&table), words(&tokens), poison(4 * width * 4)];
    let Some(found) = run(&plan::embed(width, 4, 1.0), &buffers, 2, "training-embed") else {
        return;
    };
    let expected: Vec<f64> = tokens
        .iter()
        .flat_map(|&token| table.row(token as usize).to_vec())
        .collect();
    assert_eq!(from_f32s(&found), expected);
    let gradient = random(&mut rng, 4, width);
    let buffers = [
        words(&[0, 2, 5]),
        words(&[0, 1, 2, 4]),
        words(&[1, 3, 0, 2]),
        f32s(&gradient),
        f64s(&table),
    ];
    let found = run(&plan::token_sums(3, width), &buffers, 4, "training-tokens").unwrap();
    let mut expected = table.clone();
    for (row, &token) in tokens.iter().enumerate() {
        let mut to = expected.row_mut(token as usize);
        to += &gradient.row(row);
    }
    close(&from_f64s(&found), &expected, 1, "gradient of an embedding");
    let bias = random(&mut rng, 1, width);
    let plan = plan::add_bias(4, width);
    let found = run(&plan, &[f32s(&bias), f32s(&gradient)], 1, "training-add-bias").unwrap();
    close(&from_f32s(&found), &(&gradient + &bias.row(0)), 2, "bias");
    let parts = random(&mut rng, 3, width);
    let buffers = [f32s(&parts), f64s(bias.row(0))];
    let found = run(&plan::add_parts(width, 3, false), &buffers, 1, "training-parts").unwrap();
    close(
        &from_f64s(&found),
        &(parts.sum_axis(Axis(0)) + bias.row(0)),
        1,
        "parts",
    );
}
