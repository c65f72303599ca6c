use aqlm_optimized::cpu::quantizer;
use aqlm_optimized::cuda::quantizer as on_gpu;
use aqlm_reference::{self as reference, KMeansSettings};
use aqlm_vocabulary::{AqlmError, Purpose, stream};
use ndarray::{Array2, Axis};
use proptest::strategy::BoxedStrategy;

use super::{CaseData, Cost, Op, nearest, of_quantizer};
use crate::breakage::Breakage;
use crate::cases::{Case, Kind, Problem, strategy};
use crate::compare::{Against, Findings};
use crate::keep::{Operands, Tensors};
use crate::limits::{Measure, Number};
use crate::subject::Subject;
use crate::{Comparison, largest};
use aqlm_formats::Result;

/// Maximum number of Lloyd iterations.
const ITERATIONS: usize = 25;

/// Lloyd's iterations from given centroids.
pub(crate) struct Kmeans;

/// Points and starting centroids.
#[derive(Debug, Clone)]
pub(crate) struct Points {
    points: Array2<f32>,
    start: Array2<f32>,
}

impl Operands for Points {
    fn add_to(&self, tensors: &mut Tensors) {
        tensors.array("points", &self.points);
        tensors.array("start", &self.start);
    }
}

impl CaseData for Points {
    fn new(case: &Case) -> Result<Self> {
        let problem = case.samples()?;
        let points = problem.data(case.seed);
        let mut rng = stream(case.seed, 0, None, Purpose::Initialization);
        let start = reference::starting_points(points.mapv(f64::from).view(), problem.count, &mut rng);
        Ok(Self {
            points,
            start: start.mapv(|x| x as f32),
        })
    }

    fn cost(&self) -> Cost {
        let (rows, columns) = self.points.dim();
        Cost {
            bytes: self.points.len() * size_of::<f32>(),
            products: vec![[rows, columns, self.start.nrows()]],
        }
    }
}

/// Clusters of points.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Clusters {
    /// [k, coordinates]
    centroids: Array2<f64>,
    /// `[points]`
    assignments: Vec<usize>,
    /// mean squared distance
    inertia: f64,
}

impl Op for Kmeans {
    type Data = Points;
    /// after no iteration, after one, at the end
    type Answer = [Clusters; 3];
    type Expected = Clusters;

    const KIND: Kind = Kind::Samples;
    const CORNERS: &'static [&'static str] = &[
        "400x8-k16-outliers-s1",
        // fewer points than clusters
        "5x8-k32-outliers-s2",
        "300x3-k10-dyadic-s3",
        "200x8-k16-repeated-s4",
        "50x4-k4-equalrows-s5",
        "1x1-k1-dyadic-s6",
    ];

    fn strategy() -> BoxedStrategy<Problem> {
        strategy::samples(400, 16, 32)
    }

    fn number(subject: &Subject) -> Number {
        of_quantizer(subject)
    }

    fn run(subject: &Subject, data: &Points) -> Result<[Clusters; 3]> {
        Ok([
            clusters(subject, data, 0)?,
            clusters(subject, data, 1)?,
            clusters(subject, data, ITERATIONS)?,
        ])
    }

    /// Checks every step on the reference's path, and that the objective never rises.
    fn properties(check: Against, case: &Case) -> Result<Vec<Comparison>> {
        let data = Points::new(case)?;
        let found = Self::run(&Subject::Reference, &data)?;
        let mut comparisons = on_its_path(check, &data.points, &found)?;
        let inertias = (0..8)
            .map(|iterations| Ok(clusters(&Subject::Reference, &data, iterations)?.inertia))
            .collect::<Result<Vec<f64>>>()?;
        let rise = largest(
            inertias
                .windows(2)
                .map(|pair| (pair[1] - pair[0]) / (pair[0] + f64::MIN_POSITIVE)),
        );
        comparisons.push(check.value(Measure::Loss, "steps that rise", rise)?);
        Ok(comparisons)
    }

    fn expected(data: &Points) -> Result<Clusters> {
        clusters(&Subject::Reference, data, ITERATIONS)
    }

    fn compare(
        check: Against,
        _subject: &Subject,
        data: &Points,
        expected: &Clusters,
        answer: &[Clusters; 3],
    ) -> Result<Findings> {
        let points = &data.points;
        let size = points.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / points.nrows() as f64;
        let floor = check.floor(size)?;
        let excess = ((answer[2].inertia + floor) / (expected.inertia + floor)).ln();
        Ok(Findings {
            comparisons: on_its_path(check, points, answer)?,
            excess: Some(excess),
        })
    }

    /// The points, read once, and the distances of one iteration.
    fn breakages() -> Vec<Breakage<Points, [Clusters; 3]>> {
        vec![
            Breakage::of_answer("a last point that is never assigned", |found, data, _| {
                let last = data.points.nrows() - 1;
                for clusters in found {
                    clusters.assignments[last] = clusters.centroids.nrows();
                }
            }),
            Breakage::of_answer("an inertia that is twice as large", |found, _, _| {
                found[2].inertia *= 2.0;
            }),
        ]
    }
}

