//! The block and the quantizer on every SIMD level of this machine. A process of its own, because the level is forced for
//! the whole process.

mod support;

use aqlm_optimized::cpu::SimdLevel;
use aqlm_optimized::cpu::llama::{
    Block, BlockGradients, Rotary, Wanted, block_backward, block_forward_traced,
};
use aqlm_optimized::cpu::quantizer::layer_quantize;
use aqlm_reference as reference;
use aqlm_reference::vocabulary::{Initialization, LayerKind, LayerSettings, RopeScaling, StreamKey, Update};
use ndarray::{Array2, Axis};
use support::{assert_close, block_weights, config, limit, normal, random, widened, with_outliers};

const TOKENS: usize = 37;

#[test]
fn every_level_agrees_with_the_reference() {
    let config = config(4, 2, None, RopeScaling::None);
    let mut rng = random(1);
    let weights = block_weights(&mut rng, &config, true);
    let x = with_outliers(&mut rng, (1, TOKENS, config.hidden_size));
    let grad_y = normal(&mut rng, x.dim());
    let exact_block = reference::llama::Block::from_weights(&weights);
    let exact_rotary = reference::llama::Rotary::new(&config, TOKENS);
    let exact_x = x.index_axis(Axis(0), 0).mapv(f64::from);
    let (exact_y, trace) =
        reference::llama::block_forward_traced(&config, &exact_block, &exact_rotary, exact_x.view());
    let exact = reference::llama::block_backward(
        &config,
        &exact_block,
        &exact_rotary,
        &trace,
        grad_y.index_axis(Axis(0), 0).mapv(f64::from).view(),
    );

    let weight: Array2<f32> = with_outliers(&mut rng, (80, 72)) / 8.0;
    let inputs = normal(&mut rng, (300, 72)).mapv(f64::from);
    let hessian = inputs.t().dot(&inputs) / 300.0;
    let exact_weight = weight.mapv(f64::from);
    let settings = LayerSettings {
        scheme: "2x5g8".parse().unwrap(),
        init: Initialization::Em { rounds: 1 },
        kmeans_iterations: 20,
        update: Update::ClosedForm {
            max_unknowns: 4096,
            cg_steps: 50,
            scale_rounds: 1,
        },
        beam: 3,
        relative_tolerance: 1e-3,
        max_rounds: 3,
        damping: 1e-6,
        allow_degenerate: false,
    };
    let key = StreamKey {
        seed: 1,
        block: 0,
        layer: None,
    };

    let terms = 4 * config.hidden_size + config.intermediate_size + 5 * config.head_dim + 2 * TOKENS;
    for level in SimdLevel::available() {
        SimdLevel::force(Some(level)).unwrap();
        let block = Block::from_weights(&weights);
        let rotary = Rotary::new(&config, TOKENS);
        let (y, trace) = block_forward_traced(&config, &block, &rotary, x.view());
        assert_close(&format!("{level}: y"), widened(&y), &exact_y, limit(terms));
        let mut sum = BlockGradients::zeros(&block, Wanted::all());
        let grad_x = block_backward(
            &config,
            &block,
            &rotary,
            &trace,
            grad_y.view(),
            Wanted::all(),
            &mut sum,
        );
        let backward = limit(2 * terms + TOKENS);
        assert_close(
            &format!("{level}: grad x"),
            widened(&grad_x.unwrap()),
            &exact.x,
            backward,
        );
        for kind in LayerKind::ALL {
            let ours = sum.weights[kind as usize].as_ref().unwrap();
            assert_close(
                &format!("{level}: grad {kind}"),
                widened(ours),
                &exact.layers[kind as usize],
                backward,
            );
        }

        let run = || layer_quantize(&weight, &hessian, &settings, key, &mut |_| ()).unwrap();
        let (matrix, report) = run();
        assert_eq!(
            (matrix.clone(), report.clone()),
            run(),
            "{level}: the same bytes twice"
        );
        let reached = reference::relative_layer_error(&exact_weight, &reference::decode(&matrix), &hessian);
        assert!(
            (report.relative_error - reached).abs() <= limit(2 * 72).sqrt() * reached,
            "{level}"
        );
        // Levels round differently, so alternations part ways at the first tie; how good they are is compared with the
        // reference in tests/quantizer.rs. Here: that every round of this level's search was an improvement.
        assert!(report.relative_error < report.initial_error, "{level}");
        assert!(report.trace.windows(2).all(|pair| pair[1] <= pair[0]), "{level}");
    }
    SimdLevel::force(None).unwrap();
}
