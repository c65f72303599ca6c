//! The f32 quantizer against the reference in f64. Searches are compared by the loss that they reach, as the
//! reference evaluates it: ties break either way.

mod support;

use aqlm_optimized::cpu::quantizer::{
    Hessian, adam, beam_search, decode, em_init, kmeans, layer_quantize, residual_init, starting_points,
    update,
};
use aqlm_reference as reference;
use aqlm_vocabulary::{
    AqlmError, Initialization, LayerEvent, LayerSettings, Purpose, QuantizedMatrix, StreamKey, Update,
    sweep_order,
};
use ndarray::{Array2, s};
use support::{assert_close, limit, normal, quantized, random, widened, with_outliers, with_threads};

/// By how much the loss that a search reaches may be above the reference's.
const SEARCH: f64 = aqlm_check::limits::SAME_LOSS;

/// Layers whose losses are compared on average. Where a search ends differs from layer to layer by a few
/// thousandths, up or down, as soon as one rounding differs; the mean of twelve does so by a third of
/// [`SEARCH`].
const LAYERS: u64 = 12;

const KEY: StreamKey = StreamKey {
    seed: 3,
    block: 2,
    layer: None,
};

/// A layer whose inputs are correlated and of very different sizes, and a quantized matrix that is no good
/// fit.
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
        // M codewords, rounded when they are read, and a scale
        let limit = limit(matrix.scheme.num_codebooks + 2);
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
    // Centroids that move by less than the absolute tolerance of 1e-8 count as standing still, at every tenth
    // iteration.
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
        let scales: Vec<f64> = ours.scales.to_vec();
        assert_close("scales", scales, &exact.scales, limit(1));
        // and where inputs are independent, the first of each group dead
        let group = p.matrix.scheme.in_group_size;
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
        let codebooks = p.matrix.scheme.num_codebooks;
        let order = sweep_order(&mut KEY.stream(Purpose::Sweep), in_groups, codebooks);
        for beam in [1, 2, 5] {
            let with = |codes| QuantizedMatrix {
                codes,
                ..p.matrix.clone()
            };
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
                    visited.contains(&(j, m)) || code == p.matrix.codes[[o, j, m]],
                    "{scheme}: {o} {j} {m}"
                );
            }
            assert!(
                p.loss(&QuantizedMatrix {
                    codes,
                    ..p.matrix.clone()
                }) <= before
            );
        }
        let twice = [order.clone(), order.clone()].concat();
        let codes = beam_search(&p.weight, &p.hessian, &p.matrix, &twice, 1).unwrap();
        let once = beam_search(&p.weight, &p.hessian, &p.matrix, &order, 1).unwrap();
        let again = QuantizedMatrix {
            codes: once,
            ..p.matrix.clone()
        };
        assert_eq!(
            codes,
            beam_search(&p.weight, &p.hessian, &again, &order, 1).unwrap()
        );
    }
}

