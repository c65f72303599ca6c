//! Shared by decode, matvec and matmul: exact results, the magnitudes to which roundings are relative, and
//! the ways in which each machine computes them.

use std::collections::HashMap;
use std::ops::Range;

use aqlm_optimized::cpu::{CodebookPrecision, Form, PackedMatrix, Plan, TablePrecision};
use aqlm_optimized::cuda::pack::pack;
use aqlm_optimized::cuda::{Activation, Activations, CudaError, DeviceMatrix};
use aqlm_reference::decode;
use aqlm_vocabulary::{AqlmError, QuantizedMatrix, Scheme};
use half::{bf16, f16};
use ndarray::{Array2, ArrayView1, Axis};
use rayon::prelude::*;

use super::{CaseData, Cost};
use crate::Comparison;
use crate::breakage::{self, Breakage};
use crate::cases::{Case, Operation, ProductCase, ProductData};
use crate::compare::{Against, Bits, Expected};
use crate::keep::{Operands, Tensors};
use crate::limits::{self, Measure};
use crate::subject::{Cpu, Cuda, Subject};
use aqlm_formats::{Error, Result};

/// A product case and its data.
#[derive(Debug, Clone)]
pub(crate) struct Product {
    pub(super) problem: ProductCase,
    pub(super) data: ProductData,
}

impl Operands for Product {
    fn add_to(&self, tensors: &mut Tensors) {
        tensors.matrix("", &self.data.matrix);
        tensors.array("x", &self.data.x);
    }
}

impl CaseData for Product {
    fn new(case: &Case) -> Result<Self> {
        let problem = case.product()?;
        Ok(Self {
            problem,
            data: problem.data(case.seed),
        })
    }

    /// The matrix, and rows of x and y in 16 bits.
    fn cost(&self) -> Cost {
        let problem = &self.problem;
        let (out, inputs) = (problem.out_features(), problem.in_features());
        Cost {
            bytes: matrix_bytes(problem.scheme, (problem.out_groups, problem.in_groups))
                + 2 * problem.batch * (out + inputs),
            products: vec![[problem.batch, inputs, out]],
        }
    }

    /// Every form, storage and multi-row method that the CPU has for a product, and every kernel of a GPU.
    fn ways(&self, machine: &Subject, operation: Operation) -> Vec<Subject> {
        let problem = &self.problem;
        match machine {
            Subject::Reference => vec![machine.clone()],
            Subject::Cpu(cpu) => {
                let mut forms = vec![
                    (Form::Direct, CodebookPrecision::F32),
                    (Form::Direct, CodebookPrecision::F16),
                ];
                if problem.scheme.nbits <= 8 {
                    use TablePrecision::{F32, I8, I16, I24};
                    forms.extend(
                        [F32, I24, I16, I8].map(|table| (Form::Table(table), CodebookPrecision::Auto)),
                    );
                }
                let batches: &[usize] = if operation == Operation::Matmul {
                    &[0, 4096]
                } else {
                    &[0]
                };
                let plan = |(form, codebooks), largest_matvec_batch| Plan {
                    level: cpu.level,
                    form,
                    codebooks,
                    largest_matvec_batch,
                };
                let all = forms
                    .into_iter()
                    .flat_map(|form| batches.iter().map(move |&batch| plan(form, batch)));
                all.map(|plan| {
                    Subject::Cpu(Cpu {
                        plan: Some(plan),
                        ..cpu.clone()
                    })
                })
                .collect()
            }
            Subject::Cuda(cuda) => {
                let kernels = || aqlm_kernels::kernels().iter();
                let of = |activations, kernel: &'static str| {
                    Subject::Cuda(Cuda {
                        kernel,
                        activations,
                        ..cuda.clone()
                    })
                };
                let own = kernels().filter(|kernel| kernel.op == operation.word());
                let f16 = own.clone().map(|kernel| of(Activations::F16, &kernel.id));
                let bf16 = own.filter(|kernel| kernel.bf16);
                f16.chain(bf16.map(|kernel| of(Activations::Bf16, &kernel.id)))
                    .collect()
            }
        }
    }
}

/// The exact weight, row by row.
pub(super) fn weight(matrix: &QuantizedMatrix) -> Expected {
    Expected {
        values: decode(matrix).iter().copied().collect(),
        magnitudes: decode(&absolute(matrix)).iter().copied().collect(),
    }
}

