use std::f64::consts::TAU;

use ndarray::{Array1, Array2};

use aqlm_vocabulary::{AqlmError, AttentionSpec, Result, Rope, RopeScaling};

/// Rotary position embedding (Su et al. 2021), in the rotate-half convention of Hugging Face checkpoints:
/// element i of a head is paired with element i + head_dim/2.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// [positions, head_dim], both halves equal
    cos: Array2<f64>,
    /// [positions, head_dim], both halves equal
    sin: Array2<f64>,
}

impl Rotary {
    /// The tables for positions 0 to `positions` (exclusive), with the model's frequencies. Without a rotary
    /// embedding, the tables rotate nothing.
    ///
    /// Frequencies and angles are rounded to f32: models were trained that way, and all other implementations
    /// evaluate them that way. This is the only place where the reference is less exact than f64. Exact
    /// angles differ by 6e-5 at position 1,000, which changes token losses by more than 1e-4.
    pub fn new(spec: &AttentionSpec, positions: usize) -> Self {
        let frequencies = spec.rotary.as_ref().map_or_else(
            || Array1::zeros(spec.head_dim / 2),
            |rope| frequencies(rope, spec.head_dim),
        );
        let half = frequencies.len().max(1);
        let angle = |(position, i): (usize, usize)| f64::from(position as f32 * frequencies[i % half] as f32);
        let angles = Array2::from_shape_fn((positions, spec.head_dim), angle);
        Self {
            cos: angles.mapv(f64::cos),
            sin: angles.mapv(f64::sin),
        }
    }

    /// Tables computed elsewhere, both [positions, head_dim].
    ///
    /// # Errors
    /// `Shape` when the two differ in shape, or when head_dim is odd.
    pub fn from_tables(cos: Array2<f64>, sin: Array2<f64>) -> Result<Self> {
        let (positions, head_dim) = cos.dim();
        let expected = vec![positions, head_dim / 2 * 2];
        for (what, table) in [("rotary cosines", &cos), ("rotary sines", &sin)] {
            if table.shape() != expected {
                return Err(AqlmError::Shape {
                    what: what.into(),
                    expected,
                    found: table.shape().to_vec(),
                });
            }
        }
        Ok(Self { cos, sin })
    }

    /// Number of positions in the tables.
    pub fn positions(&self) -> usize {
        self.cos.nrows()
    }

    /// Rotates every head of every row in place: row t of x, [tokens, heads x head_dim], is at position
    /// `first` + t.
    ///
    /// y1 = x1 cos - x2 sin, y2 = x2 cos + x1 sin for the two halves of a head.
    ///
    /// # Panics
    /// When the tables end before the last row's position.
    pub fn rotate(&self, x: &mut Array2<f64>, first: usize) {
        self.apply(x, first, |x1, x2, [c1, c2, s1, s2]| {
            (x1 * c1 - x2 * s1, x2 * c2 + x1 * s2)
        });
    }

    /// The transpose of [`Rotary::rotate`], in place: converts the gradient of its result to that of its
    /// input.
    ///
    /// # Panics
    /// When the tables end before the last row's position.
    pub fn rotate_backward(&self, grad: &mut Array2<f64>, first: usize) {
        self.apply(grad, first, |g1, g2, [c1, c2, s1, s2]| {
            (g1 * c1 + g2 * s2, g2 * c2 - g1 * s1)
        });
    }

    /// Replaces each pair of each head by a function of the pair and [cos1, cos2, sin1, sin2].
    fn apply(&self, x: &mut Array2<f64>, first: usize, pair: impl Fn(f64, f64, [f64; 4]) -> (f64, f64)) {
        let head_dim = self.cos.ncols();
        let half = head_dim / 2;
        for (t, mut row) in x.rows_mut().into_iter().enumerate() {
            let (cos, sin) = (self.cos.row(first + t), self.sin.row(first + t));
            for mut head in row.exact_chunks_mut(head_dim) {
                for i in 0..half {
                    let j = i + half;
                    (head[i], head[j]) = pair(head[i], head[j], [cos[i], cos[j], sin[i], sin[j]]);
                }
            }
        }
    }
}

/// Radians per position, one for each pair of a head: theta^(-2i/head_dim), then the model's scaling.
fn frequencies(rope: &Rope, head_dim: usize) -> Array1<f64> {
    let plain = |i: usize| rope.theta.powf(-2.0 * i as f64 / head_dim as f64);
    Array1::from_shape_fn(head_dim / 2, |i| scaled(plain(i), &rope.scaling))
}

