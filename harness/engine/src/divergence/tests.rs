use std::path::Path;

use aqlm_formats::model::{Model, embedded};

use super::*;
use crate::protocol::Protocol;
use aqlm_formats::base_files::BaseFile;

const NOTHING: &dyn Fn(DivergenceEvent) = &|_| ();

/// The embedded model and two windows of its own text.
fn problem(protocol: Protocol, ctx: usize) -> (Model, EvaluationText) {
    let model = Model::embedded().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("eval.jsonl");
    std::fs::write(&path, embedded::EVALUATION_TEXT).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    let text = protocol.cut(&path, None, &tokenizer, ctx, Some(2)).unwrap();
    (model, text)
}

fn measured(backend: BackendKind, text: &EvaluationText, model: &Model, dense: Dense<'_>) -> Compared {
    compare(backend, text, model, dense, false, NOTHING).unwrap()
}

fn writer(path: &Path, text: &EvaluationText, model: &Model, backend: BackendKind) -> BaseWriter {
    let key = base_key(model.fingerprint().unwrap(), text, backend);
    BaseWriter::new(path, &key, backend, model.config().vocab_size, text).unwrap()
}

#[test]
fn the_dense_model_is_zero_from_itself_and_its_rounding_is_not() {
    for backend in [BackendKind::Cpu, BackendKind::Reference] {
        let (model, text) = problem(Protocol::Gptq, 12);
        let dense = Dense::Model(&model, None);
        let found = compare(backend, &text, &model, dense, true, NOTHING).unwrap();
        assert_eq!((found.model.len(), text.predictions()), (22, 22));
        assert!(
            found
                .model
                .iter()
                .all(|position| position.kl == 0.0 && position.same_top)
        );
        let noise = statistics(&found.noise.unwrap());
        assert_eq!((noise.positions, noise.not_finite), (22, 0));
        // bf16 has 8 bits: relative errors of 2^-9 per block, squared in a divergence
        assert!(
            noise.kl.value > 1e-7 && noise.kl.value < 1e-2,
            "{}",
            noise.kl.value
        );
    }
}

#[test]
fn a_lossless_base_file_gives_the_same_figures_as_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("base.safetensors");
    for backend in [BackendKind::Cpu, BackendKind::Reference] {
        let (model, text) = problem(Protocol::LlamaCpp, 9);
        let mut file = writer(&path, &text, &model, backend);
        let losses = save_base(backend, &text, &model, &mut file, NOTHING).unwrap();
        file.finish().unwrap();
        let base = BaseFile::open(&path).unwrap();
        let kept = Kept::new(&base, &text, 2048, Some(&model.fingerprint().unwrap())).unwrap();
        let found = measured(backend, &text, &model, Dense::File(kept, None));
        assert_eq!(found.model.len(), 2 * (9 - 1 - 4));
        assert!(found.model.iter().all(|position| position.kl == 0.0));
        let own: Vec<f64> = found.model.iter().map(|position| position.loss).collect();
        assert_eq!(losses.concat(), own);
        assert!(found.noise.is_none());
    }
}

#[test]
fn a_base_file_of_sixteen_bits_is_near() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("base.kld");
    let (model, text) = problem(Protocol::LlamaCpp, 16);
    let mut file = writer(&path, &text, &model, BackendKind::Cpu);
    measured(
        BackendKind::Cpu,
        &text,
        &model,
        Dense::Model(&model, Some(&mut file)),
    );
    file.finish().unwrap();
    let base = BaseFile::open(&path).unwrap();
    let kept = Kept::new(&base, &text, 2048, None).unwrap();
    assert_eq!(kept.floor(), Some(-16.0));
    let found = measured(BackendKind::Cpu, &text, &model, Dense::File(kept, None));
    for position in &found.model {
        // a step of at most 16 / 65535, and probability e^-16 per token that is left out
        assert!(
            position.kl.abs() <= 0.5 * 16.0 / 65_535.0 + 2048.0 * (-16f64).exp(),
            "{position:?}"
        );
        assert!(
            (position.loss - position.dense_loss).abs() <= 2e-4,
            "{position:?}"
        );
    }
}

#[test]
fn base_files_of_something_else_are_refused_with_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let (model, text) = problem(Protocol::LlamaCpp, 9);
    let path = |name: &str| folder.path().join(name);
    for name in ["a.safetensors", "a.kld"] {
        let mut file = writer(&path(name), &text, &model, BackendKind::Cpu);
        save_base(BackendKind::Cpu, &text, &model, &mut file, NOTHING).unwrap();
        file.finish().unwrap();
        let base = BaseFile::open(&path(name)).unwrap();
        let refused = |text: &EvaluationText, vocab: usize, model: Option<&str>| {
            Kept::new(&base, text, vocab, model).unwrap_err().to_string()
        };
        let message = refused(&text, 2049, None);
        assert!(
            message.contains("vocab") && message.contains("2049") && message.contains("2048"),
            "{message}"
        );
        let message = refused(&problem(Protocol::Gptq, 9).1, 2048, None);
        assert!(
            message.contains("protocol") && message.contains("gptq"),
            "{message}"
        );
        let message = refused(&problem(Protocol::LlamaCpp, 10).1, 2048, None);
        assert!(message.contains("ctx"), "{message}");
        let other = path("other.jsonl");
        std::fs::write(
            &other,
            "{\"text\": \"Once upon a time there was a cat. It sat on the mat all day.\"}",
        )
        .unwrap();
        let tokenizer = model.tokenizer().unwrap();
        let other = Protocol::LlamaCpp
            .cut(&other, None, &tokenizer, 9, Some(2))
            .unwrap();
        let message = refused(&other, 2048, None);
        assert!(
            message.contains("of window 0") && message.contains("SHA-256"),
            "{message}"
        );
    }
    let base = BaseFile::open(&path("a.safetensors")).unwrap();
    let message = Kept::new(&base, &text, 2048, Some("abc"))
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("model_sha256") && message.contains("abc"),
        "{message}"
    );
    let key = base_key(String::new(), &text, BackendKind::Cpu);
    let gptq = problem(Protocol::Gptq, 9).1;
    let refused = BaseWriter::new(&path("b.kld"), &key, BackendKind::Cpu, 2048, &gptq).unwrap_err();
    assert!(refused.to_string().contains("--protocol llama-cpp"), "{refused}");
}
