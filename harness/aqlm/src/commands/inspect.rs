use std::path::Path;

use super::table::{Table, bytes};
use super::{NamedModel, Output, say};
use aqlm_engine::runs::records::{self, InspectRecord, LayerErrors, Record};
use aqlm_formats::Result;
use aqlm_formats::model::Model;

pub(crate) fn run(model: &Path, output: Output) -> Result<bool> {
    let NamedModel { name, model } = NamedModel::open(model)?;
    let record = InspectRecord::new(name, &model, layer_errors(&model));
    output.result(&record, || text(&model, &record))?;
    Ok(true)
}

/// Errors of the model's layers, if its folder is a run of `quantize` that ended.
fn layer_errors(model: &Model) -> Option<LayerErrors> {
    let file = model.source().join(records::FILE);
    if !file.is_file() {
        return None;
    }
    match records::read(&file) {
        Ok(Record::Quantize(record)) => Some(record.into()),
        Ok(_) => None,
        Err(error) => {
            // The model can be inspected without it.
            say(format_args!("warning: {error}"));
            None
        }
    }
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
    let mut heads = vec!["layer", "out", "in", "scheme", "bits per parameter"];
    if record.quantization.is_some() {
        heads.extend(["relative error", "dB above the limit"]);
    }
    let mut table = Table::of(heads.into_iter().map(str::to_owned).collect());
    for layer in &record.layers {
        let mut row = vec![
            layer.name.clone(),
            layer.out_features.to_string(),
            layer.in_features.to_string(),
            layer
                .scheme
                .map_or_else(|| "dense".to_owned(), |scheme| scheme.to_string()),
            format!("{:.3}", layer.bits_per_parameter),
        ];
        if let Some(errors) = &record.quantization {
            let errors = errors.layers.iter().find(|errors| errors.name == layer.name);
            row.push(errors.map_or_else(String::new, |errors| {
                format!("{:.4}", errors.relative_layer_error)
            }));
            let limit = errors.and_then(|errors| errors.limit_db);
            row.push(limit.map_or_else(String::new, |limit| format!("{limit:.2}")));
        }
        table.line(row);
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
    if let Some(limit) = record.quantization.as_ref().and_then(|errors| errors.limit_db) {
        let _ = write!(
            text,
            "; errors before fine-tuning {limit:.2} dB above the rate-distortion limit"
        );
    }
    text.push('\n');
    text
}
