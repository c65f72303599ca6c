use ndarray::{Array1, Array2, ArrayView2};

use super::model::check_tokens;
use super::softmax::softmax;
use aqlm_vocabulary::{AqlmError, Result, TopTokens};

/// Kullback-Leibler divergence in nats of the student's distribution from the teacher's at each row,
/// `[rows]`: sum_i p_i (ln p_i - ln q_i), with p and q the softmax of teacher and student. Also returns the
/// gradient of the sum over rows with respect to the student's logits, [rows, vocab]: q - p (paper appendix
/// A).
///
/// # Errors
/// `Shape` when the shapes of student and teacher differ.
pub fn kl_divergence(
    logits: ArrayView2<f64>,
    teacher: ArrayView2<f64>,
) -> Result<(Array1<f64>, Array2<f64>)> {
    if logits.dim() != teacher.dim() {
        return Err(AqlmError::Shape {
            what: "the teacher's logits".into(),
            expected: logits.shape().to_vec(),
            found: teacher.shape().to_vec(),
        });
    }
    let mut losses = Array1::zeros(logits.nrows());
    let mut gradient = Array2::zeros(logits.dim());
    for (t, (student, teacher)) in logits.rows().into_iter().zip(teacher.rows()).enumerate() {
        let ((q, log_q), (p, log_p)) = (softmax(student), softmax(teacher));
        losses[t] = (&p * &(log_p - log_q)).sum();
        gradient.row_mut(t).assign(&(q - p));
    }
    Ok((losses, gradient))
}

/// [`kl_divergence`] with the teacher's unlisted tokens merged into one outcome of probability r, compared
/// with the student's total probability u of the same tokens: sum over listed i of p_i (ln p_i - ln q_i),
/// plus r (ln r - ln u). The result is never above the divergence of the full distributions, because merging
/// outcomes loses information. It is equal when all tokens are listed.
///
/// The gradient is q_i - p_i for listed tokens and q_j - r q_j / u for the others.
///
/// # Errors
/// `Shape` when the teacher has another number of rows, `TokenOutOfRange` when a listed token has no logit.
pub fn top_kl_divergence(logits: ArrayView2<f64>, teacher: &TopTokens) -> Result<(Array1<f64>, Array2<f64>)> {
    let (rows, listed) = (logits.nrows(), teacher.tokens.ncols());
    let shapes = [
        teacher.tokens.shape(),
        teacher.log_probabilities.shape(),
        &[teacher.rest.len(), listed],
    ];
    for found in shapes {
        if found != [rows, listed] {
            return Err(AqlmError::Shape {
                what: "the teacher's likeliest tokens".into(),
                expected: vec![rows, listed],
                found: found.to_vec(),
            });
        }
    }
    let mut losses = Array1::zeros(rows);
    let mut gradient = Array2::zeros(logits.dim());
    for t in 0..rows {
        let tokens = teacher.tokens.row(t).to_vec();
        check_tokens(&tokens, logits.ncols())?;
        let (q, log_q) = softmax(logits.row(t));
        let mut listed = vec![None; logits.ncols()];
        for (&token, &log_p) in tokens.iter().zip(teacher.log_probabilities.row(t)) {
            listed[token as usize] = Some(f64::from(log_p));
        }
        let unlisted: f64 = (0..listed.len())
            .filter(|&i| listed[i].is_none())
            .map(|i| q[i])
            .sum();
        let rest = f64::from(teacher.rest[t]);
        // 0 ln 0 = 0. If the student's unlisted probability is zero, there is nothing to compare either.
        let rest = if unlisted > 0.0 { rest } else { 0.0 };
        losses[t] = if rest > 0.0 {
            rest * (rest / unlisted).ln()
        } else {
            0.0
        };
        // equal to one up to the rounding of the list
        let total: f64 = rest + listed.iter().flatten().map(|log_p| log_p.exp()).sum::<f64>();
        for (i, log_p) in listed.iter().enumerate() {
            let q = q[i];
            let p = match log_p {
                Some(log_p) => {
                    losses[t] += log_p.exp() * (log_p - log_q[i]);
                    log_p.exp()
                }
                None if rest > 0.0 => rest * q / unlisted,
                None => 0.0,
            };
            gradient[[t, i]] = total * q - p;
        }
    }
    Ok((losses, gradient))
}

#[cfg(test)]
mod tests {
    use ndarray::arr2;

    use super::*;
    use crate::llama::cross_entropy;
    use crate::llama::finite_difference::assert_gradient;
    use crate::llama::test_data::{normal, random};

