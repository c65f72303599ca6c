//! What quantizing a model on a GPU takes, counted from shapes before anything starts: memory of the device
//! and of the host, and time by phase. The rates are those of one H200 (docs/quantizer-cuda.md); expect the
//! times to be right within a factor of two there, and elsewhere not at all.

use std::fmt;

use aqlm_optimized::cuda::quantizer::BYTES_A_WEIGHT;
use aqlm_optimized::cuda::training::{SPARE_BYTES, working_bytes};
use aqlm_vocabulary::{ArchSpec, BlockSpec, Initialization, LayerId, LayerSettings, Update};

use crate::presets::QuantizeSettings;
use crate::runs::phases::PhaseSeconds;
use crate::training_precision::{CalibrationPrecision, TrainingPrecision};
use aqlm_formats::{Error, Result};

/// Floating-point operations a second of large products in f32, in TF32, in bf16.
const F32_RATE: f64 = 45e12;
const TF32_RATE: f64 = 330e12;
const BF16_RATE: f64 = 550e12;
/// The same of attention, in f32 and in TF32.
const ATTENTION_RATES: [f64; 2] = [12e12, 45e12];
/// Instructions a second of kernels that score codewords.
const INSTRUCTIONS: f64 = 28.7e12;
/// Bytes a second between pageable memory of the host and the device.
const COPY_RATE: f64 = 3e9;
/// Rounds that a layer is assumed to take if more are allowed.
const ROUNDS: usize = 4;
/// Measured time of an error feedback, and of a sweep of a search, as multiples of the time of its scores.
const FEEDBACK: f64 = 3.5;
const SWEEP: f64 = 2.1;
/// Products with weights that a step of training takes for each one forward: forward, to inputs, to weights;
/// and products of attention for each two forward.
const BACK: f64 = 3.0;
const ATTENTION_BACK: f64 = 4.5;

/// Memory and time of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Forecast {
    /// bytes of hidden states, of inputs and of targets together, in the type that the device keeps
    pub states: usize,
    /// bytes of device memory of one pass of a part through a block and back, Hessians included
    pub pass: usize,
    /// bytes of device memory of the largest layer's alternation
    pub layer: usize,
    /// bytes of a block's weights in f32 and a layer's H in f64 on the host, with their copies
    pub host: usize,
    /// bytes of free device memory
    pub free: usize,
    /// bytes that an f32 takes more than a number in `states`, as a factor
    widening: usize,
    /// seconds of all blocks, without hidden states that do not fit on the device
    pub phases: PhaseSeconds,
    /// passes over hidden states: of targets and Hessians, of outputs, of tuning
    passes: f64,
}

impl Forecast {
    /// Of a run with these settings on a device with so much free memory.
    pub fn of(
        arch: &ArchSpec,
        settings: &QuantizeSettings,
        activations: CalibrationPrecision,
        training: TrainingPrecision,
        free: usize,
    ) -> Self {
        let (bytes, widening) = match activations {
            CalibrationPrecision::F32 => (4, 1),
            CalibrationPrecision::Bf16 => (2, 2),
        };
        let numbers = settings.sequences * settings.seqlen * arch.hidden_size;
        let side = |block: &BlockSpec| block.layers().map(|layer| block.shape(layer).1).max();
        let weights = |block: &BlockSpec| block.layers().map(|layer| size(block, layer)).max();
        let largest = |of: &dyn Fn(&BlockSpec) -> Option<usize>| arch.blocks.iter().filter_map(of).max();
        let widest = largest(&side).unwrap_or(0);
        let parameters = largest(&|block| Some(block.parameters())).unwrap_or(0);
        let rounds = if settings.true_sequential { 4.0 } else { 1.0 };
        let epochs = settings.finetune.epochs as f64;
        let mut phases = PhaseSeconds::default();
        for block in &arch.blocks {
            phases.add(&of_block(block, settings, activations, training, rounds));
        }
        Self {
            states: 2 * numbers * bytes,
            pass: working_bytes(arch, settings.sequences, settings.seqlen),
            layer: largest(&weights).unwrap_or(0) * BYTES_A_WEIGHT,
            host: 3 * parameters * size_of::<f32>() + 3 * widest * widest * size_of::<f64>(),
            free,
            widening,
            phases,
            passes: (rounds + 2.0 + 2.0 * epochs) * arch.blocks.len() as f64,
        }
    }

    /// Bytes of device memory at the moment that takes most.
    pub fn device(&self) -> usize {
        self.states.min(self.room()) + self.pass.max(self.layer)
    }

    /// Bytes of hidden states that do not fit on the device and lie in the host's memory, in f32.
    pub fn spilled(&self) -> usize {
        self.states.saturating_sub(self.room()) * self.widening
    }

