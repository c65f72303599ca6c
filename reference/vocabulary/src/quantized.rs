use ndarray::{Array, Array1, Array3, Array4, ArrayViewMut1, ArrayViewMut4, Axis, Dimension};

use crate::{AqlmError, Result, Scheme};

/// A weight matrix of [out_features, in_features] as codes, codebooks and scales.
///
/// Element (o*go + a, j*gi + b) of the weight is `scales[o] * sum_m codebooks[m, codes[o, j, m], a, b]`,
/// where go and gi are the scheme's output and input group sizes (paper section 3.1).
///
/// Invariants, checked at construction: the parts' shapes fit, every code is below 2^B, codebooks and scales
/// are finite, and all three arrays are in standard (row-major) layout. Only [`QuantizedMatrix::tune`] may
/// leave numbers that are not finite.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedMatrix {
    scheme: Scheme,
    codes: Array3<u16>,
    codebooks: Array4<f64>,
    scales: Array1<f64>,
}

impl QuantizedMatrix {
    /// Checks that the parts fit and builds the matrix: codes [out_groups, in_groups, M], codebooks [M, 2^B,
    /// out_group_size, in_group_size], scales `[out_groups]` (stored in files as [out_groups, 1, 1, 1]).
    ///
    /// # Errors
    /// `Shape` when a part's shape differs from the one implied by the scheme and the codes, `CodeOutOfRange`
    /// for a code of 2^B or more, `NotFinite` for a NaN or infinite codebook entry or scale.
    pub fn new(
        scheme: Scheme,
        codes: Array3<u16>,
        codebooks: Array4<f64>,
        scales: Array1<f64>,
    ) -> Result<Self> {
        let matrix = Self {
            scheme,
            codes: row_major(codes),
            codebooks: row_major(codebooks),
            scales: row_major(scales),
        };
        matrix.check_codes()?;
        matrix.check_codebooks()?;
        matrix.check_scales()?;
        Ok(matrix)
    }

    /// Group sizes, number of codebooks and bits per code.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// [out_groups, in_groups, M], each below 2^B.
    pub fn codes(&self) -> &Array3<u16> {
        &self.codes
    }

    /// [M, 2^B, out_group_size, in_group_size].
    pub fn codebooks(&self) -> &Array4<f64> {
        &self.codebooks
    }

    /// `[out_groups]`.
    pub fn scales(&self) -> &Array1<f64> {
        &self.scales
    }

    /// Codes, codebooks and scales.
    pub fn into_parts(self) -> (Array3<u16>, Array4<f64>, Array1<f64>) {
        (self.codes, self.codebooks, self.scales)
    }

    /// The same matrix with other codes.
    ///
    /// # Errors
    /// `Shape` or `CodeOutOfRange`, as [`QuantizedMatrix::new`].
    pub fn with_codes(mut self, codes: Array3<u16>) -> Result<Self> {
        let expected = self.codes.dim();
        check_shape("codes", expected.into(), codes.dim().into())?;
        self.codes = row_major(codes);
        self.check_codes()?;
        Ok(self)
    }

    /// The same matrix with other codebooks.
    ///
    /// # Errors
    /// `Shape` or `NotFinite`, as [`QuantizedMatrix::new`].
    pub fn with_codebooks(mut self, codebooks: Array4<f64>) -> Result<Self> {
        self.codebooks = row_major(codebooks);
        self.check_codebooks()?;
        Ok(self)
    }

    /// The same matrix with other scales.
    ///
    /// # Errors
    /// `Shape` or `NotFinite`, as [`QuantizedMatrix::new`].
    pub fn with_scales(mut self, scales: Array1<f64>) -> Result<Self> {
        self.scales = row_major(scales);
        self.check_scales()?;
        Ok(self)
    }

    /// The matrix of these output groups alone, in this order.
    ///
    /// # Panics
    /// When there is no such output group.
    #[must_use]
    pub fn of_out_groups(&self, groups: &[usize]) -> Self {
        Self {
            scheme: self.scheme,
            codes: row_major(self.codes.select(Axis(0), groups)),
            codebooks: self.codebooks.clone(),
            scales: self.scales.select(Axis(0), groups),
        }
    }

    /// Changes codebooks and scales in place, as a training step does.
    ///
    /// Diverging training produces numbers that are not finite and must report where. Such numbers are
    /// therefore kept here, and [`QuantizedMatrix::check_finite`] finds them.
    pub fn tune<T>(&mut self, change: impl FnOnce(ArrayViewMut4<'_, f64>, ArrayViewMut1<'_, f64>) -> T) -> T {
        change(self.codebooks.view_mut(), self.scales.view_mut())
    }

