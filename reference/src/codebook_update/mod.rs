//! Codebooks and scales for fixed codes (paper section 3.3).
//!
//! The loss tr((W - Q) H (W - Q)T) is quadratic in the codebooks. The paper minimises it by Adam and leaves a
//! dedicated least-squares solver to future work. This module has both. The solver has two forms: one forms
//! the normal equations, the other does not.

mod adam;
mod closed_form;
mod conjugate_gradients;
mod scales;

pub use adam::adam;
pub use closed_form::closed_form;
pub(crate) use conjugate_gradients::descend;
pub use conjugate_gradients::{Descent, conjugate_gradients};
pub use scales::optimal_scales;

use ndarray::Array2;

use crate::layer_error::check_shapes;
use crate::{decode, layer_error};
use aqlm_vocabulary::{AdamSettings, QuantizedMatrix, Result, Update};

/// Codebooks and scales updated as `settings` say, starting from those of `matrix`; the codes stay fixed.
///
/// The layer error of the result is never above that of `matrix`: a step that would raise it is not taken.
///
/// # Errors
/// `Shape` when weight [out_features, in_features], H [in_features, in_features] and matrix do not fit,
/// `NotPositiveDefinite` when H is indefinite, `NotFinite` when the numbers overflow.
pub fn update(
    weight: &Array2<f64>,
    hessian: &Array2<f64>,
    matrix: &QuantizedMatrix,
    settings: &Update,
) -> Result<QuantizedMatrix> {
    check_shapes(weight, hessian, matrix)?;
    let loss = |matrix: &QuantizedMatrix| layer_error(weight, &decode(matrix), hessian);
    let mut best = (loss(matrix), matrix.clone());
    let consider = |candidate: QuantizedMatrix, best: &mut (f64, QuantizedMatrix)| {
        let loss = loss(&candidate);
        if loss < best.0 {
            *best = (loss, candidate);
        }
    };
    match *settings {
        Update::ClosedForm {
            max_unknowns,
            cg_steps,
            scale_rounds,
        } => {
            let scheme = matrix.scheme();
            let unknowns = scheme.num_codebooks * scheme.codebook_size() * scheme.in_group_size;
            for round in 0..scale_rounds.max(1) {
                let codebooks = if unknowns <= max_unknowns {
                    closed_form(weight, hessian, &best.1)?
                } else {
                    conjugate_gradients(weight, hessian, &best.1, cg_steps)?
                };
                consider(best.1.clone().with_codebooks(codebooks)?, &mut best);
                if round < scale_rounds {
                    let scales = optimal_scales(weight, hessian, &best.1)?;
                    consider(best.1.clone().with_scales(scales)?, &mut best);
                }
            }
        }
        Update::Adam {
            lr,
            beta1,
            beta2,
            amsgrad,
            steps,
        } => {
            let settings = AdamSettings {
                lr,
                beta1,
                beta2,
                eps: AdamSettings::USUAL_EPS,
                amsgrad,
            };
            consider(adam(weight, hessian, matrix, &settings, steps)?.0, &mut best);
        }
    }
    Ok(best.1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::problem::{Problem, config, problem};

    fn loss(p: &Problem, matrix: &QuantizedMatrix) -> f64 {
        layer_error(&p.weight, &decode(matrix), &p.hessian)
    }

    proptest! {
        #![proptest_config(config(24))]
        #[test]
        fn updates_never_raise_the_loss(seed: u64, scheme in prop::sample::select(vec!["2x3g4", "1x2g4o2"]), scale_rounds in 0usize..3, wild: bool) {
            let p = problem(seed, scheme, 8, 4);
            let closed = Update::ClosedForm { max_unknowns: 4096, cg_steps: 0, scale_rounds };
            let implicit = Update::ClosedForm { max_unknowns: 0, cg_steps: 7, scale_rounds };
            // A learning rate of 10 makes Adam diverge; even then the result must not be worse.
            let lr = if wild { 10.0 } else { 1e-2 };
            let adam = Update::Adam { lr, beta1: 0.9, beta2: 0.95, amsgrad: false, steps: 20 };
            for settings in [closed, implicit, adam] {
                let updated = update(&p.weight, &p.hessian, &p.matrix, &settings).unwrap();
                prop_assert!(loss(&p, &updated) <= loss(&p, &p.matrix));
                prop_assert_eq!(updated.codes(), p.matrix.codes());
            }
        }

        #[test]
        fn the_closed_form_is_not_worse_than_adam(seed: u64) {
            let p = problem(seed, "2x3g4", 8, 4);
            // Adam moves scales too, so the solver gets enough alternations to reach a lower loss.
            let closed = Update::ClosedForm { max_unknowns: 4096, cg_steps: 0, scale_rounds: 4 };
            let adam = Update::Adam { lr: 1e-2, beta1: 0.9, beta2: 0.95, amsgrad: false, steps: 100 };
            let losses = [closed, adam].map(|u| loss(&p, &update(&p.weight, &p.hessian, &p.matrix, &u).unwrap()));
            prop_assert!(losses[0] <= losses[1]);
        }
    }

    #[test]
    fn the_number_of_unknowns_decides_between_exact_and_iterative() {
        // 2 codebooks of 8 codewords of 4 numbers per row
        let p = problem(6, "2x3g4", 12, 4);
        let with = |max_unknowns| {
            let settings = Update::ClosedForm {
                max_unknowns,
                cg_steps: 2,
                scale_rounds: 0,
            };
            update(&p.weight, &p.hessian, &p.matrix, &settings).unwrap()
        };
        let exact = closed_form(&p.weight, &p.hessian, &p.matrix).unwrap();
        let iterative = conjugate_gradients(&p.weight, &p.hessian, &p.matrix, 2).unwrap();
        assert_ne!(exact, iterative);
        assert_eq!(with(64).codebooks(), exact);
        assert_eq!(with(63).codebooks(), iterative);
        assert_eq!(
            with(64).scales(),
            p.matrix.scales(),
            "no round of scales was asked for"
        );
    }
}
