use std::path::PathBuf;
use std::time::Instant;

use super::Output;
use crate::report::{Liveness, bytes, page, write_event_file};
use aqlm_engine::report::read_runs;
use aqlm_engine::runs::records::ReportRecord;
use aqlm_formats::{Result, durable};

/// What to make of some runs.
#[derive(Debug)]
pub(crate) struct ReportRequest {
    /// run folders, finished or not, and folders of grids
    pub(crate) runs: Vec<PathBuf>,
    /// file of the page
    pub(crate) out: Option<PathBuf>,
    /// folder for TensorBoard's event files, one subfolder for each run
    pub(crate) tensorboard: Option<PathBuf>,
}

/// Writes the page, the event files, or both.
pub(crate) fn run(request: &ReportRequest, output: Output) -> Result<bool> {
    let started = Instant::now();
    let runs = read_runs(&request.runs)?;
    let mut record = ReportRecord {
        out: None,
        bytes: None,
        tensorboard: None,
        runs: runs.iter().map(|run| run.name.clone()).collect(),
        seconds: 0.0,
    };
    if let Some(out) = &request.out {
        let page = page(&runs, Liveness::File)?;
        durable::write_text(out, &page)?;
        record.out = Some(out.display().to_string());
        record.bytes = Some(page.len() as u64);
    }
    if let Some(folder) = &request.tensorboard {
        for run in &runs {
            write_event_file(folder, run)?;
        }
        record.tensorboard = Some(folder.display().to_string());
    }
    record.seconds = started.elapsed().as_secs_f64();
    output.result(&record, || {
        let count = record.runs.len();
        let mut parts = Vec::new();
        if let (Some(out), Some(size)) = (&record.out, record.bytes) {
            parts.push(format!("{out}: {count} runs, {}", bytes(size)));
        }
        if let Some(folder) = &record.tensorboard {
            parts.push(format!("{folder}: event files of {count} runs"));
        }
        format!("{}; {:.1} s\n", parts.join("; "), record.seconds)
    })?;
    Ok(true)
}