    /// Device memory for hidden states.
    fn room(&self) -> usize {
        self.free.saturating_sub(self.pass)
    }

    /// Seconds of all phases, with copies of hidden states that do not fit on the device.
    pub fn seconds(&self) -> f64 {
        self.phases.total() + self.copies()
    }

    /// Seconds of copies of hidden states between host and device: each pass reads or writes them once.
    fn copies(&self) -> f64 {
        self.passes * self.spilled() as f64 / 2.0 / COPY_RATE
    }

    /// Refuses a run that the memory certainly cannot hold: a pass that does not fit on the device; hidden
    /// states that do not fit in `memory` bytes of the host, if that is known and nothing bounds them.
    ///
    /// # Errors
    /// `Argument` with advice.
    pub fn check(&self, memory: Option<usize>) -> Result<()> {
        let needed = self.pass.saturating_sub(SPARE_BYTES);
        if needed > self.free {
            return Err(Error::argument(
                "device memory",
                &format!(
                    "{:.1} GiB for one pass through a block (--seqlen makes it smaller)",
                    gib(needed)
                ),
                format!("{:.1} GiB free", gib(self.free)),
            ));
        }
        let host = self.host + self.spilled();
        match memory {
            Some(memory) if host > memory => Err(Error::argument(
                "memory",
                &format!(
                    "{:.1} GiB, {:.1} of them hidden states that do not fit on the device; --activations bf16 halves \
                     them, --memory puts those beyond a bound on the disk",
                    gib(host),
                    gib(self.spilled())
                ),
                format!("{:.1} GiB available", gib(memory)),
            )),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "device memory: {:.1} of {:.1} GiB free (hidden states {:.1}, one pass {:.1}, one layer {:.1})",
            gib(self.device()),
            gib(self.free),
            gib(self.states.min(self.room())),
            gib(self.pass),
            gib(self.layer)
        )?;
        writeln!(
            f,
            "host memory: {:.1} GiB (hidden states that do not fit on the device {:.1}, weights and Hessians {:.1})",
            gib(self.host + self.spilled()),
            gib(self.spilled()),
            gib(self.host)
        )?;
        write!(f, "time on an H200: {:.0} s (", self.seconds())?;
        for (name, seconds) in self.phases.named() {
            write!(f, "{name} {seconds:.0}, ")?;
        }
        write!(f, "copies of hidden states {:.0})", self.copies())
    }
}

fn gib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

fn size(block: &BlockSpec, layer: LayerId) -> usize {
    let (out, inputs) = block.shape(layer);
    out * inputs
}

/// Seconds of one block.
fn of_block(
    block: &BlockSpec,
    settings: &QuantizeSettings,
    activations: CalibrationPrecision,
    training: TrainingPrecision,
    rounds: f64,
) -> PhaseSeconds {
    let tokens = (settings.sequences * settings.seqlen) as f64;
    let trained = ((settings.sequences - settings.validation) * settings.seqlen) as f64;
    let weights: usize = block.layers().map(|layer| size(block, layer)).sum();
    let (rate, attention) = match activations {
        CalibrationPrecision::F32 => (F32_RATE, ATTENTION_RATES[0]),
        CalibrationPrecision::Bf16 => (BF16_RATE, ATTENTION_RATES[1]),
    };
    // A token attends to half of its sequence: a product with keys and one with values.
    let of_attention = 2.0 * settings.seqlen as f64 * block.attention.query_width() as f64;
    let pass = tokens * (2.0 * weights as f64 / rate + of_attention / attention);
    let squares: f64 = block
        .groups()
        .iter()
        .map(|group| (block.shape(group[0]).1 as f64).powi(2))
        .sum();
    let mut phases = PhaseSeconds {
        hessians: rounds * pass + 2.0 * trained * squares / rate,
        rest: pass,
        ..PhaseSeconds::default()
    };
    for layer in block.quantizable() {
        of_layer(&mut phases, &settings.layer, block.shape(layer));
    }
    let (forward, back, attention) = match training {
        TrainingPrecision::F32 => (F32_RATE, F32_RATE, [ATTENTION_RATES[0]; 2]),
        TrainingPrecision::Mixed => (F32_RATE, TF32_RATE, ATTENTION_RATES),
        TrainingPrecision::Tf32 => (TF32_RATE, TF32_RATE, [ATTENTION_RATES[1]; 2]),
        TrainingPrecision::Bf16 => (BF16_RATE, BF16_RATE, [ATTENTION_RATES[1]; 2]),
    };
    let [there, back_there] = attention;
    let products = 2.0 * weights as f64 * (1.0 / forward + (BACK - 1.0) / back);
    let attended = of_attention * (1.0 / there + (ATTENTION_BACK - 1.0) / back_there);
    phases.finetuning = settings.finetune.epochs as f64 * trained * (products + attended);
    phases
}

