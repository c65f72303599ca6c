use std::f64::consts::TAU;

use ndarray::{Array1, Array2};

use aqlm_vocabulary::{AqlmError, ArchSpec, AttentionSpec, Result, Rope, RopeScaling};

/// Rotary position embedding (Su et al. 2021). Element i of the rotated part of a head is paired with element
/// i + half of that part, as in most Hugging Face checkpoints; or, where the block says so, elements 2 i and
/// 2 i + 1 are a pair.
///
/// Holds the tables of every different rotation of a model's blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    positions: usize,
    tables: Vec<Tables>,
}

/// The tables of one rotation.
#[derive(Debug, Clone, PartialEq)]
struct Tables {
    /// the rotation and how many numbers of a head it rotates; `None` for tables computed elsewhere, which
    /// serve every block
    of: Option<(Rope, usize)>,
    /// [positions, rotated], both halves equal
    cos: Array2<f64>,
    /// [positions, rotated], both halves equal
    sin: Array2<f64>,
}

impl Tables {
    /// Frequencies and angles are rounded to f32: models were trained that way, and all other implementations
    /// evaluate them that way. This is the only place where the reference is less exact than f64. Exact
    /// angles differ by 6e-5 at position 1,000, which changes token losses by more than 1e-4.
    fn new(rope: &Rope, rotated: usize, positions: usize) -> Self {
        let frequencies = frequencies(rope, rotated, positions);
        let scale = length(rope);
        let half = frequencies.len().max(1);
        let angle = |(position, i): (usize, usize)| f64::from(position as f32 * frequencies[i % half] as f32);
        let angles = Array2::from_shape_fn((positions, rotated), angle);
        Self {
            of: Some((rope.clone(), rotated)),
            cos: angles.mapv(|angle| scale * angle.cos()),
            sin: angles.mapv(|angle| scale * angle.sin()),
        }
    }
}

impl Rotary {
    /// The tables of all of a model's blocks for positions 0 to `positions` (exclusive). With dynamic scaling
    /// and LongRoPE, `positions` is the length of the sequence.
    pub fn of_model(arch: &ArchSpec, positions: usize) -> Self {
        let mut all = Self {
            positions,
            tables: Vec::new(),
        };
        for block in &arch.blocks {
            all.add(&block.attention);
        }
        all
    }

    /// The tables of one block.
    pub fn new(spec: &AttentionSpec, positions: usize) -> Self {
        let mut one = Self {
            positions,
            tables: Vec::new(),
        };
        one.add(spec);
        one
    }

    /// Adds the tables of a block's rotation, if it has one and they are not there yet.
    fn add(&mut self, spec: &AttentionSpec) {
        if let Some(rope) = &spec.rotary
            && self.find(rope, spec.rotated).is_none()
        {
            self.tables.push(Tables::new(rope, spec.rotated, self.positions));
        }
    }

    fn find(&self, rope: &Rope, rotated: usize) -> Option<&Tables> {
        self.tables.iter().find(|tables| match &tables.of {
            Some((other, width)) => other == rope && *width == rotated,
            None => tables.cos.ncols() == rotated,
        })
    }

    /// Tables computed elsewhere, both [positions, rotated]; they serve every block.
    ///
    /// # Errors
    /// `Shape` when the two differ in shape, or when the number of columns is odd.
    pub fn from_tables(cos: Array2<f64>, sin: Array2<f64>) -> Result<Self> {
        let (positions, rotated) = cos.dim();
        let expected = vec![positions, rotated / 2 * 2];
        for (what, table) in [("rotary cosines", &cos), ("rotary sines", &sin)] {
            if table.shape() != expected {
                return Err(AqlmError::Shape {
                    what: what.into(),
                    expected,
                    found: table.shape().to_vec(),
                });
            }
        }
        Ok(Self {
            positions,
            tables: vec![Tables { of: None, cos, sin }],
        })
    }

