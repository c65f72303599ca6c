//! Opens a model and measures its perplexity on a text, on every backend of this machine or on one.
//!
//! ```text
//! cargo run --release -p aqlm-engine --example evaluate -- [MODEL TEXT [reference|cpu|cuda]]
//! ```
//!
//! Without arguments, the example evaluates the embedded model on two windows of its own evaluation text.

use std::path::Path;

use aqlm_engine::backends::BackendKind;
use aqlm_engine::evaluate::resident;
use aqlm_engine::{Error, Result};
use aqlm_formats::model::{Model, embedded};
use aqlm_formats::texts::TokenStream;

/// Tokens in a window.
const CTX: usize = 256;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (model, text, most) = if let [model, text, ..] = &arguments[..] {
        let model = Model::open(model)?;
        let text = TokenStream::load(Path::new(text), &model.tokenizer()?)?;
        (model, text, usize::MAX)
    } else {
        let model = Model::embedded()?;
        let name = Path::new("eval.jsonl");
        let text = TokenStream::from_bytes(name, embedded::EVALUATION_TEXT, &model.tokenizer()?)?;
        (model, text, 2)
    };
    let mut windows = text.windows(CTX)?;
    windows.truncate(most);
    for backend in BackendKind::ALL {
        if arguments.get(2).is_some_and(|wanted| wanted != backend.name()) {
            continue;
        }
        // The whole model resides on the machine; `evaluate::streamed` needs the memory of one block.
        let machine = match backend.models(model.config(), CTX) {
            Err(Error::Device { reason }) => {
                println!("{backend}: waived: {reason}");
                continue;
            }
            machine => machine?,
        };
        let measured = resident(machine.as_ref(), &model, &windows, false, &mut |_| ())?.perplexity();
        println!(
            "{backend}: perplexity {:.4} over {} tokens",
            measured.perplexity, measured.tokens
        );
    }
    Ok(())
}
