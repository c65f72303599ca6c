//! The alternation over the machines. With the reference's steps it equals the reference's own alternation
//! bit for bit. With the CPU's steps it reaches the reference's loss. Searches are compared by the loss that
//! they reach, as evaluated by the reference, because ties may break either way.

use aqlm_check::assertions::{limit, with_threads};
use aqlm_check::cases::layer;
use aqlm_check::limits::SAME_LOSS;
use aqlm_engine::alternate::{alternate, alternate_with};
use aqlm_engine::backends::{CpuLayers, ReferenceLayers};
use aqlm_engine::ops::LayerOps;
use aqlm_engine::{Error, Result};
use aqlm_reference as reference;
use aqlm_vocabulary::{AqlmError, LayerEvent, LayerReport, LayerSettings, QuantizedMatrix, StreamKey};
use ndarray::{Array2, s};

/// Number of layers whose losses are averaged before comparison. One different rounding changes a search's
/// final loss by a few thousandths, up or down, differently in each layer. The mean over twelve layers
/// changes by a third of [`SAME_LOSS`].
const LAYERS: u64 = 12;

const KEY: StreamKey = StreamKey {
    seed: 3,
    block: 2,
    layer: None,
};

/// The alternation with the CPU's steps.
fn alternation(
    weight: &Array2<f32>,
    hessian: &Array2<f64>,
    settings: &LayerSettings,
    observe: &mut dyn FnMut(LayerEvent),
) -> Result<(QuantizedMatrix, LayerReport)> {
    let problem = CpuLayers.problem(weight, hessian, settings)?;
    alternate(&CpuLayers, &problem, settings, KEY, observe)
}

#[test]
fn with_the_references_steps_it_is_the_references_own() {
    let variants = [
        (
            "layer_quantize-2x3g4-24x32-outliers-correlated-b2-single-closed-residual-s1",
            1e-6,
            1e-3,
        ),
        (
            "layer_quantize-2x3g4-24x32-outliers-correlated-b2-single-adam-em-s2",
            0.0,
            1e-9,
        ),
        (
            "layer_quantize-1x4g4o2-24x32-outliers-correlated-b2-single-gradients-em-s3",
            0.5,
            0.0,
        ),
    ];
    for (id, damping, relative_tolerance) in variants {
        let (settings, p) = layer(id).unwrap();
        let settings = LayerSettings {
            damping,
            relative_tolerance,
            ..settings
        };
        let mut expected_events = Vec::new();
        let weight = p.weight.mapv(f64::from);
        let expected = reference::layer_quantize(&weight, &p.hessian, &settings, KEY, &mut |event| {
            expected_events.push(event);
        })
        .unwrap();
        let mut events = Vec::new();
        let steps = ReferenceLayers.problem(&p.weight, &p.hessian, &settings).unwrap();
        let found = alternate(&ReferenceLayers, &steps, &settings, KEY, &mut |event| {
            events.push(event);
        })
        .unwrap();
        assert_eq!((found, events), (expected, expected_events), "{id}");
    }
}

#[test]
fn an_update_of_ones_own_takes_the_place_of_the_machines() {
    let (settings, p) =
        layer("layer_quantize-2x3g4-24x32-outliers-correlated-b2-single-closed-residual-s5").unwrap();
    let problem = CpuLayers.problem(&p.weight, &p.hessian, &settings).unwrap();
    let expected = alternate(&CpuLayers, &problem, &settings, KEY, &mut |_| ()).unwrap();
    let with = |update: &mut dyn FnMut(_) -> Result<_>| {
        alternate_with(&CpuLayers, &problem, &settings, KEY, update, &mut |_| ())
    };
    let same = with(&mut |trial| CpuLayers.update(&problem, trial, &settings.update));
    assert_eq!(same.unwrap(), expected);
    let none = with(&mut Ok).unwrap();
    assert!(none.1.relative_error > expected.1.relative_error);
    assert!(
        none.1.relative_error < none.1.initial_error,
        "the search alone gains"
    );
    let other = with(&mut |trial| {
        // The CPU's alternation with the reference's codebook update.
        let weight = p.weight.mapv(f64::from);
        let matrix = reference::update(
            &weight,
            &p.hessian,
            &CpuLayers.matrix(&problem, &trial)?,
            &settings.update,
        )?;
        CpuLayers.trial(&problem, matrix)
    });
    let (matrix, report) = other.unwrap();
    let weight = p.weight.mapv(f64::from);
    let exact = reference::relative_layer_error(&weight, &reference::decode(&matrix), &p.hessian);
    // f32 products of W - Q with H, summed in f64; each product has the relative error of a sum of 32 terms
    assert!((report.relative_error - exact).abs() <= limit(2 * 32).sqrt() * exact);
    assert!(report.relative_error < none.1.relative_error, "an update gains");
    let failed = with(&mut |_| Err(AqlmError::Unsupported("no update".into()).into()));
    assert!(matches!(failed, Err(Error::Aqlm(AqlmError::Unsupported(_)))));
}