    /// Number of positions in the tables.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Rotates every head of every row in place, as the block says: row t of x, [tokens, heads x head_dim],
    /// is at position `first` + t. Does nothing for a block without rotary embedding.
    ///
    /// y1 = x1 cos - x2 sin, y2 = x2 cos + x1 sin for the two numbers of a pair.
    ///
    /// # Panics
    /// When there are no tables of the block's rotation, or they end before the last row's position.
    pub fn rotate(&self, spec: &AttentionSpec, x: &mut Array2<f64>, first: usize) {
        self.apply(spec, x, first, |x1, x2, [c1, c2, s1, s2]| {
            (x1 * c1 - x2 * s1, x2 * c2 + x1 * s2)
        });
    }

    /// The transpose of [`Rotary::rotate`], in place: converts the gradient of its result to that of its
    /// input.
    ///
    /// # Panics
    /// As [`Rotary::rotate`].
    pub fn rotate_backward(&self, spec: &AttentionSpec, grad: &mut Array2<f64>, first: usize) {
        self.apply(spec, grad, first, |g1, g2, [c1, c2, s1, s2]| {
            (g1 * c1 + g2 * s2, g2 * c2 - g1 * s1)
        });
    }

    /// Replaces each pair of each head by a function of the pair and [cos1, cos2, sin1, sin2].
    fn apply(
        &self,
        spec: &AttentionSpec,
        x: &mut Array2<f64>,
        first: usize,
        pair: impl Fn(f64, f64, [f64; 4]) -> (f64, f64),
    ) {
        let Some(rope) = &spec.rotary else {
            return;
        };
        let tables = self
            .find(rope, spec.rotated)
            .expect("tables of the block's rotation");
        let half = spec.rotated / 2;
        for (t, mut row) in x.rows_mut().into_iter().enumerate() {
            let (cos, sin) = (tables.cos.row(first + t), tables.sin.row(first + t));
            for mut head in row.exact_chunks_mut(spec.head_dim) {
                for i in 0..half {
                    let j = i + half;
                    let (a, b) = if spec.neighbours {
                        (2 * i, 2 * i + 1)
                    } else {
                        (i, j)
                    };
                    (head[a], head[b]) = pair(head[a], head[b], [cos[i], cos[j], sin[i], sin[j]]);
                }
            }
        }
    }
}

/// Radians per position, one for each pair of the rotated `head_dim` numbers of a head: theta^(-2i/head_dim),
/// then the model's scaling.
fn frequencies(rope: &Rope, head_dim: usize, positions: usize) -> Array1<f64> {
    let theta = match rope.scaling {
        RopeScaling::Dynamic {
            factor,
            max_position_embeddings,
        } => rope.theta * theta_growth(factor, max_position_embeddings, positions, head_dim),
        _ => rope.theta,
    };
    let plain = |i: usize| theta.powf(-2.0 * i as f64 / head_dim as f64);
    Array1::from_shape_fn(head_dim / 2, |i| match &rope.scaling {
        RopeScaling::Yarn { .. } => plain(i) * yarn_share(rope, i, head_dim),
        RopeScaling::Long {
            short,
            long,
            original_max_position_embeddings,
            ..
        } => {
            let beyond = positions > *original_max_position_embeddings;
            plain(i) / if beyond { long[i] } else { short[i] }
        }
        scaling => scaled(plain(i), scaling),
    })
}

/// Length of the vector (cos, sin) in the tables: 1 except with YaRN and LongRoPE.
fn length(rope: &Rope) -> f64 {
    match rope.scaling {
        RopeScaling::Yarn { attention_factor, .. } | RopeScaling::Long { attention_factor, .. } => {
            attention_factor
        }
        _ => 1.0,
    }
}

/// Dynamic NTK's factor of theta. It is 1 up to the model's context.
fn theta_growth(factor: f64, context: usize, positions: usize, head_dim: usize) -> f64 {
    let stretch = positions.max(context) as f64 / context as f64;
    let dim = head_dim as f64;
    (factor * stretch - (factor - 1.0)).powf(dim / (dim - 2.0))
}

