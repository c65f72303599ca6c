//! The f32 quantizer against the reference in f64. Searches are compared by the reference's value of the loss
//! that they reach, because either may break ties differently.

use aqlm_check::assertions::{assert_close, limit};
use aqlm_check::cases::{Case, LayerData, layer};
use aqlm_check::limits::SAME_LOSS;
use aqlm_optimized::cpu::quantizer::{
    Hessian, adam, beam_search, decode, em_init, feedback_search, kmeans, residual_init, starting_points,
    update,
};
use aqlm_reference as reference;
use aqlm_vocabulary::{AdamSettings, AqlmError, GroupOrder, Position, Purpose, StreamKey, sweep_order};
use ndarray::{Array2, s};

const KEY: StreamKey = StreamKey {
    seed: 3,
    block: 2,
    layer: None,
};

/// Rows of numbers with outliers.
fn samples(rows: usize, columns: usize, seed: u64) -> Array2<f32> {
    let case: Case = format!("hessian-{rows}x{columns}-k1-outliers-s{seed}")
        .parse()
        .unwrap();
    case.samples().unwrap().data(seed)
}

#[test]
fn missing_samples_of_a_hessian_come_from_another_mean() {
    let (own, all) = (samples(7, 40, 1), samples(90, 40, 2));
    let mut ours = [Hessian::new(40), Hessian::new(40)];
    let mut exact = [reference::Hessian::new(40), reference::Hessian::new(40)];
    for (i, x) in [own, all].iter().enumerate() {
        ours[i].add(x.view()).unwrap();
        exact[i].add(x.mapv(f64::from).view()).unwrap();
    }
    let [mut hessian, pool] = ours;
    let [mut exact, exact_pool] = exact;
    hessian.add_mean_of(&pool, 33).unwrap();
    exact.add_mean_of(&exact_pool, 33).unwrap();
    assert_eq!((hessian.samples(), exact.samples()), (40, 40));
    // sums of 7 and 90 products in f32
    assert_close(
        "mean",
        hessian.mean().iter().copied(),
        exact.mean().iter(),
        limit(97),
    );
    assert!(hessian.add_mean_of(&Hessian::new(39), 1).is_err());
}

