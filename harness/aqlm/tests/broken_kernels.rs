//! Does the check catch mistakes? Each kind of broken kernel is made here from a working one, and the check
//! must refuse it by comparison. A rule for ties that differs from ours is no mistake, and must pass.

use std::sync::Mutex;

use aqlm_check::cases::{Case, LlamaData, Operation, corners};
use aqlm_check::limits::Number;
use aqlm_check::{CpuSubject, Gradients, Outcome, Subject, check_subject};
use aqlm_formats::Result;
use aqlm_vocabulary::{LayerReport, LayerSettings, QuantizedMatrix, StreamKey, Update};
use ndarray::{Array2, Array3, ArrayView2, ArrayViewMut2, Axis, s};

/// What is wrong with a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    /// nothing: the wrapper itself must pass
    Nothing,
    /// every output group gets the scale of the next
    WrongScale,
    /// the last inputs, up to 8, are left out of the sums
    DroppedInputs,
    /// the last output rows, up to 64, are never written
    DroppedRows,
    /// the codes of input group j are taken from group j + 1
    OffByOneGroup,
    /// codebooks are read as [G, 2^B] instead of [2^B, G]
    TransposedCodebook,
    /// results are added to those of the call before
    StaleAccumulator,
    /// one result is NaN
    Nan,
    /// the last result is off by a thousandth
    Inaccurate,
    /// the second of two equal codewords is taken instead of the first
    OtherTies,
}

/// A working subject with a defect.
struct Damaged {
    inner: Box<dyn Subject>,
    damage: Damage,
    before: Mutex<Vec<f32>>,
}

impl Damaged {
    fn boxed(case: &Case, damage: Damage) -> Box<dyn Subject> {
        let inner = CpuSubject::all(case).swap_remove(0);
        Box::new(Self {
            inner,
            damage,
            before: Mutex::default(),
        })
    }

    fn matrix(&self, matrix: &QuantizedMatrix) -> QuantizedMatrix {
        let mut broken = matrix.clone();
        let (out_groups, in_groups) = matrix.groups();
        match self.damage {
            Damage::WrongScale => {
                let scales = (0..out_groups).map(|o| matrix.scales()[(o + 1) % out_groups]);
                broken = broken.with_scales(scales.collect()).unwrap();
            }
            Damage::OffByOneGroup => {
                let next: Vec<usize> = (0..in_groups).map(|j| (j + 1) % in_groups).collect();
                broken = broken.with_codes(matrix.codes().select(Axis(1), &next)).unwrap();
            }
            Damage::TransposedCodebook => {
                let mut codebooks = matrix.codebooks().clone();
                for (mut codebook, whole) in codebooks.outer_iter_mut().zip(matrix.codebooks().outer_iter()) {
                    let flat: Vec<f64> = whole.iter().copied().collect();
                    let (size, len) = (whole.dim().0, flat.len() / whole.dim().0);
                    for (i, value) in codebook.iter_mut().enumerate() {
                        *value = flat[(i % len) * size + i / len];
                    }
                }
                broken = broken.with_codebooks(codebooks).unwrap();
            }
            _ => {}
        }
        broken
    }

    fn x(&self, x: &[f32]) -> Vec<f32> {
        let mut x = x.to_vec();
        if self.damage == Damage::DroppedInputs {
            let kept = x.len() - x.len().min(8);
            x[kept..].fill(0.0);
        }
        x
    }

    fn results(&self, y: &mut [f32]) {
        match self.damage {
            Damage::DroppedRows => {
                let written = y.len() - y.len().min(64);
                // as the buffer was before
                y[written..].fill(f32::NAN);
            }
            Damage::StaleAccumulator => {
                let mut before = self.before.lock().unwrap();
                before.resize(y.len(), 0.0);
                for (y, before) in y.iter_mut().zip(before.iter_mut()) {
                    *y += *before;
                    *before = *y;
                }
            }
            Damage::Nan => y[y.len() / 2] = f32::NAN,
            Damage::Inaccurate => {
                if let Some(largest) = y.iter_mut().max_by(|a, b| a.abs().total_cmp(&b.abs())) {
                    *largest *= 1.001;
                }
            }
            _ => {}
        }
    }

