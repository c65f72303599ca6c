use serde::{Deserialize, Serialize};

use crate::backends::BackendKind;
use crate::{Difference, EndToEndReport, EndToEndSettings};

/// How a quantized model was tuned end to end. Losses are means over positions, in nats.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FinetuneRecord {
    /// the quantized model, as it was named
    pub model: String,
    /// the dense model, as it was named, where there is one
    pub teacher: Option<String>,
    /// run folder and tuned model
    pub out: String,
    /// which backend computed
    pub backend: BackendKind,
    /// everything else that decides the result
    pub settings: EndToEndSettings,
    /// loss on the validation sequences before the first step (the training ones where there are none)
    pub loss_before: f64,
    /// the same for the state that was kept
    pub loss_after: f64,
    /// training loss of each epoch
    pub train_losses: Vec<f64>,
    /// validation loss after each epoch
    pub validation_losses: Vec<f64>,
    /// epoch whose end state was kept; 0 is the state before the first step
    pub best_epoch: usize,
    /// mean probability of the teacher's tokens that were not stored, where only the likeliest were
    pub teacher_rest: Option<f64>,
    /// steps taken
    pub steps: usize,
    /// tokens trained on, every epoch counted
    pub tokens: u64,
    /// seconds of training and judging, those of earlier attempts included; not of storing the teacher's
    /// states
    pub seconds: f64,
    /// tokens trained on a second
    pub tokens_per_second: f64,
    /// non-quantized weights that are not the teacher's
    pub differences: Vec<Difference>,
    /// documents of the training text that the evaluation text has too
    pub shared_documents: usize,
    /// perplexity on the evaluation text before, where there is one; `None` also when it is not finite
    pub perplexity_before: Option<f64>,
    /// the same of the tuned model
    pub perplexity_after: Option<f64>,
}

impl FinetuneRecord {
    /// How the training went.
    pub fn report(&self) -> EndToEndReport {
        EndToEndReport {
            loss_before: self.loss_before,
            loss_after: self.loss_after,
            train_losses: self.train_losses.clone(),
            validation_losses: self.validation_losses.clone(),
            best_epoch: self.best_epoch,
            teacher_rest: self.teacher_rest,
            steps: self.steps,
            tokens: self.tokens,
            seconds: self.seconds,
        }
    }
}
