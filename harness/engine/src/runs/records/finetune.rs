use serde::{Deserialize, Serialize};

use crate::backends::BackendKind;
use crate::{Difference, EndToEndReport, EndToEndSettings};

/// How a quantized model was tuned end to end. Losses are means over positions, in nats.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FinetuneRecord {
    /// the quantized model, as named on the command line
    pub model: String,
    /// the dense model, as named on the command line, if there is one
    pub teacher: Option<String>,
    /// run folder and tuned model
    pub out: String,
    /// the backend
    pub backend: BackendKind,
    /// everything else that decides the result
    pub settings: EndToEndSettings,
    /// loss on the validation sequences before the first step (the training ones where there are none)
    pub loss_before: f64,
    /// the same loss for the state that was kept
    pub loss_after: f64,
    /// training loss of each epoch
    pub train_losses: Vec<f64>,
    /// validation loss after each epoch
    pub validation_losses: Vec<f64>,
    /// epoch whose end state was kept; 0 is the state before the first step
    pub best_epoch: usize,
    /// mean probability of the teacher's tokens that were not stored, if only the most likely were
    pub teacher_rest: Option<f64>,
    /// steps taken
    pub steps: usize,
    /// groups whose codes changed, counted again in every step; `None` for fixed codes
    #[serde(default)]
    pub groups_changed: Option<u64>,
    /// tokens trained on, counted again in every epoch
    pub tokens: u64,
    /// seconds of training and judging, including earlier attempts, excluding the storing of the teacher's
    /// states
    pub seconds: f64,
    /// tokens trained on per second
    pub tokens_per_second: f64,
    /// non-quantized weights that differ from the teacher's
    pub differences: Vec<Difference>,
    /// number of training documents that also occur in the evaluation text
    pub shared_documents: usize,
    /// perplexity on the evaluation text before tuning; `None` without such a text or if not finite
    pub perplexity_before: Option<f64>,
    /// perplexity of the tuned model
    pub perplexity_after: Option<f64>,
}

impl FinetuneRecord {
    /// A run without a perplexity measured and without anything to warn of.
    pub fn new(
        [model, out]: [String; 2],
        teacher: Option<String>,
        backend: BackendKind,
        settings: EndToEndSettings,
        report: EndToEndReport,
    ) -> Self {
        Self {
            model,
            teacher,
            out,
            backend,
            settings,
            loss_before: report.loss_before,
            loss_after: report.loss_after,
            train_losses: report.train_losses,
            validation_losses: report.validation_losses,
            best_epoch: report.best_epoch,
            teacher_rest: report.teacher_rest,
            steps: report.steps,
            groups_changed: report.groups_changed,
            tokens: report.tokens,
            seconds: report.seconds,
            tokens_per_second: report.tokens as f64 / report.seconds,
            differences: Vec::new(),
            shared_documents: 0,
            perplexity_before: None,
            perplexity_after: None,
        }
    }
}