    /// The same for results in f64.
    fn wide<'a>(&self, values: impl IntoIterator<Item = &'a mut f64>) {
        let values: Vec<&mut f64> = values.into_iter().collect();
        let mut narrow: Vec<f32> = values.iter().map(|value| **value as f32).collect();
        let before = narrow.clone();
        self.results(&mut narrow);
        for ((value, before), after) in values.into_iter().zip(before).zip(narrow) {
            if before.to_bits() != after.to_bits() {
                *value += f64::from(after) - f64::from(before);
            }
        }
    }

    /// A worse, or for other ties an equally good, choice of codes.
    fn codes(&self, found: &mut QuantizedMatrix, before: &QuantizedMatrix) {
        let mut codes = found.codes().clone();
        match self.damage {
            Damage::OtherTies => {
                for ((_, _, m), code) in codes.indexed_iter_mut() {
                    let codeword = |k: usize| before.codebooks().slice(s![m, k, .., ..]);
                    let last = (0..before.scheme().codebook_size())
                        .rev()
                        .find(|&k| codeword(k) == codeword(usize::from(*code)));
                    *code = last.unwrap() as u16;
                }
            }
            Damage::DroppedRows => {
                let last = found.codes().dim().0 - 1;
                codes
                    .index_axis_mut(Axis(0), last)
                    .assign(&before.codes().index_axis(Axis(0), last));
            }
            Damage::OffByOneGroup => {
                let groups = codes.dim().1;
                let next: Vec<usize> = (0..groups).map(|j| (j + 1) % groups).collect();
                codes = codes.select(Axis(1), &next);
            }
            _ => {}
        }
        *found = found.clone().with_codes(codes).unwrap();
    }
}

impl Subject for Damaged {
    fn backend(&self) -> &'static str {
        "damaged"
    }

    fn variant(&self) -> String {
        format!("{:?}", self.damage)
    }

    fn number(&self) -> Number {
        self.inner.number()
    }

    fn decode(&self, matrix: &QuantizedMatrix, weight: &mut [f32]) -> Result<()> {
        self.inner.decode(&self.matrix(matrix), weight)?;
        self.results(weight);
        Ok(())
    }

    fn matvec(&self, matrix: &QuantizedMatrix, x: &[f32], y: &mut [f32]) -> Result<()> {
        self.inner.matvec(&self.matrix(matrix), &self.x(x), y)?;
        self.results(y);
        Ok(())
    }

    fn matmul(
        &self,
        matrix: &QuantizedMatrix,
        x: ArrayView2<'_, f32>,
        mut y: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        for (x, mut y) in x.outer_iter().zip(y.outer_iter_mut()) {
            self.matvec(matrix, &x.to_vec(), y.as_slice_mut().unwrap())?;
        }
        Ok(())
    }

    fn hessian(&self, parts: &[ArrayView2<'_, f32>]) -> Result<Array2<f64>> {
        let mut hessian = match self.damage {
            // the last part is forgotten; where there is only one, its last half
            Damage::DroppedInputs if parts.len() > 1 => self.inner.hessian(&parts[..parts.len() - 1])?,
            Damage::DroppedInputs => {
                let half = parts[0].nrows().div_ceil(2);
                self.inner.hessian(&[parts[0].slice(s![..half, ..])])?
            }
            _ => self.inner.hessian(parts)?,
        };
        self.wide(&mut hessian);
        Ok(hessian)
    }

    fn beam_search(
        &self,
        weight: &Array2<f32>,
        hessian: &Array2<f64>,
        matrix: &QuantizedMatrix,
        order: &[(usize, usize)],
        beam: usize,
    ) -> Result<QuantizedMatrix> {
        let mut found = self.inner.beam_search(weight, hessian, matrix, order, beam)?;
        self.codes(&mut found, matrix);
        Ok(found)
    }

    fn codebook_update(
        &self,
        weight: &Array2<f32>,
        hessian: &Array2<f64>,
        matrix: &QuantizedMatrix,
        update: &Update,
    ) -> Result<QuantizedMatrix> {
        let mut found = self.inner.codebook_update(weight, hessian, matrix, update)?;
        found.tune(|mut codebooks, _| self.wide(&mut codebooks));
        if self.damage == Damage::DroppedInputs {
            // the last codebook keeps what it had
            let last = matrix.codebooks().dim().0 - 1;
            let codebook = matrix.codebooks().index_axis(Axis(0), last).to_owned();
            found.tune(|mut codebooks, _| codebooks.index_axis_mut(Axis(0), last).assign(&codebook));
        }
        Ok(found)
    }

    fn layer_quantize(
        &self,
        weight: &Array2<f32>,
        hessian: &Array2<f64>,
        settings: &LayerSettings,
        key: StreamKey,
    ) -> Result<(QuantizedMatrix, LayerReport)> {
        let (mut found, report) = self.inner.layer_quantize(weight, hessian, settings, key)?;
        let before = found.clone();
        self.codes(&mut found, &before);
        if self.damage == Damage::WrongScale {
            found = self.matrix(&found);
        }
        Ok((found, report))
    }

    fn block_forward(&self, data: &LlamaData) -> Result<Array3<f64>> {
        let mut y = self.inner.block_forward(data)?;
        self.wide(&mut y);
        Ok(y)
    }

    fn block_backward(&self, data: &LlamaData) -> Result<Gradients> {
        let mut gradients = self.inner.block_backward(data)?;
        self.wide(&mut gradients.layers[3]);
        Ok(gradients)
    }
}

