use std::fmt::Write as _;

use super::*;
use aqlm_formats::model::Model;

fn tokenizer() -> Tokenizer {
    Model::embedded().unwrap().tokenizer().unwrap()
}

/// A file, its folder, and a way to cut it.
struct Text {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Text {
    fn new(name: &str, text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        Self {
            path,
            _folder: folder,
        }
    }

    fn cut(&self, protocol: Protocol, ctx: usize, limit: Option<usize>) -> Result<EvaluationText> {
        protocol.cut(&self.path, None, &tokenizer(), ctx, limit)
    }
}

/// A text of exactly so many tokens: a word that is one token, repeated.
fn of_tokens(count: usize) -> Text {
    let text = " the".repeat(count);
    assert_eq!(tokenizer().encode(&text, true).unwrap().len(), count);
    Text::new("a.txt", &text)
}

#[test]
fn windows_and_predictions_are_those_of_each_protocol() {
    let text = of_tokens(23);
    let shape = |protocol| {
        let cut = text.cut(protocol, 5, None).unwrap();
        let lengths: Vec<usize> = cut.windows().iter().map(|window| window.len()).collect();
        (lengths, cut.first_scored(), cut.predictions())
    };
    assert_eq!(shape(Protocol::Gptq), (vec![5; 4], 0, 16));
    assert_eq!(shape(Protocol::LlamaCpp), (vec![5; 4], 2, 8));
    assert_eq!(shape(Protocol::Plain), (vec![5, 5, 5, 5, 3], 0, 18));
    // One token is left over, and nothing precedes it in its window.
    assert_eq!(
        of_tokens(21)
            .cut(Protocol::Plain, 5, None)
            .unwrap()
            .windows()
            .len(),
        4
    );
    assert_eq!(text.cut(Protocol::Gptq, 5, Some(3)).unwrap().windows().len(), 3);
}

#[test]
fn the_strict_rule_drops_the_last_window_of_an_exact_multiple() {
    let strict = |count, limit| {
        of_tokens(count)
            .cut(Protocol::Gptq, 5, limit)
            .unwrap()
            .strict_windows()
    };
    assert_eq!(strict(20, None), Some(3));
    assert_eq!(strict(21, None), None);
    assert_eq!(strict(20, Some(2)), None);
    assert_eq!(strict(5, None), None);
}

#[test]
fn short_texts_are_refused_with_what_is_missing() {
    let message = |protocol, ctx| of_tokens(8).cut(protocol, ctx, None).unwrap_err().to_string();
    assert!(message(Protocol::Gptq, 9).contains("at least 9 tokens"));
    assert!(message(Protocol::LlamaCpp, 5).contains("at least 10 tokens"));
    assert!(message(Protocol::C4, 9).contains("a document of 9"));
    assert!(message(Protocol::C4New, 9).contains("at least 9 tokens"));
    assert!(message(Protocol::LlamaCpp, 2).contains("ctx"));
    assert!(message(Protocol::Gptq, 1).contains("ctx"));
    assert!(of_tokens(1).cut(Protocol::Plain, 5, None).is_err());
    let none = of_tokens(8).cut(Protocol::Gptq, 4, Some(0)).unwrap_err();
    assert!(none.to_string().contains("windows"));
}

#[test]
fn c4_draws_as_python_does() {
    // Documents of 3 to 12 words, each one token; document i repeats the i-th of ten words.
    let words = [
        " the", " a", " to", " and", " was", " she", " he", " it", " in", " on",
    ];
    let ids: Vec<u32> = words
        .iter()
        .map(|word| tokenizer().encode(word, true).unwrap())
        .map(|ids| if let [id] = ids[..] { id } else { panic!("{ids:?}") })
        .collect();
    let mut lines = String::new();
    for (index, word) in words.iter().enumerate() {
        writeln!(lines, "{{\"text\": \"{}\"}}", word.repeat(3 + index)).unwrap();
    }
    let text = Text::new("c4.jsonl", &lines);
    let cut = text.cut(Protocol::C4, 8, None).unwrap();
    assert_eq!((cut.windows().len(), cut.strict_windows()), (256, Some(255)));
    // random.seed(0), then as in AQLM's loader: randint(0, 9) until 3 + i >= 8; randint(0, 3 + i - 8 - 1)
    // unless 3 + i == 8.
    let expected = [6, 8, 6, 7, 9, 8, 9, 8, 9, 5, 7, 5, 6, 9, 8, 7];
    let found: Vec<usize> = cut.windows()[..expected.len()]
        .iter()
        .map(|window| ids.iter().position(|id| *id == window[0]).unwrap())
        .collect();
    assert_eq!(found, expected);
    let new = text.cut(Protocol::C4New, 8, None).unwrap();
    // Between two documents stands one space more than the words have: 75 + 9 tokens.
    assert_eq!((new.windows().len(), new.strict_windows()), (10, None));
}