/// A frequency after the modification for long contexts.
///
/// Llama 3.1's scaling uses r = original context / wavelength. Frequencies with r above `high_freq_factor`
/// are kept, those with r below `low_freq_factor` are divided by `factor`. Between the two, the result is a
/// blend linear in r.
fn scaled(frequency: f64, scaling: &RopeScaling) -> f64 {
    match *scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let turns = original_max_position_embeddings as f64 * frequency / TAU;
            if turns > high_freq_factor {
                frequency
            } else if turns < low_freq_factor {
                frequency / factor
            } else {
                let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                kept * frequency + (1.0 - kept) * frequency / factor
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::finite_difference::assert_gradient;
    use crate::llama::test_data::{config, inner, normal, random};

    const LLAMA3: RopeScaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };

    /// The frequency with this many turns over the original context of [`LLAMA3`].
    fn turning(times: f64) -> f64 {
        times * TAU / 8192.0
    }

    #[test]
    fn plain_angles_are_position_times_frequency() {
        let rotary = Rotary::new(&config(4, None).attention, 6);
        // head_dim 4 and theta 100: frequencies 1 and 100^(-1/2) = 0.1; angles up to 5, each rounded twice to
        // f32
        let near = |a: f64, b: f64| (a - b).abs() <= 5.0 * f64::from(f32::EPSILON);
        for position in 0..6 {
            let angle = position as f64;
            for (i, angle) in [angle, 0.1 * angle, angle, 0.1 * angle].into_iter().enumerate() {
                assert!(near(rotary.cos[[position, i]], angle.cos()), "{position} {i}");
                assert!(near(rotary.sin[[position, i]], angle.sin()), "{position} {i}");
            }
        }
    }

    #[test]
    fn scores_depend_on_the_distance_alone() {
        let rotary = Rotary::new(&config(4, None).attention, 32);
        let mut rng = random(1);
        let (q, k) = (normal(&mut rng, (1, 4)), normal(&mut rng, (1, 4)));
        let score = |at_q: usize, at_k: usize| {
            let (mut q, mut k) = (q.clone(), k.clone());
            rotary.rotate(&mut q, at_q);
            rotary.rotate(&mut k, at_k);
            inner(&q, &k)
        };
        // four angles of up to 32, each rounded twice to f32 with half an epsilon's relative error
        let limit = 128.0 * f64::from(f32::EPSILON) * inner(&q, &q).sqrt() * inner(&k, &k).sqrt();
        assert!((score(7, 3) - score(29, 25)).abs() <= limit);
        assert!((score(7, 3) - score(7, 4)).abs() > 1e3 * limit);
    }

    #[test]
    fn linear_scaling_divides_every_frequency() {
        for frequency in [1.0, 0.01] {
            assert_eq!(
                scaled(frequency, &RopeScaling::Linear { factor: 4.0 }),
                frequency / 4.0
            );
        }
    }

    #[test]
    fn llama3_keeps_short_wavelengths_and_divides_long_ones() {
        for times in [4.1, 10.0, 1000.0] {
            assert_eq!(scaled(turning(times), &LLAMA3), turning(times));
        }
        for times in [0.9, 0.1, 0.001] {
            assert_eq!(scaled(turning(times), &LLAMA3), turning(times) / 8.0);
        }
    }

    #[test]
    fn llama3_blends_continuously_and_rises_throughout() {
        for edge in [1.0, 4.0] {
            let step = 1e-9;
            let (below, above) = (
                scaled(turning(edge - step), &LLAMA3),
                scaled(turning(edge + step), &LLAMA3),
            );
            // the blend's slope is below 3 in units of the frequency, so the values differ by at most 3 times
            // the step
            assert!(
                (above - below).abs() <= 3.0 * turning(2.0 * step),
                "edge {edge}: {below:e} {above:e}"
            );
        }
        // in the middle between the two factors, in turns: half of each
        let half = scaled(turning(2.5), &LLAMA3) / turning(2.5);
        assert!((half - f64::midpoint(1.0, 1.0 / 8.0)).abs() <= 8.0 * f64::EPSILON);
        let frequencies: Vec<f64> = (1..600)
            .map(|i| scaled(turning(f64::from(i) / 100.0), &LLAMA3))
            .collect();
        assert!(frequencies.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn gradient_matches_finite_differences() {
        let mut rng = random(3);
        // tables with different halves, which no model has, distinguish the transpose from the inverse
        let tables = Rotary::from_tables(normal(&mut rng, (5, 4)), normal(&mut rng, (5, 4))).unwrap();
        let (x, direction) = (normal(&mut rng, (3, 8)), normal(&mut rng, (3, 8)));
        let mut grad = direction.clone();
        tables.rotate_backward(&mut grad, 2);
        assert_gradient("x", &grad, &x, 24, |x| {
            let mut y = x.clone();
            tables.rotate(&mut y, 2);
            inner(&y, &direction)
        });
    }

    #[test]
    fn tables_that_differ_are_refused() {
        let refused = Rotary::from_tables(Array2::zeros((3, 4)), Array2::zeros((3, 6)));
        assert!(matches!(refused, Err(AqlmError::Shape { what, .. }) if what == "rotary sines"));
        let refused = Rotary::from_tables(Array2::zeros((3, 5)), Array2::zeros((3, 5)));
        assert!(matches!(refused, Err(AqlmError::Shape { what, .. }) if what == "rotary cosines"));
    }
}
