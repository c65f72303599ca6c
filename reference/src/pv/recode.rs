use aqlm_vocabulary::Residuals;
use ndarray::ArrayView3;

/// Partial codes of a group, with what they leave of its target.
#[derive(Debug, Clone)]
struct Hypothesis {
    codes: Vec<u16>,
    /// target - sum of codewords
    residual: Vec<f64>,
}

/// Share of the terms of a score, |r|^2 + |c|^2, by which another arithmetic may err (f32, with sums of up to
/// a few dozen numbers).
pub(super) const SCORE_ERROR: f64 = 1.0 / (1 << 20) as f64;

/// Codes for a group whose sum of codewords shall be near `target`, and the margin of that choice.
///
/// `codebooks` are [M, 2^B, length of a group]. The search starts from the old codes and visits the codebooks
/// once, in `order`. At each it replaces the code of every hypothesis by every codeword and keeps the `beam`
/// best, by the squared distance to the target; after the last one, the best. With one codebook this is the
/// exact nearest codeword (official code: `src/beam_search_l2.py`). Among equals the earlier hypothesis and
/// the lower code win. The codes of a target that is not finite stay.
///
/// The margin is a distance: as long as the target and the sums of codewords move by less in total, every
/// choice stays, even if scores err by 2^-20 of their terms. A sum of codewords at distance a from the target
/// wins over one at distance b if b^2 - a^2 > 0, and a movement of d changes that by at most 2 d (a + b).
pub fn recode(
    target: &[f64],
    codebooks: ArrayView3<'_, f64>,
    old: &[u16],
    order: &[usize],
    beam: usize,
    residuals: Residuals,
) -> (Vec<u16>, f64) {
    if target.iter().any(|value| !value.is_finite()) {
        return (old.to_vec(), f64::INFINITY);
    }
    let move_by = |residual: &mut [f64], codebook: usize, code: u16, sign: f64| {
        let codeword = codebooks.slice(ndarray::s![codebook, usize::from(code), ..]);
        for (residual, entry) in residual.iter_mut().zip(codeword) {
            *residual += sign * entry;
        }
    };
    let mut start = Hypothesis {
        codes: old.to_vec(),
        residual: target.to_vec(),
    };
    for (codebook, &code) in old.iter().enumerate() {
        move_by(&mut start.residual, codebook, code, -1.0);
    }
    let mut hypotheses = vec![start];
    let mut margin = f64::INFINITY;
    for (visit, &codebook) in order.iter().enumerate() {
        // (squared distance, size of its terms, hypothesis, code)
        let mut candidates = Vec::new();
        for (number, hypothesis) in hypotheses.iter_mut().enumerate() {
            move_by(
                &mut hypothesis.residual,
                codebook,
                hypothesis.codes[codebook],
                1.0,
            );
            let own: f64 = hypothesis.residual.iter().map(|r| r * r).sum();
            for (code, codeword) in codebooks
                .index_axis(ndarray::Axis(0), codebook)
                .outer_iter()
                .enumerate()
            {
                let distance: f64 = hypothesis
                    .residual
                    .iter()
                    .zip(codeword)
                    .map(|(r, c)| (r - c).powi(2))
                    .sum();
                let terms = own + codeword.iter().map(|c| c * c).sum::<f64>();
                candidates.push((distance, terms, number, code));
            }
        }
        candidates.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.2, a.3).cmp(&(b.2, b.3))));
        let kept = if visit + 1 == order.len() { 1 } else { beam };
        if let (Some(last), Some(dropped)) = (candidates.get(kept - 1), candidates.get(kept)) {
            let gap = dropped.0 - last.0 - 2.0 * SCORE_ERROR * last.1.max(dropped.1);
            if gap > 0.0 {
                margin = margin.min(gap / (2.0 * (last.0.sqrt() + dropped.0.sqrt())));
            } else {
                margin = 0.0;
            }
        }
        candidates.truncate(kept);
        hypotheses = candidates
            .into_iter()
            .enumerate()
            .map(|(place, (_, _, number, code))| {
                let mut next = hypotheses[number].clone();
                if residuals == Residuals::Place {
                    let before = &hypotheses[place.min(hypotheses.len() - 1)];
                    next.residual.clone_from(&before.residual);
                }
                next.codes[codebook] = code as u16;
                move_by(&mut next.residual, codebook, code as u16, -1.0);
                next
            })
            .collect();
    }
    (hypotheses.swap_remove(0).codes, margin)
}