/// YaRN's factor of pair i's frequency (Peng et al. 2023, section 3.2): 1 up to the pair that makes
/// `beta_fast` turns over the original context, 1 / factor from the pair that makes `beta_slow` turns on, and
/// a blend linear in i between.
fn yarn_share(rope: &Rope, i: usize, head_dim: usize) -> f64 {
    let RopeScaling::Yarn {
        factor,
        original_max_position_embeddings,
        beta_fast,
        beta_slow,
        truncate,
        ..
    } = rope.scaling
    else {
        return 1.0;
    };
    // the pair, as a real number, that makes this many turns over the original context
    let pair_of = |turns: f64| {
        let context = original_max_position_embeddings as f64;
        head_dim as f64 * (context / (turns * TAU)).ln() / (2.0 * rope.theta.ln())
    };
    let (mut first, mut last) = (pair_of(beta_fast), pair_of(beta_slow));
    if truncate {
        (first, last) = (first.floor(), last.ceil());
    }
    let (first, mut last) = (first.max(0.0), last.min(head_dim as f64 - 1.0));
    if first == last {
        last += 0.001;
    }
    let divided = ((i as f64 - first) / (last - first)).clamp(0.0, 1.0);
    divided / factor + (1.0 - divided)
}

/// A frequency after the modification for long contexts, where that depends on the frequency alone.
///
/// Llama 3.1's scaling uses r = original context / wavelength. Frequencies with r above `high_freq_factor`
/// are kept, those with r below `low_freq_factor` are divided by `factor`. Between the two, the result is a
/// blend linear in r.
fn scaled(frequency: f64, scaling: &RopeScaling) -> f64 {
    match *scaling {
        RopeScaling::None
        | RopeScaling::Dynamic { .. }
        | RopeScaling::Yarn { .. }
        | RopeScaling::Long { .. } => frequency,
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
                assert!(
                    near(rotary.tables[0].cos[[position, i]], angle.cos()),
                    "{position} {i}"
                );
                assert!(
                    near(rotary.tables[0].sin[[position, i]], angle.sin()),
                    "{position} {i}"
                );
            }
        }
    }

    #[test]
    fn scores_depend_on_the_distance_alone() {
        let spec = config(4, None).attention;
        let rotary = Rotary::new(&spec, 32);
        let mut rng = random(1);
        let (q, k) = (normal(&mut rng, (1, 4)), normal(&mut rng, (1, 4)));
        let score = |at_q: usize, at_k: usize| {
            let (mut q, mut k) = (q.clone(), k.clone());
            rotary.rotate(&spec, &mut q, at_q);
            rotary.rotate(&spec, &mut k, at_k);
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

    fn rope(scaling: RopeScaling) -> Rope {
        Rope { theta: 1e4, scaling }
    }

    #[test]
    fn dynamic_scaling_is_plain_up_to_the_context_and_stretches_the_slowest_pair_beyond() {
        let dynamic = rope(RopeScaling::Dynamic {
            factor: 2.0,
            max_position_embeddings: 128,
        });
        let plain = frequencies(&rope(RopeScaling::None), 16, 128);
        for positions in [1, 127, 128] {
            assert_eq!(frequencies(&dynamic, 16, positions), plain);
        }
        let long = frequencies(&dynamic, 16, 256);
        assert_eq!(long[0], plain[0]);
        // theta grows by 3^(16/14), and the last pair's exponent is 14/16: its frequency is divided by 3
        assert!((long[7] * 3.0 / plain[7] - 1.0).abs() <= 64.0 * f64::EPSILON);
        assert!((1..7).all(|i| long[i] < plain[i] && long[i] > plain[i] / 3.0));
    }

    #[test]
    fn yarn_keeps_fast_pairs_divides_slow_ones_and_scales_the_tables() {
        let yarn = |truncate| {
            rope(RopeScaling::Yarn {
                factor: 4.0,
                original_max_position_embeddings: 1024,
                beta_fast: 32.0,
                beta_slow: 1.0,
                truncate,
                attention_factor: 1.25,
            })
        };
        let plain = frequencies(&rope(RopeScaling::None), 64, 10);
        // 32 turns over 1,024 positions: 1e4^(-2i/64) = 32 TAU / 1024 at i = 5.656; one turn at i = 17.70
        let share = |truncate, i| frequencies(&yarn(truncate), 64, 10)[i] / plain[i];
        let near = |a: f64, b: f64| (a - b).abs() <= 8.0 * f64::EPSILON;
        for (i, divided) in [
            (0, 0.0),
            (5, 0.0),
            (6, 1.0 / 13.0),
            (17, 12.0 / 13.0),
            (18, 1.0),
            (31, 1.0),
        ] {
            assert!(near(share(true, i), divided / 4.0 + 1.0 - divided), "pair {i}");
        }
        let ends = [32.0, 1.0].map(|turns| 64.0 * (1024.0 / (turns * TAU)).ln() / (2.0 * 1e4_f64.ln()));
        let divided = (10.0 - ends[0]) / (ends[1] - ends[0]);
        assert!(near(share(false, 10), divided / 4.0 + 1.0 - divided));
        let mut spec = config(4, None).attention;
        spec.rotary = Some(yarn(true));
        let rotary = Rotary::new(&spec, 3);
        let tables = &rotary.tables[0];
        assert!(tables.cos.row(0).iter().all(|&cos| cos == 1.25));
        let square = |i: [usize; 2]| tables.cos[i].powi(2) + tables.sin[i].powi(2);
        assert!(near(square([2, 1]), 1.25 * 1.25));
    }

    #[test]
    fn gradient_matches_finite_differences() {
        let mut rng = random(3);
        // tables with different halves, which no model has, distinguish the transpose from the inverse
        let tables = Rotary::from_tables(normal(&mut rng, (5, 4)), normal(&mut rng, (5, 4))).unwrap();
        let (x, direction) = (normal(&mut rng, (3, 8)), normal(&mut rng, (3, 8)));
        let spec = config(4, None).attention;
        let mut grad = direction.clone();
        tables.rotate_backward(&spec, &mut grad, 2);
        assert_gradient("x", &grad, &x, 24, |x| {
            let mut y = x.clone();
            tables.rotate(&spec, &mut y, 2);
            inner(&y, &direction)
        });
    }

    #[test]
    fn longrope_divides_each_pair_and_chooses_its_list_by_length() {
        let mut spec = config(4, None).attention;
        spec.rotary = Some(rope(RopeScaling::Long {
            short: vec![1.0, 2.0],
            long: vec![4.0, 8.0],
            original_max_position_embeddings: 6,
            attention_factor: 1.25,
        }));
        let plain = frequencies(&rope(RopeScaling::None), 4, 6);
        let rope = spec.rotary.as_ref().unwrap();
        for (positions, divisors) in [(6, [1.0, 2.0]), (7, [4.0, 8.0])] {
            let found = frequencies(rope, 4, positions);
            assert_eq!(found.to_vec(), [plain[0] / divisors[0], plain[1] / divisors[1]]);
        }
        assert_eq!(length(rope), 1.25);
    }

    #[test]
    fn each_block_is_rotated_by_its_own_tables_and_only_in_part() {
        let mut arch = ArchSpec::llama(11, 64, 3, config(4, None));
        arch.blocks[1].attention.rotary = Some(rope(RopeScaling::Linear { factor: 2.0 }));
        arch.blocks[1].attention.rotated = 2;
        arch.blocks[2].attention.rotary = None;
        let all = Rotary::of_model(&arch, 5);
        assert_eq!(all.tables.len(), 2);
        let x = normal(&mut random(5), (5, 8));
        for block in &arch.blocks {
            let (mut found, mut alone) = (x.clone(), x.clone());
            all.rotate(&block.attention, &mut found, 0);
            Rotary::new(&block.attention, 5).rotate(&block.attention, &mut alone, 0);
            assert_eq!(found, alone);
            // position 1, second head
            let moved = [4, 5, 6, 7].map(|i| found[[1, i]] != x[[1, i]]);
            let expected = match (&block.attention.rotary, block.attention.rotated) {
                (None, _) => [false; 4],
                (_, 2) => [true, true, false, false],
                _ => [true; 4],
            };
            assert_eq!(moved, expected);
        }
    }

    #[test]
    fn tables_that_differ_are_refused() {
        let refused = Rotary::from_tables(Array2::zeros((3, 4)), Array2::zeros((3, 6)));
        assert!(matches!(refused, Err(AqlmError::Shape { what, .. }) if what == "rotary sines"));
        let refused = Rotary::from_tables(Array2::zeros((3, 5)), Array2::zeros((3, 5)));
        assert!(matches!(refused, Err(AqlmError::Shape { what, .. }) if what == "rotary cosines"));
    }
}
