/// Progress of training. Losses are means over positions, in nats.
#[derive(Debug, Clone, PartialEq)]
pub enum EndToEndEvent {
    /// the memory that training takes, in words, on a machine with memory of its own
    Memory(String),
    /// the teacher's output for another sequence has been stored
    TeacherStored {
        /// sequences stored
        done: usize,
        /// of how many
        sequences: usize,
    },
    /// an earlier attempt is continued
    Resumed {
        /// epochs finished
        epoch: usize,
        /// steps taken in the epoch after them
        step: usize,
    },
    /// a state file in the run folder does not match its checksum; the previous one is tried
    StateDamaged(String),
    /// a step was taken
    Step {
        /// epoch, from 1
        epoch: usize,
        /// step within the epoch, from 1
        step: usize,
        /// steps in each epoch
        steps: usize,
        /// tokens in the step
        tokens: usize,
        /// mean loss on the step's sequences before the step
        loss: f64,
        /// groups whose codes changed; `None` for fixed codes
        groups_changed: Option<usize>,
    },
    /// the model was measured on the evaluation text
    Evaluated {
        /// steps taken
        step: usize,
        /// its perplexity; `None` if not finite
        perplexity: Option<f64>,
        /// mean divergence from the dense model; `None` without one or if not finite
        kl: Option<f64>,
        /// how long measuring took
        seconds: f64,
    },
    /// the model was judged, before the first epoch (0) or after one
    Judged {
        /// epoch, from 1
        epoch: usize,
        /// mean of the training losses before each step; `None` before the first
        train_loss: Option<f64>,
        /// mean loss on the validation sequences (the training ones where there are none)
        loss: f64,
    },
}
