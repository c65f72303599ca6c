//! The choice of new codes in a step of PV-Tuning: the groups that differ most from a buffer are encoded
//! again (Malinovskii et al. 2024; rules of Vahe1994/AQLM at e79a896, `src/beam_search_l2.py`).
//!
//! What a matrix needs is its own: gradient, buffer, moments, codes, codebooks and scales. Buffers and scores
//! are f32, norms f64.

mod metric;
mod recode;
mod refit;
mod selection;

use aqlm_vocabulary::{AqlmError, CodeMetric, CodeSettings, QuantizedMatrix, Result};
use ndarray::{Array2, Array3};
use rayon::prelude::*;

use super::decode::decode;
use crate::cpu::row_major::{elements, elements_mut};
use crate::cpu::stepper::Stepper;
use metric::{GradientProducts, Root};
use recode::Books;
use refit::refit;
use selection::largest;

pub use selection::allowances;

/// Groups of one task.
const GROUPS: usize = 64;

/// The straight-through buffer of one matrix, with its moments and the gradient summed so far.
#[derive(Debug, Clone)]
pub struct CodeBuffer {
    settings: CodeSettings,
    /// [out_features, in_features]
    buffer: Array2<f32>,
    gradient: Array2<f32>,
    stepper: Stepper<f32>,
    /// where they make the metric
    products: Option<GradientProducts>,
}

/// How a matrix differs from its buffer.
#[derive(Debug, Clone)]
pub struct Differences {
    /// the squared norm of each group's difference, [out_groups, in_groups]
    pub norms: Vec<f64>,
    /// the squared norm of the decoded weight
    weight: f64,
}

/// New codes of a matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Recoded {
    /// [out_groups, in_groups, M]
    pub codes: Array3<u16>,
    /// groups of which at least one code changed
    pub changed: usize,
}

impl CodeBuffer {
    /// Before the first step: the buffer is the decoded weight.
    pub fn new(matrix: &QuantizedMatrix, settings: CodeSettings) -> Self {
        let buffer = decode(matrix);
        Self {
            settings,
            gradient: Array2::zeros(buffer.raw_dim()),
            stepper: Stepper::lean(settings.optimizer, buffer.len()),
            products: (settings.metric == CodeMetric::Gradients).then(|| {
                let (_, in_groups) = matrix.groups();
                let width = matrix.scheme().in_group_size;
                GradientProducts::new(in_groups, width, settings.optimizer.decay.beta2)
            }),
            buffer,
        }
    }

    /// The buffer, [out_features, in_features].
    pub fn buffer(&self) -> &Array2<f32> {
        &self.buffer
    }

    /// First and second moments, row-major; no first ones if their decay is 0.
    pub fn moments(&self) -> (&[f32], &[f32]) {
        self.stepper.moments()
    }

    /// The averages of the gradients' products, [in_groups, in_group, in_group]; empty where the metric needs
    /// none.
    pub fn products(&self) -> &[f64] {
        self.products.as_ref().map_or(&[], GradientProducts::values)
    }

