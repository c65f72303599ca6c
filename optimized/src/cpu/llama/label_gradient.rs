use aqlm_vocabulary::Result;
use faer::Par;
use ndarray::{Array2, ArrayView2};

use super::cross_entropy::cross_entropy;
use super::head::{Head, finish, unfinish};
use super::norm::{norm, norm_backward};
use crate::cpu::product::{linear, linear_input_gradient};

impl Head {
    /// The gradient of the summed negative log-likelihoods of labels, one a row, with respect to hidden
    /// states [rows, hidden].
    ///
    /// # Errors
    /// `Shape` unless there is one label a row, `TokenOutOfRange` when a label exceeds the vocabulary.
    ///
    /// # Panics
    /// When the width of the rows differs from the head's.
    pub fn label_gradient(&self, x: ArrayView2<'_, f32>, labels: &[u32]) -> Result<Array2<f32>> {
        let x = x.as_standard_layout();
        let normed = norm(self.norm, x.view(), &self.weight);
        let lm_head = self.output.widened();
        let lm_head = ArrayView2::from_shape(self.output.dim(), &lm_head)
            .expect("as many values as the store was made of");
        let mut logits = linear(normed.view(), lm_head, Par::rayon(0));
        finish(self.logits, &mut logits);
        let finished = self.logits.cap.map(|_| logits.clone());
        cross_entropy(&mut logits, labels, 1.0)?;
        unfinish(self.logits, finished.as_ref(), &mut logits);
        let grad_normed = linear_input_gradient(logits.view(), lm_head, Par::rayon(0));
        let mut grad = Array2::zeros(x.dim());
        let to = Some(grad.view_mut());
        norm_backward(self.norm, x.view(), &self.weight, grad_normed.view(), to);
        Ok(grad)
    }
}
