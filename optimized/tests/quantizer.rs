//! The f32 quantizer against the reference in f64. Searches are compared by the reference's value of the loss
//! that they reach, because either may break ties differently.

mod support;

use aqlm_optimized::cpu::quantizer::{
    Hessian, adam, beam_search, decode, em_init, feedback_search, kmeans, residual_init, starting_points,
    update,
};
use aqlm_reference as reference;
use aqlm_vocabulary::{
    AdamSettings, AqlmError, GroupOrder, Initialization, LayerSettings, Purpose, QuantizedMatrix, StreamKey,
    Update, sweep_order,
};
use ndarray::{Array2, s};
use support::{assert_close, limit, normal, quantized, random, widened, with_outliers};

/// How far the loss of a search may be above the reference's.
const SEARCH: f64 = aqlm_check::limits::SAME_LOSS;

const KEY: StreamKey = StreamKey {
    seed: 3,
    block: 2,
    layer: None,
};

/// A layer whose inputs are correlated and of very different sizes, and a quantized matrix that fits badly.
struct Problem {
    weight: Array2<f32>,
    hessian: Array2<f64>,
    matrix: QuantizedMatrix,
}

fn problem(seed: u64, scheme: &str, out: usize, inputs: usize) -> Problem {
    let mut rng = random(seed);
    let weight: Array2<f32> = with_outliers(&mut rng, (out, inputs)) / (inputs as f32).sqrt();
    let matrix = quantized(&mut rng, scheme, out, inputs);
    Problem {
        weight,
        hessian: correlated(seed, inputs),
        matrix,
    }
}

fn correlated(seed: u64, inputs: usize) -> Array2<f64> {
    let mut rng = random(seed ^ 0x5eed);
    let mixing: Array2<f32> = normal(&mut rng, (inputs, inputs)) / (inputs as f32).sqrt();
    let mut x = normal(&mut rng, (3 * inputs, inputs)).dot(&mixing);
    for (i, mut column) in x.columns_mut().into_iter().enumerate() {
        column *= 30f32.powf(-(i as f32) / inputs as f32);
    }
    let x = x.mapv(f64::from);
    x.t().dot(&x) / x.nrows() as f64
}

impl Problem {
    fn loss(&self, matrix: &QuantizedMatrix) -> f64 {
        reference::layer_error(
            &self.weight.mapv(f64::from),
            &reference::decode(matrix),
            &self.hessian,
        )
    }
}

fn settings(scheme: &str, init: Initialization, update: Update) -> LayerSettings {
    LayerSettings {
        scheme: scheme.parse().unwrap(),
        init,
        kmeans_iterations: 30,
        update,
        beam: 2,
        relative_tolerance: 1e-3,
        max_rounds: 4,
        damping: 1e-6,
        allow_degenerate: false,
    }
}

const CLOSED_FORM: Update = Update::ClosedForm {
    max_unknowns: 8192,
    cg_steps: 60,
    scale_rounds: 2,
};
const ITERATIVE: Update = Update::ClosedForm {
    max_unknowns: 0,
    cg_steps: 60,
    scale_rounds: 2,
};

#[test]
fn hessians_are_the_references() {
    for (samples, inputs) in [(1, 3), (70, 40), (2500, 33), (300, 400)] {
        let x = with_outliers(&mut random(1), (samples, inputs));
        let mut ours = Hessian::new(inputs);
        ours.add(x.slice(s![..samples / 2, ..])).unwrap();
        ours.add(x.slice(s![samples / 2.., ..])).unwrap();
        assert_eq!(ours.samples(), samples);
        let mut exact = reference::Hessian::new(inputs);
        exact.add(x.mapv(f64::from).view()).unwrap();
        let mean = ours.mean();
        assert_eq!(mean, mean.t());
        // products of f32 are summed in f32 over at most 1024 samples
        assert_close("hessian", mean, &exact.mean(), limit(samples.min(1024)));
        let mut bad = x.clone();
        bad[[samples / 2, 1]] = f32::INFINITY;
        let before = ours.clone();
        assert!(
            matches!(ours.add(bad.view()), Err(AqlmError::NotFinite { index, .. }) if index == [samples / 2, 1])
        );
        assert!(matches!(
            ours.add(x.slice(s![.., 1..])),
            Err(AqlmError::Shape { .. })
        ));
        assert_eq!(ours, before);
    }
}

