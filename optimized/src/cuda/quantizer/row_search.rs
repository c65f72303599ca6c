//! Rows of a layer searched under the two-sided objective, each as if it were the only one to move.

use aqlm_vocabulary::{Position, QuantizedMatrix};
use ndarray::{Array2, Array3};

use super::beam_search::search;
use super::codes::{Codebooks, Decoding, Quantized};
use super::machine::{Block, Machine, Precision, Product, further};
use super::outer::Outer;
use super::problem::{Problem, Trial};
use crate::cuda::error::check_lengths;
use crate::cuda::{Buffer, Result};

/// Errors W - Q of rows, [rows, in_features].
pub struct Errors(Buffer<f32>);

/// What rows have found. D is the change of their errors.
pub struct Found {
    /// [rows, in_groups, M]
    pub codes: Array3<u16>,
    /// 2 <X_i H, D_i>, with X = H_O E
    pub linear: Vec<f64>,
    /// D_i H D_j^T, [rows, rows]
    pub products: Array2<f32>,
    /// the rows' errors after the change
    pub errors: Errors,
}

/// E of a quantized matrix.
pub(super) fn errors(machine: &Machine, problem: &Problem, matrix: &QuantizedMatrix) -> Result<Errors> {
    let matrix = machine.upload_matrix(matrix)?;
    remainder(machine, &problem.weight, &matrix).map(Errors)
}

/// Searches `rows` of the matrix, whose errors are `errors`.
///
/// The target of a row is w_i - e_i + X_i / H_O\[i,i\].
///
/// # Errors
/// Those of [`search`]; `Length` for an H_O of another number of rows.
pub(super) fn propose(
    machine: &Machine,
    problem: &Problem,
    outer: &Outer,
    (errors, matrix, rows): (&Errors, &QuantizedMatrix, &[usize]),
    order: &[Position],
    beam: usize,
) -> Result<Found> {
    let width = problem.width;
    check_lengths(&[("rows under H_O", problem.rows, outer.rows())])?;
    let chosen = Chosen::new(machine, problem, rows)?;
    let weight = chosen.of(machine, &problem.weight)?;
    let before = chosen.of(machine, &errors.0)?;
    let pulled = chosen.of(machine, &outer.relative_left(machine, &errors.0, width)?)?;
    let mut target = pulled.try_clone()?;
    machine.combine(-1.0, &before, 1.0, &mut target)?;
    machine.combine(1.0, &weight, 1.0, &mut target)?;
    let part = problem.with_target(machine, target)?;
    let some = machine.upload_matrix(&matrix.of_out_groups(rows))?;
    let trial = Trial::new(machine, &part, some)?;
    let found = search(machine, &part, trial, order, beam)?;
    let after = remainder(machine, &weight, &found)?;
    let mut steps = after.try_clone()?;
    machine.combine(-1.0, &before, 1.0, &mut steps)?;
    let image = machine.image(&steps, &problem.hessian, width, Precision::Full)?;
    let linear = machine.part_products(&pulled, &image, width)?;
    let linear = linear
        .iter()
        .zip(rows)
        .map(|(x, &row)| 2.0 * outer.diagonal[row] * x)
        .collect();
    Ok(Found {
        codes: machine.download_codes(&found.form, &found.codes)?,
        linear,
        products: cross(machine, &steps, &image, rows.len(), width)?,
        errors: Errors(after),
    })
}

/// Takes over the errors of the accepted ones among `rows`.
///
/// # Errors
/// `Driver`.
pub(super) fn accept(
    machine: &Machine,
    width: usize,
    errors: &mut Errors,
    found: &Errors,
    rows: &[usize],
    accepted: &[usize],
) -> Result<()> {
    let (all, new) = (errors.0.len() / width.max(1), found.0.len());
    let both = machine.fresh::<f32>(errors.0.len() + new, "errors and what was found")?;
    let at = machine.address(&both);
    machine.copy::<f32>(machine.address(&errors.0), at, errors.0.len())?;
    let behind = further::<f32>(at, errors.0.len());
    machine.copy::<f32>(machine.address(&found.0), behind, new)?;
    let mut sources: Vec<u32> = (0..all as u32).collect();
    for &a in accepted {
        sources[rows[a]] = (all + a) as u32;
    }
    let sources = machine.upload(&sources, "rows")?;
    errors.0 = machine.permuted(&both, Some(&sources), &in_order(machine, width)?)?;
    Ok(())
}

/// W - Q.
fn remainder(machine: &Machine, weight: &Buffer<f32>, matrix: &Quantized) -> Result<Buffer<f32>> {
    let mut error = machine.fresh(weight.len(), "errors of rows")?;
    let decoding = Decoding {
        subtract: true,
        ..Decoding::of(&matrix.form)
    };
    let codebooks = Codebooks::Wide(&matrix.codebooks);
    let scales = Some(&*matrix.scales);
    machine.decode(
        &decoding,
        Some(weight),
        &matrix.codes,
        codebooks,
        scales,
        &mut error,
    )?;
    Ok(error)
}

/// A B^T of `rows` rows each.
fn cross(
    machine: &Machine,
    a: &Buffer<f32>,
    b: &Buffer<f32>,
    rows: usize,
    width: usize,
) -> Result<Array2<f32>> {
    let products = machine.fresh(rows * rows, "products of rows")?;
    let block = |buffer: &Buffer<f32>, stride| Block {
        at: machine.address(buffer),
        stride,
    };
    machine.product::<f32>(
        &Product {
            transposed: true,
            ..Product::new(rows, rows, width)
        },
        [block(a, width), block(b, width), block(&products, rows)],
    )?;
    machine.download_rows(&products, rows, rows)
}

/// A choice of rows.
struct Chosen {
    rows: Buffer<u32>,
    columns: Buffer<u32>,
}

impl Chosen {
    fn new(machine: &Machine, problem: &Problem, rows: &[usize]) -> Result<Self> {
        let rows: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
        Ok(Self {
            rows: machine.upload(&rows, "rows")?,
            columns: in_order(machine, problem.width)?,
        })
    }

    fn of(&self, machine: &Machine, matrix: &Buffer<f32>) -> Result<Buffer<f32>> {
        machine.permuted(matrix, Some(&self.rows), &self.columns)
    }
}

/// The numbers of columns, in order.
fn in_order(machine: &Machine, width: usize) -> Result<Buffer<u32>> {
    machine.upload(&(0..width as u32).collect::<Vec<u32>>(), "columns")
}
