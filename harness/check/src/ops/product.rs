//! What decode, matvec and matmul share: exact results and the magnitudes that roundings are relative to.

use std::collections::HashMap;
use std::ops::Range;

use aqlm_reference::decode;
use aqlm_vocabulary::QuantizedMatrix;
use ndarray::{Array2, ArrayView1, Axis};

use crate::Comparison;
use crate::cases::{Operation, ProductData};
use crate::compare::{Against, Expected};
use crate::limits::{self, Measure};
use crate::subject::Subject;
use aqlm_formats::{Error, Result};

/// The reference's results for one product case.
#[derive(Debug, Clone)]
pub(super) struct Products {
    pub(super) data: ProductData,
    /// the weight, row by row
    pub(super) weight: Expected,
    /// x W^T, one for each row of x
    pub(super) rows: Vec<Expected>,
}

impl Products {
    pub(super) fn new(data: ProductData) -> Self {
        let (weight, magnitudes) = (decode(&data.matrix), decode(&absolute(&data.matrix)));
        let x = data.x.mapv(f64::from);
        let (values, sizes) = (x.dot(&weight.t()), x.mapv(f64::abs).dot(&magnitudes.t()));
        let rows = values
            .outer_iter()
            .zip(sizes.outer_iter())
            .map(|(values, magnitudes)| Expected {
                values: values.to_vec(),
                magnitudes: magnitudes.to_vec(),
            })
            .collect();
        Self {
            weight: Expected {
                values: weight.iter().copied().collect(),
                magnitudes: magnitudes.iter().copied().collect(),
            },
            rows,
            data,
        }
    }

    /// All rows of x W^T one after another.
    pub(super) fn whole(&self) -> Expected {
        let all = |part: fn(&Expected) -> &Vec<f64>| self.rows.iter().flat_map(part).copied().collect();
        Expected {
            values: all(|row| &row.values),
            magnitudes: all(|row| &row.magnitudes),
        }
    }

    /// NMSE of `found`, results in a type of 16 bits, against the exact ones, with a limit that follows from
    /// where each was rounded: `chain` times inside each group of each row, and once at the end. `found` has
    /// one result for each row of x in `rows` and each output.
    ///
    /// A partial sum inside a group is at most the group's magnitude, sum(|w x|). Rows with the same codes
    /// make the same errors there but for their scales, whatever x, so that theirs count as one.
    ///
    /// # Errors
    /// `Argument` when the table of limits has no row for it.
    pub(super) fn half_comparison(
        &self,
        check: Against,
        chain: usize,
        rows: Range<usize>,
        found: &[f64],
    ) -> Result<Comparison> {
        let matrix = &self.data.matrix;
        let scheme = matrix.scheme;
        let groups = matrix.groups().1;
        let one = limits::row(check.operation, check.number, Measure::Nmse)?
            .rule
            .limit(check.number, 1);
        let denormal = check.number.denormal_rounding().powi(2);
        // By codes of the row and its place in the output group: the variance of all errors that are equal.
        let mut variances: HashMap<(Vec<u16>, usize), f64> = HashMap::new();
        let (mut squares, mut norm) = (0.0, 0.0);
        let outputs = matrix.out_features();
        for (index, row) in rows.clone().enumerate() {
            let x = self.data.x.row(row);
            for output in 0..outputs {
                let (group_row, inner) = (output / scheme.out_group_size, output % scheme.out_group_size);
                let magnitudes: f64 = (0..groups)
                    .map(|group| {
                        let first = group * scheme.in_group_size;
                        let size: f64 = (first..first + scheme.in_group_size)
                            .map(|i| {
                                self.weight.magnitudes[output * matrix.in_features() + i]
                                    * f64::from(x[i]).abs()
                            })
                            .sum();
                        size * size
                    })
                    .sum();
                let y = self.rows[row].values[output];
                let scale = matrix.scales[group_row].powi(2);
                let roundings = (chain * groups) as f64 * scale + 1.0;
                let variance = one * (y * y + chain as f64 * magnitudes) + denormal * roundings;
                let codes = matrix
                    .codes
                    .index_axis(Axis(0), group_row)
                    .iter()
                    .copied()
                    .collect();
                *variances.entry((codes, inner)).or_default() += variance;
                let error = found.get(index * outputs + output).copied().unwrap_or(f64::NAN) - y;
                squares += error * error;
                norm += y * y;
            }
        }
        if found.len() != rows.len() * outputs || norm == 0.0 {
            squares = f64::NAN;
        }
        // In one order, so that the last digits of the limit are the same each time.
        let mut variances: Vec<f64> = variances.into_values().collect();
        variances.sort_by(f64::total_cmp);
        Ok(Comparison::new(
            format!("{}: y", Measure::Nmse),
            squares / norm,
            limits::chance(&variances) / norm,
        ))
    }