#[test]
fn decoding_is_the_references() {
    for (scheme, out, inputs) in [
        ("2x8g8", 40, 64),
        ("1x3g4", 7, 20),
        ("3x5g6o2", 70, 36),
        ("8x2g16", 3, 32),
    ] {
        let matrix = quantized(&mut random(2), scheme, out, inputs);
        let ours = decode(&matrix);
        // the sum of M codewords, which are rounded when read, and the product with a scale
        let limit = limit(matrix.scheme().num_codebooks + 2);
        assert_close(scheme, widened(&ours), &reference::decode(&matrix), limit);
    }
}

#[test]
fn kmeans_reaches_the_references_inertia() {
    for (n, len, k, iterations) in [
        (5000, 8, 64, 40),
        (777, 3, 10, 100),
        (40, 2, 64, 10),
        (9000, 8, 256, 25),
    ] {
        let points = with_outliers(&mut random(n as u64), (n, len));
        let flat: Vec<f32> = points.iter().copied().collect();
        let start = starting_points(&flat, len, k, &mut KEY.stream(Purpose::Initialization));
        let ours = kmeans(&flat, len, start, iterations);
        let exact_points = points.mapv(f64::from);
        let start =
            reference::starting_points(exact_points.view(), k, &mut KEY.stream(Purpose::Initialization));
        let exact = reference::kmeans(
            exact_points.view(),
            start,
            &reference::KMeansSettings::new(iterations),
        );
        assert!(
            ours.inertia <= exact.inertia * (1.0 + SEARCH),
            "{} {}",
            ours.inertia,
            exact.inertia
        );
        assert_eq!(ours.centroids.len(), k * len);
        let sum: f64 = points
            .outer_iter()
            .zip(&ours.assignments)
            .map(|(point, &k)| {
                let centroid = &ours.centroids[k as usize * len..][..len];
                point
                    .iter()
                    .zip(centroid)
                    .map(|(x, c)| (f64::from(*x) - f64::from(*c)).powi(2))
                    .sum::<f64>()
            })
            .sum();
        assert!((ours.inertia - sum / n as f64).abs() <= n as f64 * f64::EPSILON * ours.inertia);
    }
}

#[test]
fn kmeans_ends_when_centroids_stand_still() {
    // Centroids that move by less than the absolute tolerance of 1e-8 count as converged, tested at every
    // tenth iteration.
    let points = with_outliers(&mut random(5), (3000, 4));
    let flat = |size: f32| -> Vec<f32> { points.iter().map(|x| size * x).collect() };
    let run = |size, iterations| {
        let flat = flat(size);
        let start = starting_points(&flat, 4, 40, &mut KEY.stream(Purpose::Initialization));
        kmeans(&flat, 4, start, iterations)
    };
    let (large, tiny) = (1.0, 2f32.powi(-40));
    assert!(run(large, 60).inertia < run(large, 10).inertia);
    assert!(run(tiny, 10).inertia < run(tiny, 9).inertia);
    assert_eq!(run(tiny, 60).centroids, run(tiny, 10).centroids);
    assert_eq!(run(tiny, 60).assignments, run(tiny, 10).assignments);
}

#[test]
fn initialisations_reach_the_references_loss() {
    for (scheme, out, inputs) in [("2x5g8", 96, 64), ("1x6g4", 64, 48), ("2x4g4o2", 64, 32)] {
        let p = problem(11, scheme, out, inputs);
        let exact_weight = p.weight.mapv(f64::from);
        let settings = settings(scheme, Initialization::Residual, CLOSED_FORM);
        let ours = residual_init(&p.weight, &settings, KEY).unwrap();
        let exact = reference::residual_init(&exact_weight, &settings, KEY).unwrap();
        assert!(p.loss(&ours) <= p.loss(&exact) * (1.0 + SEARCH), "{scheme}");
        let scales: Vec<f64> = ours.scales().to_vec();
        assert_close("scales", scales, exact.scales(), limit(1));
        // and with independent inputs, the first of each group dead
        let group = p.matrix.scheme().in_group_size;
        let mut independent = Array2::from_diag(&p.hessian.diag());
        for i in (0..inputs).step_by(group) {
            independent[[i, i]] = 0.0;
        }
        for hessian in [p.hessian.clone(), independent] {
            let p = Problem {
                weight: p.weight.clone(),
                matrix: p.matrix.clone(),
                hessian,
            };
            let ours = em_init(&p.weight, &p.hessian, &settings, 3, KEY).unwrap();
            let exact = reference::em_init(&exact_weight, &p.hessian, &settings, 3, KEY).unwrap();
            assert!(
                p.loss(&ours) <= p.loss(&exact) * (1.0 + SEARCH),
                "{scheme} EM {} {}",
                p.loss(&ours),
                p.loss(&exact)
            );
        }
    }
}

