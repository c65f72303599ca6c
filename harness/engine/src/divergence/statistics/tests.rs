use aqlm_vocabulary::{Purpose, stream};
use ndarray::{Array1, Array2};
use rand::RngExt;

use super::*;
use crate::divergence::log_softmax;
use crate::position::compare;

/// Log-probabilities of `rows` random distributions over `vocab` tokens.
fn random(seed: u64, rows: usize, vocab: usize, spread: f64) -> Array2<f64> {
    let mut rng = stream(seed, 0, None, Purpose::TestData);
    let mut logits = Array2::from_shape_simple_fn((rows, vocab), || spread * rng.random_range(-1.0..1.0));
    log_softmax(&mut logits);
    logits
}

fn compared(dense: &Array2<f64>, model: &Array2<f64>) -> Vec<ComparedPosition> {
    let rows = dense.outer_iter().zip(model.outer_iter()).enumerate();
    rows.map(|(row, (dense, model))| compare(&dense, &model, (row % dense.len()) as u32, None))
        .collect()
}

/// Relative error of a sum of this many terms, each rounded twice.
fn near(a: f64, b: f64, terms: usize) -> bool {
    (a - b).abs() <= 4.0 * terms as f64 * f64::EPSILON * b.abs().max(1.0)
}

#[test]
fn statistics_are_their_definitions() {
    const ROWS: usize = 101;
    const VOCAB: usize = 30;
    let (dense, model) = (random(1, ROWS, VOCAB, 4.0), random(2, ROWS, VOCAB, 4.0));
    let found = statistics(&compared(&dense, &model));
    let n = ROWS as f64;
    let p = dense.mapv(f64::exp);
    let kl: Vec<f64> = (0..ROWS)
        .map(|i| {
            (0..VOCAB)
                .map(|j| p[[i, j]] * (p[[i, j]] / model[[i, j]].exp()).ln())
                .sum()
        })
        .collect();
    let token = |i: usize| i % VOCAB;
    let losses: Array1<f64> = (0..ROWS).map(|i| -model[[i, token(i)]]).collect();
    let dense_losses: Array1<f64> = (0..ROWS).map(|i| -dense[[i, token(i)]]).collect();
    let delta: Array1<f64> = losses.mapv(|loss| (-loss).exp()) - dense_losses.mapv(|loss| (-loss).exp());
    let same = |a: f64, b: f64| assert!(near(a, b, ROWS * VOCAB), "{a} {b}");

    assert_eq!((found.positions, found.not_finite), (ROWS, 0));
    let mean_kl = kl.iter().sum::<f64>() / n;
    let variance = kl.iter().map(|x| x * x).sum::<f64>() / n - mean_kl * mean_kl;
    same(found.kl.value, mean_kl);
    same(found.kl.error, (variance / (n - 1.0)).sqrt());
    same(found.perplexity.value, (losses.sum() / n).exp());
    same(found.dense_perplexity.value, (dense_losses.sum() / n).exp());
    same(found.delta_p.value, delta.sum() / n);
    same(found.delta_p_rms.value, (delta.mapv(|d| d * d).sum() / n).sqrt());

    // llama.cpp's form of the paired error, from variances and the covariance of means
    let mean = |x: &Array1<f64>| x.sum() / n;
    let covariance = |x: &Array1<f64>, y: &Array1<f64>| ((x * y).sum() / n - mean(x) * mean(y)) / (n - 1.0);
    let (own, other) = (
        covariance(&losses, &losses),
        covariance(&dense_losses, &dense_losses),
    );
    let both = covariance(&losses, &dense_losses);
    same(found.ln_ratio.value, mean(&losses) - mean(&dense_losses));
    same(found.ln_ratio.error, (own + other - 2.0 * both).sqrt());
    same(found.loss_correlation, both / (own * other).sqrt());
    same(found.perplexity.error, found.perplexity.value * own.sqrt());

    let mut sorted = kl.clone();
    sorted.sort_by(f64::total_cmp);
    same(found.kl_percentiles.median, sorted[50]);
    same(found.kl_percentiles.p95, sorted[95]);
    same(found.kl_percentiles.p99_9, 0.1 * sorted[99] + 0.9 * sorted[100]);
    assert_eq!(
        found.kl_percentiles.maximum,
        found.kl_percentiles.maximum.max(sorted[99])
    );

    let top = |row: usize, of: &Array2<f64>| {
        (0..VOCAB)
            .max_by(|&a, &b| of[[row, a]].total_cmp(&of[[row, b]]))
            .unwrap()
    };
    let agree = (0..ROWS)
        .filter(|&row| top(row, &dense) == top(row, &model))
        .count();
    let share = agree as f64 / n;
    same(found.same_top.value, share);
    same(found.same_top.error, (share * (1.0 - share) / (n - 1.0)).sqrt());

    assert_eq!(
        found.buckets.iter().map(|bucket| bucket.positions).sum::<usize>(),
        ROWS
    );
    for bucket in &found.buckets {
        let inside = |&row: &usize| (bucket.from..bucket.to).contains(&p[[row, top(row, &dense)]]);
        let rows: Vec<usize> = (0..ROWS).filter(inside).collect();
        assert_eq!(rows.len(), bucket.positions);
        if !rows.is_empty() {
            same(
                bucket.kl.value,
                rows.iter().map(|&row| kl[row]).sum::<f64>() / rows.len() as f64,
            );
        }
    }
}

