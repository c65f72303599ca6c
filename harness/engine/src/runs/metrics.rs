use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::phases::PhaseSeconds;
use super::records::{BlockReport, LayerSummary};
use super::resident::resident_bytes;
use aqlm_formats::{Error, Result};

/// Name of the file in a run folder.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// What a line of `metrics.jsonl` says (docs/formats.md 3).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum MetricEvent {
    /// `aqlm quantize` starts or continues
    Start {
        /// weights of each block's linear layers
        parameters: Vec<u64>,
        /// whether blocks are fine-tuned
        finetune: bool,
    },
    /// a finished block was taken over from an earlier attempt
    Resumed {
        /// index of the block
        block: usize,
    },
    /// a layer is done
    Layer {
        /// the layer
        summary: LayerSummary,
    },
    /// a block is done
    Block {
        /// the block
        report: BlockReport,
        /// its time by phase; `None` in files of earlier versions
        #[serde(default)]
        phases: Option<PhaseSeconds>,
    },
    /// `aqlm finetune` took a step
    Step {
        /// epoch, from 1
        epoch: usize,
        /// step within the epoch, from 1
        step: usize,
        /// steps in each epoch; `None` in files of earlier versions
        #[serde(default)]
        steps: Option<usize>,
        /// epochs at most; `None` in files of earlier versions
        #[serde(default)]
        epochs: Option<usize>,
        /// mean loss of the step's sequences before it, in nats
        loss: f64,
        /// learning rate
        lr: f64,
        /// groups whose codes changed; `None` for fixed codes
        #[serde(default, skip_serializing_if = "Option::is_none")]
        groups_changed: Option<usize>,
    },
    /// `aqlm finetune --eval-every` measured the model on the evaluation text
    Evaluation {
        /// steps taken; 0 before the first
        step: usize,
        /// perplexity; `None` if not finite
        perplexity: Option<f64>,
        /// mean divergence from the dense model in nats; `None` without one or if not finite
        kl: Option<f64>,
        /// how long measuring took
        seconds: f64,
    },
    /// `aqlm finetune` finished an epoch
    Epoch {
        /// epoch, from 1
        epoch: usize,
        /// mean of the training losses, in nats
        train_loss: f64,
        /// validation loss in nats
        loss: f64,
    },
}

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// what happened
    #[serde(flatten)]
    pub event: MetricEvent,
    /// seconds since 1970; `None` in files of earlier versions
    #[serde(default)]
    pub unix_seconds: Option<f64>,
    /// bytes of main memory that the process occupied
    #[serde(default)]
    pub resident_bytes: Option<u64>,
    /// bytes of main memory that it occupied at most until then
    #[serde(default)]
    pub peak_resident_bytes: Option<u64>,
}

impl Metric {
    /// An event of this moment in this process.
    pub fn now(event: MetricEvent) -> Self {
        let time = SystemTime::now().duration_since(UNIX_EPOCH);
        let memory = resident_bytes();
        Self {
            event,
            unix_seconds: time.ok().map(|time| time.as_secs_f64()),
            resident_bytes: memory.map(|(now, _)| now),
            peak_resident_bytes: memory.map(|(_, most)| most),
        }
    }
}

/// Appends a line to the file of a run folder.
///
/// # Errors
/// `Io`. `Internal` for an event that is no JSON.
pub(crate) fn append(folder: &Path, metric: &Metric) -> Result<()> {
    let path = folder.join(METRICS_FILE);
    let line = serde_json::to_string(metric)
        .map_err(|error| Error::Internal(format!("an event of a run that is no JSON: {error}")))?;
    let write = || -> std::io::Result<()> {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.create(true).append(true).open(&path)?;
        file.write_all(format!("{line}\n").as_bytes())
    };
    write().map_err(Error::io(&path, "write"))
}

/// The events of a run folder, in order; none without a file. A last line without a newline is being written
/// and left out, and so are events that this version does not know.
///
/// # Errors
/// `Io`. `Json` for a whole line that is no JSON.
pub fn read_metrics(folder: &Path) -> Result<Vec<Metric>> {
    let path = folder.join(METRICS_FILE);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(&path, "read")(error)),
    };
    parse_metrics(&path, &bytes)
}

/// [`read_metrics`] from the bytes of a file; `name` is what errors call it.
///
/// # Errors
/// `Json` for a whole line that is no JSON.
pub fn parse_metrics(name: &Path, bytes: &[u8]) -> Result<Vec<Metric>> {
    let mut metrics = Vec::new();
    for (number, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let Some(line) = line.strip_suffix(b"\n") else {
            break;
        };
        let value: serde_json::Value = serde_json::from_slice(line).map_err(Error::json(name, number + 1))?;
        if let Ok(metric) = serde_json::from_value(value) {
            metrics.push(metric);
        }
    }
    Ok(metrics)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_appended_comes_back_with_time_and_memory() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read_metrics(folder.path()).unwrap().is_empty());
        let events = [
            MetricEvent::Start {
                parameters: vec![10, 20],
                finetune: true,
            },
            MetricEvent::Epoch {
                epoch: 1,
                train_loss: 0.5,
                loss: 0.25,
            },
        ];
        for event in &events {
            append(folder.path(), &Metric::now(event.clone())).unwrap();
        }
        let read = read_metrics(folder.path()).unwrap();
        assert!(read.iter().map(|metric| &metric.event).eq(&events));
        assert!(read.iter().all(|metric| metric.unix_seconds.unwrap() > 1.7e9));
        assert_eq!(
            read[0].resident_bytes.is_some(),
            cfg!(target_os = "linux"),
            "{read:?}"
        );
    }

    #[test]
    fn an_incomplete_last_line_and_unknown_events_are_left_out_and_damage_is_not() {
        let parse = |text: &str| parse_metrics("m.jsonl".as_ref(), text.as_bytes());
        let step = "{\"event\":\"step\",\"epoch\":1,\"step\":2,\"loss\":0.5,\"lr\":0.1}\n";
        let text = format!("{step}{{\"event\":\"later\"}}\n{step}{{\"event\":\"st");
        let read = parse(&text).unwrap();
        assert_eq!(read.len(), 2);
        assert!(matches!(
            read[1].event,
            MetricEvent::Step {
                step: 2,
                steps: None,
                ..
            }
        ));
        let error = parse(&format!("{step}{{\n{step}")).unwrap_err().to_string();
        assert!(error.contains("m.jsonl, line 2"), "{error}");
    }
}
