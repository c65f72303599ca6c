//! The f32 Llama block, its gradients, fine-tuning, head and cache against the reference in f64.

mod support;

use aqlm_optimized::cpu::llama::{
    Block, BlockGradients, Head, KvCacheLayer, Rotary, Wanted, block_backward, block_decode_step,
    block_forward, block_forward_traced, embed, mean_squares, token_losses,
};
use aqlm_reference::llama as reference;
use aqlm_vocabulary::{
    AqlmError, BlockSpec, BlockWeights, LinearWeight, RopeScaling,
    llama::{QUERY, UP},
};
use ndarray::{Array2, Array3, Axis};
use support::{
    assert_close, block_weights, config, limit, normal, quantized, random, widened, with_outliers,
    with_threads,
};

/// Longer than one span of queries.
const TOKENS: usize = 70;
const SEQUENCES: usize = 3;

/// Total length of the sums behind one output: both norms, the products of attention and MLP, scores and
/// softmax.
fn terms(spec: &BlockSpec) -> usize {
    4 * spec.hidden_size()
        + spec.intermediate_size()
        + spec.attention.query_width()
        + spec.attention.head_dim
        + 2 * TOKENS
}

struct Case {
    name: String,
    config: BlockSpec,
    weights: BlockWeights,
    x: Array3<f32>,
}

fn cases() -> Vec<Case> {
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 2.0,
        high_freq_factor: 5.0,
        original_max_position_embeddings: 64,
    };
    let dynamic = RopeScaling::Dynamic {
        factor: 3.0,
        max_position_embeddings: TOKENS / 2,
    };
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        original_max_position_embeddings: 256,
        beta_fast: 16.0,
        beta_slow: 1.0,
        truncate: true,
        attention_factor: 1.14,
    };
    let variants = [
        (4, 4, None, false, RopeScaling::None),
        (4, 2, Some(9), true, RopeScaling::Linear { factor: 4.0 }),
        (6, 1, Some(TOKENS + 5), false, llama3),
        (4, 2, None, false, dynamic),
        (2, 2, None, false, yarn),
    ];
    variants
        .into_iter()
        .enumerate()
        .map(|(i, (heads, kv_heads, window, bias, scaling))| {
            let mut rng = random(i as u64);
            let name = format!("{heads} heads, {kv_heads} kv heads, window {window:?}, {scaling:?}");
            let config = config(heads, kv_heads, window, scaling);
            let mut weights = block_weights(&mut rng, &config, bias);
            let (out, inputs) = config.shape(UP);
            weights.layer_mut(UP).weight =
                LinearWeight::Quantized(quantized(&mut rng, "2x3g4o2", out, inputs));
            let x = with_outliers(&mut rng, (SEQUENCES, TOKENS, config.hidden_size()));
            Case {
                name,
                config,
                weights,
                x,
            }
        })
        .collect()
}

fn sequence(x: &Array3<f32>, i: usize) -> Array2<f64> {
    x.index_axis(Axis(0), i).mapv(f64::from)
}

