//! One file per operation, with everything that the check, the benches and the tests know of it.
//!
//! To add an operation: its file, its line below, and its entry in the list of `operation.rs`.

#![allow(
    clippy::needless_pass_by_value,
    reason = "an ndarray view is a reference, and passing it by value is ndarray's own custom"
)]

mod beam_search;
mod block_backward;
mod block_finetune;
mod block_forward;
mod checked;
mod codebook_update;
mod cost;
mod decode;
mod em_init;
mod feedback_init;
mod gradient_sums;
mod hessian;
mod kmeans;
mod layer;
mod layer_quantize;
mod llama;
mod matmul;
mod matvec;
mod model_forward;
mod model_tune;
mod nearest;
mod op;
mod perplexity;
mod product;
mod product_check;
mod residual_init;
mod two_sided;
mod work;

use crate::operation::{Operation, operations};

pub(crate) use checked::{Checked, Prepared};
pub use cost::Cost;
pub(crate) use op::{CaseData, Listed, Op, against, of_quantizer};
pub use product::matrix_bytes;
pub use product_check::ProductCheck;
pub use work::Work;

macro_rules! checked {
    ($($(#[$doc:meta])+ $name:ident: $word:ident,)+) => {
        impl Operation {
            /// The operation's checker.
            pub(crate) fn checked(self) -> &'static dyn Checked {
                match self {
                    $(Self::$name => &$word::$name,)+
                }
            }
        }

        $(impl Listed for $word::$name {
            const OPERATION: Operation = Operation::$name;
        })+
    };
}
operations!(checked);