    /// Adds to the gradient with respect to the decoded weight.
    ///
    /// # Panics
    /// When the shapes differ.
    pub fn add(&mut self, gradient: &Array2<f32>) {
        assert_eq!(
            self.gradient.dim(),
            gradient.dim(),
            "shape of a weight's gradient"
        );
        let gradient = gradient.as_standard_layout();
        elements_mut(&mut self.gradient)
            .par_chunks_mut(1 << 14)
            .zip(elements(&gradient).par_chunks(1 << 14))
            .for_each(|(sum, part)| sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part));
    }

    /// Takes the sum of the gradients out, which restarts at zero.
    pub fn take_gradient(&mut self) -> impl Iterator<Item = f64> {
        let zeros = Array2::zeros(self.gradient.raw_dim());
        std::mem::replace(&mut self.gradient, zeros)
            .into_iter()
            .map(f64::from)
    }

    /// Adds the front of a list of sums that [`CodeBuffer::take_gradient`] returned.
    pub fn add_sums(&mut self, sums: &mut dyn Iterator<Item = &f64>) {
        for (sum, &part) in self.gradient.iter_mut().zip(sums) {
            // parts are numbers of f32, so this is the sum that one device would have
            *sum += part as f32;
        }
    }

    /// The buffer and moments after `steps` steps and the averages of the gradients' products, row-major; a
    /// gradient that was not used is discarded.
    ///
    /// # Errors
    /// `Shape` when a list has another length than the weight; then nothing is changed.
    pub fn restore(&mut self, steps: u32, [buffer, first, second, products]: [&[f64]; 4]) -> Result<()> {
        let len = self.buffer.len();
        let (firsts, _) = self.stepper.moments();
        for (what, expected, found) in [
            ("buffer", len, buffer.len()),
            ("first moments of a buffer", firsts.len(), first.len()),
            ("second moments of a buffer", len, second.len()),
        ] {
            if expected != found {
                return Err(AqlmError::Shape {
                    what: what.into(),
                    expected: vec![expected],
                    found: vec![found],
                });
            }
        }
        match &mut self.products {
            Some(own) => own.restore(products)?,
            None if products.is_empty() => {}
            None => {
                return Err(AqlmError::Shape {
                    what: "gradient products of a matrix".into(),
                    expected: vec![0],
                    found: vec![products.len()],
                });
            }
        }
        let narrowed = |values: &[f64]| -> Vec<f32> { values.iter().map(|&value| value as f32).collect() };
        self.stepper = Stepper::resumed(self.settings.optimizer, steps, narrowed(first), narrowed(second));
        elements_mut(&mut self.buffer).copy_from_slice(&narrowed(buffer));
        self.gradient.fill(0.0);
        Ok(())
    }

    /// Moves the buffer along the gradient, which is then reset.
    pub fn move_buffer(&mut self, lr: f64) {
        if let Some(products) = &mut self.products {
            products.add(elements(&self.gradient), self.gradient.ncols());
        }
        self.stepper
            .step(lr, elements_mut(&mut self.buffer), elements(&self.gradient));
        self.gradient.fill(0.0);
    }

    /// How the matrix, with codebooks and scales after the step, differs from the buffer.
    pub fn differences(&self, matrix: &QuantizedMatrix) -> Differences {
        let weight = decode(matrix);
        let (go, gi) = (matrix.scheme().out_group_size, matrix.scheme().in_group_size);
        let width = weight.ncols();
        let mut norms = vec![0.0; matrix.codes().len() / matrix.scheme().num_codebooks];
        let squares: Vec<f64> = norms
            .par_chunks_mut((width / gi).max(1))
            .zip(elements(&weight).par_chunks((go * width).max(1)))
            .zip(elements(&self.buffer).par_chunks((go * width).max(1)))
            .map(|((norms, weight), buffer)| {
                let mut squares = 0.0;
                for (weight, buffer) in weight.chunks_exact(width).zip(buffer.chunks_exact(width)) {
                    let groups = weight.chunks_exact(gi).zip(buffer.chunks_exact(gi));
                    for (norm, (weight, buffer)) in norms.iter_mut().zip(groups) {
                        for (weight, buffer) in weight.iter().zip(buffer) {
                            let difference = f64::from(buffer - weight);
                            *norm += difference * difference;
                            squares += f64::from(*weight) * f64::from(*weight);
                        }
                    }
                }
                squares
            })
            .collect();
        Differences {
            norms,
            weight: squares.iter().sum(),
        }
    }

    /// New codes for the `count` groups with the largest differences: those nearest to the buffer's group
    /// divided by its scale. With a trust ratio only the first of them change, until the norm of all changes
    /// passes that share of the weight's norm. Codebooks are visited in `order`, and distances are those of
    /// the settings' metric.
    ///
    /// Groups whose target is not finite, as under a scale of zero, keep their codes.
    pub fn recode(
        &self,
        matrix: &QuantizedMatrix,
        differences: &Differences,
        count: usize,
        order: &[usize],
    ) -> Recoded {
        let scheme = matrix.scheme();
        let (go, gi) = (scheme.out_group_size, scheme.in_group_size);
        let (_, in_groups) = matrix.groups();
        let (len, num_codebooks) = (go * gi, scheme.num_codebooks);
        let selected = largest(&differences.norms, count);
        let mut codes = matrix.codes().clone();
        if selected.is_empty() {
            return Recoded { codes, changed: 0 };
        }
        let codebooks = elements(matrix.codebooks());
        let books = |root: Option<&Root>| Books::new(codebooks, num_codebooks, len, root);
        let width = self.buffer.ncols();
        let (buffer, all) = (elements(&self.buffer), elements(matrix.codes()));
        let target = |group: usize, to: &mut Vec<f32>| {
            let (o, j) = (group / in_groups, group % in_groups);
            let scale = matrix.scales()[o] as f32;
            for a in 0..go {
                let row = &buffer[(o * go + a) * width + j * gi..][..gi];
                to.extend(row.iter().map(|value| value / scale));
            }
        };
        let search = |groups: &[usize], books: &Books, root: Option<&Root>| {
            let (mut targets, mut old) = (Vec::new(), Vec::new());
            for &group in groups {
                target(group, &mut targets);
                old.extend_from_slice(&all[group * num_codebooks..][..num_codebooks]);
            }
            if let Some(root) = root {
                root.transform(&mut targets);
            }
            let unfit: Vec<bool> = targets
                .chunks_exact_mut(len)
                .map(|target| {
                    let unfit = target.iter().any(|value| !value.is_finite());
                    if unfit {
                        target.fill(0.0);
                    }
                    unfit
                })
                .collect();
            let mut new = books.recode(targets, &old, order, &self.settings);
            for ((new, old), unfit) in new
                .chunks_exact_mut(num_codebooks)
                .zip(old.chunks_exact(num_codebooks))
                .zip(unfit)
            {
                if unfit {
                    new.copy_from_slice(old);
                }
            }
            new
        };
        let found = match &self.products {
            None => {
                let books = books(None);
                let parts: Vec<Vec<u16>> = selected
                    .par_chunks(GROUPS)
                    .map(|groups| search(groups, &books, None))
                    .collect();
                parts.concat()
            }
            Some(products) => {
                // Groups at one place in their rows have one metric.
                let mut places: Vec<Vec<usize>> = vec![Vec::new(); in_groups];
                for (index, group) in selected.iter().enumerate() {
                    places[group % in_groups].push(index);
                }
                let parts: Vec<Vec<u16>> = places
                    .par_iter()
                    .enumerate()
                    .map(|(place, indices)| {
                        if indices.is_empty() {
                            return Vec::new();
                        }
                        let root = products.root(place);
                        let groups: Vec<usize> = indices.iter().map(|&index| selected[index]).collect();
                        search(&groups, &books(Some(&root)), Some(&root))
                    })
                    .collect();
                let mut found = vec![0; selected.len() * num_codebooks];
                for (indices, part) in places.iter().zip(&parts) {
                    for (&index, codes) in indices.iter().zip(part.chunks_exact(num_codebooks)) {
                        found[index * num_codebooks..][..num_codebooks].copy_from_slice(codes);
                    }
                }
                found
            }
        };
        let kept = match self.settings.trust_ratio {
            None => selected.len(),
            Some(ratio) => {
                let bound = ratio * differences.weight.sqrt();
                trusted(matrix, &selected, &found, bound)
            }
        };
        let mut changed = 0;
        let codes_of = elements_mut(&mut codes);
        for (&group, new) in selected[..kept].iter().zip(found.chunks_exact(num_codebooks)) {
            let old = &mut codes_of[group * num_codebooks..][..num_codebooks];
            changed += usize::from(old != new);
            old.copy_from_slice(new);
        }
        Recoded { codes, changed }
    }

    /// The matrix with codebooks on their way to the fit of the buffer, if the settings say so.
    pub fn refitted(&self, mut matrix: QuantizedMatrix) -> QuantizedMatrix {
        if self.settings.refit > 0.0 {
            let codebooks = refit(&matrix, &self.buffer, self.settings.refit);
            matrix.tune(|mut to, _| to.assign(&codebooks));
        }
        matrix
    }

    /// What remains of the buffer, given the matrix with its new codes: (1 - d) B + d W.
    pub fn decay(&mut self, matrix: &QuantizedMatrix) {
        let d = self.settings.delta_decay;
        if d == 0.0 {
            return;
        }
        let weight = decode(matrix);
        elements_mut(&mut self.buffer)
            .par_chunks_mut(1 << 14)
            .zip(elements(&weight).par_chunks(1 << 14))
            .for_each(|(buffer, weight)| {
                for (b, &w) in buffer.iter_mut().zip(weight) {
                    *b = ((1.0 - d) * f64::from(*b) + d * f64::from(w)) as f32;
                }
            });
    }
}

