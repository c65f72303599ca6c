use std::fmt;

use aqlm_reference::decode;
use aqlm_vocabulary::{Purpose, QuantizedMatrix, Scheme, Stream, stream};
use ndarray::{Array1, Array2, Array3, Array4};
use rand::RngExt;

use super::id::Fields;
use super::values::{Values, denormal_f16, dyadic, to_f16, with_outliers};
use crate::limits::Sizes;
use aqlm_formats::Result;

/// A quantized matrix and rows of x: the cases of decode, matvec and matmul.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProductCase {
    /// the weight's scheme
    pub scheme: Scheme,
    /// output groups
    pub out_groups: usize,
    /// input groups
    pub in_groups: usize,
    /// rows of x
    pub batch: usize,
    /// kind of values
    pub values: Values,
}

/// The data of a [`ProductCase`]. Codebooks, scales and (unless they are denormal) x are exact in f16.
#[derive(Debug, Clone, PartialEq)]
pub struct ProductData {
    /// the weight
    pub matrix: QuantizedMatrix,
    /// [batch, in_features]
    pub x: Array2<f32>,
}

impl fmt::Display for ProductCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, out, inputs) = (self.scheme, self.out_features(), self.in_features());
        write!(f, "{scheme}-{out}x{inputs}-b{}-{}", self.batch, self.values)
    }
}

/// Corners of decode, matvec and matmul.
pub(crate) const CORNERS: &[&str] = &[
    // the paper's schemes, around the tile of 64 rows and the direct form's four
    "2x8g8-64x64-b1-dyadic-s1",
    "2x8g8-65x72-b3-outliers-s2",
    "1x8g8-129x136-b2-dyadic-s3",
    "4x8g8-63x56-b1-outliers-s4",
    "3x8g8-5x136-b5-repeated-s5",
    "1x16g8-70x24-b1-dyadic-s6",
    "1x16g16-9x48-b2-outliers-s7",
    "1x15g8-4x40-b1-zerorows-s8",
    "1x12g8-66x40-b2-dyadic-s9",
    "2x12g8-3x40-b6-equalrows-s10",
    // a single element of everything; numbers below the smallest normal one; groups over several rows
    "1x1g4-1x4-b1-outliers-s11",
    "2x8g8-64x64-b2-denormal-s12",
    "2x5g20o3-390x40-b1-dyadic-s13",
    // more decoded rows than fit in matmul's tile of 1 MiB
    "2x6g8-530x512-b5-outliers-s14",
];

impl ProductCase {
    /// Sizes from which limits count their terms.
    pub fn sizes(&self) -> Sizes {
        Sizes::of_matrix(self.scheme, self.in_features())
    }

    /// Rows of the weight.
    pub fn out_features(&self) -> usize {
        self.out_groups * self.scheme.out_group_size
    }

    /// Columns of the weight.
    pub fn in_features(&self) -> usize {
        self.in_groups * self.scheme.in_group_size
    }

    pub(super) fn parse(fields: &mut Fields<'_>) -> Result<Self> {
        let scheme = fields.scheme()?;
        let (out_groups, in_groups) = groups(fields, scheme)?;
        Ok(Self {
            scheme,
            out_groups,
            in_groups,
            batch: fields.number('b', 1..=65_536)? as usize,
            values: fields.word()?,
        })
    }

    /// The data for a seed. A draw whose product is zero is repeated, so the product is never zero.
    pub fn data(&self, seed: u64) -> ProductData {
        let mut draw = 0;
        loop {
            let data = self.draw(&mut stream(seed, draw, None, Purpose::TestData));
            draw += 1;
            // One dyadic number in seventeen is zero, so that a few draws always suffice.
            if draw == 64 || has_products(&data) {
                return data;
            }
        }
    }

    fn draw(&self, rng: &mut Stream) -> ProductData {
        let matrix = random_matrix(self.scheme, self.out_groups, self.in_groups, self.values, rng);
        let x = Array2::from_shape_simple_fn((self.batch, self.in_features()), || match self.values {
            Values::Dyadic => dyadic(rng) as f32,
            // a denormal f32 that is multiplied by a denormal codeword and scale
            Values::Denormal => (rng.random_range(-1.0..1.0f64) * 2f64.powi(-100)) as f32,
            _ => with_outliers(rng) as f32,
        });
        ProductData { matrix, x }
    }
}

/// Whether x W^T has a nonzero element; stops at the first one.
fn has_products(data: &ProductData) -> bool {
    let weight = decode(&data.matrix);
    data.x.outer_iter().any(|x| {
        let x = x.mapv(f64::from);
        weight.outer_iter().any(|row| row.dot(&x) != 0.0)
    })
}

/// Parses a shape from the next field and returns (out_groups, in_groups); the scheme must divide the shape.
pub(super) fn groups(fields: &mut Fields<'_>, scheme: Scheme) -> Result<(usize, usize)> {
    let (out, inputs) = fields.shape()?;
    match scheme.groups(out, inputs) {
        Ok(groups) => Ok(groups),
        Err(error) => fields.refuse(&error.to_string(), &format!("{out}x{inputs}")),
    }
}

/// A quantized matrix of the given shape. Its codes always use the first and the last codeword of every
/// codebook.
pub(super) fn random_matrix(
    scheme: Scheme,
    out_groups: usize,
    in_groups: usize,
    values: Values,
    rng: &mut Stream,
) -> QuantizedMatrix {
    let size = scheme.codebook_size();
    let mut codes = Array3::from_shape_simple_fn((out_groups, in_groups, scheme.num_codebooks), || {
        rng.random_range(0..size as u64) as u16
    });
    for m in 0..scheme.num_codebooks {
        codes[[0, 0, m]] = (size - 1) as u16;
        codes[[out_groups - 1, in_groups - 1, m]] = 0;
    }
    let shape = (
        scheme.num_codebooks,
        size,
        scheme.out_group_size,
        scheme.in_group_size,
    );
    let mut codebooks = Array4::from_shape_simple_fn(shape, || match values {
        Values::Dyadic => dyadic(rng),
        Values::Denormal => denormal_f16(rng),
        _ => with_outliers(rng),
    });
    let mut scales = Array1::from_shape_simple_fn(out_groups, || match values {
        Values::Dyadic => 2f64.powi(rng.random_range(-2..=2)),
        Values::Denormal => denormal_f16(rng),
        _ => to_f16(rng.random_range(0.01..0.1)),
    });
    match values {
        Values::Repeated => {
            for mut codebook in codebooks.outer_iter_mut() {
                for k in (1..size).step_by(2) {
                    let codeword = codebook.index_axis(ndarray::Axis(0), k - 1).to_owned();
                    codebook.index_axis_mut(ndarray::Axis(0), k).assign(&codeword);
                }
            }
        }
        Values::ZeroRows => {
            for o in (1..out_groups).step_by(3) {
                scales[o] = 0.0;
            }
        }
        Values::EqualRows => {
            let first = codes.index_axis(ndarray::Axis(0), 0).to_owned();
            for mut row in codes.outer_iter_mut() {
                row.assign(&first);
            }
            let scale = scales[0];
            scales.fill(scale);
        }
        _ => {}
    }
    QuantizedMatrix::new(scheme, codes, codebooks, scales).expect("made for the scheme, of finite numbers")
}
