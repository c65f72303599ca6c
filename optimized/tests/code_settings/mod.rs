//! Settings under which codes change in every step of a small model.

use aqlm_vocabulary::{AdamDecay, ChangeBudget, CodeSettings, Residuals};

/// Official; official with everything; one budget for the model; one budget with a trust ratio.
pub(crate) fn code_settings() -> [CodeSettings; 4] {
    let settings = CodeSettings {
        lr: 0.1,
        max_change: 0.2,
        ..CodeSettings::README
    };
    let mut all = CodeSettings {
        trust_ratio: Some(0.05),
        beam: 2,
        delta_decay: 0.1,
        ..settings
    };
    all.optimizer.decay.beta1 = 0.5;
    let of_model = CodeSettings {
        budget: ChangeBudget::Model,
        residuals: Residuals::Own,
        optimizer: AdamDecay::PAPER.into(),
        ..settings
    };
    let trusted = CodeSettings {
        trust_ratio: Some(0.1),
        ..of_model
    };
    [settings, all, of_model, trusted]
}
