use std::path::Path;

use super::table::{Table, bytes};
use super::{NamedModel, Output};
use aqlm_engine::runs::records::InspectRecord;
use aqlm_formats::Result;
use aqlm_formats::model::Model;

pub(crate) fn run(model: &Path, output: Output) -> Result<bool> {
    let NamedModel { name, model } = NamedModel::open(model)?;
    let record = InspectRecord::new(name, &model);
    output.result(&record, || text(&model, &record))?;
    Ok(true)
}

fn text(model: &Model, record: &InspectRecord) -> String {
    // Writing to a String cannot fail.
    use std::fmt::Write as _;

    let config = &record.config;
    let mut text = format!(
        "{}: {}, {} blocks, hidden {}, ffn {}, {} heads ({} for keys and values) of {}, vocabulary {}, context {}\n",
        record.model,
        record.family,
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
    for layer in &record.layers {
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
        record.parameters,
        bytes(record.bytes),
        model.storage()
    );
    if let Some(bits) = record.quantized_bits_per_parameter {
        let _ = write!(
            text,
            "; {} of them quantized to {bits:.3} bits on average",
            record.quantized_parameters
        );
    }
    text.push('\n');
    text
}
