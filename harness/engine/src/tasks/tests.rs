//! Documents of our own beside the requests that lm-eval makes of them (golden/tasks/examples), and scores
//! beside their definition.

use std::path::{Path, PathBuf};

use super::*;
use crate::likelihood::Likelihood;

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/tasks/examples")
}

fn of(name: &str, limit: Option<usize>) -> Vec<Question> {
    let task = TaskDefinition::find(name).unwrap();
    let file = |stem: &str| examples().join(format!("{stem}.jsonl"));
    let shots = task.shots.as_ref().map(|shots| (file(&shots.data), shots.count));
    let shots = shots.as_ref().map(|(path, count)| (path.as_path(), *count));
    questions(&task, &file(&task.data), limit, shots).unwrap()
}

/// `python harness/tools/interop/tasks.py prompts golden/tasks/examples` wrote the expected requests.
#[test]
fn every_request_is_lm_evals() {
    let expected = std::fs::read_to_string(examples().join("requests.jsonl")).unwrap();
    let expected: Vec<serde_json::Value> = expected
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let mut seen = 0;
    for name in TaskDefinition::known() {
        let theirs: Vec<_> = expected
            .iter()
            .filter(|request| request["task"] == name)
            .collect();
        let ours = of(name, None);
        let ours: Vec<_> = ours
            .iter()
            .enumerate()
            .flat_map(|(index, question)| question.pairs.iter().map(move |pair| (index, pair)))
            .collect();
        assert_eq!(ours.len(), theirs.len(), "{name}");
        for ((index, (context, continuation)), theirs) in ours.into_iter().zip(theirs) {
            assert_eq!(theirs["index"], index, "{name}");
            assert_eq!(theirs["context"], context.as_str(), "{name}");
            assert_eq!(theirs["continuation"], continuation.as_str(), "{name}");
            seen += 1;
        }
    }
    assert_eq!(seen, expected.len());
}

#[test]
fn right_answers_lengths_and_limits() {
    let golds = |name| {
        of(name, None)
            .iter()
            .map(|question| question.gold)
            .collect::<Vec<_>>()
    };
    assert_eq!(golds("winogrande"), [0, 1, 1]);
    assert_eq!(golds("piqa"), [1, 0]);
    assert_eq!(golds("arc_easy"), [1, 1]);
    assert_eq!(golds("lambada_openai"), [0, 0, 0]);
    assert_eq!(golds("mmlu"), [1, 0]);
    assert_eq!(of("hellaswag", Some(2)).len(), 2);
    // characters and bytes of what stands behind the delimiter
    let question = &of("hellaswag", None)[0];
    assert_eq!(question.lengths[0], (28, 28));
    assert_eq!(of("arc_easy", None)[1].pairs.len(), 5);
    assert_eq!(of("mmlu", None)[0].group.as_deref(), Some("abstract_algebra"));
}

/// Reads one line of the user's as a task's document.
fn refusal(name: &str, line: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("own.jsonl");
    std::fs::write(&path, format!("\n{line}\n")).unwrap();
    let task = TaskDefinition::find(name).unwrap();
    let error = questions(&task, &path, None, None).unwrap_err().to_string();
    assert!(error.contains("own.jsonl, line 2"), "{error}");
    error
}

#[test]
fn documents_that_do_not_fit_are_refused() {
    for (name, line, words) in [
        (
            "piqa",
            r#"{"goal": "a", "sol1": "b", "label": 0}"#,
            "field `sol2`: a value, found nothing",
        ),
        (
            "piqa",
            r#"{"goal": "a", "sol1": "b", "sol2": ["c"], "label": 0}"#,
            "field `sol2`: a string, found a list",
        ),
        (
            "piqa",
            r#"{"goal": "a", "sol1": "b", "sol2": "c", "label": 2}"#,
            "`label`: a number from 0 to 1, found \"2\"",
        ),
        (
            "piqa",
            r#"{"goal": "a", "sol1": "b", "sol2": "c", "label": "x"}"#,
            "`label`: a number from 0 to 1",
        ),
        (
            "winogrande",
            r#"{"sentence": "no gap", "option1": "a", "option2": "b", "answer": "1"}"#,
            "underscore",
        ),
        (
            "winogrande",
            r#"{"sentence": "a _", "option1": "a", "option2": "b", "answer": "0"}"#,
            "`answer`: a number from 1 to 2, found \"0\"",
        ),
        (
            "hellaswag",
            r#"{"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": ["d", "e", "f"], "label": "0"}"#,
            "field `endings`: 4 choices, found 3",
        ),
        (
            "arc_easy",
            r#"{"question": "q", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A"}"#,
            "field `choices.text`: 2 or more choices, found 1",
        ),
        (
            "arc_easy",
            r#"{"question": "q", "choices": {"text": ["a", "b"], "label": ["A"]}, "answerKey": "A"}"#,
            "field `choices.label`: a label for each of 2 choices, found 1 labels",
        ),
        (
            "arc_easy",
            r#"{"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"}"#,
            "field `answerKey`: one of A, B, found \"C\"",
        ),
    ] {
        let error = refusal(name, line);
        assert!(error.contains(words), "{error}");
    }
    // too few examples
    let task = TaskDefinition::find("mmlu").unwrap();
    let dev = examples().join("mmlu_dev.jsonl");
    let error = questions(&task, &examples().join("mmlu_test.jsonl"), None, Some((&dev, 7)));
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("`subject`: expected 7 examples of abstract_algebra, found 6"),
        "{error}"
    );
}

