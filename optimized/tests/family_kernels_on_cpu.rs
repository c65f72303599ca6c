//! The kernels of training that a plain Llama does not need, run on the CPU by `kernels/shim/shim.h` and
//! compared with the reference. Capped attention is in `training_kernels_on_cpu.rs`.

#[path = "shim/numbers.rs"]
mod numbers;
mod shim;

use aqlm_optimized::cuda::training::plan::{self, experts};
use aqlm_reference::llama as reference;
use aqlm_vocabulary::llama::LlamaBlock;
use aqlm_vocabulary::{
    Activation, BlockSpec, ExpertNames, Experts, LogitSpec, NormSpec, Rope, RopeScaling, RoutedMlp,
};
use ndarray::{Array1, Array2, Axis};
use numbers::{close, f32s, f64s, from_f32s, from_f64s, poison, random, run, words};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

fn block(heads: usize, head_dim: usize) -> BlockSpec {
    BlockSpec::llama(LlamaBlock {
        hidden_size: 40,
        intermediate_size: 72,
        heads,
        kv_heads: 1,
        head_dim,
        epsilon: 1e-5,
        rotary: Rope {
            theta: 1000.0,
            scaling: RopeScaling::None,
        },
        window: None,
    })
}

#[test]
fn gates_by_gelu() {
    let mut rng = ChaCha8Rng::seed_from_u64(31);
    let (rows, width) = (3, 111);
    let [gate, up, grad] = [(); 3].map(|()| random(&mut rng, rows, width));
    let (count, gelu) = (rows * width, Activation::GeluTanh);
    let buffers = [f32s(&gate), f32s(&up), poison(count * 4)];
    let Some(found) = run(&plan::gate(count, gelu), &buffers, 2, "family-gate") else {
        return;
    };
    let expected = reference::geglu(gate.view(), up.view());
    close(&from_f32s(&found), &expected, 8, "gate");
    let (of_gate, of_up) = reference::geglu_backward(gate.view(), up.view(), grad.view());
    let buffers = [f32s(&gate), f32s(&up), f32s(&grad), poison(count * 4)];
    for (output, expected) in [(2, of_up), (3, of_gate)] {
        let found = run(&plan::gate_back(count, gelu), &buffers, output, "family-gate").unwrap();
        close(&from_f32s(&found), &expected, 16, "gradients of a gate");
    }
}

/// Norms by 1 + w of pieces of rows.
#[test]
fn norms_of_heads_by_one_plus_w() {
    let mut rng = ChaCha8Rng::seed_from_u64(32);
    let (rows, heads, width) = (7, 3, 40);
    let pieces = rows * heads;
    let spec = NormSpec {
        epsilon: 1e-3,
        one_plus: true,
        ..NormSpec::rms(1e-5)
    };
    let [x, grad, before] = [(); 3].map(|()| random(&mut rng, rows, heads * width));
    let weight = random(&mut rng, 1, width);
    let buffers = [f32s(&x), f32s(&weight), poison(x.len() * 4), poison(pieces * 4)];
    let forward = plan::norm(pieces, width, spec);
    let Some(found) = run(&forward, &buffers, 2, "family-norm") else {
        return;
    };
    let expected = reference::norm(spec, x.view(), weight.row(0));
    close(&from_f32s(&found), &expected, width, "norm");
    let roots = run(&forward, &buffers, 3, "family-norm").unwrap();
    let (grad_x, _) = reference::norm_backward(spec, x.view(), weight.row(0), grad.view());
    let buffers = [f32s(&x), f32s(&weight), roots, f32s(&grad), f32s(&before)];
    let found = run(&plan::norm_back(pieces, width, spec), &buffers, 4, "family-norm").unwrap();
    close(&from_f32s(&found), &(grad_x + &before), width, "gradient of x");
}

/// A part of each head turns, the rest stays.
#[test]
fn parts_of_heads_are_rotated() {
    let mut rng = ChaCha8Rng::seed_from_u64(33);
    let (rows, tokens, heads, width, rotated) = (9, 3, 4, 10, 6);
    let mut spec = block(heads, width).attention;
    spec.rotated = rotated;
    let a = random(&mut rng, rows, heads * width);
    let rotary = reference::Rotary::new(&spec, tokens);
    let table = |of: fn(f64) -> f64| {
        let angle = |(position, i): (usize, usize)| {
            let radians = 1000.0_f64.powf(-(2.0 * i as f64) / rotated as f64) as f32;
            of(f64::from(position as f32 * radians))
        };
        f32s(&Array2::from_shape_fn((tokens, rotated / 2), angle))
    };
    let turn = |x, back| {
        let plan = plan::rotate([rows, tokens], [heads, width, rotated], back);
        run(&plan, &[table(f64::cos), table(f64::sin), x], 2, "family-rotate")
    };
    let Some(turned) = turn(f32s(&a), false) else {
        return;
    };
    let mut expected = a.clone();
    for mut sequence in expected.axis_chunks_iter_mut(Axis(0), tokens) {
        let mut own = sequence.to_owned();
        rotary.rotate(&spec, &mut own, 0);
        sequence.assign(&own);
    }
    close(&from_f32s(&turned), &expected, 4, "rotated");
    close(&from_f32s(&turn(turned, true).unwrap()), &a, 4, "rotated back");
}