#[test]
fn blocks_and_all_their_gradients_are_the_references() {
    for Case {
        name,
        config,
        weights,
        x,
    } in cases()
    {
        let block = Block::from_weights(&config, &weights).unwrap();
        let rotary = Rotary::new(&config.attention, TOKENS);
        let (y, trace) = block_forward_traced(&block, &rotary, x.view());
        let grad_y = normal(&mut random(99), x.dim());
        let mut ours = BlockGradients::zeros(&block, &Wanted::all(&config));
        let grad_x = block_backward(
            &block,
            &rotary,
            &trace,
            grad_y.view(),
            &Wanted::all(&config),
            &mut ours,
        );

        let exact = reference::Block::from_weights(&config, &weights).unwrap();
        let exact_rotary = reference::Rotary::new(&config.attention, TOKENS);
        let mut sum: Option<reference::BlockGradients> = None;
        let (mut exact_y, mut exact_x) = (Vec::new(), Vec::new());
        let mut inputs: Vec<Vec<f64>> = vec![Vec::new(); 7];
        for i in 0..SEQUENCES {
            let (y, trace) = reference::block_forward_traced(&exact, &exact_rotary, sequence(&x, i).view());
            let gradients =
                reference::block_backward(&exact, &exact_rotary, &trace, sequence(&grad_y, i).view());
            exact_y.extend(y);
            exact_x.extend(gradients.x.clone());
            for kind in config.layers() {
                inputs[kind.index()].extend(trace.input(config.linear(kind).reads));
            }
            sum = Some(match sum {
                None => gradients,
                Some(mut sum) => {
                    for kind in config.layers() {
                        sum.layers[kind.index()] += &gradients.layers[kind.index()];
                        if let (Some(sum), Some(bias)) =
                            (&mut sum.biases[kind.index()], &gradients.biases[kind.index()])
                        {
                            *sum += bias;
                        }
                    }
                    sum.input_layernorm += &gradients.input_layernorm;
                    sum.post_attention_layernorm += &gradients.post_attention_layernorm;
                    sum
                }
            });
        }
        let exact = sum.unwrap();

        let forward = limit(terms(&config));
        assert_close(&format!("{name}: y"), widened(&y), &exact_y, forward);
        for kind in config.layers() {
            let what = format!("{name}: input of {kind:?}");
            assert_close(
                &what,
                widened(trace.input(config.linear(kind).reads)),
                &inputs[kind.index()],
                forward,
            );
        }
        // the same sums backward, and then sums over all rows
        let backward = limit(2 * terms(&config) + SEQUENCES * TOKENS);
        assert_close(
            &format!("{name}: grad x"),
            widened(&grad_x.unwrap()),
            &exact_x,
            backward,
        );
        for kind in config.layers() {
            let what = format!("{name}: grad {kind:?}");
            let weight = ours.weights[kind.index()].as_ref().unwrap();
            assert_close(&what, widened(weight), &exact.layers[kind.index()], backward);
            let (bias, exact) = (&ours.biases[kind.index()], &exact.biases[kind.index()]);
            assert_eq!(bias.is_some(), exact.is_some(), "{what} bias");
            if let (Some(bias), Some(exact)) = (bias, exact) {
                assert_close(&format!("{what} bias"), bias.iter().copied(), exact, backward);
            }
        }
        let norms = [
            ("norm 1", &ours.input_layernorm, &exact.input_layernorm),
            (
                "norm 2",
                &ours.post_attention_layernorm,
                &exact.post_attention_layernorm,
            ),
        ];
        for (what, ours, exact) in norms {
            assert_close(
                &format!("{name}: grad {what}"),
                ours.iter().copied(),
                exact,
                backward,
            );
        }
    }
}

#[test]
fn a_block_does_not_depend_on_threads_or_on_other_sequences() {
    let Case {
        config, weights, x, ..
    } = cases().swap_remove(1);
    let rotary = Rotary::new(&config.attention, TOKENS);
    let run = |threads| {
        with_threads(threads, || {
            let block = Block::from_weights(&config, &weights).unwrap();
            let (y, trace) = block_forward_traced(&block, &rotary, x.view());
            let mut sum = BlockGradients::zeros(&block, &Wanted::all(&config));
            let grad_x = block_backward(&block, &rotary, &trace, y.view(), &Wanted::all(&config), &mut sum);
            (y, sum, grad_x)
        })
    };
    let alone = run(1);
    assert_eq!(alone, run(2));
    assert_eq!(alone, run(5));
    let block = Block::from_weights(&config, &weights).unwrap();
    assert_eq!(block_forward(&block, &rotary, x.view()), alone.0);

    // 350 rows: more than one task of any row-wise kernel
    let many = ndarray::concatenate![Axis(0), x, x.slice(ndarray::s![..2, .., ..])];
    let together = block_forward(&block, &rotary, many.view());
    for (x, y) in many.outer_iter().zip(together.outer_iter()) {
        let one = block_forward(&block, &rotary, x.insert_axis(Axis(0)));
        assert_eq!(one.index_axis(Axis(0), 0), y);
    }
}

#[test]
fn a_layer_is_replaced_by_one_of_its_shape_only() {
    let case = cases().swap_remove(0);
    let mut block = Block::from_weights(&case.config, &case.weights).unwrap();
    let before = block.to_weights();
    let (out, inputs) = case.config.shape(QUERY);
    let mut rng = random(12);
    let wrong = quantized(&mut rng, "1x3g4", out, inputs - 4);
    assert!(matches!(
        block.set_layer(QUERY, wrong),
        Err(AqlmError::Shape { .. })
    ));
    assert_eq!(block.to_weights(), before);
    let right = quantized(&mut rng, "1x3g4", out, inputs);
    block.set_layer(QUERY, right.clone()).unwrap();
    assert_eq!(block.quantized(QUERY).unwrap().matrix(), &right);
}

