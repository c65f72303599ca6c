//! Shared by the benches: matrices to measure with, dense products of the same shape, and the machine's
//! roofline.

mod case;
mod clock;
mod dense;
mod plans;
mod report;
mod roofline;

pub use case::{Case, SHAPES, case};
pub use clock::{Times, time};
pub use dense::{DenseWeight, faer_matvec, ndarray_matvec};
pub use plans::{PlanName, plans, plans_at};
pub use report::print_roofline;
pub use roofline::copy_bandwidth;