    /// How far fixed-point tables may move W x before its scale, for one row of x: what the subject says,
    /// once it is within what a table of so many bytes can come to.
    ///
    /// # Errors
    /// `Argument` when the subject allows itself more than that.
    pub(super) fn table_error(&self, subject: &dyn Subject, operation: Operation, row: usize) -> Result<f64> {
        let Some(bytes) = subject.table_bytes(operation, self.data.x.nrows()) else {
            return Ok(0.0);
        };
        let x = self.data.x.row(row);
        let declared = subject.table_error(&self.data.matrix, &x.to_vec())?;
        let scheme = self.data.matrix.scheme;
        let lookups = (self.data.matrix.groups().1 * scheme.num_codebooks) as f64;
        // Entries up to L in steps of a power of two, so that L takes all bits but one: the step is below L
        // 2^(2 - bits), twice that when L is just above a power of two, and a look-up is off by half of it.
        // No step is below 2^-120. f32 rounds L and the sum.
        let largest = largest_entry(&self.data.matrix, x);
        let lookup = largest * 2f64.powi(2 - 8 * bytes as i32) + 2f64.powi(-120);
        let most = lookups * lookup * (1.0 + (lookups + 8.0) * f64::from(f32::EPSILON));
        if declared <= most {
            Ok(declared)
        } else {
            Err(Error::argument(
                &format!("the error that {} allows its tables", subject.variant()),
                &format!("at most {most:e}"),
                format!("{declared:e}"),
            ))
        }
    }
}

/// The largest |x times a codeword| over all input groups, codebooks and rows of codewords.
fn largest_entry(matrix: &QuantizedMatrix, x: ArrayView1<'_, f32>) -> f64 {
    let group = matrix.scheme.in_group_size;
    let mut largest = 0.0f64;
    for x in x.exact_chunks(group) {
        for codeword in matrix.codebooks.rows() {
            let entry: f64 = codeword.iter().zip(x).map(|(c, &x)| c * f64::from(x)).sum();
            largest = largest.max(entry.abs());
        }
    }
    largest
}

/// The matrix with all signs dropped: it decodes to the sums of magnitudes.
fn absolute(matrix: &QuantizedMatrix) -> QuantizedMatrix {
    QuantizedMatrix {
        codebooks: matrix.codebooks.mapv(f64::abs),
        scales: matrix.scales.mapv(f64::abs),
        ..matrix.clone()
    }
}

/// The weight by the definition, one element at a time and codebooks in reverse: what the reference's own
/// decode is checked against.
pub(super) fn by_definition(matrix: &QuantizedMatrix) -> Array2<f64> {
    let (rows, columns) = (matrix.scheme.out_group_size, matrix.scheme.in_group_size);
    Array2::from_shape_fn((matrix.out_features(), matrix.in_features()), |(r, c)| {
        let (o, j) = (r / rows, c / columns);
        let mut sum = 0.0;
        for m in (0..matrix.scheme.num_codebooks).rev() {
            let code = usize::from(matrix.codes[[o, j, m]]);
            sum += matrix.codebooks[[m, code, r % rows, c % columns]];
        }
        matrix.scales[o] * sum
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::{ProductCase, Values};
    use crate::limits::Number;

    fn products(values: Values) -> Products {
        let case = ProductCase {
            scheme: "2x6g8".parse().unwrap(),
            out_groups: 24,
            in_groups: 32,
            batch: 2,
            values,
        };
        Products::new(case.data(7))
    }

    fn compared(products: &Products, number: Number, change: impl Fn(usize, f64) -> f64) -> Comparison {
        let check = Against {
            operation: Operation::Matmul,
            number,
        };
        let found: Vec<f64> = products
            .whole()
            .values
            .iter()
            .enumerate()
            .map(|(i, y)| number.nearest(change(i, *y)))
            .collect();
        products.half_comparison(check, 3, 0..2, &found).unwrap()
    }

    #[test]
    fn results_rounded_once_pass_and_wrong_ones_fail() {
        for number in [Number::F16, Number::Bf16] {
            let products = products(Values::Outliers);
            assert!(compared(&products, number, |_, y| y).holds());
            assert!(!compared(&products, number, |_, y| y * 1.1).holds());
            let largest = products
                .whole()
                .values
                .iter()
                .fold(0.0_f64, |most, y| most.max(y.abs()));
            for wrong in [0.0, f64::NAN] {
                let change = |_, y: f64| if y.abs() == largest { wrong } else { y };
                assert!(!compared(&products, number, change).holds());
            }
            let short = &products.whole().values[1..];
            let check = Against {
                operation: Operation::Matmul,
                number,
            };
            assert!(!products.half_comparison(check, 3, 0..2, short).unwrap().holds());
        }
    }

    #[test]
    fn equal_rows_may_all_be_off_by_what_one_may() {
        let (equal, different) = (products(Values::EqualRows), products(Values::Outliers));
        let limit = |products: &Products| compared(products, Number::F16, |_, y| y).limit;
        assert!(limit(&equal) > 5.0 * limit(&different));
    }
}