/// The matrix as packed for the CPU.
pub(super) fn packed(cpu: &Cpu, matrix: &QuantizedMatrix) -> Result<PackedMatrix> {
    let (out, inputs) = (matrix.out_features(), matrix.in_features());
    let chosen = || Plan::choose_at(cpu.level, matrix.scheme(), out, inputs);
    let plan = cpu.plan.unwrap_or_else(chosen);
    Ok(PackedMatrix::new(matrix, &plan)?)
}

/// The output of a kernel, row-major; NaN where the kernel wrote nothing.
pub(super) fn on_gpu(cuda: &Cuda, matrix: &QuantizedMatrix, x: Option<&Array2<f32>>) -> Result<Bits> {
    match cuda.activations {
        Activations::F16 => {
            let batch = x.map_or(1, Array2::nrows);
            let x = x.map(|x| exactly_f16(x.iter())).transpose()?;
            let y = run_kernel(cuda, matrix, x.as_deref(), batch)?;
            Ok(y.into_iter().map(f16::to_f32).collect())
        }
        Activations::Bf16 => {
            let batch = x.map_or(1, Array2::nrows);
            // The limits include the rounding of x.
            let x: Option<Vec<bf16>> = x.map(|x| x.iter().map(|&x| bf16::from_f32(x)).collect());
            let y = run_kernel(cuda, matrix, x.as_deref(), batch)?;
            Ok(y.into_iter().map(bf16::to_f32).collect())
        }
    }
}

fn run_kernel<T: Activation>(
    cuda: &Cuda,
    matrix: &QuantizedMatrix,
    x: Option<&[T]>,
    batch: usize,
) -> Result<Vec<T>> {
    let device = &*cuda.device;
    let run = || -> std::result::Result<Vec<T>, CudaError> {
        let packed = pack(cuda.kernel, matrix, device.target(), batch)?.with_activations(cuda.activations)?;
        let matrix = DeviceMatrix::new(device, &packed)?;
        let x = x.map(|x| device.upload(x)).transpose()?;
        let mut result = device.upload(&vec![T::NAN; packed.y_len()])?;
        matrix.start(device, x.as_ref(), &mut result, false)?;
        device.download(&result)
    };
    run().map_err(|error| match error {
        CudaError::Aqlm(error) => error.into(),
        other => Error::argument(cuda.kernel, "a result", other.to_string()),
    })
}

/// x in f16; an error if the conversion is not exact.
fn exactly_f16<'a>(x: impl Iterator<Item = &'a f32>) -> Result<Vec<f16>> {
    x.map(|&x| {
        let narrow = f16::from_f32(x);
        if narrow.to_f32() == x {
            Ok(narrow)
        } else {
            Err(AqlmError::Unsupported("x has numbers that f16 does not hold".into()).into())
        }
    })
    .collect()
}

/// The reference's products, row by row.
#[derive(Debug, Clone)]
pub(crate) struct Products {
    /// the sum of magnitudes behind each weight, row by row
    magnitudes: Vec<f64>,
    /// x W^T, one for each row of x
    pub(super) rows: Vec<Expected>,
}

impl Products {
    pub(super) fn new(data: &ProductData) -> Self {
        let (weight, magnitudes) = (decode(&data.matrix), decode(&absolute(&data.matrix)));
        let x = data.x.mapv(f64::from);
        let (values, sizes) = (product(&x, &weight), product(&x.mapv(f64::abs), &magnitudes));
        let rows = values
            .outer_iter()
            .zip(sizes.outer_iter())
            .map(|(values, magnitudes)| Expected {
                values: values.to_vec(),
                magnitudes: magnitudes.to_vec(),
            })
            .collect();
        Self {
            magnitudes: magnitudes.iter().copied().collect(),
            rows,
        }
    }

    /// Some rows of x W^T, concatenated.
    pub(super) fn whole(&self, rows: Range<usize>) -> Expected {
        let rows = &self.rows[rows];
        let all = |part: fn(&Expected) -> &Vec<f64>| rows.iter().flat_map(part).copied().collect();
        Expected {
            values: all(|row| &row.values),
            magnitudes: all(|row| &row.magnitudes),
        }
    }

