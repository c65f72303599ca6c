use std::io::Write;
use std::path::{Path, PathBuf};

use prost::Message;

use aqlm_engine::report::ReportedRun;
use aqlm_engine::runs::{Metric, MetricEvent};
use aqlm_formats::{Error, Result, durable};

/// The first event of a file says how to read the others.
const VERSION: &str = "brain.Event:2";

/// TensorBoard's message of an event, as far as scalars need it.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// Writes a run's events as `DIR/NAME/events.out.tfevents.SECONDS.aqlm`, where SECONDS is the time of the
/// first event. The same run replaces its file.
///
/// # Errors
/// `Io`.
pub(crate) fn write_event_file(folder: &Path, run: &ReportedRun) -> Result<PathBuf> {
    let folder = folder.join(&run.name);
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder, "make"))?;
    let first = run.metrics.iter().find_map(|metric| metric.unix_seconds);
    let path = folder.join(format!(
        "events.out.tfevents.{:010}.aqlm",
        first.unwrap_or(0.0) as u64
    ));
    let bytes = event_file(&run.metrics);
    durable::write_file(&path, |file| file.write_all(&bytes))?;
    Ok(path)
}

/// The bytes of an event file.
fn event_file(metrics: &[Metric]) -> Vec<u8> {
    let first = metrics
        .iter()
        .find_map(|metric| metric.unix_seconds)
        .unwrap_or(0.0);
    let mut file = Vec::new();
    let mut add = |event: &Event| record(&event.encode_to_vec(), &mut file);
    add(&Event {
        wall_time: first,
        step: 0,
        file_version: Some(VERSION.into()),
        summary: None,
    });
    let (mut layers, mut steps) = (0, 0);
    for metric in metrics {
        let (step, mut scalars) = scalars(&metric.event, &mut layers, &mut steps);
        if scalars.is_empty() {
            continue;
        }
        if let Some(memory) = metric.resident_bytes {
            scalars.push(("memory/resident_bytes", memory as f64));
        }
        let value = scalars.into_iter().map(|(tag, value)| Scalar {
            tag: tag.into(),
            simple_value: Some(value as f32),
        });
        add(&Event {
            wall_time: metric.unix_seconds.unwrap_or(first),
            step,
            file_version: None,
            summary: Some(Summary {
                value: value.collect(),
            }),
        });
    }
    file
}

/// The scalars of an event and their step: layers and steps of training are counted, blocks and epochs have
/// numbers.
fn scalars(event: &MetricEvent, layers: &mut i64, steps: &mut i64) -> (i64, Vec<(&'static str, f64)>) {
    match event {
        MetricEvent::Start { .. } | MetricEvent::Resumed { .. } => (0, Vec::new()),
        MetricEvent::Layer { summary } => {
            *layers += 1;
            let mut scalars = vec![
                ("layer/relative_error", summary.relative_layer_error),
                ("layer/seconds", summary.seconds),
            ];
            scalars.extend(summary.limit_db.map(|limit| ("layer/limit_db", limit)));
            (*layers - 1, scalars)
        }
        MetricEvent::Block { report, .. } => {
            let mut scalars = vec![
                ("block/relative_output_error", report.relative_output_error),
                ("block/seconds", report.seconds),
            ];
            if let Some(tuning) = &report.finetune {
                scalars.push(("block/loss_before", tuning.loss_before));
                scalars.push(("block/loss_after", tuning.loss_after));
            }
            (report.block as i64, scalars)
        }
        MetricEvent::Step {
            loss,
            lr,
            groups_changed,
            ..
        } => {
            *steps += 1;
            let mut scalars = vec![("end_to_end/loss", *loss), ("end_to_end/lr", *lr)];
            scalars.extend(groups_changed.map(|changed| ("end_to_end/groups_changed", changed as f64)));
            (*steps - 1, scalars)
        }
        MetricEvent::Evaluation {
            step, perplexity, kl, ..
        } => {
            let named = [
                ("end_to_end/perplexity", *perplexity),
                ("end_to_end/divergence", *kl),
            ];
            let known = named.into_iter().filter_map(|(name, value)| Some((name, value?)));
            (*step as i64, known.collect())
        }
        MetricEvent::Epoch {
            epoch,
            train_loss,
            loss,
        } => {
            let scalars = vec![
                ("end_to_end/train_loss", *train_loss),
                ("end_to_end/validation_loss", *loss),
            ];
            (*epoch as i64, scalars)
        }
    }
}

/// Appends a TFRecord: length, checksum of the length, data, checksum of the data.
fn record(data: &[u8], file: &mut Vec<u8>) {
    let length = (data.len() as u64).to_le_bytes();
    file.extend(length);
    file.extend(masked(&length).to_le_bytes());
    file.extend(data);
    file.extend(masked(data).to_le_bytes());
}

/// CRC-32C, rotated and shifted as the format asks, since checksums of checksums are weak.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a file back; every checksum must be right.
    fn read(mut bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        while !bytes.is_empty() {
            let (head, rest) = bytes.split_at(12);
            let length = u64::from_le_bytes(head[..8].try_into().unwrap()) as usize;
            assert_eq!(masked(&head[..8]).to_le_bytes(), head[8..]);
            let (data, rest) = rest.split_at(length);
            let (sum, rest) = rest.split_at(4);
            assert_eq!(masked(data).to_le_bytes(), sum);
            events.push(Event::decode(data).unwrap());
            bytes = rest;
        }
        events
    }

    #[test]
    fn events_come_back_with_their_times_steps_and_scalars() {
        let step = |loss| Metric {
            event: MetricEvent::Step {
                epoch: 1,
                step: 1,
                steps: None,
                epochs: None,
                loss,
                lr: 0.5,
                groups_changed: None,
            },
            unix_seconds: Some(1e9 + loss),
            resident_bytes: Some(1 << 20),
            peak_resident_bytes: None,
        };
        let events = read(&event_file(&[step(3.0), step(2.0)]));
        assert_eq!(events[0].file_version.as_deref(), Some(VERSION));
        assert_eq!(events.len(), 3);
        let second = &events[2];
        assert_eq!((second.step, second.wall_time), (1, 1e9 + 2.0));
        let scalars: Vec<(&str, Option<f32>)> = second
            .summary
            .as_ref()
            .unwrap()
            .value
            .iter()
            .map(|scalar| (scalar.tag.as_str(), scalar.simple_value))
            .collect();
        let expected = [
            ("end_to_end/loss", Some(2.0)),
            ("end_to_end/lr", Some(0.5)),
            ("memory/resident_bytes", Some(1_048_576.0)),
        ];
        assert_eq!(scalars, expected);
    }

    #[test]
    fn the_checksum_is_that_of_the_format() {
        // CRC-32C of 32 zeros is 0x8a9136aa (RFC 3720, B.4), masked by hand.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(
            masked(&[0; 32]),
            0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8)
        );
    }
}
