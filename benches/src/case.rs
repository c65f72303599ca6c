use aqlm_vocabulary::{Purpose, QuantizedMatrix, Result, Scheme, stream};
use ndarray::{Array1, Array3, Array4};
use rand::RngExt;

/// (out_features, in_features) that benches run at: Llama 2 7B's attention, its MLP and the way back.
pub const SHAPES: [(usize, usize); 3] = [(4096, 4096), (11008, 4096), (4096, 11008)];

/// A matrix of random codes and an input to multiply it with.
#[derive(Debug, Clone)]
pub struct Case {
    /// codebooks and scales hold f16 values, as in a checkpoint
    pub matrix: QuantizedMatrix,
    /// `[in_features]`
    pub x: Vec<f32>,
}

/// Uniformly random codes (the worst case for caches), codebooks and x, from `seed`.
///
/// # Errors
/// `NotDivisible` when the scheme's groups do not divide the shape.
pub fn case(scheme: Scheme, out_features: usize, in_features: usize, seed: u64) -> Result<Case> {
    let (out_groups, in_groups) = scheme.groups(out_features, in_features)?;
    let mut rng = stream(seed, 0, None, Purpose::TestData);
    let size = scheme.codebook_size();
    let codes = Array3::from_shape_simple_fn((out_groups, in_groups, scheme.num_codebooks), || {
        rng.random_range(0..size) as u16
    });
    let shape = (
        scheme.num_codebooks,
        size,
        scheme.out_group_size,
        scheme.in_group_size,
    );
    let codebooks = Array4::from_shape_simple_fn(shape, || rng.random_range(-1.0..1.0));
    let scales = Array1::from_shape_simple_fn(out_groups, || rng.random_range(0.01..0.02));
    let matrix = QuantizedMatrix::new(scheme, codes, codebooks, scales)?.rounded_to_f16()?;
    let x = (0..in_features).map(|_| rng.random_range(-1.0..1.0)).collect();
    Ok(Case { matrix, x })
}
