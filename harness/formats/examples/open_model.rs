//! Opens a model, prints its layers and reads one weight.
//!
//! ```text
//! cargo run --example open_model -- MODEL
//! ```
//!
//! MODEL is a Hugging Face folder or a GGUF file. Without it, the example opens the model embedded in the
//! library.

use aqlm_formats::Result;
use aqlm_formats::model::Model;
use aqlm_vocabulary::LinearWeight;
use aqlm_vocabulary::llama::QUERY;

fn main() -> Result<()> {
    let model = match std::env::args_os().nth(1) {
        Some(path) => Model::open(path)?,
        None => Model::embedded()?,
    };

    // From headers only.
    let inventory = model.inventory();
    println!(
        "{}: {} parameters in {} bytes",
        model.source().display(),
        inventory.parameters,
        inventory.bytes
    );
    for layer in &inventory.layers {
        let scheme = layer
            .scheme
            .map_or("dense".to_owned(), |scheme| scheme.to_string());
        println!(
            "{} [{}, {}]: {scheme}, {:.3} bits per parameter",
            layer.name, layer.out_features, layer.in_features, layer.bits_per_parameter
        );
    }

    // Weights are read block by block, on request.
    let block = model.block(0)?;
    match &block.layer(QUERY).weight {
        LinearWeight::Dense(weight) => println!("q_proj of block 0 begins with {}", weight[[0, 0]]),
        LinearWeight::Quantized(matrix) => {
            println!("q_proj of block 0 is quantized as {}", matrix.scheme());
        }
    }
    Ok(())
}
