//! The operations of `aqlm-reference`, fast.

pub mod cuda;