    /// Compares some rows of the answer, [rows, outputs], with the exact ones. `tables` is the size of a
    /// table entry in bytes and the packed matrix, if these rows used fixed-point tables.
    pub(super) fn compare(
        &self,
        check: Against,
        data: &Product,
        tables: Option<(u32, &PackedMatrix)>,
        rows: Range<usize>,
        found: &[f64],
    ) -> Result<Vec<Comparison>> {
        let matrix = &data.data.matrix;
        let out = matrix.out_features();
        let expected = self.whole(rows.clone());
        let shape = [rows.len(), out];
        let exact = data.problem.values.is_exact();
        // Tables with entries of one byte cannot represent the exact tier's sums.
        let coarse = tables.is_some_and(|(bytes, _)| bytes == 1);
        if check.number.is_half() && exact {
            let rounded: Vec<f64> = expected.values.iter().map(|&y| check.number.nearest(y)).collect();
            return Ok(vec![
                check.exact("elements of y", found, &rounded)?.shaped(&shape),
            ]);
        }
        if check.number.is_half() {
            return Ok(vec![
                self.half_comparison(check, &data.data, rows, found)?
                    .shaped(&shape),
            ]);
        }
        if exact && !coarse {
            let comparison = check.exact("elements of y", found, &expected.values)?;
            return Ok(vec![comparison.shaped(&shape)]);
        }
        let bounds = rows
            .map(|row| table_error(&data.data, tables, row))
            .collect::<Result<Vec<_>>>()?;
        let extra =
            |i: usize| bounds[i / out] * matrix.scales()[i % out / matrix.scheme().out_group_size].abs();
        let comparisons = check.elements("y", found, &expected, extra)?;
        Ok(comparisons.into_iter().map(|one| one.shaped(&shape)).collect())
    }

    /// NMSE of `found`, results in a 16-bit type, against the exact ones. The limit follows from where each
    /// result was rounded: inside each group of each row as often as the table of limits says, and once at
    /// the end. `found` has one result for each row of x in `rows` and each output.
    ///
    /// A partial sum inside a group is at most the group's magnitude, sum(|w x|). Rows with the same codes
    /// have the same errors there up to their scales, whatever x, so their errors count as one.
    ///
    /// # Errors
    /// `Argument` when the table of limits has no row for this comparison.
    fn half_comparison(
        &self,
        check: Against,
        data: &ProductData,
        rows: Range<usize>,
        found: &[f64],
    ) -> Result<Comparison> {
        let matrix = &data.matrix;
        let (scheme, groups, inputs) = (matrix.scheme(), matrix.groups().1, matrix.in_features());
        let row = limits::row(check.operation, check.number, Measure::Nmse, "y")?;
        let chain = (row.terms)(&check.sizes);
        let one = row.rule.limit(check.number, 1);
        let denormal = check.number.denormal_rounding().powi(2);
        let outputs = matrix.out_features();
        // The variance of one element's error. Outputs run in parallel; their results are collected in order.
        let variance_of = |row: usize, x: &[f64], output: usize| -> f64 {
            let weights = &self.magnitudes[output * inputs..][..inputs];
            let magnitudes: f64 = weights
                .chunks_exact(scheme.in_group_size)
                .zip(x.chunks_exact(scheme.in_group_size))
                .map(|(w, x)| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>().powi(2))
                .sum();
            let y = self.rows[row].values[output];
            let scale = matrix.scales()[output / scheme.out_group_size].powi(2);
            let roundings = (chain * groups) as f64 * scale + 1.0;
            one * (y * y + chain as f64 * magnitudes) + denormal * roundings
        };
        // Keyed by the row's codes and its index in the output group: the total variance of errors that are
        // equal.
        let mut variances: HashMap<(Vec<u16>, usize), f64> = HashMap::new();
        let (mut squares, mut norm) = (0.0, 0.0);
        let x: Vec<Vec<f64>> = rows
            .clone()
            .map(|row| data.x.row(row).iter().map(|&x| f64::from(x).abs()).collect())
            .collect();
        let sums: Vec<(f64, f64, f64)> = (0..outputs)
            .into_par_iter()
            .map(|output| {
                let mut sums = (0.0, 0.0, 0.0);
                for (index, row) in rows.clone().enumerate() {
                    let y = self.rows[row].values[output];
                    let error = found.get(index * outputs + output).copied().unwrap_or(f64::NAN) - y;
                    sums.0 += variance_of(row, &x[index], output);
                    sums.1 += error * error;
                    sums.2 += y * y;
                }
                sums
            })
            .collect();
        for (output, (variance, error, size)) in sums.into_iter().enumerate() {
            let (group_row, inner) = (output / scheme.out_group_size, output % scheme.out_group_size);
            let codes = matrix.codes().index_axis(Axis(0), group_row);
            let codes = codes.iter().copied().collect();
            *variances.entry((codes, inner)).or_default() += variance;
            squares += error;
            norm += size;
        }
        if found.len() != rows.len() * outputs || norm == 0.0 {
            squares = f64::NAN;
        }
        // Sorted, so that the last digits of the limit are reproducible.
        let mut variances: Vec<f64> = variances.into_values().collect();
        variances.sort_by(f64::total_cmp);
        let limit = limits::chance(&variances);
        let comparison = Comparison::new(format!("{}: y", Measure::Nmse), squares / norm, limit / norm);
        Ok(comparison.with_worst(found, &self.whole(rows).values, |_, error| error * error / limit))
    }
}

