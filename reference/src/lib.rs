//! AQLM, slow and readable: every idea of the paper in f64 on ndarray, one file an idea.

pub mod vocabulary;