    /// The `k` most likely tokens of every row, in f32 as stored.
    fn top(logits: &Array2<f64>, k: usize) -> TopTokens {
        let (rows, vocab) = logits.dim();
        let (mut tokens, mut values) = (Array2::zeros((rows, k)), Array2::zeros((rows, k)));
        let mut rest = Array1::zeros(rows);
        for t in 0..rows {
            let (_, log_p) = softmax(logits.row(t));
            let mut order: Vec<usize> = (0..vocab).collect();
            order.sort_by(|&a, &b| log_p[b].total_cmp(&log_p[a]));
            for (i, &token) in order[..k].iter().enumerate() {
                tokens[[t, i]] = token as u32;
                values[[t, i]] = log_p[token] as f32;
            }
            rest[t] = order[k..].iter().map(|&token| log_p[token].exp()).sum::<f64>() as f32;
        }
        TopTokens {
            tokens,
            log_probabilities: values,
            rest,
        }
    }

    #[test]
    fn equal_distributions_diverge_by_nothing() {
        let logits: Array2<f64> = normal(&mut random(42), (3, 9));
        let (losses, gradient) = kl_divergence(logits.view(), (&logits + 5.0).view()).unwrap();
        assert!(losses.iter().all(|loss| loss.abs() <= 64.0 * f64::EPSILON));
        assert!(gradient.iter().all(|slope| slope.abs() <= 64.0 * f64::EPSILON));
    }

    #[test]
    fn gradients_match_finite_differences() {
        let mut rng = random(43);
        let (student, teacher): (Array2<f64>, Array2<f64>) =
            (2.0 * normal(&mut rng, (3, 9)), 2.0 * normal(&mut rng, (3, 9)));
        let (losses, gradient) = kl_divergence(student.view(), teacher.view()).unwrap();
        assert!(losses.iter().all(|&loss| loss > 0.0));
        assert_gradient("all tokens", &gradient, &student, 54, |student| {
            kl_divergence(student.view(), teacher.view()).unwrap().0.sum()
        });
        let top = top(&teacher, 4);
        let (merged, gradient) = top_kl_divergence(student.view(), &top).unwrap();
        assert_gradient("top tokens", &gradient, &student, 54, |student| {
            top_kl_divergence(student.view(), &top).unwrap().0.sum()
        });
        for (merged, whole) in merged.iter().zip(&losses) {
            assert!(*merged > 0.0 && merged < whole, "{merged} of {whole}");
        }
    }

    #[test]
    fn all_tokens_listed_is_the_whole_divergence() {
        let mut rng = random(44);
        let (student, teacher): (Array2<f64>, Array2<f64>) =
            (normal(&mut rng, (3, 9)), normal(&mut rng, (3, 9)));
        let (whole, slope) = kl_divergence(student.view(), teacher.view()).unwrap();
        let (listed, listed_slope) = top_kl_divergence(student.view(), &top(&teacher, 9)).unwrap();
        // the list is in f32: nine terms, each with an error of an epsilon of numbers below 8
        let limit = 9.0 * 8.0 * f64::from(f32::EPSILON);
        assert!((whole - listed).iter().all(|off| off.abs() <= limit));
        assert!((slope - listed_slope).iter().all(|off| off.abs() <= limit));
    }

    #[test]
    fn a_certain_teacher_makes_it_the_cross_entropy() {
        let logits: Array2<f64> = normal(&mut random(45), (2, 5));
        let (expected, slope) = cross_entropy(logits.view(), &[4, 1]).unwrap();
        let certain = TopTokens {
            tokens: arr2(&[[4], [1]]),
            log_probabilities: Array2::zeros((2, 1)),
            rest: Array1::zeros(2),
        };
        let mut teacher = Array2::from_elem((2, 5), -1000.0);
        teacher[[0, 4]] = 0.0;
        teacher[[1, 1]] = 0.0;
        for (losses, gradient) in [
            top_kl_divergence(logits.view(), &certain).unwrap(),
            kl_divergence(logits.view(), teacher.view()).unwrap(),
        ] {
            assert!(
                (&losses - &expected)
                    .iter()
                    .all(|off| off.abs() <= 64.0 * f64::EPSILON)
            );
            assert!(
                (&gradient - &slope)
                    .iter()
                    .all(|off| off.abs() <= 64.0 * f64::EPSILON)
            );
        }
    }

    #[test]
    fn teachers_that_do_not_fit_are_refused() {
        let logits = Array2::zeros((2, 5));
        let other = Array2::zeros((2, 6));
        assert!(matches!(
            kl_divergence(logits.view(), other.view()),
            Err(AqlmError::Shape { .. })
        ));
        let top = top(&other, 6);
        assert!(matches!(
            top_kl_divergence(logits.view(), &top),
            Err(AqlmError::TokenOutOfRange { token: 5, .. })
        ));
        assert!(matches!(
            top_kl_divergence(Array2::zeros((3, 6)).view(), &top),
            Err(AqlmError::Shape { .. })
        ));
    }
}