/// x W^T. Blocks of output rows run on different threads; no sum is split.
fn product(x: &Array2<f64>, weight: &Array2<f64>) -> Array2<f64> {
    let mut transposed = Array2::zeros((weight.nrows(), x.nrows()));
    transposed
        .axis_chunks_iter_mut(Axis(0), 64)
        .into_par_iter()
        .zip(weight.axis_chunks_iter(Axis(0), 64).into_par_iter())
        .for_each(|(mut y, weight)| y.assign(&weight.dot(&x.t())));
    transposed.reversed_axes()
}

/// How far fixed-point tables may shift W x before its scale, for one row of x. This is the matrix's own
/// bound, after checking it against the largest error possible with entries of this many bytes.
///
/// # Errors
/// `Argument` when the matrix's own bound is larger.
fn table_error(data: &ProductData, tables: Option<(u32, &PackedMatrix)>, row: usize) -> Result<f64> {
    let Some((bytes, packed)) = tables else {
        return Ok(0.0);
    };
    let x = data.x.row(row);
    let declared = f64::from(packed.table_error_bound(&x.to_vec())?);
    let lookups = (data.matrix.groups().1 * data.matrix.scheme().num_codebooks) as f64;
    let most = limits::fixed_point(bytes, lookups, largest_entry(&data.matrix, x));
    if declared <= most {
        Ok(declared)
    } else {
        Err(Error::argument(
            "the error that a matrix allows its tables",
            &format!("at most {most:e}"),
            format!("{declared:e}"),
        ))
    }
}

/// The largest |x times a codeword| over all input groups, codebooks and rows of codewords.
fn largest_entry(matrix: &QuantizedMatrix, x: ArrayView1<'_, f32>) -> f64 {
    let group = matrix.scheme().in_group_size;
    let mut largest = 0.0f64;
    for x in x.exact_chunks(group) {
        for codeword in matrix.codebooks().rows() {
            let entry: f64 = codeword.iter().zip(x).map(|(c, &x)| c * f64::from(x)).sum();
            largest = largest.max(entry.abs());
        }
    }
    largest
}

/// The fixed-point tables that a product with `batch` rows of x uses.
pub(super) fn tables(
    check: Against,
    subject: &Subject,
    matrix: &QuantizedMatrix,
    batch: usize,
) -> Result<Option<(u32, PackedMatrix)>> {
    let Subject::Cpu(cpu) = subject else {
        return Ok(None);
    };
    let bytes = cpu.table_bytes(check.operation, batch);
    bytes.map(|bytes| Ok((bytes, packed(cpu, matrix)?))).transpose()
}

/// The matrix with absolute values of codebooks and scales; it decodes to the sums of magnitudes.
fn absolute(matrix: &QuantizedMatrix) -> QuantizedMatrix {
    let mut absolute = matrix.clone();
    absolute.tune(|mut codebooks, mut scales| {
        codebooks.mapv_inplace(f64::abs);
        scales.mapv_inplace(f64::abs);
    });
    absolute
}

/// The weight by the definition, one element at a time with codebooks in reverse order. The reference's own
/// decode is checked against it.
pub(super) fn by_definition(matrix: &QuantizedMatrix) -> Array2<f64> {
    let (rows, columns) = (matrix.scheme().out_group_size, matrix.scheme().in_group_size);
    Array2::from_shape_fn((matrix.out_features(), matrix.in_features()), |(r, c)| {
        let (o, j) = (r / rows, c / columns);
        let mut sum = 0.0;
        for m in (0..matrix.scheme().num_codebooks).rev() {
            let code = usize::from(matrix.codes()[[o, j, m]]);
            sum += matrix.codebooks()[[m, code, r % rows, c % columns]];
        }
        matrix.scales()[o] * sum
    })
}

