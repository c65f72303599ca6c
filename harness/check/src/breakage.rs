//! Deliberate mistakes in implementations. An operation lists its breakages, and the check must reject a
//! machine with any of them (harness/aqlm/tests/broken_kernels.rs).

use aqlm_vocabulary::QuantizedMatrix;
use ndarray::{Array3, Axis};

/// One mistake: the machine computes from changed data, or its answer is changed.
pub(crate) struct Breakage<D, A> {
    pub(crate) name: &'static str,
    /// changes the data that the machine computes from
    pub(crate) data: fn(&mut D),
    /// changes the answer; the data are the true ones, the last argument is the previous answer
    pub(crate) answer: fn(&mut A, &D, Option<&A>),
    /// whether the check must reject it; a different rule for ties, for example, is no mistake
    pub(crate) refused: bool,
}

impl<D, A> Breakage<D, A> {
    /// Computes from data modified by `change`.
    pub(crate) fn of_data(name: &'static str, change: fn(&mut D)) -> Self {
        Self {
            name,
            data: change,
            answer: |_, _, _| (),
            refused: true,
        }
    }

    /// Returns the right answer modified by `change`.
    pub(crate) fn of_answer(name: &'static str, change: fn(&mut A, &D, Option<&A>)) -> Self {
        Self {
            name,
            data: |_| (),
            answer: change,
            refused: true,
        }
    }

    /// The same breakage, marked as equally correct.
    pub(crate) fn allowed(self) -> Self {
        Self {
            refused: false,
            ..self
        }
    }
}

/// Every output group gets the scale of the next group.
pub(crate) fn next_scales(matrix: &mut QuantizedMatrix) {
    let count = matrix.scales().len();
    let moved: Vec<f64> = (0..count).map(|o| matrix.scales()[(o + 1) % count]).collect();
    matrix.tune(|_, mut scales| {
        scales
            .iter_mut()
            .zip(moved)
            .for_each(|(scale, next)| *scale = next);
    });
}

/// Changes codes to others of the same codebooks.
pub(crate) fn codes(matrix: &mut QuantizedMatrix, change: impl FnOnce(&mut Array3<u16>)) {
    let mut codes = matrix.codes().clone();
    change(&mut codes);
    *matrix = matrix
        .clone()
        .with_codes(codes)
        .expect("codes that the codebooks have");
}

/// The codes of input group j are taken from group j + 1.
pub(crate) fn next_groups(matrix: &mut QuantizedMatrix) {
    let whole = matrix.codes().clone();
    let groups = whole.dim().1;
    codes(matrix, |moved| {
        for j in 0..groups {
            let next = whole.index_axis(Axis(1), (j + 1) % groups);
            moved.index_axis_mut(Axis(1), j).assign(&next);
        }
    });
}

/// Codebooks are read as [G, 2^B] instead of [2^B, G].
pub(crate) fn transposed_codebooks(matrix: &mut QuantizedMatrix) {
    matrix.tune(|mut codebooks, _| {
        for mut codebook in codebooks.outer_iter_mut() {
            let flat: Vec<f64> = codebook.iter().copied().collect();
            let (size, len) = (codebook.dim().0, flat.len() / codebook.dim().0);
            for (i, value) in codebook.iter_mut().enumerate() {
                *value = flat[(i % len) * size + i / len];
            }
        }
    });
}

/// The last results, up to 64, are never written.
pub(crate) fn unwritten(results: &mut [f64]) {
    let written = results.len() - results.len().min(64);
    results[written..].fill(f64::NAN);
}

/// Results are added to those of the previous call.
pub(crate) fn stale<'a>(
    results: impl IntoIterator<Item = &'a mut f64>,
    before: Option<impl IntoIterator<Item = &'a f64>>,
) {
    if let Some(before) = before {
        results
            .into_iter()
            .zip(before)
            .for_each(|(y, before)| *y += before);
    }
}

/// One result is NaN.
pub(crate) fn nan(results: &mut [f64]) {
    let middle = results.len() / 2;
    results[middle] = f64::NAN;
}

/// The largest result is off by a thousandth.
pub(crate) fn inaccurate<'a>(results: impl IntoIterator<Item = &'a mut f64>) {
    let largest = results.into_iter().max_by(|a, b| a.abs().total_cmp(&b.abs()));
    if let Some(largest) = largest {
        *largest *= 1.001;
    }
}