#[test]
fn hessians_are_the_references() {
    for (rows, inputs) in [(1, 3), (70, 40), (2500, 33), (300, 400)] {
        let x = samples(rows, inputs, 1);
        let mut ours = Hessian::new(inputs);
        ours.add(x.slice(s![..rows / 2, ..])).unwrap();
        ours.add(x.slice(s![rows / 2.., ..])).unwrap();
        assert_eq!(ours.samples(), rows);
        let mut exact = reference::Hessian::new(inputs);
        exact.add(x.mapv(f64::from).view()).unwrap();
        let mean = ours.mean();
        assert_eq!(mean, mean.t());
        // products of f32 are summed in f32 over at most 1024 samples
        assert_close("hessian", mean, &exact.mean(), limit(rows.min(1024)));
        let mut bad = x.clone();
        bad[[rows / 2, 1]] = f32::INFINITY;
        let before = ours.clone();
        assert!(
            matches!(ours.add(bad.view()), Err(AqlmError::NotFinite { index, .. }) if index == [rows / 2, 1])
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
    for id in ["2x8g8-40x64", "1x3g4-7x20", "3x5g6o2-70x36", "8x2g16-3x32"] {
        let case: Case = format!("decode-{id}-b1-outliers-s2").parse().unwrap();
        let matrix = case.product().unwrap().data(case.seed).matrix;
        let ours = decode(&matrix);
        // the sum of M codewords, which are rounded when read, and the product with a scale
        let limit = limit(matrix.scheme().num_codebooks + 2);
        assert_close(id, ours, &reference::decode(&matrix), limit);
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
        let points = samples(n, len, n as u64);
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
            ours.inertia <= exact.inertia * (1.0 + SAME_LOSS),
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
    let points = samples(3000, 4, 5);
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
    for scheme in ["2x5g8-96x64", "1x6g4-64x48", "2x4g4o2-64x32"] {
        let (settings, p) = layer(&format!(
            "layer_quantize-{scheme}-outliers-correlated-b2-single-closed-residual-s11"
        ))
        .unwrap();
        let exact_weight = p.weight.mapv(f64::from);
        let ours = residual_init(&p.weight, &settings, KEY).unwrap();
        let exact = reference::residual_init(&exact_weight, &settings, KEY).unwrap();
        assert!(p.loss(&ours) <= p.loss(&exact) * (1.0 + SAME_LOSS), "{scheme}");
        assert_close("scales", ours.scales().to_vec(), exact.scales(), limit(1));
        // and with independent inputs, the first of each group dead
        let group = p.matrix.scheme().in_group_size;
        let mut independent = Array2::from_diag(&p.hessian.diag());
        for i in (0..p.weight.ncols()).step_by(group) {
            independent[[i, i]] = 0.0;
        }
        for hessian in [p.hessian.clone(), independent] {
            let p = LayerData { hessian, ..p.clone() };
            let ours = em_init(&p.weight, &p.hessian, &settings, 3, KEY).unwrap();
            let exact = reference::em_init(&exact_weight, &p.hessian, &settings, 3, KEY).unwrap();
            assert!(
                p.loss(&ours) <= p.loss(&exact) * (1.0 + SAME_LOSS),
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
        "2x4g4-70x300",
        "1x6g8-20x64",
        "3x3g4o2-20x24",
        "2x8g8-66x144",
        "2x9g4-20x24",
        "2x3g3-5x9",
    ];
    for scheme in shapes {
        let (_, p) = layer(&format!(
            "layer_quantize-{scheme}-outliers-correlated-b1-single-closed-residual-s5"
        ))
        .unwrap();
        let inputs = p.weight.ncols();
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
                ours <= exact * (1.0 + SAME_LOSS),
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
    for scheme in [
        "2x4g4-70x600",
        "1x6g8-20x64",
        "3x3g4o2-20x24",
        "2x8g8-66x144",
        "2x3g3-5x9",
    ] {
        let (_, p) = layer(&format!(
            "layer_quantize-{scheme}-outliers-correlated-b1-single-closed-residual-s5"
        ))
        .unwrap();
        let before = p.loss(&p.matrix);
        let (_, in_groups) = p.matrix.groups();
        let codebooks = p.matrix.scheme().num_codebooks;
        let order = |pairs| sweep_order(&mut KEY.stream(Purpose::Sweep), in_groups, codebooks, pairs);
        for (beam, pairs) in [(1, false), (2, false), (5, false), (1, true), (3, true)] {
            let order = order(pairs);
            let with = |codes| p.matrix.clone().with_codes(codes).unwrap();
            let ours = with(beam_search(&p.weight, &p.hessian, &p.matrix, &order, beam).unwrap());
            let exact =
                reference::beam_search(&p.weight.mapv(f64::from), &p.hessian, &p.matrix, &order, beam);
            let (ours, exact) = (p.loss(&ours), p.loss(&with(exact.unwrap())));
            assert!(exact < before, "{scheme}: the reference found nothing");
            assert!(
                ours <= exact * (1.0 + SAME_LOSS),
                "{scheme}, beam {beam}: {ours}, reference {exact}"
            );
        }
        for (part, beam, pairs) in [
            (1, 1, false),
            (2, 1, false),
            (2, 3, false),
            (2, 1, true),
            (2, 3, true),
        ] {
            let order = order(pairs);
            let part = if part == 1 { 1 } else { order.len() / part };
            let codes = beam_search(&p.weight, &p.hessian, &p.matrix, &order[..part], beam).unwrap();
            let visited: Vec<(usize, usize)> = order[..part]
                .iter()
                .flat_map(|step| step.codebooks().map(|m| (step.group, m)))
                .collect();
            for ((o, j, m), &code) in codes.indexed_iter() {
                assert!(
                    visited.contains(&(j, m)) || code == p.matrix.codes()[[o, j, m]],
                    "{scheme}: {o} {j} {m}"
                );
            }
            assert!(p.loss(&p.matrix.clone().with_codes(codes).unwrap()) <= before);
        }
        for pairs in [false, true] {
            let order = order(pairs);
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
}

#[test]
fn beam_search_is_exact_where_arithmetic_is() {
    // Dyadic weights, codebooks and Hessian: every score is exact in f32, so both searches make the same
    // choices.
    // the second has more output groups than one task
    for scheme in ["2x3g4-9x16", "2x3g4o2-150x16"] {
        let id = format!("layer_quantize-{scheme}-dyadic-white-b1-single-closed-residual-s8");
        let LayerData {
            weight,
            hessian,
            matrix,
        } = layer(&id).unwrap().1;
        let order = sweep_order(&mut KEY.stream(Purpose::Sweep), 4, 2, false);
        let pairs = sweep_order(&mut KEY.stream(Purpose::Sweep), 4, 2, true);
        // a sweep that leaves every second group unchanged
        let part: Vec<_> = order.iter().copied().filter(|step| step.group % 2 == 1).collect();
        let exact_weight = weight.mapv(f64::from);
        for (order, beam) in [(&order, 1), (&part, 1), (&order, 4), (&pairs, 1), (&pairs, 4)] {
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
            assert!(loss(ours) <= loss(exact) * (1.0 + SAME_LOSS));
        }
        for beyond in [Position::single(4, 0), Position::single(0, 2)] {
            assert!(matches!(
                beam_search(&weight, &hessian, &matrix, &[Position::single(0, 0), beyond], 1),
                Err(AqlmError::Argument { .. })
            ));
        }
    }
}

#[test]
fn codebook_updates_reach_the_references_loss() {
    for scheme in ["2x4g4-64x48", "1x5g8-96x64", "2x3g4o2-40x32", "3x6g8-100x64"] {
        for by in ["closed", "gradients"] {
            let (settings, p) = layer(&format!(
                "layer_quantize-{scheme}-outliers-correlated-b1-single-{by}-residual-s17"
            ))
            .unwrap();
            let exact_weight = p.weight.mapv(f64::from);
            let before = p.loss(&p.matrix);
            let ours = update(&p.weight, &p.hessian, &p.matrix, &settings.update).unwrap();
            assert_eq!(ours.codes(), p.matrix.codes());
            let exact = reference::update(&exact_weight, &p.hessian, &p.matrix, &settings.update).unwrap();
            let (ours, exact) = (p.loss(&ours), p.loss(&exact));
            assert!(exact < before, "{scheme}: the reference found nothing");
            assert!(
                ours <= exact * (1.0 + SAME_LOSS),
                "{scheme} {by}: {ours}, reference {exact}"
            );
        }
    }
}

#[test]
fn adam_follows_the_reference() {
    for amsgrad in [false, true] {
        let (_, p) =
            layer("layer_quantize-2x4g4o2-32x32-outliers-correlated-b1-single-adam-residual-s23").unwrap();
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
    let (_, p) =
        layer("layer_quantize-1x3g4-16x32-outliers-correlated-b1-single-closed-residual-s37").unwrap();
    let short = p.weight.slice(s![..8, ..]).to_owned();
    assert!(matches!(
        beam_search(&short, &p.hessian, &p.matrix, &[Position::single(0, 0)], 1),
        Err(AqlmError::Shape { .. })
    ));
}