#[test]
fn logits_are_scaled_and_capped() {
    let mut rng = ChaCha8Rng::seed_from_u64(34);
    let (products, grad) = (random(&mut rng, 5, 90), random(&mut rng, 5, 90));
    let count = products.len();
    for (number, cap) in [None, Some(1.5)].into_iter().enumerate() {
        let spec = LogitSpec { scale: 0.75, cap };
        let name = format!("family-logits-{number}");
        let Some(found) = run(&plan::finish_logits(count, spec), &[f32s(&products)], 0, &name) else {
            return;
        };
        let capped = |x: f64| cap.map_or(x, |cap| reference::soft_cap(x, cap));
        let logits = products.mapv(|x| capped(spec.scale * x));
        close(&from_f32s(&found), &logits, 8, "logits");
        let slope = |y: f64| spec.scale * cap.map_or(1.0, |cap| reference::soft_cap_slope(y, cap));
        let back = run(&plan::finish_back(count, spec), &[found, f32s(&grad)], 1, &name).unwrap();
        // near the cap a slope is a difference of numbers near 1, small beside the others
        close(&from_f32s(&back), &(&grad * &logits.mapv(slope)), 16, "gradients");
    }
}

#[test]
fn multiples_are_added_and_embeddings_scaled() {
    let mut rng = ChaCha8Rng::seed_from_u64(35);
    let (from, to) = (random(&mut rng, 3, 100), random(&mut rng, 3, 100));
    let expected = &to + 0.7 * &from;
    let plan = plan::add_scaled(from.len(), 0.7, false);
    let Some(found) = run(&plan, &[f32s(&from), f32s(&to)], 1, "family-scaled") else {
        return;
    };
    close(&from_f32s(&found), &expected, 3, "in f32");
    let plan = plan::add_scaled(from.len(), 0.7, true);
    let found = run(&plan, &[f64s(&from), f64s(&to)], 1, "family-scaled").unwrap();
    let off = from_f64s(&found)
        .iter()
        .zip(&expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max);
    assert!(off <= 8.0 * f64::EPSILON, "{off}");
    let buffers = [f32s(&from), words(&[2, 0, 2]), poison(from.len() * 4)];
    let found = run(&plan::embed(100, 3, 1.5), &buffers, 2, "family-embed").unwrap();
    let expected = 1.5 * &from.select(Axis(0), &[2, 0, 2]);
    close(&from_f32s(&found), &expected, 1, "embeddings");
}

fn routed(count: usize, used: usize, normalized: bool) -> RoutedMlp {
    let block = block(1, 8).with_experts(&Experts {
        count,
        used,
        normalized,
        intermediate_size: 8,
        shared: None,
        names: ExpertNames::Mixtral,
    });
    block.mlp.routed().cloned().expect("experts")
}

/// Where each slot's row stands among those of experts, and the slot of each place.
fn places(chosen: &[u32], experts: usize) -> (Vec<u32>, Vec<u32>) {
    let slots: Vec<u32> = (0..experts as u32)
        .flat_map(|expert| (0..chosen.len()).filter(move |&slot| chosen[slot] == expert))
        .map(|slot| slot as u32)
        .collect();
    let mut places = vec![0; slots.len()];
    for (place, &slot) in slots.iter().enumerate() {
        places[slot as usize] = place as u32;
    }
    (places, slots)
}