#[test]
fn error_feedback_reaches_the_references_loss() {
    // 300 inputs are several blocks of columns; 70 output groups are more than one task; 2x9 has too many
    // sums for a joint search
    let shapes = [
        ("2x4g4", 70, 300),
        ("1x6g8", 20, 64),
        ("3x3g4o2", 20, 24),
        ("2x8g8", 66, 144),
        ("2x9g4", 20, 24),
        ("2x3g3", 5, 9),
    ];
    for (scheme, out, inputs) in shapes {
        let p = problem(5, scheme, out, inputs);
        let exact_weight = p.weight.mapv(f64::from);
        for (hypotheses, order) in [
            (1, GroupOrder::Natural),
            (3, GroupOrder::Variance),
            (5, GroupOrder::Diagonal),
        ] {
            let with = |codes| p.loss(&p.matrix.clone().with_codes(codes).unwrap());
            let (codes, losses) =
                feedback_search(&p.weight, &p.hessian, &p.matrix, hypotheses, order).unwrap();
            let (exact, _) =
                reference::feedback_search(&exact_weight, &p.hessian, &p.matrix, hypotheses, order).unwrap();
            let (ours, exact) = (with(codes), with(exact));
            assert!(
                ours <= exact * (1.0 + SEARCH),
                "{scheme}, {hypotheses} hypotheses, {order:?}: {ours}, reference {exact}"
            );
            // a sum over inputs in f32, squared and added up over inputs
            let difference = (losses.sum() - ours).abs();
            assert!(
                difference <= limit(2 * inputs).sqrt() * ours,
                "{scheme}: {difference} of {ours}"
            );
        }
        let none = feedback_search(&p.weight, &p.hessian, &p.matrix, 0, GroupOrder::Natural);
        assert!(matches!(none, Err(AqlmError::Argument { .. })));
    }
}

#[test]
fn beam_search_reaches_the_references_loss_and_never_raises_it() {
    // 600 inputs are several blocks of lazy updates; 70 output groups are more than one task
    let shapes = [
        ("2x4g4", 70, 600),
        ("1x6g8", 20, 64),
        ("3x3g4o2", 20, 24),
        ("2x8g8", 66, 144),
        ("2x3g3", 5, 9),
    ];
    for (scheme, out, inputs) in shapes {
        let p = problem(5, scheme, out, inputs);
        let before = p.loss(&p.matrix);
        let (_, in_groups) = p.matrix.groups();
        let codebooks = p.matrix.scheme().num_codebooks;
        let order = sweep_order(&mut KEY.stream(Purpose::Sweep), in_groups, codebooks);
        for beam in [1, 2, 5] {
            let with = |codes| p.matrix.clone().with_codes(codes).unwrap();
            let ours = with(beam_search(&p.weight, &p.hessian, &p.matrix, &order, beam).unwrap());
            let exact =
                reference::beam_search(&p.weight.mapv(f64::from), &p.hessian, &p.matrix, &order, beam);
            let (ours, exact) = (p.loss(&ours), p.loss(&with(exact.unwrap())));
            assert!(exact < before, "{scheme}: the reference found nothing");
            assert!(
                ours <= exact * (1.0 + SEARCH),
                "{scheme}, beam {beam}: {ours}, reference {exact}"
            );
        }
        for (part, beam) in [(1, 1), (order.len() / 2, 1), (order.len() / 2, 3)] {
            let codes = beam_search(&p.weight, &p.hessian, &p.matrix, &order[..part], beam).unwrap();
            let visited: Vec<(usize, usize)> = order[..part].to_vec();
            for ((o, j, m), &code) in codes.indexed_iter() {
                assert!(
                    visited.contains(&(j, m)) || code == p.matrix.codes()[[o, j, m]],
                    "{scheme}: {o} {j} {m}"
                );
            }
            assert!(p.loss(&p.matrix.clone().with_codes(codes).unwrap()) <= before);
        }
        let twice = [order.clone(), order.clone()].concat();
        let codes = beam_search(&p.weight, &p.hessian, &p.matrix, &twice, 1).unwrap();
        let once = beam_search(&p.weight, &p.hessian, &p.matrix, &order, 1).unwrap();
        let again = p.matrix.clone().with_codes(once).unwrap();
        assert_eq!(
            codes,
            beam_search(&p.weight, &p.hessian, &again, &order, 1).unwrap()
        );
    }
}