    /// Checks for numbers that are not finite; only [`QuantizedMatrix::tune`] can have left any.
    ///
    /// # Errors
    /// `NotFinite` with the first such number.
    pub fn check_finite(&self) -> Result<()> {
        check_finite("codebooks", &self.codebooks)?;
        check_finite("scales", &self.scales)
    }

    fn check_codes(&self) -> Result<()> {
        let (out_groups, in_groups, num_codebooks) = self.codes.dim();
        let expected = [out_groups, in_groups, self.scheme.num_codebooks];
        check_shape("codes", expected, [out_groups, in_groups, num_codebooks])?;
        let codebook_size = self.scheme.codebook_size();
        match self
            .codes
            .indexed_iter()
            .find(|&(_, &code)| usize::from(code) >= codebook_size)
        {
            None => Ok(()),
            Some((index, &code)) => Err(AqlmError::CodeOutOfRange {
                code: u32::from(code),
                index: index.into(),
                codebook_size,
            }),
        }
    }

    fn check_codebooks(&self) -> Result<()> {
        let expected = [
            self.scheme.num_codebooks,
            self.scheme.codebook_size(),
            self.scheme.out_group_size,
            self.scheme.in_group_size,
        ];
        check_shape("codebooks", expected, self.codebooks.dim().into())?;
        check_finite("codebooks", &self.codebooks)
    }

    fn check_scales(&self) -> Result<()> {
        check_shape("scales", [self.codes.dim().0], [self.scales.len()])?;
        check_finite("scales", &self.scales)
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

    /// The same matrix with its scales multiplied by 2^`exponent`.
    ///
    /// # Errors
    /// `NotFinite` when a scale leaves the range of f64.
    pub fn times_power_of_two(self, exponent: i32) -> Result<Self> {
        if exponent == 0 {
            return Ok(self);
        }
        let scales = self.scales.mapv(|scale| scale * f64::powi(2.0, exponent));
        self.with_scales(scales)
    }

    /// The same matrix with codebooks and scales rounded to f16, as in a checkpoint.
    ///
    /// When f16 would lose more than the last bit of a scale or of a codebook's larger entries, a power of
    /// two first moves between scales and codebooks, which leaves the weight as it is. Among the powers that
    /// lose nothing more the one nearest to 1 is taken, else the one that loses least.
    ///
    /// # Errors
    /// `NotFinite` when a value is beyond f16's range whichever power moves.
    pub fn rounded_to_f16(&self) -> Result<Self> {
        self.moved(self.moved_exponent(), round)
    }

    /// The same weight in numbers that f16 holds exactly, where a power of two that moves between scales and
    /// codebooks makes them so; the one nearest to 1.
    pub fn exact_in_f16(&self) -> Option<Self> {
        let exact = |value: &f64, exponent: i32| {
            let value = value * f64::powi(2.0, exponent);
            round(value) == value
        };
        let exponent = exponents().find(|&exponent| {
            self.scales.iter().all(|scale| exact(scale, exponent))
                && self.codebooks.iter().all(|entry| exact(entry, -exponent))
        })?;
        self.moved(exponent, |value| value).ok()
    }

    /// The same weight with 2^`exponent` moved from the codebooks into the scales, every number `rounded`.
    fn moved(&self, exponent: i32, rounded: impl Fn(f64) -> f64) -> Result<Self> {
        let moved = |value: f64, exponent: i32| rounded(value * f64::powi(2.0, exponent));
        self.clone()
            .with_codebooks(self.codebooks.mapv(|entry| moved(entry, -exponent)))?
            .with_scales(self.scales.mapv(|scale| moved(scale, exponent)))
    }

    /// The exponent of the power of two that moves from the codebooks into the scales before rounding to f16.
    fn moved_exponent(&self) -> i32 {
        let mut best = (0, f64::INFINITY);
        for exponent in exponents() {
            let loss = self.rounding_loss(exponent);
            if loss <= ROUNDING {
                return exponent;
            }
            if loss < best.1 {
                best = (exponent, loss);
            }
        }
        best.0
    }

    /// What rounding to f16 costs after a move of 2^`exponent`: the mean of the squared relative errors of
    /// the scales, plus the squared error of the codebooks relative to their squares; infinite for an
    /// overflow.
    ///
    /// A scale below [`NEGLIGIBLE`] times the largest belongs to a row of zeros and does not count.
    fn rounding_loss(&self, exponent: i32) -> f64 {
        let rounding_error = |value: f64, exponent: i32| {
            let value = value * f64::powi(2.0, exponent);
            (round(value) - value, value)
        };
        let largest = self
            .scales
            .iter()
            .fold(0.0, |largest: f64, scale| largest.max(scale.abs()));
        let (mut scales, mut count) = (0.0, 0.0);
        for &scale in self
            .scales
            .iter()
            .filter(|scale| scale.abs() > NEGLIGIBLE * largest)
        {
            let (error, value) = rounding_error(scale, exponent);
            scales += (error / value).powi(2);
            count += 1.0;
        }
        let (mut errors, mut squares) = (0.0, 0.0);
        for &entry in &self.codebooks {
            let (error, value) = rounding_error(entry, -exponent);
            errors += error * error;
            squares += value * value;
        }
        let share = |part: f64, whole: f64| if whole == 0.0 { 0.0 } else { part / whole };
        share(scales, count) + share(errors, squares)
    }
}

/// The farthest power of two that moves between scales and codebooks: that many binary orders lie between
/// f16's smallest and largest number.
const FARTHEST: i32 = 40;

/// The loss that rounding to f16 always costs, as [`QuantizedMatrix::rounded_to_f16`] counts it: relative
/// errors of at most 2^-11, squared, of scales and of codebooks.
const ROUNDING: f64 = 2.0 / (1_u64 << 22) as f64;

/// Scales that are smaller than the layer's largest by this factor belong to rows of zeros: the
/// initialisation gives such a row a scale of 1e-9. Rows of other numbers that are so small are refused
/// before quantizing.
pub const NEGLIGIBLE: f64 = 1.0 / (1_u64 << 26) as f64;

/// Exponents of the powers of two that may move: 0, then outwards.
fn exponents() -> impl Iterator<Item = i32> {
    (0..=FARTHEST).flat_map(|exponent| [-exponent, exponent])
}

fn round(value: f64) -> f64 {
    half::f16::from_f64(value).to_f64()
}

/// The array itself if in standard layout, else a copy in standard layout.
fn row_major<T: Clone, D: Dimension>(array: Array<T, D>) -> Array<T, D> {
    if array.is_standard_layout() {
        array
    } else {
        array.as_standard_layout().into_owned()
    }
}

fn check_shape<const N: usize>(what: &str, expected: [usize; N], found: [usize; N]) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(AqlmError::Shape {
        what: what.into(),
        expected: expected.into(),
        found: found.into(),
    })
}

