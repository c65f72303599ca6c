use std::fmt;

use aqlm_reference::{decode, layer_error};
use aqlm_vocabulary::{
    Initialization, LayerSettings, Purpose, QuantizedMatrix, Scheme, Stream, StreamKey, Update, stream,
};
use ndarray::{Array2, Axis};
use rand::RngExt;

use super::id::Fields;
use super::kind::{Field, Kind};
use super::product::{groups, random_matrix};
use super::values::{Values, normal, with_outliers};
use super::words;
use crate::limits::Sizes;
use aqlm_formats::Result;

words! {
    /// Kind of Hessian of a case.
    Inputs, "hessian" {
        /// full rank, correlated, variances over three orders of magnitude
        Correlated = "correlated",
        /// uncorrelated inputs of equal size
        White = "white",
        /// fewer samples than inputs: rank-deficient
        Deficient = "deficient",
        /// a condition number of about 1e10
        Ill = "ill",
        /// every fifth input is always zero
        Dead = "dead",
    }
}

words! {
    /// Method by which a case updates codebooks.
    Updating, "update" {
        /// the normal equations, factored
        Closed = "closed",
        /// conjugate gradients
        Gradients = "gradients",
        /// Adam
        Adam = "adam",
    }
}

words! {
    /// Origin of a case's first codes.
    Starting, "initialization" {
        /// residual k-means
        Residual = "residual",
        /// refined under the H-metric
        Em = "em",
    }
}

words! {
    /// What a step of beam search chooses.
    Searching, "search" {
        /// the code of one codebook
        Single = "single",
        /// the codes of two codebooks together
        Pairs = "pairs",
    }
}

/// A weight, a Hessian and a quantized matrix that fits badly: the cases of the quantizer's operations.
/// Fields that an operation does not use keep their first value and are absent from its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerCase {
    /// the weight's scheme
    pub scheme: Scheme,
    /// output groups
    pub out_groups: usize,
    /// input groups
    pub in_groups: usize,
    /// kind of weight values
    pub values: Values,
    /// kind of inputs
    pub inputs: Inputs,
    /// number of hypotheses kept
    pub beam: usize,
    /// what a step of beam search chooses
    pub search: Searching,
    /// method of codebook update
    pub update: Updating,
    /// origin of the first codes
    pub start: Starting,
}

/// The first value of every field.
const PLAIN: LayerCase = LayerCase {
    scheme: Scheme {
        num_codebooks: 1,
        nbits: 1,
        in_group_size: 4,
        out_group_size: 1,
    },
    out_groups: 1,
    in_groups: 1,
    values: Values::ALL[0],
    inputs: Inputs::ALL[0],
    beam: 1,
    search: Searching::ALL[0],
    update: Updating::ALL[0],
    start: Starting::ALL[0],
};

/// The data of a [`LayerCase`].
#[derive(Debug, Clone, PartialEq)]
pub struct LayerData {
    /// [out_features, in_features]
    pub weight: Array2<f32>,
    /// [in_features, in_features]
    pub hessian: Array2<f64>,
    /// codes, codebooks and scales to start from
    pub matrix: QuantizedMatrix,
}

impl LayerData {
    /// The layer error of a matrix, by the reference.
    pub fn loss(&self, matrix: &QuantizedMatrix) -> f64 {
        layer_error(&self.weight.mapv(f64::from), &decode(matrix), &self.hessian)
    }
}