/// Number of changes to keep, from the front: one more than those whose joint norm stays below `bound`.
fn trusted(matrix: &QuantizedMatrix, selected: &[usize], found: &[u16], bound: f64) -> usize {
    let scheme = matrix.scheme();
    let (num_codebooks, states) = (scheme.num_codebooks, scheme.codebook_size());
    let len = scheme.out_group_size * scheme.in_group_size;
    let (_, in_groups) = matrix.groups();
    let (codebooks, codes) = (elements(matrix.codebooks()), elements(matrix.codes()));
    let mut squares = 0.0;
    for (place, (&group, new)) in selected.iter().zip(found.chunks_exact(num_codebooks)).enumerate() {
        let old = &codes[group * num_codebooks..][..num_codebooks];
        let scale = matrix.scales()[group / in_groups];
        let entry = |m: usize, code: u16, i: usize| codebooks[(m * states + usize::from(code)) * len + i];
        for i in 0..len {
            let moved: f64 = (0..num_codebooks)
                .map(|m| entry(m, new[m], i) - entry(m, old[m], i))
                .sum();
            squares += (scale * moved) * (scale * moved);
        }
        let norm = squares.sqrt();
        if norm >= bound || norm.is_nan() || bound.is_nan() {
            return place + 1;
        }
    }
    selected.len()
}
