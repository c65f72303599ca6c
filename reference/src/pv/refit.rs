use aqlm_vocabulary::{CodeSettings, QuantizedMatrix, Result};
use ndarray::{Array2, Array4, s};

use crate::decode::decode;
use crate::linalg::solve_spd;

/// The codebooks of a matrix after they went `share` of the way to the least squares fit of `buffer`,
/// [out_features, in_features], with codes and scales as they are ([`CodeSettings::refit`]).
///
/// The movement D of the codewords, [M 2^B, length of a group], solves (N + R s I) D = E: N has for each pair
/// of codewords the sum of the squared scales of the groups that use both, and E for each codeword the sum of
/// its groups' differences from the buffer, each times its scale.
///
/// Where the buffer or scales are not finite, codebooks stay, and the loss shall tell.
///
/// # Errors
/// Those of the dense solve, which the ridge keeps from happening.
pub fn refit(matrix: &QuantizedMatrix, buffer: &Array2<f64>, share: f64) -> Result<Array4<f64>> {
    let scheme = matrix.scheme();
    let (go, gi) = (scheme.out_group_size, scheme.in_group_size);
    let (states, codewords) = (
        scheme.codebook_size(),
        scheme.num_codebooks * scheme.codebook_size(),
    );
    let (out_groups, in_groups) = matrix.groups();
    let differences = buffer - &decode(matrix);
    let mut pairs = Array2::<f64>::zeros((codewords, codewords));
    let mut errors = Array2::<f64>::zeros((codewords, go * gi));
    for o in 0..out_groups {
        let scale = matrix.scales()[o];
        for j in 0..in_groups {
            let codes = matrix.codes().slice(s![o, j, ..]);
            let used: Vec<usize> = codes
                .iter()
                .enumerate()
                .map(|(m, &code)| m * states + usize::from(code))
                .collect();
            let group = differences.slice(s![o * go..(o + 1) * go, j * gi..(j + 1) * gi]);
            for &a in &used {
                for &b in &used {
                    pairs[[a, b]] += scale * scale;
                }
                for (error, difference) in errors.row_mut(a).iter_mut().zip(&group) {
                    *error += scale * difference;
                }
            }
        }
    }
    let ridge = CodeSettings::REFIT_RIDGE * pairs.diag().sum() / codewords as f64;
    if !(ridge > 0.0 && ridge.is_finite() && errors.iter().all(|error| error.is_finite())) {
        return Ok(matrix.codebooks().clone());
    }
    pairs.diag_mut().mapv_inplace(|value| value + ridge);
    let movement = solve_spd(pairs.view(), errors.view(), "fit of codebooks to a buffer")?;
    let mut codebooks = matrix.codebooks().clone();
    codebooks
        .iter_mut()
        .zip(&movement)
        .for_each(|(entry, moved)| *entry += share * moved);
    Ok(codebooks)
}

#[cfg(test)]
mod tests {
    use aqlm_vocabulary::{Purpose, Scheme, Stream, stream};
    use ndarray::{Array, Array1, Array3, Dimension, ShapeBuilder};
    use rand::RngExt;

    use super::*;

    fn random(seed: u64) -> Stream {
        stream(seed, 0, None, Purpose::TestData)
    }

    /// Numbers from -1 to 1.
    fn uniform<D: Dimension, S: ShapeBuilder<Dim = D>>(rng: &mut Stream, shape: S) -> Array<f64, D> {
        Array::from_shape_simple_fn(shape, || rng.random_range(-1.0..1.0))
    }

    fn quantized(rng: &mut Stream, out_features: usize, in_features: usize) -> QuantizedMatrix {
        let scheme = Scheme::new(2, 2, 2).unwrap();
        let shape = (out_features, in_features / 2, 2);
        let codes = Array3::from_shape_simple_fn(shape, || rng.random_range(0..4));
        let codebooks = uniform(rng, (2, 4, 1, 2));
        let scales = Array1::from_shape_fn(out_features, |o| if o % 2 == 0 { 0.2 } else { 0.5 });
        QuantizedMatrix::new(scheme, codes, codebooks, scales).unwrap()
    }

    /// |B - W|^2 plus the ridge.
    fn objective(start: &QuantizedMatrix, codebooks: Array4<f64>, buffer: &Array2<f64>) -> f64 {
        let moved = (&codebooks - start.codebooks()).mapv(|d| d * d).sum();
        let (_, in_groups) = start.groups();
        let squares = start.scales().mapv(|scale| scale * scale).sum() * in_groups as f64;
        let ridge = CodeSettings::REFIT_RIDGE * squares / start.scheme().codebook_size() as f64;
        let fitted = start.clone().with_codebooks(codebooks).unwrap();
        (buffer - &decode(&fitted)).mapv(|e| e * e).sum() + ridge * moved
    }

    #[test]
    fn no_other_codebooks_are_better() {
        let mut rng = random(41);
        let matrix = quantized(&mut rng, 12, 8);
        let buffer = decode(&matrix) + uniform(&mut rng, (12, 8)) * 0.5;
        let fitted = refit(&matrix, &buffer, 1.0).unwrap();
        let least = objective(&matrix, fitted.clone(), &buffer);
        assert!(least < 0.9 * objective(&matrix, matrix.codebooks().clone(), &buffer));
        for _ in 0..30 {
            let other = &fitted + &(uniform(&mut rng, fitted.raw_dim()) * 1e-3);
            assert!(objective(&matrix, other, &buffer) > least);
        }
        // half the way
        let half = refit(&matrix, &buffer, 0.5).unwrap();
        let expected = (&fitted + matrix.codebooks()) / 2.0;
        assert!((half - expected).iter().all(|e| e.abs() < 1e-12));
    }

    #[test]
    fn a_buffer_that_is_the_weight_moves_nothing_and_scales_of_zero_hold_nothing() {
        let matrix = quantized(&mut random(42), 6, 8);
        let fitted = refit(&matrix, &decode(&matrix), 1.0).unwrap();
        assert_eq!(&fitted, matrix.codebooks());
        let mut silent = matrix.clone();
        silent.tune(|_, mut scales| scales.fill(0.0));
        let fitted = refit(&silent, &Array2::ones((6, 8)), 1.0).unwrap();
        assert_eq!(&fitted, matrix.codebooks());
    }
}
