use std::io::IsTerminal;
use std::time::{Duration, Instant};

use aqlm_vocabulary::{ArchSpec, FinetuneEvent, LayerEvent};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::talks;
use super::say;
use super::table::bytes;
use aqlm_engine::sketch::SketchEvent;
use aqlm_engine::{EndToEndEvent, EndToEndSettings, PipelineEvent, QuantizeSettings};

/// Without a terminal, work shorter than this displays no progress.
const QUIET: Duration = Duration::from_secs(2);
/// Time between progress lines without a terminal.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// A bar on a terminal, plain lines elsewhere; both on standard error.
pub(super) struct Progress {
    bar: ProgressBar,
    plain: bool,
    started: Instant,
    last_line: Instant,
}

impl Progress {
    /// `total` is in units of work, which the caller defines.
    pub(super) fn new(total: u64) -> Self {
        let plain = !std::io::stderr().is_terminal();
        let target = if plain || !talks() {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        let style = "[{elapsed_precise}] {bar:30} {percent:>3} %  left {eta}  {wide_msg}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(250));
        Self {
            bar,
            plain,
            started: Instant::now(),
            last_line: Instant::now(),
        }
    }

    /// The current activity; displayed on the bar only.
    pub(super) fn message(&self, message: impl Into<String>) {
        self.bar.set_message(message.into());
    }

    /// Adds finished units.
    pub(super) fn advance(&self, units: u64) {
        self.bar.inc(units);
    }

    /// A permanent line: above the bar, or by itself.
    pub(super) fn line(&mut self, line: &str) {
        if self.plain || !talks() {
            say(line);
        } else {
            self.bar.println(line);
        }
        self.last_line = Instant::now();
    }

    /// A periodic line in place of a bar.
    pub(super) fn heartbeat(&mut self, what: &str) {
        if self.plain && self.started.elapsed() > QUIET && self.last_line.elapsed() > HEARTBEAT {
            say(format_args!(
                "{what}, {} elapsed{}",
                seconds(self.started.elapsed()),
                self.left()
            ));
            self.last_line = Instant::now();
        }
    }

    /// ", about 12 s left", once an estimate is possible.
    fn left(&self) -> String {
        let (done, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
        if done == 0 || total <= done {
            return String::new();
        }
        let left = self
            .started
            .elapsed()
            .mul_f64((total - done) as f64 / done as f64);
        format!(", about {} left", seconds(left))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A duration in human-readable form.
pub(super) fn seconds(duration: Duration) -> String {
    let whole = duration.as_secs();
    if whole >= 3600 {
        format!("{} h {:02} min", whole / 3600, whole % 3600 / 60)
    } else if whole >= 60 {
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}

/// Progress of a quantization, in weights: each weight counts once for its layer and once for fine-tuning.
pub(super) struct QuantizeProgress {
    progress: Progress,
    /// weights of each block's linear layers
    blocks: Vec<u64>,
    /// maximum number of fine-tuning epochs
    epochs: usize,
    /// number of weights that the bar has counted for the current block's fine-tuning
    tuned: u64,
}

impl QuantizeProgress {
    pub(super) fn new(arch: &ArchSpec, settings: &QuantizeSettings) -> Self {
        let epochs = settings.finetune.epochs;
        let passes = if epochs > 0 { 2 } else { 1 };
        let blocks: Vec<u64> = arch
            .blocks
            .iter()
            .map(|block| block.parameters() as u64)
            .collect();
        let total = passes * blocks.iter().sum::<u64>();
        Self {
            progress: Progress::new(total),
            blocks,
            epochs,
            tuned: 0,
        }
    }

    pub(super) fn event(&mut self, event: &PipelineEvent<'_>) {
        let blocks = self.blocks.len();
        let passes = if self.epochs > 0 { 2 } else { 1 };
        match event {
            PipelineEvent::BlockResumed(report) => {
                self.progress.advance(self.blocks[report.block] * passes);
                self.progress.line(&format!(
                    "block {}/{blocks}: taken over from the run folder",
                    report.block + 1
                ));
            }
            PipelineEvent::BlockDamaged { block, reason } => {
                self.progress.line(&format!(
                    "block {}/{blocks}: damaged, done again: {reason}",
                    block + 1
                ));
            }
            PipelineEvent::BlockStarted { block } => {
                self.progress
                    .message(format!("block {}/{blocks}: Hessians", block + 1));
            }
            PipelineEvent::Layer { block, layer, event } => {
                let what = match event {
                    LayerEvent::Initialized { loss } => format!("initialised, error {loss:.5}"),
                    LayerEvent::Updated { round, loss } => {
                        format!("round {round}: codebooks, error {loss:.5}")
                    }
                    LayerEvent::Searched { round, loss } => format!("round {round}: codes, error {loss:.5}"),
                };
                self.progress
                    .message(format!("block {}/{blocks} {layer}: {what}", block + 1));
            }
            PipelineEvent::LayerDone(summary) => {
                self.progress.advance(summary.parameters as u64);
                let dead = match summary.report.dead_inputs {
                    0 => String::new(),
                    dead => format!(", {dead} dead inputs handled by damping"),
                };
                let limit = summary.limit_db.map_or_else(String::new, |distance| {
                    format!(" ({distance:.2} dB above the limit)")
                });
                let line = format!(
                    "{}: relative layer error {:.5}{limit} after {} rounds, {:.1} s{dead}{}",
                    summary.name,
                    summary.relative_layer_error,
                    summary.report.trace.len(),
                    summary.seconds,
                    self.progress.left(),
                );
                self.progress.line(&line);
            }
            PipelineEvent::Finetune { block, event } => match event {
                FinetuneEvent::Step {
                    epoch,
                    step,
                    steps,
                    loss,
                } => {
                    // Early stopping may leave some units uncounted; the end of the block adds them.
                    let whole = self.blocks[*block];
                    let steps_done = (epoch - 1) * steps + step;
                    let due = whole * steps_done as u64 / self.epochs.saturating_mul(*steps).max(1) as u64;
                    self.progress.advance(due.saturating_sub(self.tuned));
                    self.tuned = self.tuned.max(due);
                    let what = format!(
                        "block {}/{blocks} fine-tuning: epoch {epoch}, step {step}/{steps}, loss {loss:.3e}",
                        block + 1
                    );
                    self.progress.heartbeat(&what);
                    self.progress.message(what);
                }
                FinetuneEvent::Epoch { .. } => {}
            },
            PipelineEvent::BlockDone(report) => {
                if self.epochs > 0 {
                    self.progress.advance(self.blocks[report.block] - self.tuned);
                    self.tuned = 0;
                }
                let tuned = report.finetune.as_ref().map_or(String::new(), |tuned| {
                    format!(
                        ", fine-tuning took the loss from {:.3e} to {:.3e} (epoch {})",
                        tuned.loss_before, tuned.loss_after, tuned.best_epoch
                    )
                });
                let line = format!(
                    "block {}/{blocks}: relative output error {:.5}{tuned}, {:.1} s{}",
                    report.block + 1,
                    report.relative_output_error,
                    report.seconds,
                    self.progress.left(),
                );
                self.progress.line(&line);
            }
        }
    }
}

/// Progress of a sketch of gradients, in blocks on the way back, which takes far longer than the way forward.
pub(super) struct SketchProgress {
    progress: Progress,
    blocks: usize,
    sequences: usize,
}

impl SketchProgress {
    pub(super) fn new(blocks: usize, sequences: usize) -> Self {
        Self {
            progress: Progress::new(blocks as u64),
            blocks,
            sequences,
        }
    }

    pub(super) fn event(&mut self, event: &SketchEvent<'_>) {
        match event {
            SketchEvent::Planned(plan) => self.progress.line(&format!(
                "gradients of {} sequences, {} draws of labels each: {} in memory beside one block and its {} of \
                 sums, {:.1} x 10^12 multiply-adds, {} on the disk",
                plan.sequences,
                plan.settings.draws,
                bytes(plan.hidden_bytes as u64),
                bytes(plan.sum_bytes as u64),
                plan.operations / 1e12,
                bytes(plan.stored_bytes as u64),
            )),
            SketchEvent::Forward { block } => {
                self.progress
                    .message(format!("gradients: block {}/{} forward", block + 1, self.blocks));
            }
            SketchEvent::Drawn { sequences } => {
                let what = format!("gradients: labels of {sequences} of {} sequences", self.sequences);
                self.progress.heartbeat(&what);
                self.progress.message(what);
            }
            SketchEvent::Stored { block } => {
                self.progress.advance(1);
                let what = format!("gradients: block {}/{} back", block + 1, self.blocks);
                self.progress.heartbeat(&what);
                self.progress.message(what);
            }
        }
    }
}

/// Progress of end-to-end fine-tuning, in tokens.
pub(super) struct TuningProgress {
    progress: Progress,
    epochs: usize,
    /// start of training, and the number of tokens since
    rate: Option<(Instant, u64)>,
}

impl TuningProgress {
    pub(super) fn new(settings: &EndToEndSettings) -> Self {
        let tokens = (settings.sequences - settings.validation) * settings.seqlen;
        let tokens = tokens.saturating_mul(settings.epochs);
        Self {
            progress: Progress::new(tokens as u64),
            epochs: settings.epochs,
            rate: None,
        }
    }

    pub(super) fn event(&mut self, event: &EndToEndEvent) {
        match event {
            EndToEndEvent::Memory(memory) => self.progress.line(memory),
            EndToEndEvent::TeacherStored { done, sequences } => {
                let what = format!("teacher: {done} of {sequences} sequences");
                self.progress.heartbeat(&what);
                self.progress.message(what);
            }
            EndToEndEvent::Resumed { epoch, step } => {
                self.progress
                    .line(&format!("continuing after epoch {epoch} and {step} steps"));
            }
            EndToEndEvent::StateDamaged(reason) => {
                self.progress
                    .line(&format!("damaged, the state before is used: {reason}"));
            }
            EndToEndEvent::Step {
                epoch,
                step,
                steps,
                tokens,
                loss,
                groups_changed,
            } => {
                self.progress.advance(*tokens as u64);
                let (started, done) = self.rate.get_or_insert_with(|| (Instant::now(), 0));
                let elapsed = started.elapsed().as_secs_f64();
                let rate = if *done == 0 {
                    String::new()
                } else {
                    format!(", {:.0} tokens/s", *done as f64 / elapsed)
                };
                *done += *tokens as u64;
                let changed =
                    groups_changed.map_or(String::new(), |changed| format!(", {changed} groups changed"));
                let what = format!(
                    "epoch {epoch}/{}, step {step}/{steps}, loss {loss:.4}{changed}{rate}",
                    self.epochs
                );
                self.progress.heartbeat(&what);
                self.progress.message(what);
            }
            EndToEndEvent::Evaluated {
                step,
                perplexity,
                kl,
                seconds,
            } => {
                // The tokens per second are those of training.
                if let Some((started, _)) = &mut self.rate {
                    *started += Duration::from_secs_f64(*seconds);
                }
                let perplexity = perplexity.map_or("not finite".into(), |value| format!("{value:.4}"));
                let kl = kl.map_or(String::new(), |kl| format!(", divergence {kl:.5}"));
                self.progress
                    .line(&format!("after {step} steps: perplexity {perplexity}{kl}"));
            }
            EndToEndEvent::Judged {
                epoch,
                train_loss,
                loss,
            } => {
                let train = train_loss.map_or(String::new(), |train| format!("training loss {train:.5}, "));
                self.progress.line(&format!(
                    "after epoch {epoch}/{}: {train}validation loss {loss:.5}",
                    self.epochs
                ));
            }
        }
    }
}
