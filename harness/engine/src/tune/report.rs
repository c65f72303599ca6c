use serde::{Deserialize, Serialize};

/// How a run went. Losses are means over positions, in nats.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndToEndReport {
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
}
