//! A small local server that answers like a Hub with one repository.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use crate::durable;

/// The server's answers.
#[derive(Clone, Default)]
pub(in super::super) struct Site {
    pub(in super::super) files: BTreeMap<String, Vec<u8>>,
    /// files whose etag is the digest of other contents
    pub(in super::super) mislabelled: Vec<String>,
    /// a file, and the number of bytes after which its first transfer stops
    pub(in super::super) cut: Option<(String, usize)>,
}

/// Starts a Hub with one repository, `someone/tiny`, a model and a data set; returns its address and a log of
/// its requests.
pub(in super::super) fn serve(site: Site) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (site, log) = (Arc::new(Mutex::new(site)), seen.clone());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (site, log) = (site.clone(), log.clone());
            std::thread::spawn(move || {
                // a client that hangs up is not an error of the server
                _ = answer(stream, &site, &log);
            });
        }
    });
    (address, seen)
}

fn answer(mut stream: TcpStream, site: &Mutex<Site>, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let Some(path) = request.split(' ').nth(1).map(str::to_owned) else {
        // a client that only checked whether something listens
        return Ok(());
    };
    let mut range = None;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        let line = line.to_ascii_lowercase();
        if let Some(value) = line.trim().strip_prefix("range: bytes=") {
            let (from, to) = value.split_once('-').unwrap_or((value, ""));
            range = Some((from.parse::<usize>().unwrap(), to.parse::<usize>().ok()));
        }
        if line.starts_with("authorization:") {
            log.lock().unwrap().push(line.trim().into());
        }
    }
    log.lock().unwrap().push(path.clone());
    let mut site = site.lock().unwrap();
    let missing = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    if path.starts_with("/api/models/someone/tiny/revision/") {
        let siblings: Vec<_> = site
            .files
            .keys()
            .map(|name| serde_json::json!({"rfilename": name}))
            .collect();
        let body = serde_json::json!({"siblings": siblings, "sha": "0123abcd"}).to_string();
        return write!(
            stream,
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
    }
    let name = path
        .strip_prefix("/datasets")
        .unwrap_or(&path)
        .strip_prefix("/someone/tiny/resolve/")
        .and_then(|rest| rest.split_once('/'));
    let Some(contents) = name.and_then(|(_, name)| site.files.get(name)).cloned() else {
        return stream.write_all(missing.as_bytes());
    };
    let (_, name) = name.unwrap();
    let name = name.to_owned();
    let labelled: &[u8] = if site.mislabelled.contains(&name) {
        b"something else"
    } else {
        &contents
    };
    let etag = durable::sha256(labelled);
    let (from, to) = range.map_or((0, contents.len()), |(from, to)| {
        (from, to.map_or(contents.len(), |to| to + 1).min(contents.len()))
    });
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\netag: \"{etag}\"\r\nx-repo-commit: 0123abcd\r\ncontent-length: {}\r\n\
         content-range: bytes {from}-{}/{}\r\nconnection: close\r\n\r\n",
        to - from,
        to.saturating_sub(1),
        contents.len()
    )?;
    match site.cut.take() {
        Some((cut, length)) if cut == name && to - from > length => {
            stream.write_all(&contents[from..from + length])
        }
        other => {
            site.cut = other;
            stream.write_all(&contents[from..to])
        }
    }
}
