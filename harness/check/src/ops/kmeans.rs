use aqlm_reference::{self as reference, KMeansSettings};
use aqlm_vocabulary::{Purpose, stream};
use ndarray::{Array2, Axis};

use super::{Prepared, nearest};
use crate::cases::{Case, Operation};
use crate::compare::{Against, Findings, repeated};
use crate::limits::{Measure, Number};
use crate::subject::{Clusters, Subject};
use crate::{Comparison, largest};
use aqlm_formats::Result;

/// Lloyd iterations at most.
const ITERATIONS: usize = 25;

fn against(number: Number) -> Against {
    Against {
        operation: Operation::Kmeans,
        number,
    }
}

/// Points and starting centroids.
fn data(case: &Case) -> Result<(Array2<f32>, Array2<f32>)> {
    let problem = case.samples()?;
    let points = problem.data(case.seed);
    let mut rng = stream(case.seed, 0, None, Purpose::Initialization);
    let start = reference::starting_points(points.mapv(f64::from).view(), problem.count, &mut rng);
    Ok((points, start.mapv(|x| x as f32)))
}

fn run(points: &Array2<f32>, start: &Array2<f32>, iterations: usize) -> Clusters {
    let settings = KMeansSettings::new(iterations);
    let found = reference::kmeans(points.mapv(f64::from).view(), start.mapv(f64::from), &settings);
    Clusters {
        centroids: found.centroids,
        assignments: found.assignments,
        inertia: found.inertia,
    }
}

/// The worst choice of a nearest centroid.
fn worst_choice(points: &Array2<f32>, found: &Clusters) -> f64 {
    if found.assignments.len() != points.nrows() {
        return f64::NAN;
    }
    largest(
        points
            .outer_iter()
            .zip(&found.assignments)
            .map(|(point, &chosen)| {
                nearest::excess(point.mapv(f64::from).view(), found.centroids.view(), chosen)
            }),
    )
}

/// The mean squared distance to the centroids that were chosen.
fn inertia(points: &Array2<f32>, found: &Clusters) -> f64 {
    let distances = points
        .outer_iter()
        .zip(&found.assignments)
        .map(|(point, &chosen)| {
            let centroid = found.centroids.row(chosen);
            point
                .iter()
                .zip(centroid)
                .map(|(&p, c)| (f64::from(p) - c).powi(2))
                .sum::<f64>()
        });
    distances.sum::<f64>() / points.nrows() as f64
}

/// The mean of every cluster of `assignments`; where there is none, the centroid before.
fn means(points: &Array2<f32>, before: &Clusters) -> Array2<f64> {
    let mut sums = Array2::<f64>::zeros(before.centroids.dim());
    let mut counts = vec![0usize; before.centroids.nrows()];
    for (point, &chosen) in points.outer_iter().zip(&before.assignments) {
        let mut sum = sums.row_mut(chosen);
        sum += &point.mapv(f64::from);
        counts[chosen] += 1;
    }
    for (k, mut sum) in sums.axis_iter_mut(Axis(0)).enumerate() {
        if counts[k] == 0 {
            sum.assign(&before.centroids.row(k));
        } else {
            sum /= counts[k] as f64;
        }
    }
    sums
}

/// What every implementation must do on its own path: nearest centroids, their means one step later, the
/// inertia that follows, and never a higher one than at the start.
fn on_its_path(check: Against, points: &Array2<f32>, steps: &[Clusters; 3]) -> Result<Vec<Comparison>> {
    let [start, one, end] = steps;
    let choice = nearest::terms(points.ncols(), 1);
    let mut comparisons = Vec::new();
    for (what, found) in [
        ("at the start", start),
        ("after one step", one),
        ("at the end", end),
    ] {
        comparisons.push(check.value(Measure::Choice, choice, what, worst_choice(points, found))?);
    }
    if comparisons.iter().any(|comparison| !comparison.holds()) {
        return Ok(comparisons);
    }
    let terms = points.nrows() + 2;
    comparisons.push(check.nmse(
        terms,
        "means of the first step",
        &one.centroids,
        &means(points, start),
    )?);
    // An inertia of zero is what as many clusters as points come to; the points' own size stands for it then.
    let floor = points.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / points.nrows() as f64;
    let squared = |a: f64, b: f64| ((a - b) / (b + f64::from(f32::EPSILON) * floor)).powi(2);
    let reported = squared(end.inertia, inertia(points, end));
    comparisons.push(check.value(Measure::Nmse, terms, "inertia as reported", reported)?);
    let rise = (end.inertia - start.inertia) / (start.inertia + floor);
    comparisons.push(check.value(Measure::Loss, terms, "inertia above the start's", rise.max(0.0))?);
    Ok(comparisons)
}

/// Every step on the reference's path, and an objective that never rises.
pub(super) fn properties(case: &Case) -> Result<Vec<Comparison>> {
    let (points, start) = data(case)?;
    let check = against(Number::F64);
    let run = |iterations| run(&points, &start, iterations);
    let mut comparisons = on_its_path(check, &points, &[run(0), run(1), run(ITERATIONS)])?;
    let inertias: Vec<f64> = (0..8).map(|iterations| run(iterations).inertia).collect();
    let rise = largest(
        inertias
            .windows(2)
            .map(|pair| (pair[1] - pair[0]) / (pair[0] + f64::MIN_POSITIVE)),
    );
    comparisons.push(check.value(Measure::Loss, points.nrows() + 2, "steps that rise", rise)?);
    Ok(comparisons)
}

pub(super) fn prepare(case: &Case) -> Result<Prepared> {
    let (points, start) = data(case)?;
    let expected = run(&points, &start, ITERATIONS);
    let size = points.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / points.nrows() as f64;
    Ok(Box::new(move |subject: &dyn Subject| {
        let check = against(subject.number());
        let (end, same) = repeated(check, "clusters", || subject.kmeans(&points, &start, ITERATIONS))?;
        let first = subject.kmeans(&points, &start, 0)?;
        let one = subject.kmeans(&points, &start, 1)?;
        // below this, a difference is rounding
        let floor = (points.ncols() as f64 * check.number.epsilon()).powi(2) * size;
        let excess = ((end.inertia + floor) / (expected.inertia + floor)).ln();
        let mut comparisons = on_its_path(check, &points, &[first, one, end])?;
        comparisons.push(same);
        Ok(Findings {
            comparisons,
            excess: Some(excess),
        })
    }))
}
