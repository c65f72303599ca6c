use std::collections::HashMap;

use ndarray::{Array2, ArrayView2};

use crate::layer_error::check_shapes;
use aqlm_vocabulary::{AqlmError, QuantizedMatrix, Result};

/// Maximum number of code combinations that [`exhaustive_search`] visits.
pub const MAX_COMBINATIONS: u64 = 1 << 20;

/// The choice of one output group's codes as a fully connected Markov random field (paper section 3.2,
/// equations 5 to 7).
///
/// Its variables are the pairs (input group j, codebook m), numbered j M + m, each with 2^B states. For any
/// codes, energy plus `constant` is the layer error of the group's rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Mrf {
    /// [in_groups x M, 2^B]: -2 <W, c>_H + <c, c>_H for the scaled codeword c alone
    pub unary: Array2<f64>,
    /// for variables u < v, [2^B, 2^B]: 2 <c_u, c_v>_H
    pub pairwise: HashMap<(usize, usize), Array2<f64>>,
    /// <W, W>_H of the group's rows
    pub constant: f64,
    num_codebooks: usize,
}

impl Mrf {
    /// The field of output group `out_group`, for the codebooks and scales of `matrix`. The codes of `matrix`
    /// are not used.
    ///
    /// # Errors
    /// `Shape` when weight, H and matrix do not fit.
    pub fn new(
        weight: &Array2<f64>,
        hessian: &Array2<f64>,
        matrix: &QuantizedMatrix,
        out_group: usize,
    ) -> Result<Self> {
        check_shapes(weight, hessian, matrix)?;
        let scheme = matrix.scheme();
        let (go, gi) = (scheme.out_group_size, scheme.in_group_size);
        let rows = weight.slice(ndarray::s![out_group * go..(out_group + 1) * go, ..]);
        let weighted = rows.dot(hessian);
        let (_, in_groups) = matrix.groups();
        let variables = in_groups * scheme.num_codebooks;
        let states = scheme.codebook_size();
        let scale = matrix.scales()[out_group];
        let codeword = |variable: usize, k: usize| {
            &matrix
                .codebooks()
                .slice(ndarray::s![variable % scheme.num_codebooks, k, .., ..])
                * scale
        };
        let group = |variable: usize| {
            let start = variable / scheme.num_codebooks * gi;
            start..start + gi
        };
        let inner = |u: usize, k: usize, v: usize, l: usize| {
            let block = hessian.slice(ndarray::s![group(u), group(v)]);
            (codeword(u, k).dot(&block) * codeword(v, l)).sum()
        };
        let unary = Array2::from_shape_fn((variables, states), |(v, k)| {
            let with_weight = (&weighted.slice(ndarray::s![.., group(v)]) * &codeword(v, k)).sum();
            inner(v, k, v, k) - 2.0 * with_weight
        });
        let mut pairwise = HashMap::new();
        for v in 0..variables {
            for u in 0..v {
                let table = Array2::from_shape_fn((states, states), |(k, l)| 2.0 * inner(u, k, v, l));
                pairwise.insert((u, v), table);
            }
        }
        Ok(Self {
            unary,
            pairwise,
            constant: (&weighted * &rows).sum(),
            num_codebooks: scheme.num_codebooks,
        })
    }

    /// The energy of codes [in_groups, M]: the sum of all potentials.
    pub fn energy(&self, codes: ArrayView2<'_, u16>) -> f64 {
        let states: Vec<usize> = codes.iter().map(|&code| usize::from(code)).collect();
        let unary: f64 = states.iter().enumerate().map(|(v, &k)| self.unary[[v, k]]).sum();
        let mut pairs = 0.0;
        for v in 0..states.len() {
            for u in 0..v {
                pairs += self.pairwise[&(u, v)][[states[u], states[v]]];
            }
        }
        unary + pairs
    }
}

/// The codes [in_groups, M] of minimum energy, found by trying all, and that energy: the oracle for the
/// search.
///
/// # Errors
/// `Unsupported` for more than [`MAX_COMBINATIONS`] combinations.
pub fn exhaustive_search(mrf: &Mrf) -> Result<(Array2<u16>, f64)> {
    let (variables, states) = mrf.unary.dim();
    let combinations = (states as u64)
        .checked_pow(variables as u32)
        .filter(|&count| count <= MAX_COMBINATIONS)
        .ok_or_else(|| {
            AqlmError::Unsupported(format!(
                "an exhaustive search over {states}^{variables} codes; at most {MAX_COMBINATIONS} are tried"
            ))
        })?;
    let shape = (variables / mrf.num_codebooks, mrf.num_codebooks);
    let codes_of = |mut index: u64| {
        Array2::from_shape_simple_fn(shape, || {
            let code = index % states as u64;
            index /= states as u64;
            code as u16
        })
    };
    let mut best = (codes_of(0), f64::INFINITY);
    for index in 0..combinations {
        let codes = codes_of(index);
        let energy = mrf.energy(codes.view());
        if energy < best.1 {
            best = (codes, energy);
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use ndarray::Axis;
    use proptest::prelude::*;

    use super::*;
    use crate::problem::{config, problem, rounding};
    use crate::{decode, row_errors};

    proptest! {
        #![proptest_config(config(24))]
        #[test]
        fn energy_plus_constant_is_the_layer_error(seed: u64, scheme in prop::sample::select(vec!["2x2g4", "1x3g2o3", "3x1g4o2"])) {
            let p = problem(seed, scheme, 3, 3);
            let errors = row_errors(&p.weight, &decode(&p.matrix), &p.hessian);
            for (o, rows) in errors.axis_chunks_iter(Axis(0), p.matrix.scheme().out_group_size).enumerate() {
                let mrf = Mrf::new(&p.weight, &p.hessian, &p.matrix, o).unwrap();
                let energy = mrf.energy(p.matrix.codes().index_axis(Axis(0), o));
                prop_assert!((energy + mrf.constant - rows.sum()).abs() <= rounding(&p));
            }
        }
    }

    #[test]
    fn too_many_combinations_are_refused() {
        let p = problem(1, "2x3g4", 1, 4);
        let mrf = Mrf::new(&p.weight, &p.hessian, &p.matrix, 0).unwrap();
        assert!(matches!(exhaustive_search(&mrf), Err(AqlmError::Unsupported(_))));
    }

    #[test]
    fn shapes_are_checked() {
        let p = problem(1, "1x2g4", 2, 2);
        let q = problem(1, "1x2g4", 2, 3);
        assert!(Mrf::new(&p.weight, &q.hessian, &p.matrix, 0).is_err());
        assert!(Mrf::new(&q.weight, &p.hessian, &p.matrix, 0).is_err());
    }
}