/// Mistakes of all three operations.
pub(super) fn breakages() -> Vec<Breakage<Product, Bits>> {
    vec![
        Breakage::of_data("the scale of the next output group", |broken| {
            breakage::next_scales(&mut broken.data.matrix);
        }),
        Breakage::of_data("codes of the next input group", |broken| {
            breakage::next_groups(&mut broken.data.matrix);
        }),
        Breakage::of_data("transposed codebooks", |broken| {
            breakage::transposed_codebooks(&mut broken.data.matrix);
        }),
        Breakage::of_answer("a last tile that is never written", |y, _, _| {
            breakage::unwritten(&mut y.0);
        }),
        Breakage::of_answer("a stale accumulator", |y, _, before| {
            breakage::stale(&mut y.0, before.map(|before| &before.0));
        }),
        Breakage::of_answer("a NaN", |y, _, _| breakage::nan(&mut y.0)),
        Breakage::of_answer("a result off by a thousandth", |y, _, _| {
            breakage::inaccurate(&mut y.0);
        }),
    ]
}

/// An additional mistake of products with x.
pub(super) fn dropped_inputs() -> Breakage<Product, Bits> {
    Breakage::of_data("the last inputs left out of the sums", |broken| {
        let columns = broken.data.x.ncols();
        let kept = columns - columns.min(8);
        broken.data.x.slice_mut(ndarray::s![.., kept..]).fill(0.0);
    })
}

/// Minimum bytes of a matrix of (output groups, input groups): codes at their own width, codebooks and scales
/// in 16 bits.
pub fn matrix_bytes(scheme: Scheme, (out_groups, in_groups): (usize, usize)) -> usize {
    let codes = (out_groups * in_groups * scheme.num_codebooks * scheme.nbits as usize).div_ceil(8);
    let codebooks = scheme.num_codebooks * scheme.codebook_size() * scheme.group_len() * 2;
    codes + codebooks + 2 * out_groups
}

#[cfg(test)]
mod tests {
    use super::super::against;
    use super::*;
    use crate::cases::Values;
    use crate::limits::Number;

    fn products(values: Values) -> (Case, Product, Products) {
        let case: Case = format!("matmul-2x6g8-24x256-b2-{values}-s7").parse().unwrap();
        let data = Product::new(&case).unwrap();
        let products = Products::new(&data.data);
        (case, data, products)
    }

    fn compared(
        (case, data, products): &(Case, Product, Products),
        number: Number,
        change: impl Fn(usize, f64) -> f64,
    ) -> Comparison {
        let check = against::<super::super::matmul::Matmul>(number, case);
        let found: Vec<f64> = products
            .whole(0..2)
            .values
            .iter()
            .enumerate()
            .map(|(i, y)| number.nearest(change(i, *y)))
            .collect();
        products.half_comparison(check, &data.data, 0..2, &found).unwrap()
    }

    #[test]
    fn results_rounded_once_pass_and_wrong_ones_fail() {
        for number in [Number::F16, Number::Bf16] {
            let products = products(Values::Outliers);
            assert!(compared(&products, number, |_, y| y).holds());
            assert!(!compared(&products, number, |_, y| y * 1.1).holds());
            let whole = products.2.whole(0..2);
            let largest = whole.values.iter().fold(0.0_f64, |most, y| most.max(y.abs()));
            for wrong in [0.0, f64::NAN] {
                let change = |_, y: f64| if y.abs() == largest { wrong } else { y };
                assert!(!compared(&products, number, change).holds());
            }
            let check = against::<super::super::matmul::Matmul>(number, &products.0);
            let short = products
                .2
                .half_comparison(check, &products.1.data, 0..2, &whole.values[1..]);
            assert!(!short.unwrap().holds());
        }
    }

    #[test]
    fn equal_rows_may_all_be_off_by_what_one_may() {
        let (equal, different) = (products(Values::EqualRows), products(Values::Outliers));
        let limit = |products: &(Case, Product, Products)| compared(products, Number::F16, |_, y| y).limit;
        assert!(limit(&equal) > 5.0 * limit(&different));
    }
}
