use std::path::PathBuf;

use aqlm_vocabulary::{ArchSpec, Rope};
use serde::Serialize;

use super::table::{Table, bytes};
use super::{Output, open_model};
use aqlm_formats::Result;
use aqlm_formats::model::{Inventory, Model};

/// Options of `aqlm inspect`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Model folder, GGUF file, or `tiny-stories-4m` for the embedded model
    model: PathBuf,
}

#[derive(Debug, Serialize)]
struct Document<'a> {
    model: String,
    family: &'a str,
    config: Shape,
    #[serde(flatten)]
    inventory: &'a Inventory,
}

/// The numbers of a model, under the names that they have in a config.json; of blocks those of the first.
#[derive(Debug, Serialize)]
struct Shape {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    rms_norm_eps: f64,
    rope: Option<Rope>,
    sliding_window: Option<usize>,
    tie_word_embeddings: bool,
    max_position_embeddings: usize,
}

impl From<&ArchSpec> for Shape {
    fn from(arch: &ArchSpec) -> Self {
        let attention = arch.attention();
        Self {
            vocab_size: arch.vocab_size,
            hidden_size: arch.hidden_size,
            intermediate_size: arch.blocks[0].intermediate_size(),
            num_hidden_layers: arch.blocks.len(),
            num_attention_heads: attention.heads,
            num_key_value_heads: attention.kv_heads,
            head_dim: attention.head_dim,
            rms_norm_eps: arch.final_norm.epsilon,
            rope: attention.rotary.clone(),
            sliding_window: attention.window,
            tie_word_embeddings: arch.tied,
            max_position_embeddings: arch.max_position_embeddings,
        }
    }
}

pub(super) fn run(args: &Args, output: Output) -> Result<bool> {
    let model = open_model(&args.model)?;
    let inventory = model.inventory();
    let document = Document {
        model: args.model.display().to_string(),
        family: model.details().family.name,
        config: model.config().into(),
        inventory: &inventory,
    };
    output.result(&document, || text(&model, &document));
    Ok(true)
}

fn text(model: &Model, document: &Document<'_>) -> String {
    // Writing to a String cannot fail.
    use std::fmt::Write as _;

    let config = &document.config;
    let inventory = document.inventory;
    let mut text = format!(
        "{}: {}, {} blocks, hidden {}, ffn {}, {} heads ({} for keys and values) of {}, vocabulary {}, context {}\n",
        document.model,
        document.family,
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.vocab_size,
        config.max_position_embeddings,
    );
    let mut table = Table::new(["layer", "out", "in", "scheme", "bits per parameter"]);
    for layer in &inventory.layers {
        table.row([
            layer.name.clone(),
            layer.out_features.to_string(),
            layer.in_features.to_string(),
            layer
                .scheme
                .map_or_else(|| "dense".to_owned(), |scheme| scheme.to_string()),
            format!("{:.3}", layer.bits_per_parameter),
        ]);
    }
    text.push_str(&table.render());
    let _ = write!(
        text,
        "{} parameters in {}, stored as {}",
        inventory.parameters,
        bytes(inventory.bytes),
        model.storage()
    );
    if let Some(bits) = inventory.quantized_bits_per_parameter {
        let _ = write!(
            text,
            "; {} of them quantized to {bits:.3} bits on average",
            inventory.quantized_parameters
        );
    }
    text.push('\n');
    text
}
