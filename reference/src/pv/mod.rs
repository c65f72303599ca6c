//! The steps of PV-Tuning that change codes (Malinovskii et al. 2024), with the rules of the official code
//! (Vahe1994/AQLM at e79a896: `src/pv_optimizer.py`, `src/beam_search_l2.py`).
//!
//! A quantized matrix has a buffer B of the weight's shape. The optimizer moves B as if the weight were
//! continuous. Then the groups in which B differs most from the decoded weight ([`largest()`]) are encoded
//! again towards B ([`recode()`]), as far as the change can be trusted ([`trusted()`]). [`code_step()`] is
//! the whole choice, [`TunedCodes`] a matrix's buffer with its moments.
//!
//! Not in the official code: [`GradientProducts`] gives the search another metric, [`refit()`] fits codebooks
//! to the buffer.

mod code_step;
mod delta_decay;
mod metric;
mod recode;
mod refit;
mod selection;
mod trust;
mod tuned_codes;

pub use code_step::{Recoded, code_step};
pub use delta_decay::delta_decay;
pub use metric::GradientProducts;
pub use recode::recode;
pub use refit::refit;
pub use selection::{allowances, group_norms, largest};
pub use trust::trusted;
pub use tuned_codes::TunedCodes;
