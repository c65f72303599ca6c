use ndarray::Array2;

use crate::beam_search::beam_search;
use crate::codebook_update::update;
use crate::em_init::em_init;
use crate::feedback_init::feedback_init;
use crate::hessian::{check_finite, damped, dead_inputs};
use crate::layer_error::check_hessian;
use crate::residual_init::residual_init;
use crate::{decode, relative_layer_error};
use aqlm_vocabulary::{
    AqlmError, Initialization, LayerEvent, LayerReport, LayerSettings, Purpose, QuantizedMatrix, Result,
    StreamKey, sweep_order,
};

/// Quantizes one layer: initialisation, then rounds of (codebook update, one beam-search sweep over randomly
/// ordered input groups). Rounds end when one gains less than `relative_tolerance` of the loss, or after
/// `max_rounds` (paper algorithm 1, lines 4 to 12).
///
/// The weight is [out_features, in_features], H [in_features, in_features] and symmetric. All steps optimise
/// under H with `settings.damping` x mean(diag H) on its diagonal, so that weights of dead inputs have a
/// preference. All losses, both the ones reported or passed to `observe` and the ones that decide which round
/// to keep, are under H without damping. If the last round did not improve that loss, it is undone.
///
/// All random numbers come from `key`: one stream for the starting points, one for all sweeps.
///
/// # Errors
/// `Shape`, `NotDivisible`, `NotFinite` (naming weight or H). `Degenerate` when a codebook has more codewords
/// than the layer has groups (unless `settings.allow_degenerate`). `NotPositiveDefinite` when H has a
/// negative diagonal entry or turns out indefinite. `Argument` for a beam of 0 or a damping that is not a
/// finite number >= 0.
pub fn layer_quantize(
    weight: &Array2<f64>,
    hessian: &Array2<f64>,
    settings: &LayerSettings,
    key: StreamKey,
    observe: &mut dyn FnMut(LayerEvent),
) -> Result<(QuantizedMatrix, LayerReport)> {
    let (_, in_groups) = validate(weight, hessian, settings)?;
    let metric = damped(hessian, settings.damping);
    let loss_of = |matrix: &QuantizedMatrix| relative_layer_error(weight, &decode(matrix), hessian);

    let mut best = match settings.init {
        Initialization::Residual => residual_init(weight, settings, key)?,
        Initialization::Em { rounds } => em_init(weight, &metric, settings, rounds, key)?,
        Initialization::Feedback(feedback) => feedback_init(weight, &metric, settings, &feedback, key)?,
    };
    let initial_error = loss_of(&best);
    observe(LayerEvent::Initialized { loss: initial_error });

    let mut relative_error = initial_error;
    let mut trace = Vec::new();
    let mut sweeps = key.stream(Purpose::Sweep);
    for round in 0..settings.max_rounds {
        let mut candidate = update(weight, &metric, &best, &settings.update)?;
        observe(LayerEvent::Updated {
            round,
            loss: loss_of(&candidate),
        });
        let order = sweep_order(
            &mut sweeps,
            in_groups,
            settings.scheme.num_codebooks,
            settings.searches_pairs(),
        );
        let codes = beam_search(weight, &metric, &candidate, &order, settings.beam)?;
        candidate = candidate.with_codes(codes)?;
        let loss = loss_of(&candidate);
        observe(LayerEvent::Searched { round, loss });
        // Also true for NaN.
        let rose = !matches!(
            loss.partial_cmp(&relative_error),
            Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal)
        );
        if rose {
            break;
        }
        let gain = relative_error - loss;
        let enough = gain >= settings.relative_tolerance * relative_error && gain > 0.0;
        (best, relative_error) = (candidate, loss);
        trace.push(loss);
        if !enough {
            break;
        }
    }
    let report = LayerReport {
        initial_error,
        relative_error,
        trace,
        dead_inputs: dead_inputs(hessian),
    };
    Ok((best, report))
}

/// Rejects inputs that cannot be quantized; returns (out_groups, in_groups).
fn validate(weight: &Array2<f64>, hessian: &Array2<f64>, settings: &LayerSettings) -> Result<(usize, usize)> {
    let scheme = settings.scheme;
    let (out_groups, in_groups) = scheme.groups(weight.nrows(), weight.ncols())?;
    check_layer(weight, hessian, settings.damping)?;
    if settings.beam == 0 {
        return Err(AqlmError::argument("beam", "at least 1 hypothesis", 0));
    }
    let groups = out_groups * in_groups;
    if scheme.codebook_size() > groups && !settings.allow_degenerate {
        return Err(AqlmError::Degenerate {
            scheme: scheme.to_string(),
            codebook_size: scheme.codebook_size(),
            groups,
        });
    }
    Ok((out_groups, in_groups))
}

