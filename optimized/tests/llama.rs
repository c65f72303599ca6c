//! The f32 Llama block, its gradients, fine-tuning, head and cache against the reference in f64.

use aqlm_check::assertions::{assert_close, limit, with_threads};
use aqlm_check::cases::{Case, LlamaData, THREE_BLOCKS, llama};
use aqlm_optimized::cpu::llama::{
    Block, BlockGradients, Head, KvCacheLayer, Rotary, Wanted, block_backward, block_decode_step,
    block_forward, block_forward_traced, embed, squares_of_sequences, token_losses,
};
use aqlm_reference::llama as reference;
use aqlm_vocabulary::{AqlmError, Input, LinearWeight, llama::QUERY};
use ndarray::{Array2, Array3, Axis};

const TOKENS: usize = 70;
const SEQUENCES: usize = 3;

/// The first block and its rotary tables.
fn block(case: &LlamaData) -> (Block, Rotary) {
    let block = Block::from_weights(&case.config.blocks[0], &case.blocks[0]).unwrap();
    (block, Rotary::of_model(&case.config, TOKENS))
}

fn sequence(x: &Array3<f32>, i: usize) -> Array2<f64> {
    x.index_axis(Axis(0), i).mapv(f64::from)
}

#[test]
fn blocks_and_all_their_gradients_are_the_references() {
    for name in THREE_BLOCKS {
        let (problem, case) = llama(name).unwrap();
        let (x, grad_y) = (&case.x, &case.grad_y);
        let (block, rotary) = block(&case);
        let spec = block.spec();
        let (y, trace) = block_forward_traced(&block, &rotary, x.view());
        let wanted = Wanted::all(spec);
        let mut ours = BlockGradients::zeros(&block, &wanted);
        let grad_x = block_backward(&block, &rotary, &trace, grad_y.view(), &wanted, &mut ours);

        let exact = case.block(0);
        let exact_rotary = reference::Rotary::of_model(&case.config, TOKENS);
        let mut sum: Option<reference::BlockGradients> = None;
        let (mut exact_y, mut exact_x) = (Vec::new(), Vec::new());
        let mut inputs: Vec<Vec<f64>> = vec![Vec::new(); 7];
        for i in 0..SEQUENCES {
            let (y, trace) = reference::block_forward_traced(&exact, &exact_rotary, sequence(x, i).view());
            let gradients =
                reference::block_backward(&exact, &exact_rotary, &trace, sequence(grad_y, i).view());
            exact_y.extend(y);
            exact_x.extend(gradients.x.clone());
            for kind in spec.layers() {
                inputs[kind.index()].extend(trace.input(spec.linear(kind).reads));
            }
            sum = Some(match sum {
                None => gradients,
                Some(mut sum) => {
                    for kind in spec.layers() {
                        sum.layers[kind.index()] += &gradients.layers[kind.index()];
                        if let (Some(sum), Some(bias)) =
                            (&mut sum.biases[kind.index()], &gradients.biases[kind.index()])
                        {
                            *sum += bias;
                        }
                    }
                    for (sum, norm) in sum.norms.iter_mut().zip(&gradients.norms) {
                        *sum += norm;
                    }
                    sum
                }
            });
        }
        let exact = sum.unwrap();

        let forward = limit(problem.terms());
        assert_close(&format!("{name}: y"), y, &exact_y, forward);
        for kind in spec.layers() {
            let what = format!("{name}: input of {kind:?}");
            assert_close(
                &what,
                trace.input(spec.linear(kind).reads).iter().copied(),
                &inputs[kind.index()],
                forward,
            );
        }
        // the same sums backward, and then sums over all rows
        let backward = limit(2 * problem.terms() + SEQUENCES * TOKENS);
        assert_close(&format!("{name}: grad x"), grad_x.unwrap(), &exact_x, backward);
        for kind in spec.layers() {
            let what = format!("{name}: grad {kind:?}");
            let weight = ours.weights[kind.index()].as_ref().unwrap();
            assert_close(
                &what,
                weight.iter().copied(),
                &exact.layers[kind.index()],
                backward,
            );
            let (bias, exact) = (&ours.biases[kind.index()], &exact.biases[kind.index()]);
            assert_eq!(bias.is_some(), exact.is_some(), "{what} bias");
            if let (Some(bias), Some(exact)) = (bias, exact) {
                assert_close(&format!("{what} bias"), bias.iter().copied(), exact, backward);
            }
        }
        for ((norm, ours), exact) in spec.norms.iter().zip(&ours.norms).zip(&exact.norms) {
            assert_close(
                &format!("{name}: grad {}", norm.name),
                ours.iter().copied(),
                exact,
                backward,
            );
        }
    }
}

