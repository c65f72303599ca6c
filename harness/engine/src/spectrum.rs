//! Eigenvalues of H, found beside other work: a machine that quantizes layers need not wait for a report.

use std::thread::{JoinHandle, spawn};

use aqlm_formats::{Error, Result};
use aqlm_reference::linalg::eigenvalues;
use ndarray::Array2;

/// The eigenvalues of an H, computed by a thread of their own. They are a report and no step of the
/// quantizer, so the reference computes them for every machine.
pub struct Spectrum {
    thread: Option<JoinHandle<aqlm_vocabulary::Result<Vec<f64>>>>,
    known: Vec<f64>,
}

impl Spectrum {
    /// Starts the computation for a symmetric H.
    pub fn of(hessian: Array2<f64>) -> Self {
        Self {
            thread: Some(spawn(move || eigenvalues(hessian.view(), "hessian"))),
            known: Vec::new(),
        }
    }

    /// The eigenvalues, in any order; waits for them the first time.
    ///
    /// # Errors
    /// `NotFinite` when H has such numbers or the eigenvalues do not converge.
    pub fn eigenvalues(&mut self) -> Result<&[f64]> {
        if let Some(thread) = self.thread.take() {
            let found = thread.join();
            self.known = found.map_err(|_| Error::Internal("a thread of eigenvalues panicked".into()))??;
        }
        Ok(&self.known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eigenvalues_of_a_known_matrix_and_of_none() {
        let mut spectrum = Spectrum::of(ndarray::array![[2.0, 1.0], [1.0, 2.0]]);
        for _ in 0..2 {
            let mut found = spectrum.eigenvalues().unwrap().to_vec();
            found.sort_by(f64::total_cmp);
            assert!(
                (found[0] - 1.0).abs() < 1e-14 && (found[1] - 3.0).abs() < 1e-14,
                "{found:?}"
            );
        }
        assert!(Spectrum::of(ndarray::array![[f64::NAN]]).eigenvalues().is_err());
    }
}