#[test]
fn layers_are_quantized_as_well_as_by_the_reference() {
    for id in [
        "layer_quantize-2x5g8-128x128-outliers-correlated-b1-single-closed-residual",
        "layer_quantize-2x5g8-128x128-outliers-correlated-b4-single-closed-em",
        "layer_quantize-2x5g8-128x128-outliers-correlated-b2-pairs-closed-residual",
        "layer_quantize-1x6g8-96x128-outliers-correlated-b2-single-gradients-em",
        "layer_quantize-2x4g4o2-96x64-outliers-correlated-b1-single-adam-residual",
    ] {
        let mut ratios = Vec::new();
        for seed in 29..29 + LAYERS {
            let (settings, p) = layer(&format!("{id}-s{seed}")).unwrap();
            let mut events = Vec::new();
            let (matrix, report) = alternation(&p.weight, &p.hessian, &settings, &mut |event| {
                events.push(event);
            })
            .unwrap();
            let exact_weight = p.weight.mapv(f64::from);
            let (_, expected) =
                reference::layer_quantize(&exact_weight, &p.hessian, &settings, KEY, &mut |_| ()).unwrap();
            let reached =
                reference::relative_layer_error(&exact_weight, &reference::decode(&matrix), &p.hessian);
            ratios.push((reached / expected.relative_error).ln());
            // f32 products of W - Q with H, summed in f64; each product has the relative error of a sum of
            // `inputs` terms
            assert!((report.relative_error - reached).abs() <= limit(2 * p.weight.ncols()).sqrt() * reached);
            assert!(report.trace.windows(2).all(|pair| pair[1] <= pair[0]));
            assert!(matches!(events[0], LayerEvent::Initialized { loss } if loss == report.initial_error));
            assert_eq!(report.dead_inputs, 0);
        }
        let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
        println!("{id}: {:+.3} % of the reference's loss, {ratios:?}", 100.0 * mean);
        assert!(mean <= SAME_LOSS, "{id}: {ratios:?}");
    }
}

#[test]
fn a_layer_does_not_depend_on_threads() {
    for variant in [
        "b1-single-closed-em",
        "b3-single-gradients-em",
        "b3-pairs-closed-residual",
    ] {
        let (settings, p) = layer(&format!(
            "layer_quantize-2x5g8-136x144-outliers-correlated-{variant}-s31"
        ))
        .unwrap();
        let run = |threads| {
            with_threads(threads, || {
                alternation(&p.weight, &p.hessian, &settings, &mut |_| ()).unwrap()
            })
        };
        let alone = run(1);
        assert_eq!(alone, run(2));
        assert_eq!(alone, run(3));
    }
}