/// Adds the seconds of a layer's alternation.
fn of_layer(phases: &mut PhaseSeconds, settings: &LayerSettings, (out, inputs): (usize, usize)) {
    let scheme = settings.scheme;
    let (weights, group) = ((out * inputs) as f64, scheme.group_len() as f64);
    let (books, words) = (scheme.num_codebooks as f64, scheme.codebook_size() as f64);
    // A group is compared with a codeword in an instruction a number, and one for the minimum.
    let scores = books * weights / group * words * (group + 1.0) / INSTRUCTIONS;
    // Sums of two codewords take two and a half instructions each.
    let pairs = books / 2.0 * weights / group * words * words * 2.5 / INSTRUCTIONS;
    let (first, search) = (
        if scheme.has_pairs() { pairs } else { scores },
        if settings.searches_pairs() { pairs } else { scores },
    );
    phases.initialisation += settings.kmeans_iterations as f64 * scores;
    if let Initialization::Feedback(feedback) = settings.init {
        phases.initialisation += (feedback.passes * feedback.hypotheses) as f64 * FEEDBACK * first;
    }
    let rounds = settings.max_rounds.min(ROUNDS) as f64;
    phases.beam_search += rounds * settings.beam as f64 * SWEEP * search;
    let product = 2.0 * weights * inputs as f64;
    phases.codebook_update += rounds
        * match settings.update {
            Update::ClosedForm {
                cg_steps,
                scale_rounds,
                ..
            } => cg_steps as f64 * product / TF32_RATE + 2.0 * scale_rounds as f64 * product / F32_RATE,
            Update::Adam { steps, .. } => steps as f64 * product / F32_RATE,
        };
}

#[cfg(test)]
mod tests {
    use aqlm_vocabulary::llama::LlamaBlock;
    use aqlm_vocabulary::{Rope, RopeScaling};

    use super::*;
    use crate::Preset;

    const GIB: usize = 1 << 30;

    /// Llama-2-7B's shapes on a GPU with so much free memory.
    fn seven_billion(activations: CalibrationPrecision, free: usize) -> Forecast {
        let block = BlockSpec::llama(LlamaBlock {
            hidden_size: 4096,
            intermediate_size: 11008,
            heads: 32,
            kv_heads: 32,
            head_dim: 128,
            epsilon: 1e-5,
            rotary: Rope {
                theta: 1e4,
                scaling: RopeScaling::None,
            },
            window: None,
        });
        let arch = ArchSpec::llama(32_000, 4096, 32, block);
        let mut settings = QuantizeSettings::preset(Preset::Project, "1x16g8".parse().unwrap());
        (settings.sequences, settings.seqlen, settings.validation) = (1024, 4096, 0);
        Forecast::of(&arch, &settings, activations, TrainingPrecision::Tf32, free)
    }

    #[test]
    fn seven_billion_weights_fit_one_gpu_in_bf16() {
        let bf16 = seven_billion(CalibrationPrecision::Bf16, 139 * GIB);
        assert_eq!((bf16.states, bf16.spilled()), (64 * GIB, 0));
        assert!(bf16.device() < 120_000_000_000, "{bf16}");
        let f32 = seven_billion(CalibrationPrecision::F32, 139 * GIB);
        assert_eq!(f32.states, 128 * GIB);
        assert_eq!(f32.spilled(), 128 * GIB + f32.pass - 139 * GIB);
        assert!(f32.check(Some(100 * GIB)).is_ok() && bf16.check(Some(10 * GIB)).is_ok());
        assert!(bf16.seconds() < f32.seconds());
    }

    #[test]
    fn what_the_memory_cannot_hold_is_refused_with_advice() {
        let refused = |activations, free, memory| {
            let forecast = seven_billion(activations, free);
            forecast.check(memory).unwrap_err().to_string()
        };
        let error = refused(CalibrationPrecision::Bf16, 8 * GIB, None);
        assert!(
            error.contains("--seqlen") && error.contains("8.0 GiB free"),
            "{error}"
        );
        let error = refused(CalibrationPrecision::F32, 40 * GIB, Some(60 * GIB));
        assert!(
            error.contains("--activations bf16") && error.contains("60.0 GiB available"),
            "{error}"
        );
        assert!(
            seven_billion(CalibrationPrecision::F32, 40 * GIB)
                .check(None)
                .is_ok()
        );
    }
}
