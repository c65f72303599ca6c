//! The operations of `aqlm-reference`, fast. Uses the reference's vocabulary and none of its algorithms, so
//! that an agreement of the two means something.

pub mod cpu;
pub mod cuda;