#[test]
fn cached_decoding_is_the_forward_pass() {
    for Case {
        name,
        config,
        weights,
        x,
    } in cases()
    {
        let block = Block::from_weights(&config, &weights).unwrap();
        let rotary = Rotary::new(&config.attention, TOKENS);
        let y = block_forward(&block, &rotary, x.view());
        let mut cache = KvCacheLayer::new();
        let mut rows = Vec::new();
        for t in 0..TOKENS {
            let row = x.slice(ndarray::s![0, t, ..]);
            rows.extend(block_decode_step(&block, &rotary, &mut cache, row, t).unwrap());
        }
        let expected: Vec<f64> = widened(y.index_axis(Axis(0), 0)).collect();
        // two f32 computations, each within the limit around the exact one
        assert_close(&name, widened(&rows), &expected, 4.0 * limit(terms(&config)));
        let row = x.slice(ndarray::s![0, 0, ..]);
        let again = block_decode_step(&block, &rotary, &mut cache, row, 3);
        assert!(matches!(again, Err(AqlmError::Argument { .. })), "{name}");
    }
}

#[test]
fn the_head_and_its_losses_are_the_references() {
    let config = config(4, 4, None, RopeScaling::None);
    let mut rng = random(4);
    let (norm, lm_head) = (normal(&mut rng, 40), normal(&mut rng, (50, 40)));
    let tokens: Vec<Vec<u32>> = (0..2u32)
        .map(|i| (0..9).map(|t| (t * 7 + i) % 50).collect())
        .collect();
    let tokens: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
    let hidden = embed(lm_head.view(), &tokens).unwrap();
    let head = Head::new(config.norms.norm, &norm, &lm_head).unwrap();
    let losses = head.token_losses(hidden.view(), &tokens).unwrap();
    let exact_norm = norm.mapv(f64::from);
    for i in 0..2 {
        let exact_hidden = reference::embed(lm_head.view(), tokens[i]).unwrap();
        let logits = reference::logits(
            config.norms.norm,
            &exact_norm,
            lm_head.mapv(f64::from).view(),
            exact_hidden.view(),
        );
        let x = hidden.index_axis(Axis(0), i);
        let ours = head.logits(x);
        assert_close("logits", widened(&ours), &logits, limit(2 * 40));
        let row = head.logits_of_row(x.row(3));
        assert_close("logits of a row", widened(&row), logits.row(3), limit(2 * 40));
        let exact = reference::token_losses(logits.slice(ndarray::s![..8, ..]), &tokens[i][1..]).unwrap();
        assert_close("losses", losses[i].iter().copied(), &exact, limit(2 * 40));
        let predicting = ours.slice(ndarray::s![..8, ..]);
        let by_logits = token_losses(predicting, &tokens[i][1..]).unwrap();
        assert_close("losses", by_logits.iter().copied(), &exact, limit(2 * 40));
        assert!(matches!(
            token_losses(predicting, &tokens[i][2..]),
            Err(AqlmError::Shape { .. })
        ));
        assert!(matches!(
            token_losses(predicting, &[50; 8]),
            Err(AqlmError::TokenOutOfRange { token: 50, .. })
        ));
    }
    let beyond: [&[u32]; 2] = [&[0, 50], &[0, 1]];
    assert!(matches!(
        embed(lm_head.view(), &beyond),
        Err(AqlmError::TokenOutOfRange { token: 50, .. })
    ));
    let short = hidden.slice(ndarray::s![.., ..2, ..]);
    assert!(head.token_losses(short, &beyond).is_err());
    for wrong in [&tokens[..1], &[&tokens[0][..8], tokens[1]], &[&[], &[]]] {
        assert!(matches!(
            head.token_losses(hidden.view(), wrong),
            Err(AqlmError::Shape { .. })
        ));
    }
    let nothing = hidden.slice(ndarray::s![.., ..0, ..]);
    assert!(head.token_losses(nothing, &[&[], &[]]).is_err());
}

#[test]
fn mean_squares_are_means_of_squares() {
    let b = ndarray::array![[[1.0f32, -2.0], [3.0, 0.5]], [[0.0, 1.0], [-1.0, 4.0]]];
    let mut a = b.clone();
    a[[0, 0, 1]] = 1.0;
    a[[1, 1, 0]] = -2.0;
    // (3^2 + 1^2) / 8 and (1 + 4 + 9 + 0.25 + 0 + 1 + 1 + 16) / 8
    assert_eq!(mean_squares(&a.view(), &b.view()).unwrap(), (1.25, 4.03125));
    let short = a.slice(ndarray::s![.., ..1, ..]);
    assert!(matches!(
        mean_squares(&short, &b.view()),
        Err(AqlmError::Shape { .. })
    ));
}
