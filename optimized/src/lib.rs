//! Fast implementations of the operations of `aqlm-reference`. They share the reference's vocabulary but none
//! of its algorithms, so that an agreement of the two is evidence.

pub mod cpu;
pub mod cuda;