#[test]
fn a_block_does_not_depend_on_threads_or_on_other_sequences() {
    let (_, case) = llama(THREE_BLOCKS[1]).unwrap();
    let x = &case.x;
    let run = |threads| {
        with_threads(threads, || {
            let (block, rotary) = block(&case);
            let wanted = Wanted::all(block.spec());
            let (y, trace) = block_forward_traced(&block, &rotary, x.view());
            let mut sum = BlockGradients::zeros(&block, &wanted);
            let grad_x = block_backward(&block, &rotary, &trace, y.view(), &wanted, &mut sum);
            (y, sum, grad_x)
        })
    };
    let alone = run(1);
    assert_eq!(alone, run(2));
    assert_eq!(alone, run(5));
    let (block, rotary) = block(&case);
    assert_eq!(block_forward(&block, &rotary, x.view()), alone.0);

    // 350 rows: more than one task of any row-wise kernel
    let many = ndarray::concatenate![Axis(0), *x, x.slice(ndarray::s![..2, .., ..])];
    let together = block_forward(&block, &rotary, many.view());
    for (x, y) in many.outer_iter().zip(together.outer_iter()) {
        let one = block_forward(&block, &rotary, x.insert_axis(Axis(0)));
        assert_eq!(one.index_axis(Axis(0), 0), y);
    }
}

#[test]
fn a_layer_is_replaced_by_one_of_its_shape_only() {
    let (_, case) = llama(THREE_BLOCKS[0]).unwrap();
    let (mut block, _) = block(&case);
    let before = block.to_weights();
    let matrix = |shape: &str| {
        let case: Case = format!("decode-1x3g4-{shape}-b1-outliers-s12").parse().unwrap();
        case.product().unwrap().data(case.seed).matrix
    };
    assert_eq!(block.spec().shape(QUERY), (48, 40));
    assert!(matches!(
        block.set_layer(QUERY, matrix("48x36")),
        Err(AqlmError::Shape { .. })
    ));
    assert_eq!(block.to_weights(), before);
    let right = matrix("48x40");
    block.set_layer(QUERY, right.clone()).unwrap();
    assert_eq!(block.quantized(QUERY).unwrap().matrix(), &right);
}

#[test]
fn cached_decoding_is_the_forward_pass() {
    for name in THREE_BLOCKS {
        let (problem, case) = llama(name).unwrap();
        let x = &case.x;
        let (block, rotary) = block(&case);
        let y = block_forward(&block, &rotary, x.view());
        let mut cache = KvCacheLayer::new();
        let mut rows = Vec::new();
        for t in 0..TOKENS {
            let row = x.slice(ndarray::s![0, t, ..]);
            rows.extend(block_decode_step(&block, &rotary, &mut cache, row, t).unwrap());
        }
        let expected = y.index_axis(Axis(0), 0).mapv(f64::from);
        // two f32 computations, each within the limit around the exact one
        assert_close(name, rows, &expected, 4.0 * limit(problem.terms()));
        let row = x.slice(ndarray::s![0, 0, ..]);
        let again = block_decode_step(&block, &rotary, &mut cache, row, 3);
        assert!(matches!(again, Err(AqlmError::Argument { .. })), "{name}");
    }
}