impl LayerCase {
    pub(super) fn print(&self, kind: Kind, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, out, inputs) = (self.scheme, self.out_features(), self.in_features());
        write!(f, "{scheme}-{out}x{inputs}-{}", self.values)?;
        let Kind::Layer(used) = kind else { return Ok(()) };
        for field in used {
            match field {
                Field::Inputs => write!(f, "-{}", self.inputs)?,
                Field::Beam => write!(f, "-b{}", self.beam)?,
                Field::Search => write!(f, "-{}", self.search)?,
                Field::Update => write!(f, "-{}", self.update)?,
                Field::Start => write!(f, "-{}", self.start)?,
            }
        }
        Ok(())
    }

    pub(super) fn parse(used: &[Field], fields: &mut Fields<'_>) -> Result<Self> {
        let scheme = fields.scheme()?;
        let (out_groups, in_groups) = groups(fields, scheme)?;
        let mut case = Self {
            scheme,
            out_groups,
            in_groups,
            values: fields.word()?,
            ..PLAIN
        };
        for field in used {
            match field {
                Field::Inputs => case.inputs = fields.word()?,
                Field::Beam => case.beam = fields.number('b', 1..=64)? as usize,
                Field::Search => case.search = fields.word()?,
                Field::Update => case.update = fields.word()?,
                Field::Start => case.start = fields.word()?,
            }
        }
        Ok(case)
    }

    /// The same case with all other fields reset to their first value.
    pub(super) fn with_only(self, used: &[Field]) -> Self {
        let mut case = Self {
            inputs: PLAIN.inputs,
            beam: PLAIN.beam,
            search: PLAIN.search,
            update: PLAIN.update,
            start: PLAIN.start,
            ..self
        };
        for field in used {
            match field {
                Field::Inputs => case.inputs = self.inputs,
                Field::Beam => case.beam = self.beam,
                Field::Search => case.search = self.search,
                Field::Update => case.update = self.update,
                Field::Start => case.start = self.start,
            }
        }
        case
    }

    /// Rows of the weight.
    pub fn out_features(&self) -> usize {
        self.out_groups * self.scheme.out_group_size
    }

    /// Columns of the weight.
    pub fn in_features(&self) -> usize {
        self.in_groups * self.scheme.in_group_size
    }

    /// Sizes from which limits count their terms.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            positions: self.in_groups * self.scheme.num_codebooks,
            rows: self.out_features(),
            ..Sizes::of_matrix(self.scheme, self.in_features())
        }
    }

    /// The operation's own random streams.
    pub fn key(&self, seed: u64) -> StreamKey {
        StreamKey {
            seed,
            block: 2,
            layer: None,
        }
    }

    /// Settings of the codebook update.
    pub fn update_settings(&self) -> Update {
        let least_squares = |max_unknowns| Update::ClosedForm {
            max_unknowns,
            cg_steps: 60,
            scale_rounds: 2,
        };
        match self.update {
            Updating::Closed => least_squares(8192),
            Updating::Gradients => least_squares(0),
            Updating::Adam => Update::Adam {
                lr: 1e-3,
                beta1: 0.9,
                beta2: 0.95,
                amsgrad: self.beam.is_multiple_of(2),
                steps: 20,
            },
        }
    }

    /// Settings of a whole quantization, with few rounds so that a check can afford many cases.
    pub fn settings(&self) -> LayerSettings {
        LayerSettings {
            scheme: self.scheme,
            init: match self.start {
                Starting::Residual => Initialization::Residual,
                Starting::Em => Initialization::Em { rounds: 2 },
            },
            kmeans_iterations: 30,
            update: self.update_settings(),
            beam: self.beam,
            pairs: self.search == Searching::Pairs,
            relative_tolerance: 1e-3,
            max_rounds: 4,
            damping: 1e-6,
            allow_degenerate: true,
        }
    }

    /// The data for a seed.
    pub fn data(&self, seed: u64) -> LayerData {
        let mut rng = stream(seed, 1, None, Purpose::TestData);
        let weight = self.weight(&mut rng);
        let hessian = self.hessian(&mut rng);
        let matrix = random_matrix(
            self.scheme,
            self.out_groups,
            self.in_groups,
            self.values,
            &mut rng,
        );
        LayerData {
            weight,
            hessian,
            matrix,
        }
    }

    /// An H_O for a seed: of fewer gradients than rows, some rows a thousand times as sensitive as others.
    pub fn outer(&self, seed: u64) -> Array2<f64> {
        let mut rng = stream(seed, 3, None, Purpose::TestData);
        let rows = self.out_features();
        let gradients = Array2::from_shape_fn((rows, rows / 2 + 1), |(row, _)| {
            normal(&mut rng) * f64::powf(1e-3, row as f64 / rows as f64)
        });
        gradients.dot(&gradients.t())
    }

    fn weight(&self, rng: &mut Stream) -> Array2<f32> {
        let size = (self.in_features() as f64).sqrt().recip();
        let mut weight =
            Array2::from_shape_simple_fn((self.out_features(), self.in_features()), || match self.values {
                Values::Dyadic => (normal(rng) * 2.0).round().clamp(-4.0, 4.0) / 4.0,
                // every fifth is denormal in f32; the others keep the loss away from zero
                Values::Denormal if rng.random_bool(0.2) => 1e-39 * normal(rng),
                _ => size * with_outliers(rng),
            })
            .mapv(|w| w as f32);
        match self.values {
            Values::ZeroRows => {
                weight
                    .axis_iter_mut(Axis(0))
                    .skip(1)
                    .step_by(3)
                    .for_each(|mut row| row.fill(0.0));
            }
            Values::EqualRows => {
                let first = weight.row(0).to_owned();
                weight
                    .axis_iter_mut(Axis(0))
                    .for_each(|mut row| row.assign(&first));
            }
            _ => {}
        }
        weight[[0, 0]] = 0.5;
        weight
    }

    fn hessian(&self, rng: &mut Stream) -> Array2<f64> {
        let n = self.in_features();
        let samples = match self.inputs {
            Inputs::Deficient => n.div_ceil(3),
            _ => 3 * n + 8,
        };
        let exact = self.values.is_exact();
        let mut x = Array2::from_shape_simple_fn((samples, n), || {
            let x = normal(rng);
            // multiples of 1/2: their products are multiples of 1/4, whose sums are exact
            if exact {
                (2.0 * x).round().clamp(-4.0, 4.0) / 2.0
            } else {
                x
            }
        });
        let decay = match self.inputs {
            Inputs::Correlated if !exact => 30.0,
            Inputs::Ill if !exact => 1e5,
            _ => 1.0,
        };
        if decay > 1.0 {
            let mixing = Array2::from_shape_simple_fn((n, n), || normal(rng) / (n as f64).sqrt());
            x = x.dot(&mixing);
        }
        for (i, mut column) in x.columns_mut().into_iter().enumerate() {
            column *= f64::powf(decay, -(i as f64) / n as f64);
            if self.inputs == Inputs::Dead && i % 5 == 2 {
                column.fill(0.0);
            }
        }
        let sum = x.t().dot(&x);
        if exact {
            // divide by a power of two instead of the number of samples, so that nothing is rounded
            sum / (samples as f64).log2().ceil().exp2()
        } else {
            sum / samples as f64
        }
    }
}
