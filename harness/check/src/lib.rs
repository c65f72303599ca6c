//! `aqlm check`: compares results with those of peers and of other backends, with four outcomes and a
//! one-line replay of each failure (docs/checking.md).

pub mod assertions;
mod breakage;
pub mod cases;
mod compare;
mod cross;
mod keep;
pub mod ledger;
pub mod limits;
mod operation;
mod ops;
mod peer_checkpoints;
mod peer_models;
mod peer_ops;
mod peer_pv;
mod subject;
mod vector_file;
mod vector_options;
mod vectors;
mod whole_model;

pub use aqlm_engine::runs::records::{
    CaseRow, CheckReport, Comparison, CrossReport, Outcome, Summary, Worst,
};
pub use compare::{Against, Findings};
pub use cross::{CrossOptions, check_broken, cross_check, simplest_failure};
pub use ops::{Cost, ProductCheck, Work, matrix_bytes};
pub use subject::{Cpu, Cuda, Machines, Pools, Subject};
pub use vector_options::VectorOptions;
pub use vectors::check_vectors;

/// |a - b| / |b| in the Euclidean norm; the absolute |a| when b is zero.
pub(crate) fn relative_difference<'a>(
    found: impl IntoIterator<Item = &'a f64>,
    expected: impl IntoIterator<Item = &'a f64>,
) -> f64 {
    let (difference, norm) = squares(found, expected);
    if norm == 0.0 {
        difference.sqrt()
    } else {
        (difference / norm).sqrt()
    }
}

/// sum((a - b)^2) / sum(b^2); NaN (and so a failure) when the reference is zero.
pub(crate) fn nmse<'a>(
    found: impl IntoIterator<Item = &'a f64>,
    expected: impl IntoIterator<Item = &'a f64>,
) -> f64 {
    let (difference, norm) = squares(found, expected);
    difference / norm
}

/// The largest of some differences; NaN if any of them is NaN, which `f64::max` would ignore.
pub(crate) fn largest(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(
        0.0,
        |top: f64, value| if top.is_nan() || value <= top { top } else { value },
    )
}

/// sum((a - b)^2) and sum(b^2).
fn squares<'a>(
    found: impl IntoIterator<Item = &'a f64>,
    expected: impl IntoIterator<Item = &'a f64>,
) -> (f64, f64) {
    found
        .into_iter()
        .zip(expected)
        .fold((0.0, 0.0), |(difference, norm), (found, expected)| {
            (difference + (found - expected).powi(2), norm + expected.powi(2))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_of_differences_keeps_nan() {
        assert_eq!(largest([0.5, 2.0, 1.0]), 2.0);
        assert!(largest([0.5, f64::NAN, 1.0]).is_nan());
        assert!(largest([f64::NAN]).is_nan());
    }

    #[test]
    fn a_zero_reference_never_passes_nmse() {
        assert!(nmse(&[0.0], &[0.0]).is_nan());
    }
}