#[test]
fn a_layers_report_is_of_the_matrix_that_it_comes_with() {
    let (settings, p) =
        layer("layer_quantize-1x3g4-24x32-outliers-correlated-b2-single-closed-em-s41").unwrap();
    let relative = |matrix: &QuantizedMatrix| {
        let nothing = reference::layer_error(
            &p.weight.mapv(f64::from),
            &Array2::zeros(p.weight.dim()),
            &p.hessian,
        );
        p.loss(matrix) / nothing
    };
    // Damping steers the search, but the reported error is under the undamped H.
    for damping in [0.0, 1e-6, 0.5] {
        let settings = LayerSettings {
            damping,
            relative_tolerance: 1e-9,
            ..settings.clone()
        };
        let mut events = Vec::new();
        let (matrix, report) = alternation(&p.weight, &p.hessian, &settings, &mut |event| {
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
        // an update and a search per round, and at most one round that was undone
        let rounds = (events.len() - 1) / 2;
        assert_eq!(events.len(), 1 + 2 * rounds);
        assert!(rounds == report.trace.len() || rounds == report.trace.len() + 1);
    }
}

#[test]
fn a_layer_is_done_when_a_round_gains_too_little() {
    let (settings, p) =
        layer("layer_quantize-1x3g4-24x32-outliers-correlated-b2-single-closed-residual-s41").unwrap();
    let trace = |weight: &Array2<f32>, relative_tolerance| {
        let settings = LayerSettings {
            relative_tolerance,
            ..settings.clone()
        };
        let (_, report) = alternation(weight, &p.hessian, &settings, &mut |_| ()).unwrap();
        (report.initial_error, report.trace)
    };
    let (first, all) = trace(&p.weight, 0.0);
    assert!(all.len() > 2, "{all:?}");
    // the gain of each round, relative to the loss before the round
    let before = std::iter::once(&first).chain(&all);
    let gains: Vec<f64> = before
        .zip(&all)
        .map(|(before, after)| (before - after) / before)
        .collect();
    assert!(gains[0] > gains[1] && gains[1] > 0.0, "{gains:?}");
    for (tolerance, rounds) in [(1.01 * gains[0], 1), (0.99 * gains[0], 2), (1.01 * gains[1], 2)] {
        assert_eq!(trace(&p.weight, tolerance).1, all[..rounds], "{tolerance}");
    }
    // no gain is possible from a loss of zero
    assert_eq!(trace(&Array2::zeros((24, 32)), 0.0), (0.0, vec![0.0]));
}

#[test]
fn bad_layers_are_refused_and_odd_ones_survive() {
    let (allowing, p) =
        layer("layer_quantize-1x3g4-16x32-outliers-correlated-b2-single-closed-em-s37").unwrap();
    let good = LayerSettings {
        allow_degenerate: false,
        ..allowing
    };
    let with_scheme = |scheme: &str| LayerSettings {
        scheme: scheme.parse().unwrap(),
        ..good.clone()
    };
    let run = |weight: &Array2<f32>, hessian: &Array2<f64>, settings: &LayerSettings| {
        alternation(weight, hessian, settings, &mut |_| ())
    };
    let mut bad = p.weight.clone();
    bad[[3, 4]] = f32::NAN;
    assert!(
        matches!(run(&bad, &p.hessian, &good), Err(Error::Aqlm(AqlmError::NotFinite { what, .. })) if what == "weight")
    );
    let bad = p.hessian.mapv(|h| h * f64::INFINITY);
    assert!(
        matches!(run(&p.weight, &bad, &good), Err(Error::Aqlm(AqlmError::NotFinite { what, .. })) if what == "hessian")
    );
    let mut bad = p.hessian.clone();
    bad[[5, 5]] = -1.0;
    assert!(matches!(
        run(&p.weight, &bad, &good),
        Err(Error::Aqlm(AqlmError::NotPositiveDefinite { pivot: 5, .. }))
    ));
    let bad = p.hessian.slice(s![..8, ..8]).to_owned();
    assert!(matches!(
        run(&p.weight, &bad, &good),
        Err(Error::Aqlm(AqlmError::Shape { .. }))
    ));
    let indivisible = with_scheme("1x3g5");
    assert!(matches!(
        run(&p.weight, &p.hessian, &indivisible),
        Err(Error::Aqlm(AqlmError::NotDivisible { .. }))
    ));
    let degenerate = with_scheme("1x8g4");
    assert!(matches!(
        run(&p.weight, &p.hessian, &degenerate),
        Err(Error::Aqlm(AqlmError::Degenerate { .. }))
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
        Err(Error::Argument { .. })
    ));
    for damping in [-1e-9, f64::NAN, f64::INFINITY] {
        let bad = LayerSettings {
            damping,
            ..good.clone()
        };
        assert!(matches!(
            run(&p.weight, &p.hessian, &bad),
            Err(Error::Argument { .. })
        ));
    }
    // as many groups as codewords are enough, one fewer is too few
    for (rows, enough) in [(2, true), (1, false)] {
        let weight = p.weight.slice(s![..rows, ..16]).to_owned();
        let hessian = p.hessian.slice(s![..16, ..16]).to_owned();
        assert_eq!(run(&weight, &hessian, &good).is_ok(), enough);
    }
    // dead inputs, rows of zeros, and a layer of zeros only
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
    assert!(reference::decode(&matrix).iter().all(|&w| w == 0.0));
    let (_, report) = run(&p.weight, &Array2::zeros((32, 32)), &good).unwrap();
    assert_eq!((report.relative_error, report.dead_inputs), (0.0, 32));
}
