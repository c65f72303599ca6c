use ndarray::{Array1, Array3, Array4};

use crate::{AqlmError, Result, Scheme};

/// A weight matrix of [out_features, in_features] as codes, codebooks and scales.
///
/// Element (o*go + a, j*gi + b) of the weight is `scales[o] * sum_m codebooks[m, codes[o, j, m], a, b]` with
/// go and gi the scheme's output and input group sizes (paper section 3.1).
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedMatrix {
    /// how the matrix is cut and coded
    pub scheme: Scheme,
    /// [out_groups, in_groups, M], each below 2^B
    pub codes: Array3<u16>,
    /// [M, 2^B, out_group_size, in_group_size]
    pub codebooks: Array4<f64>,
    /// `[out_groups]`; stored in files as [out_groups, 1, 1, 1]
    pub scales: Array1<f64>,
}

impl QuantizedMatrix {
    /// Puts the parts together after checking that they fit.
    ///
    /// # Errors
    /// `Shape` when a part has another shape than the scheme and the codes imply, `CodeOutOfRange` for a code
    /// of 2^B or more, `NotFinite` for a NaN or infinite codebook entry or scale.
    pub fn new(
        scheme: Scheme,
        codes: Array3<u16>,
        codebooks: Array4<f64>,
        scales: Array1<f64>,
    ) -> Result<Self> {
        let (out_groups, in_groups, _) = codes.dim();
        let expect = |what: &str, expected: Vec<usize>, found: &[usize]| {
            if expected == found {
                Ok(())
            } else {
                Err(AqlmError::Shape {
                    what: what.into(),
                    expected,
                    found: found.to_vec(),
                })
            }
        };
        expect(
            "codes",
            vec![out_groups, in_groups, scheme.num_codebooks],
            codes.shape(),
        )?;
        let codebook_shape = vec![
            scheme.num_codebooks,
            scheme.codebook_size(),
            scheme.out_group_size,
            scheme.in_group_size,
        ];
        expect("codebooks", codebook_shape, codebooks.shape())?;
        expect("scales", vec![out_groups], scales.shape())?;
        for ((o, j, m), &code) in codes.indexed_iter() {
            if usize::from(code) >= scheme.codebook_size() {
                return Err(AqlmError::CodeOutOfRange {
                    code: u32::from(code),
                    index: [o, j, m],
                    codebook_size: scheme.codebook_size(),
                });
            }
        }
        for ((m, k, a, b), &value) in codebooks.indexed_iter() {
            if !value.is_finite() {
                return Err(AqlmError::NotFinite {
                    what: "codebooks".into(),
                    index: vec![m, k, a, b],
                    value,
                });
            }
        }
        for (o, &value) in scales.indexed_iter() {
            if !value.is_finite() {
                return Err(AqlmError::NotFinite {
                    what: "scales".into(),
                    index: vec![o],
                    value,
                });
            }
        }
        Ok(Self {
            scheme,
            codes,
            codebooks,
            scales,
        })
    }

    /// Rows of the weight.
    pub fn out_features(&self) -> usize {
        self.codes.dim().0 * self.scheme.out_group_size
    }

    /// Columns of the weight.
    pub fn in_features(&self) -> usize {
        self.codes.dim().1 * self.scheme.in_group_size
    }

    /// (out_groups, in_groups).
    pub fn groups(&self) -> (usize, usize) {
        let (out_groups, in_groups, _) = self.codes.dim();
        (out_groups, in_groups)
    }

    /// Average bits per parameter (paper appendix H, equation 10).
    pub fn bits_per_parameter(&self) -> f64 {
        self.scheme
            .bits_per_parameter(self.out_features(), self.in_features())
    }

    /// The same matrix with codebooks and scales rounded to f16, as a checkpoint stores them.
    ///
    /// # Errors
    /// `NotFinite` when a value is beyond f16's range.
    pub fn rounded_to_f16(&self) -> Result<Self> {
        let round = |value: f64| half::f16::from_f64(value).to_f64();
        Self::new(
            self.scheme,
            self.codes.clone(),
            self.codebooks.mapv(round),
            self.scales.mapv(round),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let scheme = Scheme::new(1, 2, 4).unwrap();
        let build = |codes: Array3<u16>, codebooks: Array4<f64>, scales: usize| {
            QuantizedMatrix::new(scheme, codes, codebooks, Array1::ones(scales))
        };
        let codebooks = Array4::zeros((1, 4, 1, 4));
        assert!(build(Array3::zeros((3, 2, 1)), codebooks.clone(), 3).is_ok());
        assert!(matches!(
            build(Array3::zeros((3, 2, 2)), codebooks.clone(), 3),
            Err(AqlmError::Shape { what, .. }) if what == "codes"
        ));
        assert!(matches!(
            build(Array3::zeros((3, 2, 1)), codebooks.clone(), 4),
            Err(AqlmError::Shape { what, .. }) if what == "scales"
        ));
        assert!(matches!(
            build(Array3::zeros((3, 2, 1)), Array4::zeros((1, 8, 1, 4)), 3),
            Err(AqlmError::Shape { what, .. }) if what == "codebooks"
        ));
        let mut codes = Array3::zeros((3, 2, 1));
        codes[[2, 1, 0]] = 4;
        assert!(matches!(
            build(codes, codebooks.clone(), 3),
            Err(AqlmError::CodeOutOfRange {
                code: 4,
                index: [2, 1, 0],
                ..
            })
        ));
        let mut codebooks = codebooks;
        codebooks[[0, 1, 0, 2]] = f64::NAN;
        assert!(matches!(
            build(Array3::zeros((3, 2, 1)), codebooks, 3),
            Err(AqlmError::NotFinite { .. })
        ));
    }
}