/// A document with answers of these log-likelihoods and texts.
fn scored(
    task: &TaskDefinition,
    gold: usize,
    answers: &[(f64, &str)],
) -> crate::runs::records::TaskDocumentRecord {
    let question = Question {
        line: 1,
        group: None,
        pairs: vec![(String::new(), String::new()); answers.len()],
        lengths: answers
            .iter()
            .map(|(_, text)| (text.chars().count(), text.len()))
            .collect(),
        gold,
    };
    let encoded = Encoded {
        input: vec![1],
        continuation: vec![2],
        cut: 0,
    };
    let likelihoods: Vec<Likelihood> = answers
        .iter()
        .map(|&(log_likelihood, _)| Likelihood {
            log_likelihood,
            greedy: false,
        })
        .collect();
    document(task, 0, &question, &vec![encoded; answers.len()], &likelihoods)
}

fn with_metrics(metrics: &str) -> TaskDefinition {
    let text = format!(
        r#"{{"title": "", "source": "", "data": "x", "contexts": ["{{q}}"], "continuations": {{"each": "a"}},
            "gold": {{"field": "g", "counts_from": 0}}, "metrics": {metrics}}}"#
    );
    TaskDefinition::parse(Path::new("own.json"), text.as_bytes()).unwrap()
}

#[test]
fn normalization_is_by_characters_or_bytes() {
    let task = with_metrics(r#"["acc", "acc_norm", "acc_bytes"]"#);
    // Sums -8, -9, -8.5; per character -4, -3, -4.25; per byte -4, -3, -2.125.
    let answers = [(-8.0, "ab"), (-9.0, "abc"), (-8.5, "\u{e4}\u{f6}")];
    let right = |gold| {
        let document = scored(&task, gold, &answers);
        (document.acc, document.acc_norm, document.acc_bytes)
    };
    assert_eq!(right(0), (true, Some(false), Some(false)));
    assert_eq!(right(1), (false, Some(true), Some(false)));
    assert_eq!(right(2), (false, Some(false), Some(true)));
    let only = scored(&with_metrics(r#"["acc"]"#), 0, &answers);
    assert_eq!((only.acc_norm, only.acc_bytes), (None, None));
}

#[test]
fn the_first_of_equal_answers_counts() {
    let task = with_metrics(r#"["acc"]"#);
    let answers = [(-3.0, "a"), (-2.0, "b"), (-2.0, "c")];
    let right: Vec<bool> = (0..3).map(|gold| scored(&task, gold, &answers).acc).collect();
    assert_eq!(right, [false, true, false]);
    // As with numpy, what is not a number wins.
    let answers = [(-3.0, "a"), (f64::NAN, "b"), (f64::NAN, "c")];
    assert!(scored(&task, 1, &answers).acc);
}

#[test]
fn figures_have_lm_evals_standard_errors() {
    let task = with_metrics(r#"["acc"]"#);
    let mut documents: Vec<_> = [true, true, false, true]
        .into_iter()
        .map(|right| scored(&task, usize::from(!right), &[(-1.0, "a"), (-2.0, "b")]))
        .collect();
    let (metrics, groups) = figures(&task, &documents);
    // Sample variance of (1, 1, 0, 1) is 1/4, so the error is sqrt(1/4 / 4) = 1/4.
    assert_eq!(
        (metrics[0].estimate.value, metrics[0].estimate.error),
        (0.75, 0.25)
    );
    assert!(groups.is_empty());
    // Groups (1, 1, 0) and (1): the sum of squares within is 2/3, pooled variance 2/3 / (4 - 2), error
    // sqrt(1/3 / 4).
    for (index, document) in documents.iter_mut().enumerate() {
        document.group = Some(if index < 3 { "a" } else { "b" }.into());
    }
    let (metrics, groups) = figures(&task, &documents);
    assert_eq!(metrics[0].estimate.value, 0.75);
    let error = metrics[0].estimate.error;
    assert!(
        (error - (1.0f64 / 12.0).sqrt()).abs() < 4.0 * f64::EPSILON,
        "{error}"
    );
    assert_eq!((groups[0].group.as_str(), groups[0].documents), ("a", 3));
    assert!(groups[1].estimate.error.is_nan());
}
