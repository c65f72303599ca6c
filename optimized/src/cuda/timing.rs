//! Timing by replays of a CUDA graph.

use std::time::Duration;

use cudarc::driver::{CudaGraph, sys};

use super::error::During;
use super::{CudaError, Device, Result};

/// Order statistics of a repeated measurement, microseconds a call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// median
    pub median: f64,
    /// 10 % quantile
    pub p10: f64,
    /// 90 % quantile
    pub p90: f64,
}

impl Timing {
    /// Quantiles of a list of samples; `None` when it is empty.
    pub fn of(mut samples: Vec<f64>) -> Option<Self> {
        samples.sort_by(f64::total_cmp);
        let last = samples.len().checked_sub(1)?;
        let at = |share: f64| samples[(share * last as f64).round() as usize];
        Some(Self {
            median: at(0.5),
            p10: at(0.1),
            p90: at(0.9),
        })
    }
}

/// Records `calls` calls of `launch` (which receives the call's number) into a graph and times `replays`
/// replays of the graph.
///
/// The graph removes host overhead from the measurement, as in a decoder that captures its token in a graph.
/// Callers rotate over more data than the L2 cache holds.
///
/// # Errors
/// Those of `launch`, and `Driver`.
pub fn time_graph(
    device: &Device,
    calls: usize,
    replays: usize,
    launch: impl FnMut(usize) -> Result<()>,
) -> Result<Timing> {
    time_rested_graph(device, calls, replays, Duration::ZERO, launch)
}

/// [`time_graph`] with a pause before each replay. Long products in a row reach the device's power limit,
/// which lowers the clock below that of a single product.
///
/// # Errors
/// As [`time_graph`].
pub fn time_rested_graph(
    device: &Device,
    calls: usize,
    replays: usize,
    rest: Duration,
    mut launch: impl FnMut(usize) -> Result<()>,
) -> Result<Timing> {
    let graph = capture(device, calls, &mut launch)?;
    let stream = device.stream();
    // Warm-up: uploads the graph and lets the clocks rise.
    for _ in 0..5 {
        graph.launch().during("replaying a graph")?;
    }
    stream.synchronize().during("waiting for the warm-up")?;
    let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    let record = || stream.record_event(flags).during("recording an event");
    let mut events = Vec::with_capacity(replays);
    for _ in 0..replays.max(1) {
        if !rest.is_zero() {
            stream.synchronize().during("waiting for a replay")?;
            std::thread::sleep(rest);
        }
        let before = record()?;
        graph.launch().during("replaying a graph")?;
        events.push((before, record()?));
    }
    stream.synchronize().during("waiting for the replays")?;
    let mut samples = Vec::with_capacity(replays);
    for (before, after) in events {
        let milliseconds = before.elapsed_ms(&after).during("reading an event")?;
        samples.push(f64::from(milliseconds) * 1e3 / calls as f64);
    }
    Timing::of(samples).ok_or_else(|| CudaError::Absent("no replay was timed".into()))
}

/// Records `calls` calls of `launch` into a graph.
///
/// # Errors
/// Those of `launch`, and `Driver`.
pub(super) fn capture(
    device: &Device,
    calls: usize,
    launch: &mut impl FnMut(usize) -> Result<()>,
) -> Result<CudaGraph> {
    let stream = device.stream();
    stream
        .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        .during("starting a graph capture")?;
    let recorded = (0..calls).try_for_each(launch);
    // The capture must be ended even if a launch failed. Otherwise the stream stays unusable.
    let graph = stream
        .end_capture(sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH)
        .during("ending a graph capture");
    recorded?;
    graph?.ok_or_else(|| CudaError::Absent("the capture recorded nothing".into()))
}

#[cfg(test)]
mod tests {
    use super::Timing;

    #[test]
    fn order_statistics() {
        let timing = Timing::of((0..=10).rev().map(f64::from).collect());
        assert_eq!(
            timing,
            Some(Timing {
                median: 5.0,
                p10: 1.0,
                p90: 9.0
            })
        );
        assert_eq!(Timing::of(vec![]), None);
    }
}
