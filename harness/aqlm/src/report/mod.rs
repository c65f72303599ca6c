//! The page of `aqlm report`: one HTML file that needs no network. `aqlm_engine::report` reads the runs and
//! computes the figures; this module draws (docs/report.md).
//!
//! Charts are SVG by plotters. The style sheet turns their few colours into those of a dark page by their
//! values (`look.css`), so a chart is drawn once.

mod bars;
mod chart;
mod codebooks;
mod colours;
mod configuration;
mod end_to_end;
mod event_file;
mod heat_map;
mod losses;
mod marker;
mod overview;
mod page;
mod phases;
mod quality;
mod samples;
mod table;
mod tasks;
mod words;

pub(crate) use event_file::write_event_file;
pub(crate) use page::{Liveness, page};
pub(crate) use words::bytes;