#[test]
fn beam_search_is_exact_where_arithmetic_is() {
    // Dyadic weights, codebooks and Hessian: every score is exact in f32, so both make the same choices.
    let grid = |rng: &mut _, rows, cols| -> Array2<f32> {
        normal(rng, (rows, cols)).mapv(|x: f32| (x * 2.0).round().clamp(-4.0, 4.0) / 4.0)
    };
    // the second has more output groups than one task takes
    for (scheme, out) in [("2x3g4", 9), ("2x3g4o2", 150)] {
        let mut rng = random(8);
        let weight = grid(&mut rng, out, 16);
        let mut matrix = quantized(&mut rng, scheme, out, 16);
        matrix.codebooks.mapv_inplace(|c| (c * 4.0).round() / 4.0);
        matrix.scales.fill(0.5);
        let x = grid(&mut rng, 32, 16).mapv(f64::from);
        let hessian = x.t().dot(&x) / 32.0;
        let order = sweep_order(&mut KEY.stream(Purpose::Sweep), 4, 2);
        // a sweep that leaves every second group as it is
        let part: Vec<_> = order.iter().copied().filter(|(j, _)| j % 2 == 1).collect();
        let exact_weight = weight.mapv(f64::from);
        for (order, beam) in [(&order, 1), (&part, 1), (&order, 4)] {
            let ours = beam_search(&weight, &hessian, &matrix, order, beam).unwrap();
            let exact = reference::beam_search(&exact_weight, &hessian, &matrix, order, beam).unwrap();
            let loss = |codes| {
                let matrix = QuantizedMatrix {
                    codes,
                    ..matrix.clone()
                };
                reference::layer_error(&exact_weight, &reference::decode(&matrix), &hessian)
            };
            if beam == 1 {
                assert_eq!(ours, exact);
            }
            // with several hypotheses of equal loss, which of them go on is open
            assert!(loss(ours) <= loss(exact) * (1.0 + SEARCH));
        }
        for beyond in [(4, 0), (0, 2)] {
            assert!(matches!(
                beam_search(&weight, &hessian, &matrix, &[(0, 0), beyond], 1),
                Err(AqlmError::Unsupported(_))
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
            assert_eq!(ours.codes, p.matrix.codes);
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
        let (ours, losses) = adam(&p.weight, &p.hessian, &p.matrix, 1e-3, (0.9, 0.95), amsgrad, 20).unwrap();
        let settings = reference::AdamSettings {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            amsgrad,
            steps: 20,
        };
        let (exact, exact_losses) =
            reference::adam(&p.weight.mapv(f64::from), &p.hessian, &p.matrix, &settings).unwrap();
        // sums over inputs, outputs of a codeword, and the steps behind each other
        let limit = limit(20 * (32 + 32));
        assert_close("losses", losses, &exact_losses, limit);
        assert_close("codebooks", ours.codebooks, &exact.codebooks, limit);
        assert_close("scales", ours.scales, &exact.scales, limit);
    }
}

#[test]
fn layers_are_quantized_as_well_as_by_the_reference() {
    let adam = Update::Adam {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        amsgrad: false,
        steps: 20,
    };
    let variants = [
        ("2x5g8", 128, 128, Initialization::Residual, CLOSED_FORM, 1),
        (
            "2x5g8",
            128,
            128,
            Initialization::Em { rounds: 2 },
            CLOSED_FORM,
            4,
        ),
        ("1x6g8", 96, 128, Initialization::Em { rounds: 2 }, ITERATIVE, 2),
        ("2x4g4o2", 96, 64, Initialization::Residual, adam, 1),
    ];
    for (scheme, out, inputs, init, update, beam) in variants {
        let settings = LayerSettings {
            beam,
            ..settings(scheme, init, update)
        };
        let mut ratios = Vec::new();
        for seed in 29..29 + LAYERS {
            let p = problem(seed, scheme, out, inputs);
            let mut events = Vec::new();
            let (matrix, report) = layer_quantize(&p.weight, &p.hessian, &settings, KEY, &mut |event| {
                events.push(event);
            })
            .unwrap();
            let exact_weight = p.weight.mapv(f64::from);
            let (_, expected) =
                reference::layer_quantize(&exact_weight, &p.hessian, &settings, KEY, &mut |_| ()).unwrap();
            let reached =
                reference::relative_layer_error(&exact_weight, &reference::decode(&matrix), &p.hessian);
            ratios.push((reached / expected.relative_error).ln());
            // f32 products of W - Q with H, summed in f64: each has a relative error of a sum of `inputs`
            // terms
            assert!((report.relative_error - reached).abs() <= limit(2 * inputs).sqrt() * reached);
            assert!(report.trace.windows(2).all(|pair| pair[1] <= pair[0]));
            assert!(matches!(events[0], LayerEvent::Initialized { loss } if loss == report.initial_error));
            assert_eq!(report.dead_inputs, 0);
        }
        let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
        println!(
            "{scheme}: {:+.3} % of the reference's loss, {ratios:?}",
            100.0 * mean
        );
        assert!(mean <= SEARCH, "{scheme}: {ratios:?}");
    }
}

#[test]
fn a_layer_does_not_depend_on_threads() {
    let p = problem(31, "2x5g8", 136, 144);
    for (update, beam) in [(CLOSED_FORM, 1), (ITERATIVE, 3)] {
        let settings = LayerSettings {
            beam,
            ..settings("2x5g8", Initialization::Em { rounds: 1 }, update)
        };
        let run = |threads| {
            with_threads(threads, || {
                layer_quantize(&p.weight, &p.hessian, &settings, KEY, &mut |_| ()).unwrap()
            })
        };
        let alone = run(1);
        assert_eq!(alone, run(2));
        assert_eq!(alone, run(3));
    }
}

#[test]
fn a_layers_report_is_of_the_matrix_that_it_comes_with() {
    let p = problem(41, "1x3g4", 24, 32);
    let relative = |matrix: &QuantizedMatrix| {
        let nothing = reference::layer_error(
            &p.weight.mapv(f64::from),
            &Array2::zeros(p.weight.dim()),
            &p.hessian,
        );
        p.loss(matrix) / nothing
    };
    // Damping steers the search; what is reported is the error under H as it is.
    for damping in [0.0, 1e-6, 0.5] {
        let settings = LayerSettings {
            damping,
            relative_tolerance: 1e-9,
            ..settings("1x3g4", Initialization::Em { rounds: 2 }, CLOSED_FORM)
        };
        let mut events = Vec::new();
        let (matrix, report) = layer_quantize(&p.weight, &p.hessian, &settings, KEY, &mut |event| {
            events.push(event);
        })
        .unwrap();
        let exact = relative(&matrix);
        // an error of a tenth of W's own, from sums of 32 x 24 products in f32
        assert!(
            (report.relative_error - exact).abs() <= 1e-4 * exact,
            "{damping}: {report:?}, {exact}"
        );
        assert_eq!(report.trace.last(), Some(&report.relative_error));
        assert!(report.trace.is_sorted_by(|a, b| a >= b), "{report:?}");
        assert!(report.trace[0] <= report.initial_error);
        assert!(report.trace.len() > 1, "{report:?}");
        assert!(matches!(events[0], LayerEvent::Initialized { loss } if loss == report.initial_error));
        // an update and a search a round, and at most one round that was taken back
        let rounds = (events.len() - 1) / 2;
        assert_eq!(events.len(), 1 + 2 * rounds);
        assert!(rounds == report.trace.len() || rounds == report.trace.len() + 1);
    }
}

#[test]
fn a_layer_is_done_when_a_round_gains_too_little() {
    let p = problem(41, "1x3g4", 24, 32);
    let trace = |weight: &Array2<f32>, relative_tolerance| {
        let settings = LayerSettings {
            relative_tolerance,
            ..settings("1x3g4", Initialization::Residual, CLOSED_FORM)
        };
        let (_, report) = layer_quantize(weight, &p.hessian, &settings, KEY, &mut |_| ()).unwrap();
        (report.initial_error, report.trace)
    };
    let (first, all) = trace(&p.weight, 0.0);
    assert!(all.len() > 2, "{all:?}");
    // what each round gains, relative to what was there
    let before = std::iter::once(&first).chain(&all);
    let gains: Vec<f64> = before
        .zip(&all)
        .map(|(before, after)| (before - after) / before)
        .collect();
    assert!(gains[0] > gains[1] && gains[1] > 0.0, "{gains:?}");
    for (tolerance, rounds) in [(1.01 * gains[0], 1), (0.99 * gains[0], 2), (1.01 * gains[1], 2)] {
        assert_eq!(trace(&p.weight, tolerance).1, all[..rounds], "{tolerance}");
    }
    // nothing is gained where nothing is lost
    assert_eq!(trace(&Array2::zeros((24, 32)), 0.0), (0.0, vec![0.0]));
}

#[test]
fn bad_layers_are_refused_and_odd_ones_survive() {
    let p = problem(37, "1x3g4", 16, 32);
    let good = settings("1x3g4", Initialization::Em { rounds: 1 }, CLOSED_FORM);
    let run = |weight: &Array2<f32>, hessian: &Array2<f64>, settings: &LayerSettings| {
        layer_quantize(weight, hessian, settings, KEY, &mut |_| ())
    };
    let mut bad = p.weight.clone();
    bad[[3, 4]] = f32::NAN;
    assert!(
        matches!(run(&bad, &p.hessian, &good), Err(AqlmError::NotFinite { what, .. }) if what == "weight")
    );
    let bad = p.hessian.mapv(|h| h * f64::INFINITY);
    assert!(
        matches!(run(&p.weight, &bad, &good), Err(AqlmError::NotFinite { what, .. }) if what == "hessian")
    );
    let mut bad = p.hessian.clone();
    bad[[5, 5]] = -1.0;
    assert!(matches!(
        run(&p.weight, &bad, &good),
        Err(AqlmError::NotPositiveDefinite { pivot: 5, .. })
    ));
    let bad = p.hessian.slice(s![..8, ..8]).to_owned();
    assert!(matches!(
        run(&p.weight, &bad, &good),
        Err(AqlmError::Shape { .. })
    ));
    let indivisible = settings("1x3g5", Initialization::Residual, CLOSED_FORM);
    assert!(matches!(
        run(&p.weight, &p.hessian, &indivisible),
        Err(AqlmError::NotDivisible { .. })
    ));
    let degenerate = settings("1x8g4", Initialization::Residual, CLOSED_FORM);
    assert!(matches!(
        run(&p.weight, &p.hessian, &degenerate),
        Err(AqlmError::Degenerate { .. })
    ));
    let allowed = LayerSettings {
        allow_degenerate: true,
        ..degenerate
    };
    assert!(run(&p.weight, &p.hessian, &allowed).unwrap().1.relative_error < 1e-6);
    let no_beam = LayerSettings {
        beam: 0,
        ..good.clone()
    };
    assert!(matches!(
        run(&p.weight, &p.hessian, &no_beam),
        Err(AqlmError::Unsupported(_))
    ));
    for damping in [-1e-9, f64::NAN, f64::INFINITY] {
        let bad = LayerSettings {
            damping,
            ..good.clone()
        };
        assert!(matches!(
            run(&p.weight, &p.hessian, &bad),
            Err(AqlmError::Unsupported(_))
        ));
    }
    // as many groups as codewords are enough, one fewer is not
    for (rows, enough) in [(2, true), (1, false)] {
        let weight = p.weight.slice(s![..rows, ..16]).to_owned();
        let hessian = p.hessian.slice(s![..16, ..16]).to_owned();
        assert_eq!(run(&weight, &hessian, &good).is_ok(), enough);
    }
    let short = p.weight.slice(s![..8, ..]).to_owned();
    assert!(matches!(
        beam_search(&short, &p.hessian, &p.matrix, &[(0, 0)], 1),
        Err(AqlmError::Shape { .. })
    ));

    // dead inputs, rows of zeros, and a layer that is nothing but zeros
    let mut hessian = p.hessian.clone();
    for i in 8..12 {
        hessian.row_mut(i).fill(0.0);
        hessian.column_mut(i).fill(0.0);
    }
    let mut weight = p.weight.clone();
    weight.row_mut(2).fill(0.0);
    let (_, report) = run(&weight, &hessian, &good).unwrap();
    assert_eq!(report.dead_inputs, 4);
    assert!(report.relative_error < report.initial_error && report.relative_error > 0.0);
    let (matrix, report) = run(&Array2::zeros((16, 32)), &p.hessian, &good).unwrap();
    assert_eq!(report.relative_error, 0.0);
    assert!(decode(&matrix).iter().all(|&w| w == 0.0));
    let (_, report) = run(&p.weight, &Array2::zeros((32, 32)), &good).unwrap();
    assert_eq!((report.relative_error, report.dead_inputs), (0.0, 32));
}
