use std::fmt;
use std::str::FromStr;

use aqlm_reference::vocabulary::{Purpose, QuantizedMatrix, Scheme, Stream, stream};
use ndarray::{Array1, Array2, Array3, Array4};
use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};

use crate::error::{Error, Result};

/// What the numbers of a case look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// multiples of 1/8 up to 1 in size: every sum is exact in f32 in any order, so answers must be equal
    Dyadic,
    /// standard normal
    Gaussian,
    /// standard normal, one in sixteen inputs twenty times as large, as real activations have
    Outliers,
    /// fewer samples than inputs, so that H is singular
    RankDeficient,
    /// every fourth row of the weight and every eighth input zero
    Zeros,
}

impl Data {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Dyadic, Self::Gaussian, Self::Outliers, Self::RankDeficient, Self::Zeros];

    fn name(self) -> &'static str {
        match self {
            Self::Dyadic => "dyadic",
            Self::Gaussian => "gaussian",
            Self::Outliers => "outliers",
            Self::RankDeficient => "rank-deficient",
            Self::Zeros => "zeros",
        }
    }
}

/// One linear layer's problem, made from its description and a seed: `2x4g8-24x64-outliers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerCase {
    /// how the layer is coded
    pub scheme: Scheme,
    /// rows of the weight
    pub out_features: usize,
    /// columns of the weight
    pub in_features: usize,
    /// what its numbers look like
    pub data: Data,
    /// seed of its numbers
    pub seed: u64,
}

impl fmt::Display for LayerCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}x{}-{}", self.scheme, self.out_features, self.in_features, self.data.name())
    }
}

impl FromStr for LayerCase {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (scheme, rest) = text.split_once('-')?;
            let (shape, data) = rest.split_once('-')?;
            let (out_features, in_features) = shape.split_once('x')?;
            Some(Self {
                scheme: scheme.parse().ok()?,
                out_features: out_features.parse().ok()?,
                in_features: in_features.parse().ok()?,
                data: Data::ALL.into_iter().find(|kind| kind.name() == data)?,
                seed: 0,
            })
        };
        let case = parse()
            .ok_or_else(|| Error::invalid("--case", "SCHEME-OUTxIN-DATA, for example 2x4g8-24x64-outliers", text))?;
        case.scheme.groups(case.out_features, case.in_features)?;
        Ok(case)
    }
}

impl LayerCase {
    /// A stream of this case; different `part`s are independent.
    fn stream(&self, part: usize) -> Stream {
        stream(self.seed, part, None, Purpose::TestData)
    }

    fn value(&self, rng: &mut Stream) -> f64 {
        match self.data {
            Data::Dyadic => f64::from(rng.random_range(-8i32..=8)) / 8.0,
            _ => StandardNormal.sample(rng),
        }
    }

    /// The weight, [out_features, in_features].
    pub fn weight(&self) -> Array2<f64> {
        let mut rng = self.stream(0);
        let mut weight = Array2::from_shape_simple_fn((self.out_features, self.in_features), || self.value(&mut rng));
        if self.data == Data::Zeros {
            for mut row in weight.rows_mut().into_iter().step_by(4) {
                row.fill(0.0);
            }
        }
        weight
    }

    /// Activations, [samples, in_features].
    pub fn activations(&self, samples: usize) -> Array2<f64> {
        let mut rng = self.stream(1);
        let mut x = Array2::from_shape_simple_fn((samples, self.in_features), || self.value(&mut rng));
        for (input, mut column) in x.columns_mut().into_iter().enumerate() {
            match self.data {
                Data::Outliers if input % 16 == 3 => column *= 20.0,
                Data::Zeros if input % 8 == 5 => column.fill(0.0),
                _ => {}
            }
        }
        x
    }

    /// The Hessian of [`LayerCase::activations`] by its definition: the mean of x xT.
    pub fn hessian(&self) -> Array2<f64> {
        let samples = match self.data {
            Data::RankDeficient => self.in_features / 2,
            // A power of two keeps the mean of dyadic numbers dyadic.
            _ => (2 * self.in_features).next_power_of_two(),
        };
        let x = self.activations(samples.max(1));
        x.t().dot(&x) / x.nrows() as f64
    }

    /// Random codes, codebooks and scales. Every codeword is used when there are groups enough.
    pub fn matrix(&self) -> Result<QuantizedMatrix> {
        let mut rng = self.stream(2);
        let scheme = self.scheme;
        let (out_groups, in_groups) = scheme.groups(self.out_features, self.in_features)?;
        let size = scheme.codebook_size();
        let mut next = 0;
        let codes = Array3::from_shape_simple_fn((out_groups, in_groups, scheme.num_codebooks), || {
            next += 1;
            if next <= size { (next - 1) as u16 } else { rng.random_range(0..size as u32) as u16 }
        });
        let shape = (scheme.num_codebooks, size, scheme.out_group_size, scheme.in_group_size);
        let codebooks = Array4::from_shape_simple_fn(shape, || self.value(&mut rng));
        let scales = Array1::from_shape_simple_fn(out_groups, || match self.data {
            Data::Dyadic => f64::from(1u32 << rng.random_range(0u32..3)) / 2.0,
            _ => 0.5 + rng.random::<f64>(),
        });
        Ok(QuantizedMatrix::new(scheme, codes, codebooks, scales)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip() {
        for id in ["2x4g8-24x64-outliers", "1x3g4o2-6x8-rank-deficient"] {
            assert_eq!(id.parse::<LayerCase>().unwrap().to_string(), id);
        }
        for id in ["", "2x4g8", "2x4g8-24x64", "2x4g8-24x64-odd", "2x4g8-24x60-dyadic"] {
            assert!(id.parse::<LayerCase>().is_err(), "{id}");
        }
    }

    #[test]
    fn a_case_is_its_id_and_its_seed() {
        let case: LayerCase = "2x4g8-24x64-outliers".parse().unwrap();
        assert_eq!(case.weight(), case.weight());
        assert_ne!(case.weight(), LayerCase { seed: 1, ..case }.weight());
    }

    #[test]
    fn every_codeword_is_used_when_there_are_groups_enough() {
        let matrix = "1x4g8-24x64-gaussian".parse::<LayerCase>().unwrap().matrix().unwrap();
        for code in 0..16 {
            assert!(matrix.codes.iter().any(|&found| found == code), "{code}");
        }
    }
}
