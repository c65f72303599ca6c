use aqlm_vocabulary::ComparedPosition;

use crate::position::{delta_p, is_finite};
use crate::runs::records::{Bucket, DivergenceStatistics, Estimate, Percentiles};

/// Borders of the buckets.
const BORDERS: [f64; 8] = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0];

/// The statistics over all positions.
pub fn statistics(positions: &[ComparedPosition]) -> DivergenceStatistics {
    let finite: Vec<&ComparedPosition> = positions.iter().filter(|position| is_finite(position)).collect();
    let of = |number: fn(&ComparedPosition) -> f64| -> Vec<f64> {
        finite.iter().map(|position| number(position)).collect()
    };
    let kl = of(|position| position.kl);
    let delta_p = of(delta_p);
    let losses = of(|position| position.loss);
    let dense_losses = of(|position| position.dense_loss);
    let square = mean(delta_p.iter().map(|difference| difference * difference));
    let rms = square.value.sqrt();
    let perplexity = |losses: &[f64]| {
        let loss = mean(losses.iter().copied());
        // d exp(x) = exp(x) dx
        Estimate {
            value: loss.value.exp(),
            error: loss.value.exp() * loss.error,
        }
    };
    DivergenceStatistics {
        positions: finite.len(),
        not_finite: positions.len() - finite.len(),
        kl: mean(kl.iter().copied()),
        kl_percentiles: percentiles(kl),
        same_top: same_top(&finite),
        delta_p: mean(delta_p.iter().copied()),
        delta_p_percentiles: percentiles(delta_p),
        // d sqrt(x) = dx / (2 sqrt(x))
        delta_p_rms: Estimate {
            value: rms,
            error: if rms > 0.0 {
                0.5 / rms * square.error
            } else {
                square.error
            },
        },
        perplexity: perplexity(&losses),
        dense_perplexity: perplexity(&dense_losses),
        // The variance of the difference is the sum of both variances less twice the covariance.
        ln_ratio: mean(losses.iter().zip(&dense_losses).map(|(loss, dense)| loss - dense)),
        loss_correlation: correlation(&losses, &dense_losses),
        buckets: buckets(&finite),
    }
}

/// The mean, and its standard error: the root of (mean square deviation) / (n - 1).
fn mean(values: impl Iterator<Item = f64> + Clone) -> Estimate {
    let count = values.clone().count() as f64;
    let value = values.clone().sum::<f64>() / count;
    let squares: f64 = values.map(|number| (number - value) * (number - value)).sum();
    Estimate {
        value,
        error: if count < 2.0 {
            f64::NAN
        } else {
            (squares / count / (count - 1.0)).sqrt()
        },
    }
}

/// The share of positions with the same top token, and its binomial error.
fn same_top(positions: &[&ComparedPosition]) -> Estimate {
    mean(
        positions
            .iter()
            .map(|position| f64::from(u8::from(position.same_top))),
    )
}

fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let (mean_a, mean_b) = (mean(a.iter().copied()).value, mean(b.iter().copied()).value);
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (a - mean_a, b - mean_b);
        ab += a * b;
        aa += a * a;
        bb += b * b;
    }
    ab / (aa * bb).sqrt()
}

fn percentiles(mut values: Vec<f64>) -> Percentiles {
    values.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| quantile(&values, share);
    Percentiles {
        maximum: at(1.0),
        p99_9: at(0.999),
        p99: at(0.99),
        p95: at(0.95),
        p90: at(0.9),
        p75: at(0.75),
        median: at(0.5),
        p25: at(0.25),
        p10: at(0.1),
        p5: at(0.05),
        p1: at(0.01),
        p0_1: at(0.001),
        minimum: at(0.0),
    }
}

/// The value at `share` of the way from the first to the last of sorted values, interpolated linearly.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let place = share * last as f64;
    let below = (place as usize).min(last);
    let rest = place - below as f64;
    let above = (below + 1).min(last);
    sorted[below] + rest * (sorted[above] - sorted[below])
}

fn buckets(positions: &[&ComparedPosition]) -> Vec<Bucket> {
    BORDERS
        .windows(2)
        .map(|borders| {
            let (from, to) = (borders[0], borders[1]);
            // A probability from a file of 16 bits may exceed 1 by rounding.
            let belongs = |top: f64| top >= from && (top < to || to == 1.0);
            let inside: Vec<&ComparedPosition> = positions
                .iter()
                .copied()
                .filter(|position| belongs(position.dense_top))
                .collect();
            Bucket {
                from,
                to,
                positions: inside.len(),
                kl: mean(inside.iter().map(|position| position.kl)),
                same_top: same_top(&inside),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests;
