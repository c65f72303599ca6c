//! tiny-stories-4m, the Llama embedded in the program, with its texts.

/// Name of [`super::Model::embedded`].
pub const NAME: &str = "tiny-stories-4m";

/// Generated stories that the model was not trained on, one {"text": ...} per line.
pub const EVALUATION_TEXT: &[u8] = include_bytes!("../../../../golden/tiny-stories-4m/eval.jsonl");

/// Generated stories for calibration, one {"text": ...} per line.
pub const CALIBRATION_TEXT: &[u8] = include_bytes!("../../../../golden/tiny-stories-4m/calibration.jsonl");

/// Its config.json.
pub(super) const CONFIG: &str = include_str!("../../../../golden/tiny-stories-4m/config.json");

/// Its weights, f16.
pub(super) const WEIGHTS: &[u8] = include_bytes!("../../../../golden/tiny-stories-4m/model.safetensors");

/// Its tokenizer.json.
pub(crate) const TOKENIZER: &[u8] = include_bytes!("../../../../golden/tiny-stories-4m/tokenizer.json");
