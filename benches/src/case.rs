use aqlm_check::cases::{ProductCase, Values};
use aqlm_vocabulary::{QuantizedMatrix, Result, Scheme};

/// (out_features, in_features) of the benches: Llama 2 7B's attention, and its MLP up and down.
pub const SHAPES: [(usize, usize); 3] = [(4096, 4096), (11008, 4096), (4096, 11008)];

/// A matrix of random codes and an input to multiply it with.
#[derive(Debug, Clone)]
pub struct Case {
    /// codebooks and scales hold f16 values, as in a checkpoint
    pub matrix: QuantizedMatrix,
    /// `[in_features]`
    pub x: Vec<f32>,
}

/// The check's own realistic product of this shape: uniformly random codes (the worst case for caches).
///
/// # Errors
/// `NotDivisible` when the scheme's groups do not divide the shape.
pub fn case(scheme: Scheme, out_features: usize, in_features: usize, seed: u64) -> Result<Case> {
    let (out_groups, in_groups) = scheme.groups(out_features, in_features)?;
    let problem = ProductCase {
        scheme,
        out_groups,
        in_groups,
        batch: 1,
        values: Values::Outliers,
    };
    let data = problem.data(seed);
    Ok(Case {
        matrix: data.matrix,
        x: data.x.into_raw_vec_and_offset().0,
    })
}
