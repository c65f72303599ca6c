//! One file an operation: the properties that the reference must have, and the comparison of a backend with
//! it.

#![allow(
    clippy::needless_pass_by_value,
    reason = "an ndarray view is a reference, and passing it by value is ndarray's own custom"
)]

mod beam_search;
mod block_backward;
mod block_finetune;
mod block_forward;
mod codebook_update;
mod decode;
mod em_init;
mod hessian;
mod kmeans;
mod layer;
mod layer_quantize;
mod matmul;
mod matvec;
mod model_forward;
mod nearest;
mod perplexity;
mod product;
mod residual_init;

use super::Comparison;
use super::compare::Findings;
use super::subject::Subject;
use crate::cases::{Case, Operation};
use aqlm_formats::Result;

/// A case with its expected answer: compares one subject with it.
pub(super) type Prepared = Box<dyn Fn(&dyn Subject) -> Result<Findings>>;

/// How an operation is checked.
pub(super) struct Check {
    /// which
    pub(super) operation: Operation,
    /// what must hold for the reference itself
    pub(super) properties: fn(&Case) -> Result<Vec<Comparison>>,
    /// the reference's answer, to compare subjects with
    pub(super) prepare: fn(&Case) -> Result<Prepared>,
}

macro_rules! checks {
    ($($operation:ident: $module:ident,)+) => {
        /// Every operation's check, in the order in which they run.
        pub(super) const CHECKS: &[Check] = &[
            $(Check {
                operation: Operation::$operation,
                properties: $module::properties,
                prepare: $module::prepare,
            },)+
        ];
    };
}

checks! {
    Decode: decode,
    Matvec: matvec,
    Matmul: matmul,
    Hessian: hessian,
    Kmeans: kmeans,
    ResidualInit: residual_init,
    EmInit: em_init,
    BeamSearch: beam_search,
    CodebookUpdate: codebook_update,
    LayerQuantize: layer_quantize,
    BlockForward: block_forward,
    BlockBackward: block_backward,
    BlockFinetune: block_finetune,
    ModelForward: model_forward,
    Perplexity: perplexity,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_a_check() {
        let checked: Vec<Operation> = CHECKS.iter().map(|check| check.operation).collect();
        assert_eq!(checked, Operation::ALL);
    }
}
