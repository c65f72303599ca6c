use std::io::Write;

use aqlm_vocabulary::{Purpose, stream};

use super::{NamedModel, Output};
use aqlm_engine::backends::BackendKind;
use aqlm_engine::generate::{Generated, Sampling, generate};
use aqlm_engine::runs::records::GenerateRecord;
use aqlm_formats::model::Model;
use aqlm_formats::{Error, Result};

/// A prompt, and how to continue it.
#[derive(Debug)]
pub(crate) struct Continuation {
    pub(crate) prompt: String,
    /// maximum number of new tokens
    pub(crate) tokens: usize,
    pub(crate) sampling: Sampling,
    /// seed of the draws
    pub(crate) seed: u64,
    /// whether to put the document-start token before the prompt even if the tokenizer does not
    pub(crate) document_start: bool,
    pub(crate) backend: BackendKind,
}

/// A prompt and its continuation.
#[derive(Debug)]
pub(super) struct Continued {
    pub(super) generated: Generated,
    /// the continuation
    pub(super) text: String,
    pub(super) prompt_tokens: usize,
}

pub(crate) fn run(model: &NamedModel, request: &Continuation, output: Output) -> Result<bool> {
    let live = !output.json;
    let mut shown = false;
    let continued = continue_text(&model.model, request, &mut |piece| {
        if live {
            shown = true;
            print!("{piece}");
            // A closed pipe ends the display, not the computation.
            let _ = std::io::stdout().flush();
        }
    })
    .inspect_err(|_| {
        if shown {
            println!();
        }
    })?;
    let Generated { tokens, seconds, .. } = continued.generated;
    let record = GenerateRecord {
        model: model.name.clone(),
        prompt: request.prompt.clone(),
        text: continued.text,
        prompt_tokens: continued.prompt_tokens,
        seconds,
        tokens_per_second: tokens.len() as f64 / seconds.max(1e-9),
        backend: request.backend,
        tokens,
    };
    output.result(&record, || "\n".to_owned());
    if live {
        eprintln!(
            "{} tokens, {:.1} tokens per second",
            record.tokens.len(),
            record.tokens_per_second
        );
    }
    Ok(true)
}

/// Continues a text with a model; `each` receives the prompt and then the text as it grows.
pub(super) fn continue_text(
    model: &Model,
    request: &Continuation,
    each: &mut dyn FnMut(&str),
) -> Result<Continued> {
    let tokenizer = model.tokenizer()?;
    let mut ids = tokenizer.encode(&request.prompt, true)?;
    if let Some(bos) = tokenizer
        .bos()
        .filter(|_| request.document_start && !tokenizer.adds_bos())
    {
        ids.insert(0, bos);
    }
    let positions = ids.len() + request.tokens;
    let longest = model.config().max_position_embeddings;
    if positions > longest {
        return Err(Error::argument(
            "--tokens",
            &format!("prompt and new tokens within the model's context of {longest}"),
            format!("{} + {}", ids.len(), request.tokens),
        ));
    }
    each(&request.prompt);
    let mut rng = stream(request.seed, 0, None, Purpose::Generation);
    let mut pieces = tokenizer.stream();
    let machine = request.backend.models(model.config(), positions)?;
    let mut resident = machine.model(model, &mut |_| {})?;
    let generated = generate(
        resident.session()?.as_mut(),
        &ids,
        request.tokens,
        tokenizer.stops(),
        request.sampling,
        &mut rng,
        &mut |token| {
            // A decoding error is ignored here: the whole text is decoded below, and that reports the error.
            each(&pieces.push(token).unwrap_or_default());
        },
    )?;
    let text = tokenizer.decode(&generated.tokens, true)?;
    Ok(Continued {
        generated,
        text,
        prompt_tokens: ids.len(),
    })
}
