//! Types shared by every crate of the project: schemes, quantized matrices, model shapes, settings, errors
//! and random streams. None of them is an algorithm of the paper. An optimized backend may therefore use all
//! of them and still be an independent implementation of everything that is checked.

mod adam;
mod arch;
mod arch_check;
mod code_tuning;
mod compared;
mod error;
mod experts;
mod layer_id;
pub mod llama;
mod mlp;
mod model_tuning;
mod quantized;
mod random;
mod rope;
mod scheme;
mod settings;
mod training;
mod tuning_state;
mod weights;

pub use adam::{AdamDecay, AdamSettings, Optimizer, StepRule};
pub use arch::{
    ArchSpec, AttentionSpec, BlockNorm, BlockSpec, Input, LinearSpec, LogitSpec, NormPlace, NormSpec,
};
pub use code_tuning::{ChangeBudget, CodeChange, CodeMetric, CodeSettings, CodeState, Residuals};
pub use compared::ComparedPosition;
pub use error::{AqlmError, Result};
pub use experts::{ExpertNames, Experts};
pub use layer_id::LayerId;
pub use mlp::{Activation, GatedMlp, Mlp, RoutedMlp, SharedExpert};
pub use model_tuning::{ModelTuning, Objective, Parameter, ParameterState, Rates, Target, TopTokens, Tuned};
pub use quantized::{NEGLIGIBLE, QuantizedMatrix};
pub use random::{
    Position, Purpose, Stream, StreamKey, codebook_order, sample_distinct, shuffle, stream, sweep_order,
};
pub use rope::{Rope, RopeScaling};
pub use scheme::{MAX_SUMS, Scheme};
pub use settings::{
    FeedbackSettings, FinetuneEvent, FinetuneReport, FinetuneSettings, GroupOrder, Initialization,
    LayerEvent, LayerReport, LayerSettings, Update,
};
pub use training::{BlockTraining, GradientSums, ModelTraining, PartSums};
pub use tuning_state::{PartOutline, StatePart, TuningState};
pub use weights::{BlockWeights, Linear, LinearWeight, ModelWeights};
