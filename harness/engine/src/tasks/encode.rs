//! Contexts and continuations as tokens.

use std::collections::HashMap;
use std::path::Path;

use aqlm_formats::tokenizer::Tokenizer;
use aqlm_formats::{Error, Result};
use rayon::prelude::*;

use super::questions::Question;
use super::step::is_python_space;
use crate::protocol::Bos;

/// A context and its continuation, ready for a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// context and continuation without the last token, cut on the left to what the model can read
    pub input: Vec<u32>,
    /// the tokens that are scored
    pub continuation: Vec<u32>,
    /// tokens that were cut off
    pub cut: usize,
}

/// Encodes every pair of every question for a model of `positions` positions; `data` is the questions' file.
///
/// # Errors
/// `Line` for a continuation without tokens, or with more of them than the model has positions, and for a
/// context without tokens where no BOS or EOS can stand for it; those of the tokenizer.
pub fn encode(
    questions: &[Question],
    data: &Path,
    tokenizer: &Tokenizer,
    bos: Bos,
    positions: usize,
) -> Result<Vec<Vec<Encoded>>> {
    let whole = |question: &Question| -> Result<Vec<Encoded>> {
        let mut contexts = HashMap::new();
        let pair = |(context, continuation): &(String, String)| {
            let wrong = |expected: String, found: String| Error::Line {
                path: data.into(),
                line: question.line,
                expected,
                found,
            };
            let (context, continuation) = split(tokenizer, bos, context, continuation, &mut contexts)?;
            let scored = continuation.len();
            if scored == 0 || scored > positions || context.is_empty() {
                let found = format!("{} and {scored} tokens", context.len());
                let expected = format!("a context, and a continuation of 1 to {positions} tokens");
                return Err(wrong(expected, found));
            }
            let mut input = context;
            input.extend(&continuation[..scored - 1]);
            let cut = input.len().saturating_sub(positions);
            input.drain(..cut);
            Ok(Encoded {
                input,
                continuation,
                cut,
            })
        };
        question.pairs.iter().map(pair).collect()
    };
    questions.par_iter().map(whole).collect()
}

/// The tokens of a context, and those that a continuation adds.
///
/// White space at the end of the context belongs to the continuation, since words begin with it. Both are
/// then encoded together, and everything beyond the length of the context's own tokens is the continuation's.
/// In place of an empty context stands BOS, or EOS without one.
fn split(
    tokenizer: &Tokenizer,
    bos: Bos,
    context: &str,
    continuation: &str,
    contexts: &mut HashMap<String, Vec<u32>>,
) -> Result<(Vec<u32>, Vec<u32>)> {
    if context.is_empty() {
        let mut continuation = tokenizer.encode(continuation, false)?;
        let prefix = tokenizer.bos().or(tokenizer.eos());
        if prefix.is_none_or(|prefix| continuation.first() == Some(&prefix)) && !continuation.is_empty() {
            let first = continuation.remove(0);
            return Ok((vec![first], continuation));
        }
        return Ok((prefix.into_iter().collect(), continuation));
    }
    let words = context.trim_end_matches(is_python_space);
    let continuation = format!("{}{continuation}", &context[words.len()..]);
    let own = match contexts.get(words) {
        Some(own) => own,
        None => contexts
            .entry(words.to_owned())
            .or_insert(bos.encode(tokenizer, words)?),
    };
    let all = bos.encode(tokenizer, &format!("{words}{continuation}"))?;
    let added = all.get(own.len()..).unwrap_or_default().to_vec();
    Ok((own.clone(), added))
}

#[cfg(test)]
mod tests {
    use aqlm_formats::model::Model;

    use super::*;

    fn tokenizer() -> Tokenizer {
        Model::embedded().unwrap().tokenizer().unwrap()
    }

    fn question(pairs: &[(&str, &str)]) -> Question {
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect();
        Question {
            line: 7,
            group: None,
            lengths: vec![(0, 0); pairs.len()],
            pairs,
            gold: 0,
        }
    }

    fn one(bos: Bos, positions: usize, context: &str, continuation: &str) -> Result<Encoded> {
        let questions = [question(&[(context, continuation)])];
        let encoded = encode(&questions, Path::new("x.jsonl"), &tokenizer(), bos, positions)?;
        Ok(encoded[0][0].clone())
    }

    #[test]
    fn context_and_continuation_are_encoded_together() {
        let tokenizer = tokenizer();
        for (context, continuation) in [
            ("Once upon a time", " there was a cat."),
            ("Once upon a ", "time"),
            ("Once upon a\n \t", " time"),
            ("Once upo", "n a time"),
            ("He said:", " \u{1f600} yes"),
        ] {
            for bos in [Bos::Never, Bos::Always] {
                let words = context.trim_end();
                let own = bos.encode(&tokenizer, words).unwrap();
                let all = bos
                    .encode(&tokenizer, &format!("{context}{continuation}"))
                    .unwrap();
                let found = one(bos, 512, context, continuation).unwrap();
                assert_eq!(found.continuation, all[own.len()..], "{context:?}");
                let input = [&own[..], &all[own.len()..all.len() - 1]].concat();
                assert_eq!(found.input, input, "{context:?}");
                assert_eq!(found.cut, 0);
            }
        }
        // The boundary in a word: the tokens of the whole word differ from those of its halves.
        let halves = tokenizer.encode("Once upo", false).unwrap();
        let whole = tokenizer.encode("Once upon a time", false).unwrap();
        assert_ne!(halves[..], whole[..halves.len()], "a case of its own");
        let found = one(Bos::Never, 512, "Once upo", "n a time").unwrap();
        assert_eq!(found.input[..halves.len()], halves);
    }

    #[test]
    fn bos_is_put_first_only_where_it_is_wanted() {
        let tokenizer = tokenizer();
        let bos = tokenizer.bos().unwrap();
        let first = |choice| one(choice, 512, "A cat", " sat").unwrap().input[0];
        assert_eq!(first(Bos::Always), bos);
        assert_ne!(first(Bos::Never), bos);
        assert_eq!(first(Bos::Auto) == bos, tokenizer.adds_bos());
        // An empty context is BOS even so, and the continuation loses nothing.
        let found = one(Bos::Never, 512, "", " sat there").unwrap();
        let words = tokenizer.encode(" sat there", false).unwrap();
        assert_eq!(found.continuation, words);
        assert_eq!(found.input, [&[bos], &words[..words.len() - 1]].concat());
    }

    #[test]
    fn long_documents_lose_their_beginning() {
        let (context, continuation) = ("One day a cat sat on a mat and then it ran.", " It was happy.");
        let whole = one(Bos::Always, 512, context, continuation).unwrap();
        let positions = whole.continuation.len() + 3;
        let cut = one(Bos::Always, positions, context, continuation).unwrap();
        assert_eq!(cut.continuation, whole.continuation);
        assert_eq!(cut.input, whole.input[whole.input.len() - positions..]);
        assert_eq!(cut.cut, whole.input.len() - positions);
        let least = one(Bos::Always, whole.continuation.len(), context, continuation).unwrap();
        assert_eq!(least.input.len(), whole.continuation.len());
        let error = one(Bos::Always, whole.continuation.len() - 1, context, continuation);
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("x.jsonl, line 7: expected a context, and a continuation of 1 to"),
            "{error}"
        );
        assert!(one(Bos::Never, 512, "A cat", "").is_err());
    }
}