/// How many corner cases of an operation a damaged kernel fails, and how many there are.
fn failures(operation: Operation, damage: Damage) -> (usize, usize) {
    let cases = corners(operation).unwrap();
    let rows = check_subject(&cases, &|case| Damaged::boxed(case, damage)).unwrap();
    assert!(
        rows.iter()
            .all(|row| matches!(row.outcome, Outcome::Pass | Outcome::Fail)),
        "{damage:?}: something was not compared"
    );
    let failed = rows.iter().filter(|row| row.outcome == Outcome::Fail).count();
    (failed, rows.len())
}

fn caught(operation: Operation, damage: Damage) {
    let (failed, all) = failures(operation, damage);
    println!("{operation}, {damage:?}: {failed} of {all} cases fail");
    // One case could be luck.
    assert!(
        failed >= 2,
        "{operation}: {damage:?} was caught by {failed} of {all} cases"
    );
}

const PRODUCTS: [Operation; 3] = [Operation::Decode, Operation::Matvec, Operation::Matmul];

#[test]
fn the_undamaged_wrapper_passes() {
    for operation in [
        Operation::Decode,
        Operation::Matvec,
        Operation::Matmul,
        Operation::Hessian,
        Operation::BeamSearch,
        Operation::BlockForward,
        Operation::BlockBackward,
    ] {
        assert_eq!(failures(operation, Damage::Nothing).0, 0, "{operation}");
    }
}

#[test]
fn a_wrong_scale_is_caught() {
    for operation in PRODUCTS {
        caught(operation, Damage::WrongScale);
    }
    caught(Operation::LayerQuantize, Damage::WrongScale);
}

#[test]
fn dropped_last_tiles_are_caught() {
    for operation in PRODUCTS {
        caught(operation, Damage::DroppedRows);
    }
    for operation in [
        Operation::Matvec,
        Operation::Matmul,
        Operation::Hessian,
        Operation::CodebookUpdate,
    ] {
        caught(operation, Damage::DroppedInputs);
    }
    // a row whose codes were never searched
    caught(Operation::BeamSearch, Damage::DroppedRows);
}

#[test]
fn a_group_too_far_is_caught() {
    for operation in PRODUCTS {
        caught(operation, Damage::OffByOneGroup);
    }
    caught(Operation::BeamSearch, Damage::OffByOneGroup);
    caught(Operation::LayerQuantize, Damage::OffByOneGroup);
}

#[test]
fn a_transposed_codebook_is_caught() {
    for operation in PRODUCTS {
        caught(operation, Damage::TransposedCodebook);
    }
}

#[test]
fn a_stale_accumulator_is_caught() {
    for operation in PRODUCTS {
        caught(operation, Damage::StaleAccumulator);
    }
    caught(Operation::Hessian, Damage::StaleAccumulator);
    caught(Operation::BlockForward, Damage::StaleAccumulator);
}

#[test]
fn nan_is_caught() {
    for operation in PRODUCTS {
        caught(operation, Damage::Nan);
    }
    for operation in [
        Operation::Hessian,
        Operation::CodebookUpdate,
        Operation::BlockForward,
        Operation::BlockBackward,
    ] {
        caught(operation, Damage::Nan);
    }
}

#[test]
fn one_result_that_is_off_by_a_thousandth_is_caught() {
    for operation in PRODUCTS {
        caught(operation, Damage::Inaccurate);
    }
    caught(Operation::Hessian, Damage::Inaccurate);
    caught(Operation::BlockForward, Damage::Inaccurate);
    caught(Operation::BlockBackward, Damage::Inaccurate);
}

#[test]
fn another_rule_for_ties_passes() {
    let cases: Vec<Case> = corners(Operation::BeamSearch).unwrap();
    let repeated: Vec<Case> = cases
        .iter()
        .copied()
        .filter(|case| case.to_string().contains("-repeated-"))
        .collect();
    assert!(!repeated.is_empty());
    // The rule does change codes ...
    for case in &repeated {
        let problem = case.layer().unwrap();
        let data = problem.data(case.seed);
        let order: Vec<(usize, usize)> = (0..problem.in_groups).map(|j| (j, 0)).collect();
        let search = |damage| {
            Damaged::boxed(case, damage)
                .beam_search(&data.weight, &data.hessian, &data.matrix, &order, problem.beam)
                .unwrap()
        };
        assert_ne!(
            search(Damage::OtherTies).codes(),
            search(Damage::Nothing).codes(),
            "{case}"
        );
    }
    // ... and is accepted everywhere.
    assert_eq!(failures(Operation::BeamSearch, Damage::OtherTies).0, 0);
}
