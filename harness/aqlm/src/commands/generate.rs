use aqlm_vocabulary::{Purpose, stream};

use super::{NamedModel, Output, print, say};
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
    let mut shown = Ok(false);
    let continued = continue_text(&model.model, request, &mut |piece| {
        if live {
            shown = print(piece);
        }
        // nobody waits for the rest of a text that cannot be shown
        !live || matches!(shown, Ok(true))
    });
    if let (Err(_), Ok(true)) = (&continued, &shown) {
        print("\n")?;
    }
    let continued = continued?;
    if live && !shown? {
        return Ok(true);
    }
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
    output.result(&record, || "\n".to_owned())?;
    if live {
        say(format_args!(
            "{} tokens, {:.1} tokens per second",
            record.tokens.len(),
            record.tokens_per_second
        ));
    }
    Ok(true)
}

/// Continues a text with a model; `each` receives the prompt and then the text as it grows, and returns
/// whether to go on.
pub(super) fn continue_text(
    model: &Model,
    request: &Continuation,
    each: &mut dyn FnMut(&str) -> bool,
) -> Result<Continued> {
    let tokenizer = model.tokenizer()?;
    let mut ids = tokenizer.encode(&request.prompt, true)?;
    if let Some(bos) = tokenizer
        .bos()
        .filter(|_| request.document_start && !tokenizer.adds_bos())
    {
        ids.insert(0, bos);
    }
    let longest = model.config().max_position_embeddings;
    let positions = ids.len().saturating_add(request.tokens);
    if positions > longest {
        return Err(Error::argument(
            "--tokens",
            &format!("prompt and new tokens within the model's context of {longest}"),
            format!("{} + {}", ids.len(), request.tokens),
        ));
    }
    if !each(&request.prompt) {
        return Ok(Continued {
            generated: Generated {
                tokens: Vec::new(),
                prompt_seconds: 0.0,
                seconds: 0.0,
            },
            text: String::new(),
            prompt_tokens: ids.len(),
        });
    }
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
            each(&pieces.push(token).unwrap_or_default())
        },
    )?;
    let text = tokenizer.decode(&generated.tokens, true)?;
    Ok(Continued {
        generated,
        text,
        prompt_tokens: ids.len(),
    })
}