#[test]
fn a_model_does_not_diverge_from_itself_and_otherwise_never_below_zero() {
    for seed in 0..20 {
        let spread = f64::from(1 + (seed as u32) % 5) * 3.0;
        let (dense, model) = (random(seed, 9, 40, spread), random(seed + 100, 9, 40, spread));
        let itself = statistics(&compared(&dense, &dense));
        assert_eq!((itself.kl.value, itself.kl_percentiles.maximum), (0.0, 0.0));
        assert_eq!((itself.ln_ratio.value, itself.ln_ratio.error), (0.0, 0.0));
        assert_eq!((itself.same_top.value, itself.delta_p_rms.value), (1.0, 0.0));
        let other = compared(&dense, &model);
        assert!(other.iter().all(|position| position.kl > 0.0));
        // nearly equal distributions: rounding of 40 terms may go below zero, and no further
        let nearly = dense.mapv(|p| p + 1e-12);
        assert!(
            compared(&dense, &nearly)
                .iter()
                .all(|position| position.kl >= -1e-12 - 40.0 * f64::EPSILON)
        );
    }
}

#[test]
fn neither_a_shift_of_logits_nor_the_order_of_tokens_changes_anything() {
    let (dense, model) = (random(5, 6, 25, 5.0), random(6, 6, 25, 5.0));
    let expected = compared(&dense, &model);
    let mut shifted = model.mapv(|logit| logit + 1000.0);
    log_softmax(&mut shifted);
    for (shifted, expected) in compared(&dense, &shifted).iter().zip(&expected) {
        // logits near 1000 carry a rounding of 1000 epsilon
        assert!((shifted.kl - expected.kl).abs() <= 4000.0 * f64::EPSILON);
        assert_eq!(shifted.same_top, expected.same_top);
    }
    let reversed = |rows: &Array2<f64>| rows.slice(ndarray::s![.., ..;-1]).to_owned();
    let (dense, model) = (reversed(&dense), reversed(&model));
    for (row, expected) in expected.iter().enumerate() {
        let token = 24 - row as u32;
        let found = compare(&dense.row(row), &model.row(row), token, None);
        assert!(near(found.kl, expected.kl, 25));
        assert_eq!(
            (found.loss, found.dense_loss),
            (expected.loss, expected.dense_loss)
        );
        assert_eq!(
            (found.dense_top, found.same_top),
            (expected.dense_top, expected.same_top)
        );
    }
}

#[test]
fn positions_that_are_not_finite_are_counted_and_enter_nothing_else() {
    let (dense, mut model) = (random(7, 5, 8, 2.0), random(8, 5, 8, 2.0));
    let expected = statistics(&compared(&dense, &model)[2..]);
    model[[0, 3]] = f64::NAN;
    model[[1, 4]] = f64::NEG_INFINITY;
    let mut found = statistics(&compared(&dense, &model));
    assert_eq!((found.positions, found.not_finite), (3, 2));
    found.not_finite = 0;
    assert_eq!(found.kl, expected.kl);
    assert_eq!(found.kl_percentiles, expected.kl_percentiles);
    assert_eq!(found.ln_ratio, expected.ln_ratio);
    model.fill(f64::NAN);
    let none = statistics(&compared(&dense, &model));
    assert_eq!((none.positions, none.not_finite), (0, 5));
    assert!(none.kl.value.is_nan() && none.kl_percentiles.median.is_nan() && none.perplexity.value.is_nan());
}

#[test]
fn tokens_below_the_floor_do_not_count() {
    let mut dense = Array2::from_shape_vec((1, 3), vec![0.0, -15.0, -17.0]).unwrap();
    let model = Array2::from_elem((1, 3), -(3f64.ln()));
    let without = compare(&dense.row(0), &model.row(0), 0, Some(-16.0)).kl;
    dense[[0, 2]] = f64::NEG_INFINITY;
    assert_eq!(compare(&dense.row(0), &model.row(0), 0, None).kl, without);
}
