use aqlm_vocabulary::{
    AdamDecay, CodeSettings, ModelTuning, Objective, Optimizer, Residuals, StepRule, Tuned,
};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::Preset;
use crate::ops::ResidentTeacher;

/// How the learning rate falls over the steps of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// it does not
    Constant,
    /// in a straight line to zero
    Linear,
    /// along half a cosine to zero
    Cosine,
}

impl Schedule {
    /// Fraction of the initial learning rate for step `step` (from 0) of `steps`.
    pub fn factor(self, step: usize, steps: usize) -> f64 {
        let done = step as f64 / steps.max(1) as f64;
        match self {
            Self::Constant => 1.0,
            Self::Linear => 1.0 - done,
            Self::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        }
    }
}

/// Source of the teacher's distributions in each step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TeacherUse {
    /// the teacher's final hidden states are stored once, [tokens, hidden] per sequence; logits over the
    /// whole vocabulary are computed from them when needed
    States,
    /// this many most likely tokens of each position are stored once, with the total probability of all
    /// others
    Top(usize),
    /// the teacher is resident and computes every batch anew; nothing is stored
    OnTheFly,
}

/// Everything that decides the result of end-to-end fine-tuning, apart from models, data and backend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndToEndSettings {
    /// what is minimised
    pub objective: Objective,
    /// what is trained
    pub tuned: Tuned,
    /// learning rate of the first step
    pub lr: f64,
    /// how the learning rate falls
    pub schedule: Schedule,
    /// decays of the moments, and epsilon
    pub adam: AdamDecay,
    /// how a step follows from the moments
    #[serde(default)]
    pub rule: StepRule,
    /// how codes change; `None` for fixed codes
    #[serde(default)]
    pub codes: Option<CodeSettings>,
    /// maximum number of passes over the training sequences
    pub epochs: usize,
    /// sequences in a step
    pub batch: usize,
    /// stop after this many epochs without a better validation loss
    pub patience: usize,
    /// tokens in a sequence
    pub seqlen: usize,
    /// all sequences, including those for validation
    pub sequences: usize,
    /// the last this many sequences are not trained on; they decide which state is kept and when to stop
    pub validation: usize,
    /// source of the teacher's distributions
    pub teacher: TeacherUse,
    /// seed of every random stream
    pub seed: u64,
}

impl EndToEndSettings {
    /// Settings of a preset for this many sequences of this many tokens. Those of `Paper` come from the
    /// paper's appendix A. `Official` uses the same, because the official code has replaced this step by one
    /// that changes codes too.
    pub fn preset(preset: Preset, seqlen: usize, sequences: usize) -> Self {
        let (lr, schedule, epochs, batch) = match preset {
            Preset::Project => (5e-4, Schedule::Cosine, 6, 4),
            Preset::Paper | Preset::Official => (1e-5, Schedule::Constant, 1, 8),
        };
        Self {
            objective: Objective::KullbackLeibler,
            tuned: Tuned {
                embedding: false,
                head: false,
                ..Tuned::ALL
            },
            lr,
            schedule,
            adam: AdamDecay::PAPER,
            rule: StepRule::Adam,
            codes: None,
            epochs,
            batch,
            patience: 3,
            seqlen,
            sequences,
            validation: sequences / 16,
            teacher: TeacherUse::States,
            seed: 0,
        }
    }

    /// Settings of a preset that tunes codes, too. `PvReadme` and `PvBranch` are the two recipes of the
    /// official repository (docs/finetuning.md), of which rates, optimizer, limits, batch and epochs are
    /// taken over; what trains is everything, as there.
    pub fn with_codes(preset: CodePreset, seqlen: usize, sequences: usize) -> Self {
        let own = Self::preset(Preset::Project, seqlen, sequences);
        let (codes, batch, epochs) = match preset {
            CodePreset::Pv => {
                return Self {
                    codes: Some(OWN_CODES),
                    ..own
                };
            }
            CodePreset::PvReadme => (CodeSettings::README, 128, 1),
            CodePreset::PvBranch => (CodeSettings::BRANCH, 256, 10),
        };
        Self {
            tuned: Tuned::ALL,
            lr: 3e-4,
            schedule: Schedule::Constant,
            adam: AdamDecay {
                eps: AdamDecay::OFFICIAL_EPS,
                ..AdamDecay::PAPER
            },
            rule: StepRule::Official {
                lamb: true,
                debias: true,
            },
            codes: Some(codes),
            batch,
            epochs,
            patience: epochs,
            ..own
        }
    }

    /// The part of the teacher that stays in memory in all steps. `measured` says whether the divergence
    /// from it is measured between steps.
    pub(super) fn resident_teacher(&self, measured: bool) -> ResidentTeacher {
        match self.teacher {
            _ if !self.objective.needs_teacher() && !measured => ResidentTeacher::Nothing,
            _ if !self.objective.needs_teacher() => ResidentTeacher::Head,
            TeacherUse::Top(_) if !measured => ResidentTeacher::Nothing,
            TeacherUse::Top(_) | TeacherUse::States => ResidentTeacher::Head,
            TeacherUse::OnTheFly => ResidentTeacher::Whole,
        }
    }

    /// What a tuner needs to know of these settings.
    pub fn tuning(&self) -> ModelTuning {
        ModelTuning {
            tuned: self.tuned,
            optimizer: Optimizer {
                decay: self.adam,
                rule: self.rule,
            },
            codes: self.codes,
            seed: self.seed,
        }
    }
}

/// Settings that belong together, for tuning with codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodePreset {
    /// what measured best here (docs/finetuning.md)
    Pv,
    /// the README of the official repository
    PvReadme,
    /// the README of its branch pv-tuning
    PvBranch,
}

/// What measured best here.
const OWN_CODES: CodeSettings = CodeSettings {
    lr: 5e-2,
    residuals: Residuals::Own,
    ..CodeSettings::README
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_start_at_one_and_fall_to_zero() {
        for schedule in [Schedule::Constant, Schedule::Linear, Schedule::Cosine] {
            assert_eq!(schedule.factor(0, 10), 1.0);
            let factors: Vec<f64> = (0..10).map(|step| schedule.factor(step, 10)).collect();
            let constant = schedule == Schedule::Constant;
            assert!(factors.windows(2).all(|pair| if constant {
                pair[1] == pair[0]
            } else {
                pair[1] < pair[0]
            }));
            assert!(factors[9] > 0.0);
        }
        assert_eq!(Schedule::Linear.factor(5, 10), 0.5);
        assert!((Schedule::Cosine.factor(5, 10) - 0.5).abs() < 1e-15);
    }
}