#[cfg(test)]
mod tests {
    use ndarray::{Array3, array};
    use rand::RngExt;

    use super::*;
    use aqlm_vocabulary::{Purpose, Stream, stream};

    fn random(seed: u64) -> Stream {
        stream(seed, 0, None, Purpose::TestData)
    }

    fn distance(target: &[f64], codebooks: &Array3<f64>, codes: &[u16]) -> f64 {
        let mut rest = target.to_vec();
        for (m, &code) in codes.iter().enumerate() {
            for (i, rest) in rest.iter_mut().enumerate() {
                *rest -= codebooks[[m, usize::from(code), i]];
            }
        }
        rest.iter().map(|r| r * r).sum()
    }

    /// All tuples of codes.
    fn tuples(codebooks: usize, states: usize) -> impl Iterator<Item = Vec<u16>> {
        (0..states.pow(codebooks as u32)).map(move |mut number| {
            (0..codebooks)
                .map(|_| {
                    let code = (number % states) as u16;
                    number /= states;
                    code
                })
                .collect()
        })
    }

    #[test]
    fn one_codebook_gives_the_nearest_codeword_at_any_beam() {
        let mut rng = random(1);
        for _ in 0..50 {
            let codebooks = Array3::from_shape_simple_fn((1, 7, 3), || rng.random_range(-1.0..1.0));
            let target: Vec<f64> = (0..3).map(|_| rng.random_range(-1.0..1.0)).collect();
            let nearest = tuples(1, 7)
                .min_by(|a, b| distance(&target, &codebooks, a).total_cmp(&distance(&target, &codebooks, b)))
                .unwrap();
            for beam in [1, 4] {
                let (codes, margin) = recode(&target, codebooks.view(), &[3], &[0], beam, Residuals::Own);
                assert_eq!(codes, nearest);
                assert!((0.0..1.0).contains(&margin));
            }
        }
    }

    #[test]
    fn a_beam_that_keeps_everything_finds_the_best_tuple() {
        let mut rng = random(2);
        for round in 0..30 {
            let codebooks = Array3::from_shape_simple_fn((3, 4, 2), || rng.random_range(-1.0..1.0));
            let target: Vec<f64> = (0..2).map(|_| rng.random_range(-2.0..2.0)).collect();
            let order = [[0, 1, 2], [2, 0, 1], [1, 2, 0]][round % 3];
            let old = [1, 2, 3];
            let best = tuples(3, 4)
                .map(|codes| distance(&target, &codebooks, &codes))
                .fold(f64::INFINITY, f64::min);
            let found = |beam| {
                let (codes, _) = recode(&target, codebooks.view(), &old, &order, beam, Residuals::Own);
                distance(&target, &codebooks, &codes)
            };
            assert!((found(16) - best).abs() < 1e-12);
            // one hypothesis descends from the old codes
            assert!(found(1) <= distance(&target, &codebooks, &old) + 1e-12);
        }
    }

    #[test]
    fn ties_keep_the_lower_code_and_have_no_margin() {
        let codebooks = array![[[1.0], [-1.0], [1.0]]];
        let found = |target: f64, old| recode(&[target], codebooks.view(), &[old], &[0], 1, Residuals::Own);
        assert_eq!(found(0.0, 1), (vec![0], 0.0));
        assert_eq!(found(f64::NAN, 2), (vec![2], f64::INFINITY));
    }

    /// With two codebooks the second visit is the last, so no residual is used after hypotheses change their
    /// places; with three the official residuals are another's.
    #[test]
    fn residuals_by_place_matter_from_three_codebooks_on() {
        let mut rng = random(3);
        let mut differ = 0;
        for _ in 0..40 {
            let target: Vec<f64> = (0..2).map(|_| rng.random_range(-2.0..2.0)).collect();
            let codebooks = Array3::from_shape_simple_fn((3, 4, 2), || rng.random_range(-1.0..1.0));
            let two = codebooks.slice(ndarray::s![..2, .., ..]);
            let pair = |beam, residuals| recode(&target, two, &[1, 2], &[1, 0], beam, residuals).0;
            assert_eq!(pair(3, Residuals::Own), pair(3, Residuals::Place));
            let three = |beam, residuals| {
                recode(&target, codebooks.view(), &[1, 2, 3], &[1, 0, 2], beam, residuals).0
            };
            assert_eq!(three(1, Residuals::Own), three(1, Residuals::Place));
            differ += usize::from(three(3, Residuals::Own) != three(3, Residuals::Place));
        }
        assert!(differ > 5, "{differ}");
    }
}
