//! The likelihood of a continuation.

use ndarray::ArrayView2;

use aqlm_vocabulary::AqlmError;

/// Tokens that may follow the tokens of a sequence without its last few.
///
/// The first of n tokens is predicted n positions before the end of the sequence, the last one at its end. So
/// a sequence is a context with all but the last token of a continuation, and continuations that differ only
/// in their last token share a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Continuation<'a> {
    /// index of the sequence
    pub sequence: usize,
    /// token ids
    pub tokens: &'a [u32],
}

impl Continuation<'_> {
    /// The positions of a sequence of `length` tokens that predict the continuation.
    ///
    /// # Errors
    /// `Argument` for a continuation without tokens, or with more than the sequence.
    pub fn positions(&self, length: usize) -> Result<std::ops::Range<usize>, AqlmError> {
        let count = self.tokens.len();
        if count == 0 || count > length {
            return Err(AqlmError::argument(
                "tokens of a continuation",
                format!("1 to {length}, the length of its sequence"),
                count,
            ));
        }
        Ok(length - count..length)
    }
}

/// How likely a model finds a continuation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Likelihood {
    /// sum of the natural logarithms of the tokens' probabilities
    pub log_likelihood: f64,
    /// whether every token is the most likely one; of equal ones the smallest id counts
    pub greedy: bool,
}

impl Likelihood {
    /// From the logits of the positions that predict the tokens, [tokens, vocab].
    ///
    /// # Errors
    /// `Shape` when the numbers of rows and tokens differ, `TokenOutOfRange` for a token without a logit.
    pub fn of(logits: &ArrayView2<'_, f64>, tokens: &[u32]) -> Result<Self, AqlmError> {
        let (rows, vocab_size) = logits.dim();
        if rows != tokens.len() {
            return Err(AqlmError::Shape {
                what: "logits of a continuation".into(),
                expected: vec![tokens.len(), vocab_size],
                found: vec![rows, vocab_size],
            });
        }
        let mut whole = Self {
            log_likelihood: 0.0,
            greedy: true,
        };
        for (position, (row, &token)) in logits.outer_iter().zip(tokens).enumerate() {
            let logit = *row.get(token as usize).ok_or(AqlmError::TokenOutOfRange {
                token,
                position,
                vocab_size,
            })?;
            let mut top = 0;
            for (id, value) in row.iter().enumerate() {
                if *value > row[top] {
                    top = id;
                }
            }
            let largest = row[top];
            let sum: f64 = row.iter().map(|value| (value - largest).exp()).sum();
            whole.log_likelihood += logit - largest - sum.ln();
            whole.greedy &= top == token as usize;
        }
        Ok(whole)
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn likelihoods_of_known_probabilities() {
        let logits = array![
            [0.5f64.ln() + 3.0, 0.25f64.ln() + 3.0, 0.25f64.ln() + 3.0],
            [1.0, 1.0, -1.0]
        ];
        let of = |tokens: &[u32]| Likelihood::of(&logits.view(), tokens).unwrap();
        // The second row's normalizer is 2 e + 1/e. Three rounded operations per number leave a few eps.
        let equal = 1.0 - (2.0 * 1f64.exp() + (-1f64).exp()).ln();
        for (tokens, expected, greedy) in [
            ([0, 0], 0.5f64.ln() + equal, true),
            ([0, 1], 0.5f64.ln() + equal, false),
            ([1, 0], 0.25f64.ln() + equal, false),
            ([0, 2], 0.5f64.ln() + equal - 2.0, false),
        ] {
            let found = of(&tokens);
            assert!(
                (found.log_likelihood - expected).abs() < 16.0 * f64::EPSILON,
                "{tokens:?}"
            );
            assert_eq!(found.greedy, greedy, "{tokens:?}");
        }
        assert!(Likelihood::of(&logits.view(), &[0]).is_err());
        assert!(Likelihood::of(&logits.view(), &[0, 3]).is_err());
    }

    #[test]
    fn a_continuation_is_predicted_at_the_end_of_its_sequence() {
        let of = |tokens: &[u32], length| Continuation { sequence: 0, tokens }.positions(length);
        assert_eq!(of(&[7, 8], 5).unwrap(), 3..5);
        assert_eq!(of(&[7, 8], 2).unwrap(), 0..2);
        assert!(of(&[], 5).is_err() && of(&[7, 8], 1).is_err());
    }
}