/// Rejects a weight, an H or a damping with which no layer can be quantized.
///
/// # Errors
/// `Shape`, `NotFinite` (naming weight or H), `NotPositiveDefinite` when H has a negative diagonal entry,
/// `Argument` for a damping that is not a finite number >= 0.
pub fn check_layer(weight: &Array2<f64>, hessian: &Array2<f64>, damping: f64) -> Result<()> {
    check_hessian(hessian, weight.ncols())?;
    check_finite("weight", weight.view())?;
    check_finite("hessian", hessian.view())?;
    if let Some(pivot) = hessian.diag().iter().position(|&x| x < 0.0) {
        return Err(AqlmError::NotPositiveDefinite {
            what: "hessian".into(),
            pivot,
        });
    }
    if damping >= 0.0 && damping.is_finite() {
        return Ok(());
    }
    Err(AqlmError::argument(
        "damping",
        "a finite number of at least 0",
        damping,
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::problem::{Problem, config, gaussian, problem, settings};
    use aqlm_vocabulary::{Update, llama::UP};

    const KEY: StreamKey = StreamKey {
        seed: 3,
        block: 1,
        layer: Some(UP),
    };

    fn quantize(p: &Problem, settings: &LayerSettings) -> (QuantizedMatrix, LayerReport) {
        layer_quantize(&p.weight, &p.hessian, settings, KEY, &mut |_| ()).unwrap()
    }

    fn refusal(weight: &Array2<f64>, hessian: &Array2<f64>, settings: &LayerSettings) -> AqlmError {
        layer_quantize(weight, hessian, settings, KEY, &mut |_| ()).unwrap_err()
    }

    proptest! {
        #![proptest_config(config(16))]
        #[test]
        fn the_report_tells_the_truth(seed: u64, em: bool, adam: bool, scheme in prop::sample::select(vec!["2x3g4", "1x4g4o2"])) {
            let p = problem(seed, scheme, 16, 4);
            let mut settings = settings(scheme);
            if em {
                settings.init = Initialization::Em { rounds: 3 };
            }
            if adam {
                settings.update = Update::Adam { lr: 1e-3, beta1: 0.0, beta2: 0.95, amsgrad: true, steps: 20 };
            }
            let mut events = Vec::new();
            let (matrix, report) =
                layer_quantize(&p.weight, &p.hessian, &settings, KEY, &mut |event| events.push(event)).unwrap();
            prop_assert_eq!(report.relative_error, relative_layer_error(&p.weight, &decode(&matrix), &p.hessian));
            prop_assert_eq!(events[0], LayerEvent::Initialized { loss: report.initial_error });
            prop_assert!(report.trace.is_sorted_by(|a, b| a >= b));
            prop_assert!(report.relative_error < report.initial_error);
            prop_assert_eq!(report.trace.last(), Some(&report.relative_error));
            // the same again, bit for bit
            prop_assert_eq!(quantize(&p, &settings), (matrix, report));
        }
    }

    #[test]
    fn threads_do_not_change_the_result() {
        // more than one block of rows in products and in the search
        let p = problem(8, "2x4g4", 150, 4);
        let mut settings = settings("2x4g4");
        settings.init = Initialization::Em { rounds: 2 };
        settings.max_rounds = 2;
        for beam in [1, 3] {
            settings.beam = beam;
            let [one, three] = [1, 3].map(|threads| {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .unwrap();
                pool.install(|| quantize(&p, &settings))
            });
            assert_eq!(one, three);
        }
    }

    #[test]
    fn zero_weights_and_zero_hessians_are_quantized_without_error() {
        let mut p = problem(4, "2x2g4", 8, 4);
        p.weight.row_mut(2).fill(0.0);
        assert!(quantize(&p, &settings("2x2g4")).1.relative_error.is_finite());
        p.weight.fill(0.0);
        let (matrix, report) = quantize(&p, &settings("2x2g4"));
        assert_eq!(report.relative_error, 0.0);
        assert!(decode(&matrix).iter().all(|&x| x == 0.0));
        let mut p = problem(4, "2x2g4", 8, 4);
        p.hessian.fill(0.0);
        let (matrix, report) = quantize(&p, &settings("2x2g4"));
        assert_eq!((report.relative_error, report.dead_inputs), (0.0, 16));
        assert!(decode(&matrix).iter().all(|x| x.is_finite()));
    }

    #[test]
    fn dead_inputs_are_counted_and_harmless() {
        let mut p = problem(4, "2x2g4", 8, 4);
        for i in 3..9 {
            p.hessian.row_mut(i).fill(0.0);
            p.hessian.column_mut(i).fill(0.0);
        }
        for damping in [0.0, 1e-2] {
            let settings = LayerSettings {
                damping,
                init: Initialization::Em { rounds: 2 },
                ..settings("2x2g4")
            };
            let (_, report) = quantize(&p, &settings);
            assert_eq!(report.dead_inputs, 6);
            assert!(report.relative_error < report.initial_error);
        }
    }

    #[test]
    fn what_cannot_be_quantized_is_refused() {
        let p = problem(1, "2x3g4", 8, 4);
        let good = settings("2x3g4");
        let error = refusal(&gaussian(1, 8, 18), &p.hessian, &good);
        assert!(matches!(
            error,
            AqlmError::NotDivisible {
                features: 18,
                group: 4,
                ..
            }
        ));
        assert!(matches!(
            refusal(&p.weight, &gaussian(1, 16, 8), &good),
            AqlmError::Shape { .. }
        ));
        let mut bad = p.weight.clone();
        bad[[3, 5]] = f64::NAN;
        let error = refusal(&bad, &p.hessian, &good);
        assert!(
            matches!(error, AqlmError::NotFinite { what, index, .. } if what == "weight" && index == [3, 5])
        );
        let mut bad = p.hessian.clone();
        bad[[0, 1]] = f64::INFINITY;
        assert!(matches!(
            refusal(&p.weight, &bad, &good),
            AqlmError::NotFinite { .. }
        ));
        bad[[0, 1]] = 0.0;
        bad[[2, 2]] = -1.0;
        let error = refusal(&p.weight, &bad, &good);
        assert!(matches!(error, AqlmError::NotPositiveDefinite { pivot: 2, .. }));
        for settings in [
            LayerSettings {
                beam: 0,
                ..good.clone()
            },
            LayerSettings {
                damping: -1.0,
                ..good.clone()
            },
            LayerSettings {
                damping: f64::NAN,
                ..good.clone()
            },
        ] {
            assert!(matches!(
                refusal(&p.weight, &p.hessian, &settings),
                AqlmError::Argument { .. }
            ));
        }
    }

    #[test]
    fn more_codewords_than_groups_need_permission() {
        let p = problem(1, "1x6g4", 8, 4);
        let mut settings = settings("1x6g4");
        assert_eq!(
            refusal(&p.weight, &p.hessian, &settings),
            AqlmError::Degenerate {
                scheme: "1x6g4".into(),
                codebook_size: 64,
                groups: 32
            }
        );
        settings.allow_degenerate = true;
        assert!(quantize(&p, &settings).1.relative_error < 1e-12);
    }

    #[test]
    fn it_is_done_when_a_round_gains_too_little() {
        let p = problem(12, "1x3g4", 24, 8);
        let trace = |weight: &Array2<f64>, relative_tolerance| {
            let settings = LayerSettings {
                relative_tolerance,
                ..settings("1x3g4")
            };
            let (_, report) = layer_quantize(weight, &p.hessian, &settings, KEY, &mut |_| ()).unwrap();
            (report.initial_error, report.trace)
        };
        let (first, all) = trace(&p.weight, 0.0);
        assert!(all.len() > 2, "{all:?}");
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
        assert_eq!(trace(&Array2::zeros(p.weight.dim()), 0.0), (0.0, vec![0.0]));
    }

    #[test]
    fn as_many_groups_as_codewords_are_enough() {
        for (rows, enough) in [(2, true), (1, false)] {
            let p = problem(4, "1x3g4", rows, 4);
            let outcome = layer_quantize(&p.weight, &p.hessian, &settings("1x3g4"), KEY, &mut |_| ());
            assert_eq!(outcome.is_ok(), enough);
        }
    }
}
