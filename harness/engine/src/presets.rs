use aqlm_vocabulary::{FeedbackSettings, FinetuneSettings, Initialization, LayerSettings, Scheme, Update};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What a sketch of the dense model's gradients is made of ([`Sketch`](crate::sketch::Sketch)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SketchSettings {
    /// tokens of a sequence whose gradient counts as one
    pub seqlen: usize,
    /// how often labels are drawn for each sequence
    pub draws: usize,
    /// seed of the draws
    pub seed: u64,
}

/// Settings that belong together (docs/quantizer.md says where the paper and the official code differ).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// what measured best here (docs/quantizer.md)
    Project,
    /// as the paper describes it
    Paper,
    /// as the official code runs by default
    Official,
}

/// The H that weights the inputs of a layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum HessianKind {
    /// the mean of x x^T over the layer's inputs behind the quantized blocks
    #[default]
    Plain,
    /// the mean of G^T G over gradients of the dense model
    Sketched,
}

/// The loss of a layer, E = W - Q.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LayerObjective {
    /// tr(E H E^T)
    #[default]
    OneSided,
    /// tr(H_O E H E^T), with H_O the mean of G G^T over gradients of the dense model
    TwoSided,
}

/// Everything that decides the result of a run, apart from the model, the calibration data and the backend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuantizeSettings {
    /// how one layer is quantized
    pub layer: LayerSettings,
    /// the H that weights the inputs of a layer
    #[serde(default)]
    pub hessian: HessianKind,
    /// whether errors of output rows are weighted against each other, too
    #[serde(default)]
    pub objective: LayerObjective,
    /// what the gradients' sketch is made of, where one is needed
    #[serde(default)]
    pub sketch: Option<SketchSettings>,
    /// how a block is tuned after its layers are quantized
    pub finetune: FinetuneSettings,
    /// tokens in one calibration sequence
    pub seqlen: usize,
    /// calibration sequences, those for validation included
    pub sequences: usize,
    /// the last this many sequences contribute to no Hessian and no gradient; they decide when fine-tuning
    /// stops
    pub validation: usize,
    /// whether the Hessians of each kind of layer get their own pass, over the block as quantized so far,
    /// instead of one pass for all
    pub true_sequential: bool,
    /// seed of every random stream
    pub seed: u64,
}

impl QuantizeSettings {
    /// Whether layers are quantized by gradients of the dense model.
    pub fn needs_sketch(&self) -> bool {
        self.hessian == HessianKind::Sketched || self.objective == LayerObjective::TwoSided
    }

    /// Settings of a preset for a scheme.
    pub fn preset(preset: Preset, scheme: Scheme) -> Self {
        let adam = |beta1: f64, amsgrad: bool| Update::Adam {
            lr: 1e-4,
            beta1,
            beta2: 0.95,
            amsgrad,
            steps: 100,
        };
        let (init, update, beam, pairs, relative_tolerance, lr) = match preset {
            Preset::Project => (
                Initialization::Feedback(FeedbackSettings {
                    // Where codes are not chosen in pairs, further passes gain what pairs gain elsewhere.
                    passes: if scheme.has_pairs() { 1 } else { 3 },
                    ..FeedbackSettings::default()
                }),
                Update::ClosedForm {
                    max_unknowns: 8192,
                    cg_steps: 30,
                    scale_rounds: 2,
                },
                4,
                true,
                0.003,
                1e-3,
            ),
            // The paper does not state the beam width; 2 is the smallest beam that is more than greedy.
            Preset::Paper => (Initialization::Residual, adam(0.90, false), 2, false, 0.01, 1e-4),
            Preset::Official => (Initialization::Residual, adam(0.0, true), 1, false, 0.01, 1e-5),
        };
        Self {
            layer: LayerSettings {
                scheme,
                init,
                kmeans_iterations: 100,
                update,
                beam,
                pairs,
                relative_tolerance,
                max_rounds: 100,
                damping: 1e-6,
                allow_degenerate: false,
            },
            hessian: HessianKind::Plain,
            objective: LayerObjective::OneSided,
            sketch: None,
            finetune: FinetuneSettings {
                lr,
                beta1: 0.90,
                beta2: 0.95,
                eps: 1e-8,
                epochs: 5,
                batch: 8,
                patience: 3,
                codebooks: true,
                scales: true,
                norms: true,
            },
            seqlen: 256,
            sequences: 128,
            validation: 16,
            true_sequential: false,
            seed: 0,
        }
    }
}
