use aqlm_vocabulary::{AqlmError, Result, TopTokens};
use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

use super::head::check_tokens;
use super::softmax::Softmax;
use crate::cpu::row_major::{elements, relaid};
use crate::cpu::vectorize::{LANES, exp, vectorized};

/// Rows of one task.
const ROWS: usize = 16;

/// Sum over rows of the Kullback-Leibler divergence in nats of the student's next-token distribution from the
/// teacher's, sum_i p_i (ln p_i - ln q_i), in f64. Replaces the student's logits, [rows, vocab], by `scale`
/// times the gradient of that sum: q - p (paper appendix A).
///
/// # Errors
/// `Shape` when the two shapes differ.
pub fn kl_divergence(logits: &mut Array2<f32>, teacher: ArrayView2<'_, f32>, scale: f64) -> Result<f64> {
    if logits.dim() != teacher.dim() {
        return Err(AqlmError::Shape {
            what: "the teacher's logits".into(),
            expected: logits.shape().to_vec(),
            found: teacher.shape().to_vec(),
        });
    }
    let vocab = logits.ncols();
    let teacher = teacher.as_standard_layout();
    let task = ROWS * vocab.max(1);
    let sums: Vec<f64> = relaid(logits)
        .par_chunks_mut(task)
        .zip(elements(&teacher).par_chunks(task))
        .map(|(student, teacher)| {
            let rows = student.chunks_exact_mut(vocab).zip(teacher.chunks_exact(vocab));
            rows.map(|(student, teacher)| {
                let (q, p) = (Softmax::of(student), Softmax::of(teacher));
                // ln p_i - ln q_i is the difference of the logits plus this
                let offset = (f64::from(q.largest) + q.sum.ln()) - (f64::from(p.largest) + p.sum.ln());
                let factors = [scale / q.sum, scale / p.sum].map(|factor| factor as f32);
                divergence_and_gradient(student, teacher, [q.largest, p.largest], offset, factors) / p.sum
            })
            .sum()
        })
        .collect();
    Ok(sums.iter().sum())
}

#[inline(always)]
fn row_body<const FUSED: bool>(
    student: &mut [f32],
    teacher: &[f32],
    largest: [f32; 2],
    offset: f64,
    factors: [f32; 2],
) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (whole, rest) = student.as_chunks_mut::<LANES>();
    let (whole_teacher, rest_teacher) = teacher.as_chunks::<LANES>();
    let one = |student: &mut f32, teacher: f32, lane: &mut f64| {
        let p = exp::<FUSED>(teacher - largest[1]);
        *lane += f64::from(p) * ((f64::from(teacher) - f64::from(*student)) + offset);
        *student = factors[0] * exp::<FUSED>(*student - largest[0]) - factors[1] * p;
    };
    for (student, teacher) in whole.iter_mut().zip(whole_teacher) {
        for i in 0..LANES {
            one(&mut student[i], teacher[i], &mut lanes[i]);
        }
    }
    for (i, (student, teacher)) in rest.iter_mut().zip(rest_teacher).enumerate() {
        one(student, *teacher, &mut lanes[i]);
    }
    lanes.iter().sum()
}

vectorized! {
    /// The divergence of one row times the sum of the teacher's exponentials. Replaces the student's logits
    /// by the gradient. `largest` and `factors` hold the student's value, then the teacher's: e^(l - largest)
    /// factor is a probability times scale.
    fn divergence_and_gradient(
        student: &mut [f32],
        teacher: &[f32],
        largest: [f32; 2],
        offset: f64,
        factors: [f32; 2],
    ) -> f64 = row_body
}

/// [`kl_divergence`] from a teacher of which only the likeliest tokens are known. All other tokens form one
/// outcome of probability r, compared with the student's total probability of them, u. The loss is the sum
/// over listed i of p_i (ln p_i - ln q_i), plus r (ln r - ln u). The gradient is q_i - p_i for listed tokens
/// and q_j - r q_j / u for the others.
///
/// # Errors
/// `Shape` when the teacher's number of rows differs, `TokenOutOfRange` when a listed token exceeds the
/// vocabulary.
pub fn top_kl_divergence(logits: &mut Array2<f32>, teacher: &TopTokens, scale: f64) -> Result<f64> {
    let (rows, vocab) = logits.dim();
    let listed = teacher.tokens.ncols();
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
    let tokens = teacher.tokens.as_standard_layout();
    check_tokens(elements(&tokens), vocab)?;
    let sums: Vec<f64> = relaid(logits)
        .par_chunks_mut(vocab.max(1))
        .enumerate()
        .map(|(t, row)| {
            let log_p: Vec<f64> = teacher.log_probabilities.row(t).mapv(f64::from).to_vec();
            top_row(
                row,
                &tokens.row(t).to_vec(),
                &log_p,
                f64::from(teacher.rest[t]),
                scale,
            )
        })
        .collect();
    Ok(sums.iter().sum())
}

/// Loss of one row, which the gradient replaces.
fn top_row(row: &mut [f32], tokens: &[u32], log_p: &[f64], rest: f64, scale: f64) -> f64 {
    let softmax = Softmax::of(row);
    let log_q: Vec<f64> = tokens
        .iter()
        .map(|&token| softmax.log_probability(row[token as usize]))
        .collect();
    softmax.exponentials(row);
    // Summed over the other tokens directly: one minus the listed would cancel a small remainder.
    let mut others = softmax.sum;
    if rest > 0.0 {
        let kept: Vec<f32> = tokens.iter().map(|&token| row[token as usize]).collect();
        for &token in tokens {
            row[token as usize] = 0.0;
        }
        others = row.iter().map(|&value| f64::from(value)).sum();
        for (&token, value) in tokens.iter().zip(kept) {
            row[token as usize] = value;
        }
    }
    let unlisted = others / softmax.sum;
    let rest = if unlisted > 0.0 { rest } else { 0.0 };
    let p: Vec<f64> = log_p.iter().map(|log_p| log_p.exp()).collect();
    let total = rest + p.iter().sum::<f64>();
    let pull = if rest > 0.0 {
        total - rest / unlisted
    } else {
        total
    };
    let factor = (scale * pull / softmax.sum) as f32;
    let of_listed: Vec<f32> = tokens
        .iter()
        .zip(&p)
        .map(|(&token, p)| (scale * (total * f64::from(row[token as usize]) / softmax.sum - p)) as f32)
        .collect();
    for value in row.iter_mut() {
        *value *= factor;
    }
    for (&token, gradient) in tokens.iter().zip(of_listed) {
        row[token as usize] = gradient;
    }
    let listed: f64 = p
        .iter()
        .zip(log_p)
        .zip(&log_q)
        .map(|((p, log_p), log_q)| p * (log_p - log_q))
        .sum();
    listed
        + if rest > 0.0 {
            rest * (rest / unlisted).ln()
        } else {
            0.0
        }
}
