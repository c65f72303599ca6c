//! tiny-stories-4m, the Llama that is part of the program, with its texts.

/// What [`super::Model::embedded`] calls itself.
pub const NAME: &str = "tiny-stories-4m";

/// Generated stories, one {"text": ...} a line, that the model was not trained on.
pub const EVALUATION_TEXT: &[u8] = include_bytes!("../../../../golden/tiny-stories-4m/eval.jsonl");

/// Generated stories, one {"text": ...} a line, to calibrate with.
pub const CALIBRATION_TEXT: &[u8] = include_bytes!("../../../../golden/tiny-stories-4m/calibration.jsonl");

/// Its config.json.
pub(super) const CONFIG: &str = include_str!("../../../../golden/tiny-stories-4m/config.json");

/// Its weights, f16.
pub(super) const WEIGHTS: &[u8] = include_bytes!("../../../../golden/tiny-stories-4m/model.safetensors");

/// Its tokenizer.json.
pub(crate) const TOKENIZER: &[u8] = include_bytes!("../../../../golden/tiny-stories-4m/tokenizer.json");