#[test]
fn beam_search_is_exact_where_arithmetic_is() {
    // Dyadic weights, codebooks and Hessian: every score is exact in f32, so both searches make the same
    // choices.
    let grid = |rng: &mut _, rows, cols| -> Array2<f32> {
        normal(rng, (rows, cols)).mapv(|x: f32| (x * 2.0).round().clamp(-4.0, 4.0) / 4.0)
    };
    // the second has more output groups than one task
    for (scheme, out) in [("2x3g4", 9), ("2x3g4o2", 150)] {
        let mut rng = random(8);
        let weight = grid(&mut rng, out, 16);
        let mut matrix = quantized(&mut rng, scheme, out, 16);
        matrix.tune(|mut codebooks, mut scales| {
            codebooks.mapv_inplace(|c| (c * 4.0).round() / 4.0);
            scales.fill(0.5);
        });
        let x = grid(&mut rng, 32, 16).mapv(f64::from);
        let hessian = x.t().dot(&x) / 32.0;
        let order = sweep_order(&mut KEY.stream(Purpose::Sweep), 4, 2);
        // a sweep that leaves every second group unchanged
        let part: Vec<_> = order.iter().copied().filter(|(j, _)| j % 2 == 1).collect();
        let exact_weight = weight.mapv(f64::from);
        for (order, beam) in [(&order, 1), (&part, 1), (&order, 4)] {
            let ours = beam_search(&weight, &hessian, &matrix, order, beam).unwrap();
            let exact = reference::beam_search(&exact_weight, &hessian, &matrix, order, beam).unwrap();
            let loss = |codes| {
                let matrix = matrix.clone().with_codes(codes).unwrap();
                reference::layer_error(&exact_weight, &reference::decode(&matrix), &hessian)
            };
            if beam == 1 {
                assert_eq!(ours, exact);
            }
            // among several hypotheses of equal loss, either may survive
            assert!(loss(ours) <= loss(exact) * (1.0 + SEARCH));
        }
        for beyond in [(4, 0), (0, 2)] {
            assert!(matches!(
                beam_search(&weight, &hessian, &matrix, &[(0, 0), beyond], 1),
                Err(AqlmError::Argument { .. })
            ));
        }
    }
}

#[test]
fn codebook_updates_reach_the_references_loss() {
    let shapes = [
        ("2x4g4", 64, 48),
        ("1x5g8", 96, 64),
        ("2x3g4o2", 40, 32),
        ("3x6g8", 100, 64),
    ];
    for (scheme, out, inputs) in shapes {
        let p = problem(17, scheme, out, inputs);
        let exact_weight = p.weight.mapv(f64::from);
        let before = p.loss(&p.matrix);
        for settings in [CLOSED_FORM, ITERATIVE] {
            let ours = update(&p.weight, &p.hessian, &p.matrix, &settings).unwrap();
            assert_eq!(ours.codes(), p.matrix.codes());
            let exact = reference::update(&exact_weight, &p.hessian, &p.matrix, &settings).unwrap();
            let (ours, exact) = (p.loss(&ours), p.loss(&exact));
            assert!(exact < before, "{scheme}: the reference found nothing");
            assert!(
                ours <= exact * (1.0 + SEARCH),
                "{scheme} {settings:?}: {ours}, reference {exact}"
            );
        }
    }
}

#[test]
fn adam_follows_the_reference() {
    for amsgrad in [false, true] {
        let p = problem(23, "2x4g4o2", 32, 32);
        let settings = AdamSettings {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            amsgrad,
        };
        let (ours, losses) = adam(&p.weight, &p.hessian, &p.matrix, &settings, 20).unwrap();
        let (exact, exact_losses) =
            reference::adam(&p.weight.mapv(f64::from), &p.hessian, &p.matrix, &settings, 20).unwrap();
        // sums over inputs and outputs of a codeword, chained over the steps
        let limit = limit(20 * (32 + 32));
        assert_close("losses", losses, &exact_losses, limit);
        assert_close(
            "codebooks",
            ours.codebooks().iter().copied(),
            exact.codebooks(),
            limit,
        );
        assert_close("scales", ours.scales().iter().copied(), exact.scales(), limit);
    }
}

#[test]
fn a_weight_of_another_shape_than_its_matrix_is_refused() {
    let p = problem(37, "1x3g4", 16, 32);
    let short = p.weight.slice(s![..8, ..]).to_owned();
    assert!(matches!(
        beam_search(&short, &p.hessian, &p.matrix, &[(0, 0)], 1),
        Err(AqlmError::Shape { .. })
    ));
}