#[test]
fn the_head_and_its_losses_are_the_references() {
    let LlamaData {
        config,
        norm,
        lm_head,
        ..
    } = llama(THREE_BLOCKS[0]).unwrap().1;
    let tokens: Vec<Vec<u32>> = (0..2u32)
        .map(|i| (0..9).map(|t| (t * 7 + i) % 50).collect())
        .collect();
    let tokens: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
    let hidden = embed(lm_head.view(), &tokens, 1.0).unwrap();
    let head = Head::new(&config, &norm, &lm_head).unwrap();
    let losses = head.token_losses(hidden.view(), &tokens).unwrap();
    let exact_norm = norm.mapv(f64::from);
    for i in 0..2 {
        let exact_hidden = reference::embed(lm_head.view(), tokens[i], 1.0).unwrap();
        let logits = reference::logits(
            &config,
            &exact_norm,
            lm_head.mapv(f64::from).view(),
            exact_hidden.view(),
        );
        let x = hidden.index_axis(Axis(0), i);
        let ours = head.logits(x);
        assert_close("logits", ours.iter().copied(), &logits, limit(2 * 40));
        let row = head.logits_of_row(x.row(3));
        assert_close("logits of a row", row, logits.row(3), limit(2 * 40));
        let exact = reference::token_losses(logits.slice(ndarray::s![..8, ..]), &tokens[i][1..]).unwrap();
        assert_close("losses", losses[i].to_vec(), &exact, limit(2 * 40));
        let predicting = ours.slice(ndarray::s![..8, ..]);
        let by_logits = token_losses(predicting, &tokens[i][1..]).unwrap();
        assert_close("losses", by_logits, &exact, limit(2 * 40));
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
        embed(lm_head.view(), &beyond, 1.0),
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
fn squares_are_summed_over_each_sequence() {
    let b = ndarray::array![[[1.0f32, -2.0], [3.0, 0.5]], [[0.0, 1.0], [-1.0, 4.0]]];
    let mut a = b.clone();
    a[[0, 0, 1]] = 1.0;
    a[[1, 1, 0]] = -2.0;
    // 3^2 and 1 + 4 + 9 + 0.25; 1^2 and 0 + 1 + 1 + 16
    let expected = [(9.0, 14.25), (1.0, 18.0)];
    assert_eq!(squares_of_sequences(&a.view(), &b.view()).unwrap(), expected);
    let short = a.slice(ndarray::s![.., ..1, ..]);
    assert!(matches!(
        squares_of_sequences(&short, &b.view()),
        Err(AqlmError::Shape { .. })
    ));
}

/// The weights of experts that the router does not choose may be anything.
#[test]
fn only_the_chosen_experts_are_touched() {
    let id = "block_forward-40x72-k2-q2-d12-n1-t5-w0-nobias-plain-mixtral-2x3g4-s1";
    let (_, case) = llama(id).unwrap();
    let spec = &case.config.blocks[0];
    let mlp = spec.mlp.routed().unwrap();
    let exact = case.block(0);
    let exact_rotary = reference::Rotary::of_model(&case.config, TOKENS);
    let first = sequence(&case.x, 0).slice(ndarray::s![..1, ..]).to_owned();
    let (_, trace) = reference::block_forward_traced(&exact, &exact_rotary, first.view());
    let router = exact.weight(mlp.router).view();
    let scores = reference::linear(trace.input(Input::Mlp), router, None);
    let routing = reference::route(scores.view(), mlp.used, mlp.normalized);

    let mut without = case.clone();
    let mut idle = 0;
    for (expert, _) in mlp
        .experts
        .iter()
        .zip(&routing.tokens)
        .filter(|(_, tokens)| tokens.is_empty())
    {
        for layer in [expert.gate, expert.up, expert.down] {
            let nothing = Array2::from_elem(spec.shape(layer), f32::NAN);
            without.blocks[0].layer_mut(layer).weight = LinearWeight::Dense(nothing);
        }
        idle += 1;
    }
    assert_eq!(idle, mlp.experts.len() - mlp.used);
    let x = case.x.slice(ndarray::s![.., ..1, ..]);
    let both = [&case, &without].map(|case| {
        let (block, rotary) = block(case);
        let row = x.slice(ndarray::s![0, 0, ..]);
        let step = block_decode_step(&block, &rotary, &mut KvCacheLayer::new(), row, 0).unwrap();
        (step, block_forward(&block, &rotary, x))
    });
    assert_eq!(both[0], both[1]);
    assert!(both[0].0.iter().chain(&both[0].1).all(|y| y.is_finite()));
}

/// Of experts with the same score, both choose the first ones.
#[test]
fn equal_scores_choose_the_first_experts() {
    let id = "block_forward-40x72-k2-q2-d12-n1-t5-w0-nobias-plain-mixtral-2x3g4-s2";
    let (problem, mut case) = llama(id).unwrap();
    let spec = &case.config.blocks[0];
    let mlp = spec.mlp.routed().unwrap();
    let zeros = Array2::zeros(spec.shape(mlp.router));
    case.blocks[0].layer_mut(mlp.router).weight = LinearWeight::Dense(zeros);
    let (block, rotary) = block(&case);
    let (y, trace) = block_forward_traced(&block, &rotary, case.x.view());
    for expert in 0..mlp.experts.len() {
        let rows = trace.input(Input::Expert(expert as u16)).nrows();
        assert_eq!(rows, if expert < mlp.used { 5 } else { 0 });
    }
    let exact_rotary = reference::Rotary::of_model(&case.config, TOKENS);
    let exact = reference::block_forward(&case.block(0), &exact_rotary, sequence(&case.x, 0).view());
    assert_close("y", y.iter().copied(), &exact, limit(problem.terms()));
}
