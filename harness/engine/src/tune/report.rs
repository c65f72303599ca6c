use serde::{Deserialize, Serialize};

/// How a run went. Losses are means over positions, in nats.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndToEndReport {
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
}