fn check_finite<D: Dimension>(what: &str, values: &Array<f64, D>) -> Result<()> {
    let bad = values
        .view()
        .into_dyn()
        .indexed_iter()
        .find(|(_, value)| !value.is_finite())
        .map(|(index, &value)| (index.slice().to_vec(), value));
    match bad {
        None => Ok(()),
        Some((index, value)) => Err(AqlmError::NotFinite {
            what: what.into(),
            index,
            value,
        }),
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
        let mut broken = codebooks.clone();
        broken[[0, 1, 0, 2]] = f64::NAN;
        assert!(matches!(
            build(Array3::zeros((3, 2, 1)), broken.clone(), 3),
            Err(AqlmError::NotFinite { what, index, .. }) if what == "codebooks" && index == [0, 1, 0, 2]
        ));

        let good = build(Array3::zeros((3, 2, 1)), codebooks, 3).unwrap();
        for codes in [Array3::zeros((2, 2, 1)), Array3::from_elem((3, 2, 1), 4)] {
            assert!(good.clone().with_codes(codes).is_err());
        }
        assert!(good.clone().with_codebooks(broken).is_err());
        assert!(good.clone().with_codebooks(Array4::zeros((1, 4, 2, 4))).is_err());
        assert!(good.clone().with_scales(Array1::ones(2)).is_err());
        let overflowed = Array1::from_elem(3, f64::INFINITY);
        assert!(good.clone().with_scales(overflowed).is_err());
    }

    #[test]
    fn parts_are_kept_in_standard_layout() {
        let scheme = Scheme::new(2, 2, 4).unwrap();
        let codes = Array3::from_shape_fn((2, 5, 3), |(m, j, o)| ((m + 2 * j + o) % 4) as u16);
        let reversed = codes.clone().reversed_axes();
        assert!(reversed.as_slice().is_none());
        let matrix = QuantizedMatrix::new(
            scheme,
            reversed.clone(),
            Array4::zeros((2, 4, 1, 4)),
            Array1::ones(3),
        )
        .unwrap();
        assert_eq!(matrix.codes(), reversed);
        assert!(matrix.codes().as_slice().is_some());
        let again = matrix.with_codes(codes.reversed_axes()).unwrap();
        assert!(again.codes().as_slice().is_some());
    }

    #[test]
    fn what_tuning_leaves_that_is_not_finite_is_found() {
        let scheme = Scheme::new(1, 2, 4).unwrap();
        let mut matrix = QuantizedMatrix::new(
            scheme,
            Array3::zeros((3, 2, 1)),
            Array4::zeros((1, 4, 1, 4)),
            Array1::ones(3),
        )
        .unwrap();
        assert_eq!(matrix.check_finite(), Ok(()));
        matrix.tune(|_, mut scales| scales[1] = f64::INFINITY);
        assert!(matches!(
            matrix.check_finite(),
            Err(AqlmError::NotFinite { what, index, .. }) if what == "scales" && index == [1]
        ));
    }

    /// A matrix whose scales and codebooks are exact in f16, with both multiplied.
    fn stretched(scale: f64, codebook: f64) -> QuantizedMatrix {
        QuantizedMatrix::new(
            Scheme::new(1, 2, 4).unwrap(),
            Array3::from_shape_fn((3, 2, 1), |(o, j, _)| ((o + j) % 4) as u16),
            Array4::from_shape_fn((1, 4, 1, 4), |(_, code, _, i)| {
                codebook * (0.125 + (4 * code + i) as f64 / 32.0)
            }),
            Array1::from(vec![1.1, 0.57, 3.3]).mapv(|value| scale * round(value)),
        )
        .unwrap()
    }

    #[test]
    fn what_f16_holds_is_rounded_where_it_is() {
        for (scale, codebook) in [(1.0, 1.0), (1e4, 1.0), (0.01, 0.01), (1.0, 1e-3)] {
            let matrix = stretched(scale, codebook);
            let rounded = matrix.rounded_to_f16().unwrap();
            assert_eq!(rounded.scales(), matrix.scales().mapv(round));
            assert_eq!(rounded.codebooks(), matrix.codebooks().mapv(round));
        }
        // the scale of a row of zeros moves nothing
        let matrix = stretched(1.0, 1.0)
            .with_scales(Array1::from(vec![1.0, 1e-9, 2.0]))
            .unwrap();
        assert_eq!(
            matrix.rounded_to_f16().unwrap().scales().to_vec(),
            [1.0, 0.0, 2.0]
        );
    }

    #[test]
    fn a_power_of_two_moves_where_f16_would_lose_scales_or_codebooks() {
        for (scales, codebooks) in [(-20, 0), (24, 0), (0, -24), (0, 20), (-26, 4), (20, -30)] {
            let power = |exponent| f64::powi(2.0, exponent);
            let matrix = stretched(power(scales), power(codebooks));
            let rounded = matrix.rounded_to_f16().unwrap();
            let exponent = (rounded.scales()[0] / matrix.scales()[0]).log2().round() as i32;
            assert_ne!(exponent, 0);
            for (found, scale) in rounded.scales().iter().zip(matrix.scales()) {
                assert!(
                    (found / (scale * power(exponent)) - 1.0).abs() <= power(-10),
                    "{found} {scale}"
                );
            }
            let errors = rounded.codebooks() - &matrix.codebooks().mapv(|entry| entry * power(-exponent));
            let squares = |array: &Array4<f64>| array.iter().map(|x| x * x).sum::<f64>();
            assert!(squares(&errors) <= ROUNDING * squares(rounded.codebooks()));
            // the nearest power that does it
            let closer = matrix.rounding_loss(exponent - exponent.signum());
            assert!(closer > ROUNDING, "{scales} {codebooks}: {exponent}");
            // and what is stored is stored again as it is
            assert_eq!(rounded.rounded_to_f16().unwrap(), rounded);
        }
    }

    #[test]
    fn exact_numbers_are_moved_or_there_are_none() {
        let power = |exponent| f64::powi(2.0, exponent);
        let matrix = stretched(1.0, 1.0);
        let exact = matrix.exact_in_f16().unwrap();
        assert_eq!(exact, matrix);
        for exponent in [-18, 17, 25] {
            let exact = stretched(power(exponent), 1.0).exact_in_f16().unwrap();
            assert_eq!(exact.rounded_to_f16().unwrap(), exact);
            for ((scale, original), factor) in exact
                .scales()
                .iter()
                .zip(matrix.scales())
                .zip([power(exponent); 3])
            {
                let moved = exact.codebooks()[[0, 0, 0, 0]] / matrix.codebooks()[[0, 0, 0, 0]];
                assert_eq!(scale * moved, original * factor);
            }
        }
        assert_eq!(stretched(power(60), 1.0).exact_in_f16(), None);
        assert_eq!(stretched(0.1, 1.0).exact_in_f16(), None);
    }

    #[test]
    fn what_no_power_of_two_saves_is_refused() {
        assert!(matches!(
            stretched(1e20, 1e20).rounded_to_f16(),
            Err(AqlmError::NotFinite { .. })
        ));
    }
}