/// Runs `iterations` iterations on a machine.
fn clusters(subject: &Subject, data: &Points, iterations: usize) -> Result<Clusters> {
    let (points, start) = (&data.points, &data.start);
    match subject {
        Subject::Reference => {
            let settings = KMeansSettings::new(iterations);
            let points = points.mapv(f64::from);
            let found = reference::kmeans(points.view(), start.mapv(f64::from), &settings);
            Ok(Clusters {
                centroids: found.centroids,
                assignments: found.assignments,
                inertia: found.inertia,
            })
        }
        Subject::Cpu(_) => {
            let (flat, len): (Vec<f32>, usize) = (points.iter().copied().collect(), points.ncols());
            let start_flat = start.iter().copied().collect();
            narrow(start, quantizer::kmeans(&flat, len, start_flat, iterations))
        }
        Subject::Cuda(cuda) => {
            let (flat, len): (Vec<f32>, usize) = (points.iter().copied().collect(), points.ncols());
            let start_flat: Vec<f32> = start.iter().copied().collect();
            let found = on_gpu::kmeans(&cuda.device, &flat, len, &start_flat, iterations);
            narrow(start, found.map_err(AqlmError::from)?)
        }
    }
}

/// Clusters of an optimized machine, with as many centroids as `start`.
fn narrow(start: &Array2<f32>, found: quantizer::KMeans) -> Result<Clusters> {
    let count = found.centroids.len();
    let shaped = Array2::from_shape_vec(start.dim(), found.centroids);
    Ok(Clusters {
        centroids: shaped
            .map_err(|_| AqlmError::Shape {
                what: "centroids".into(),
                expected: start.shape().to_vec(),
                found: vec![count],
            })?
            .mapv(f64::from),
        assignments: found.assignments.iter().map(|&k| k as usize).collect(),
        inertia: found.inertia,
    })
}

/// How far the worst choice of a centroid is from the nearest one.
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

/// The mean squared distance to the chosen centroids.
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

/// The mean of every cluster of `assignments`; an empty cluster keeps its previous centroid.
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

/// Requirements on every implementation along its own path: the chosen centroids are nearest, the next
/// centroids are their means, and the inertia agrees with both and is never above the initial one.
fn on_its_path(check: Against, points: &Array2<f32>, steps: &[Clusters; 3]) -> Result<Vec<Comparison>> {
    let [start, one, end] = steps;
    let mut comparisons = Vec::new();
    for (what, found) in [
        ("at the start", start),
        ("after one step", one),
        ("at the end", end),
    ] {
        comparisons.push(check.value(Measure::Choice, what, worst_choice(points, found))?);
    }
    if comparisons.iter().any(|comparison| !comparison.holds()) {
        return Ok(comparisons);
    }
    comparisons.push(check.nmse("means of the first step", &one.centroids, &means(points, start))?);
    // With as many clusters as points the inertia is zero; then the points' own size replaces it.
    let floor = points.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / points.nrows() as f64;
    let squared = |a: f64, b: f64| ((a - b) / (b + Number::F32.epsilon() * floor)).powi(2);
    let reported = squared(end.inertia, inertia(points, end));
    comparisons.push(check.value(Measure::Nmse, "inertia as reported", reported)?);
    let rise = (end.inertia - start.inertia) / (start.inertia + floor);
    comparisons.push(check.value(Measure::Loss, "inertia above the start's", rise.max(0.0))?);
    Ok(comparisons)
}
