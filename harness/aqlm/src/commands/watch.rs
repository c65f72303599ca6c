use std::collections::hash_map::DefaultHasher;
use std::fs::Metadata;
use std::hash::{Hash, Hasher};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tiny_http::{Header, Request, Response, Server};

use super::{print, say};
use crate::report::{Liveness, page};
use aqlm_engine::report::{RunState, read_runs};
use aqlm_formats::{Error, Result};

/// Unfinished runs are drawn again after this time even without an event, so that the page's ages are right.
const STALE: Duration = Duration::from_secs(10);

/// The page as last drawn, and the state of the folders that it shows.
struct Shown {
    state: String,
    page: String,
    unfinished: bool,
}

/// Serves the page of some runs on this machine alone until the process ends; port 0 takes a free one.
///
/// # Errors
/// Those of reading the runs, at the start. `Io` when the port cannot be had.
pub(crate) fn run(runs: &[PathBuf], port: u16) -> Result<bool> {
    let mut shown = draw(runs)?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let server = Server::http(address).map_err(|error| {
        let source = std::io::Error::other(error.to_string());
        Error::io(Path::new(&address.to_string()), "serve on")(source)
    })?;
    let port = server
        .server_addr()
        .to_ip()
        .map_or(port, |address| address.port());
    if !print(&format!("http://127.0.0.1:{port}/\n"))? {
        return Ok(true);
    }
    for request in server.incoming_requests() {
        // A reader that went away is no reason to stop.
        let _ = answer(request, runs, port, &mut shown);
    }
    Ok(true)
}

fn answer(request: Request, runs: &[PathBuf], port: u16, shown: &mut Shown) -> std::io::Result<()> {
    if !is_for_us(&request, port) {
        return request.respond(Response::from_string("another host's name").with_status_code(403));
    }
    let path = request.url().split('?').next().unwrap_or_default().to_owned();
    match path.as_str() {
        "/state" => {
            let state = state(runs, shown.unfinished);
            request.respond(Response::from_string(state))
        }
        "/" => {
            if shown.state != state(runs, shown.unfinished) {
                match draw(runs) {
                    Ok(drawn) => *shown = drawn,
                    Err(error) => {
                        say(format_args!("the page cannot be drawn again: {error}"));
                        let text = format!("The runs cannot be read at this moment: {error}");
                        return request.respond(Response::from_string(text).with_status_code(500));
                    }
                }
            }
            let kind = Header::from_bytes("Content-Type", "text/html; charset=utf-8");
            let mut response = Response::from_string(&*shown.page);
            if let Ok(kind) = kind {
                response.add_header(kind);
            }
            request.respond(response)
        }
        _ => request.respond(Response::from_string("not here").with_status_code(404)),
    }
}

/// Whether the request names this machine. A page of another site whose name leads to 127.0.0.1 must not read
/// the runs.
fn is_for_us(request: &Request, port: u16) -> bool {
    let host = request.headers().iter().find(|header| header.field.equiv("Host"));
    host.is_some_and(|host| {
        let names = ["127.0.0.1", "localhost"];
        names
            .iter()
            .any(|name| host.value.as_str() == format!("{name}:{port}"))
    })
}

fn draw(runs: &[PathBuf]) -> Result<Shown> {
    // Read before the runs: what changes in between is drawn again.
    let before = [true, false].map(|unfinished| state(runs, unfinished));
    let found = read_runs(runs)?;
    let unfinished = found.iter().any(|run| run.state == RunState::Unfinished);
    let [moving, still] = before;
    Ok(Shown {
        page: page(&found, Liveness::Served(unix_seconds()))?,
        state: if unfinished { moving } else { still },
        unfinished,
    })
}

/// A word that changes with the files of the runs, and with time while a run is unfinished.
fn state(runs: &[PathBuf], unfinished: bool) -> String {
    let mut hasher = DefaultHasher::new();
    for run in runs {
        for folder in [run.clone(), run.join("end-to-end")] {
            let Ok(entries) = std::fs::read_dir(folder) else {
                continue;
            };
            let mut files: Vec<(PathBuf, u64, Option<SystemTime>)> = entries
                .flatten()
                .filter_map(|entry| {
                    let metadata: Metadata = entry.metadata().ok()?;
                    Some((entry.path(), metadata.len(), metadata.modified().ok()))
                })
                .collect();
            files.sort();
            files.hash(&mut hasher);
        }
    }
    if unfinished {
        (unix_seconds() / STALE.as_secs()).hash(&mut hasher);
    }
    format!("{:016x}", hasher.finish())
}

fn unix_seconds() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}