/// The choice of experts, equal scores included, its gradient, and sums over the experts of a row.
#[test]
fn rows_pass_their_experts() {
    let mut rng = ChaCha8Rng::seed_from_u64(36);
    let (rows, count) = (300, 7);
    for (used, normalized) in [(2, true), (3, false), (7, true)] {
        let mlp = routed(count, used, normalized);
        let name = format!("family-route-{used}");
        let mut scores = random(&mut rng, rows, count);
        scores.row_mut(0).fill(0.25);
        scores[[1, 5]] = scores[[1, 2]];
        let exact = reference::route(scores.view(), used, normalized);
        let slots = rows * used;
        let buffers = [f32s(&scores), poison(slots * 4), poison(slots * 4)];
        let plan = experts::route(rows, &mlp);
        let Some(chosen) = run(&plan, &buffers, 1, &name) else {
            return;
        };
        let list: Vec<u32> = chosen
            .as_chunks::<4>()
            .0
            .iter()
            .map(|&four| u32::from_le_bytes(four))
            .collect();
        let (places, order) = places(&list, count);
        let tokens: Vec<usize> = order.iter().map(|&slot| slot as usize / used).collect();
        assert_eq!(tokens, exact.tokens.concat(), "{used}");
        let probabilities = run(&plan, &buffers, 0, &name).unwrap();
        close(
            &from_f32s(&probabilities),
            &exact.probabilities,
            count,
            "probabilities",
        );
        let weights = run(&plan, &buffers, 2, &name).unwrap();
        let by_place: Vec<f64> = exact.weights.iter().flatten().copied().collect();
        let found = from_f32s(&weights);
        let found: Vec<f64> = order.iter().map(|&slot| found[slot as usize]).collect();
        close(&found, &by_place, count, "factors");

        let grad = random(&mut rng, 1, slots);
        let mut rest = grad.row(0).to_vec().into_iter();
        let of_experts: Vec<Array1<f64>> = exact
            .tokens
            .iter()
            .map(|tokens| rest.by_ref().take(tokens.len()).collect())
            .collect();
        let buffers = [
            probabilities,
            chosen,
            weights.clone(),
            words(&places),
            f32s(&grad),
            poison(rows * count * 4),
        ];
        let found = run(&experts::route_back(rows, &mlp), &buffers, 5, &name).unwrap();
        close(
            &from_f32s(&found),
            &exact.backward(&of_experts),
            4 * count,
            "gradient of scores",
        );

        let width = 5;
        let parts = random(&mut rng, slots, width);
        for weighted in [false, true] {
            let mut expected = Array2::zeros((rows, width));
            for ((&row, part), weight) in tokens.iter().zip(parts.outer_iter()).zip(&by_place) {
                let mut to = expected.row_mut(row);
                to.scaled_add(if weighted { *weight } else { 1.0 }, &part);
            }
            let buffers = [
                f32s(&parts),
                words(&places),
                weights.clone(),
                poison(rows * width * 4),
            ];
            let plan = experts::gather_sums(rows, width, used, weighted);
            let found = run(&plan, &buffers, 3, &name).unwrap();
            close(&from_f32s(&found), &expected, count + used, "sums");
        }
        let scaled = &parts * &Array2::from_shape_fn((slots, 1), |(place, _)| by_place[place]);
        let buffers = [weights, words(&order), f32s(&parts)];
        let plan = experts::scale_rows(slots, width, true);
        let found = run(&plan, &buffers, 2, &name).unwrap();
        close(&from_f32s(&found), &scaled, count, "scaled");
    }
}

/// NaN has a place in the order, so that every chosen index is an expert's.
#[test]
fn experts_are_chosen_whatever_the_scores_are() {
    let scores = [f32::NAN, f32::NEG_INFINITY, f32::INFINITY, f32::NAN, -0.0, 0.0];
    let bytes: Vec<u8> = scores.iter().flat_map(|score| score.to_le_bytes()).collect();
    let buffers = [bytes, poison(3 * 4), poison(3 * 4)];
    let plan = experts::route(1, &routed(6, 3, true));
    let Some(chosen) = run(&plan, &buffers, 1, "family-nan") else {
        return;
    };
    assert_eq!(chosen, words(&[0, 2, 3]));
}

#[test]
fn the_factor_of_a_shared_expert() {
    let mut rng = ChaCha8Rng::seed_from_u64(37);
    let (rows, width) = (30, 9);
    let (x, grad) = (random(&mut rng, rows, 1), random(&mut rng, rows, 1));
    let exact = x.mapv(|x| 1.0 / (1.0 + (-x).exp()));
    let plan = experts::sigmoid(rows, false);
    let Some(factor) = run(&plan, &[f32s(&x), f32s(&x)], 1, "family-sigmoid") else {
        return;
    };
    close(&from_f32s(&factor), &exact, 4, "sigmoid");
    let plan = experts::sigmoid(rows, true);
    let back = run(&plan, &[factor.clone(), f32s(&grad)], 1, "family-sigmoid").unwrap();
    let expected = &grad * &exact.mapv(|y| y * (1.0 - y));
    close(&from_f32s(&back), &expected, 8, "gradient of a sigmoid");
    let values = random(&mut rng, rows, width);
    let plan = experts::scale_rows(rows, width, false);
    let buffers = [factor.clone(), factor, f32s(&values)];
    let found = run(&plan, &buffers, 2, "family-scale").unwrap();
    close(&from_f32s(&found), &(&values * &exact), 5, "scaled rows");
}
