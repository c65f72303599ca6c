//! Files from the Hub, through the `hf-hub` crate.

use std::env::VarError;
use std::net::{TcpStream, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::event::{FetchEvent, report};
use super::place::put_in_place;
use crate::huggingface::index::{self, INDEX, SINGLE};
use crate::model::Model;
use crate::{Error, Result, durable};

/// Maximum time for the Hub to accept a connection, so that a machine without a network fails fast.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Files of a model other than its weights, downloaded if the repository has them.
const BESIDE_WEIGHTS: [&str; 8] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
];

/// Access to the Hub.
#[derive(Debug, Clone, Default)]
pub struct Hub {
    endpoint: Option<String>,
    token: Option<String>,
    offline: bool,
    /// whether a proxy connects on our behalf; a direct connection attempt would then prove nothing
    proxied: bool,
}

impl Hub {
    /// Access as configured by the environment: `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`. An empty
    /// variable counts as unset.
    ///
    /// # Errors
    /// `Argument` for a variable that is not valid text.
    pub fn from_env() -> Result<Self> {
        let set = |name: &str| match std::env::var(name) {
            Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
            Err(VarError::NotPresent) => Ok(None),
            Err(VarError::NotUnicode(value)) => {
                Err(Error::argument(name, "UTF-8 text", value.display().to_string()))
            }
        };
        let proxies = [
            "HTTPS_PROXY",
            "https_proxy",
            "HTTP_PROXY",
            "http_proxy",
            "ALL_PROXY",
            "all_proxy",
        ];
        Ok(Self {
            endpoint: set("HF_ENDPOINT")?.map(|endpoint| endpoint.trim_end_matches('/').into()),
            token: set("HF_TOKEN")?,
            offline: set("HF_HUB_OFFLINE")?.is_some_and(|value| value != "0"),
            proxied: proxies
                .into_iter()
                .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty())),
        })
    }

    /// Access to another server.
    pub fn at(endpoint: impl Into<String>) -> Self {
        Self {
            endpoint: Some(endpoint.into()),
            ..Self::default()
        }
    }

    /// The same server with an access token.
    #[must_use]
    pub fn with_token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// No access: every request fails at once.
    pub fn offline() -> Self {
        Self {
            offline: true,
            ..Self::default()
        }
    }

    fn repository(
        &self,
        kind: RepoType,
        id: &str,
        revision: &str,
        waiting: &Path,
    ) -> std::result::Result<ApiRepo, String> {
        if self.offline {
            return Err("switched off by HF_HUB_OFFLINE".into());
        }
        let waiting = waiting.canonicalize().map_err(|error| error.to_string())?;
        let mut builder = ApiBuilder::from_cache(Cache::new(waiting))
            .with_token(self.token.clone())
            .with_retries(3)
            .with_progress(false);
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        let api: Api = builder.build().map_err(|error| error.to_string())?;
        let repository = api.repo(Repo::with_revision(id.into(), kind, revision.into()));
        if !self.proxied {
            connect(&repository.url("config.json"))?;
        }
        Ok(repository)
    }

    /// Downloads one file of a model or data set to a folder below `waiting` and returns its path.
    ///
    /// # Errors
    /// The reason in words, because another source may have the file.
    pub(super) fn download(
        &self,
        kind: RepoType,
        id: &str,
        revision: &str,
        file: &str,
        waiting: &Path,
        observe: &mut dyn FnMut(FetchEvent<'_>),
    ) -> std::result::Result<PathBuf, String> {
        let repository = self.repository(kind, id, revision, waiting)?;
        download(&repository, file, observe)
    }

    /// Downloads a model's configuration, tokenizer and safetensors files and moves them to `to`, config.json
    /// last.
    pub(super) fn fetch_model(
        &self,
        name: &str,
        to: &Path,
        waiting: &Path,
        observe: &mut dyn FnMut(FetchEvent<'_>),
    ) -> Result<String> {
        let (id, revision) = name.split_once('@').unwrap_or((name, "main"));
        let source = format!("the Hub ({name})");
        observe(FetchEvent::Trying { source: &source });
        match self.download_model(id, revision, waiting, observe) {
            Ok(files) => {
                // opening the folder checks the weights, before config.json makes the model look complete
                assemble(&files, waiting, to)?;
                Ok(source)
            }
            Err(reason) => Err(Error::Fetch {
                name: name.into(),
                tried: vec![report(&source, &reason, observe)],
            }),
        }
    }

    fn download_model(
        &self,
        id: &str,
        revision: &str,
        waiting: &Path,
        observe: &mut dyn FnMut(FetchEvent<'_>),
    ) -> std::result::Result<Vec<(String, PathBuf)>, String> {
        let repository = self.repository(RepoType::Model, id, revision, waiting)?;
        let there = guarded(|| repository.info())?;
        let there: Vec<String> = there.siblings.into_iter().map(|file| file.rfilename).collect();
        let has = |name: &str| there.iter().any(|file| file == name);
        if !has("config.json") {
            return Err("the repository has no config.json".into());
        }
        let mut files = Vec::new();
        let mut get = |name: &str| -> std::result::Result<PathBuf, String> {
            let path = download(&repository, name, observe)?;
            files.push((name.to_owned(), path.clone()));
            Ok(path)
        };
        if has(SINGLE) {
            get(SINGLE)?;
        } else if has(INDEX) {
            let path = get(INDEX)?;
            for shard in shards(&path)? {
                get(&shard)?;
            }
        } else {
            return Err(format!("the repository has neither {SINGLE} nor {INDEX}"));
        }
        for name in BESIDE_WEIGHTS.into_iter().filter(|name| has(name)) {
            get(name)?;
        }
        get("config.json")?;
        Ok(files)
    }
}

/// File names listed in an index, without duplicates.
fn shards(index: &Path) -> std::result::Result<Vec<String>, String> {
    let shards = index::shards(index).map_err(|error| error.to_string())?;
    if shards.is_empty() || !shards.keys().all(|name| name.ends_with(".safetensors")) {
        return Err("the index lists no plain .safetensors files".into());
    }
    Ok(shards.into_keys().collect())
}

/// Moves files to a folder in `waiting`, opens that folder as a model, and only then moves the files to their
/// destination.
fn assemble(files: &[(String, PathBuf)], waiting: &Path, to: &Path) -> Result<()> {
    let model = waiting.join("model");
    std::fs::create_dir_all(&model).map_err(Error::io(&model, "make folder"))?;
    for (name, path) in files {
        put_in_place(path, &model.join(name))?;
    }
    Model::open(&model)?;
    for (name, _) in files {
        put_in_place(&model.join(name), &to.join(name))?;
    }
    Ok(())
}

fn download(
    repository: &ApiRepo,
    file: &str,
    observe: &mut dyn FnMut(FetchEvent<'_>),
) -> std::result::Result<PathBuf, String> {
    let pointer = guarded(|| {
        let meter = Meter {
            file: file.into(),
            done: 0,
            total: 0,
            observe: &mut *observe,
        };
        repository.download_with_progress(file, meter)
    });
    let pointer = pointer.map_err(|reason| format!("{file}: {reason}"))?;
    // hf-hub names contents by their etag, which is their SHA-256 for large files, and links to them
    let path = pointer
        .canonicalize()
        .map_err(|error| format!("{file}: {error}"))?;
    let etag = path.file_name().and_then(|name| name.to_str());
    let is_digest = |etag: &&str| etag.len() == 64 && etag.bytes().all(|byte| byte.is_ascii_hexdigit());
    if let Some(etag) = etag.filter(is_digest) {
        let found = durable::sha256_of_file(&path).map_err(|error| error.to_string())?;
        if found != etag.to_ascii_lowercase() {
            // otherwise the next attempt would take it for a part of the right file
            let _ = std::fs::remove_file(&path);
            return Err(format!("{file}: expected sha256 {etag}, found {found}"));
        }
    }
    Ok(path)
}

/// hf-hub panics on some replies that the Hub never sends, but another server behind `HF_ENDPOINT` might.
fn guarded<T, E: std::fmt::Display>(
    request: impl FnOnce() -> std::result::Result<T, E>,
) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(request)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the server's reply is not one of a Hub".into()),
    }
}

/// Whether an interrupted transfer left a partial file that the next attempt can continue.
pub(super) fn is_resumable(waiting: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(waiting) else {
        return false;
    };
    entries.filter_map(std::result::Result::ok).any(|entry| {
        let path = entry.path();
        let part = path.extension().is_some_and(|ending| ending == "part");
        let filled = || entry.metadata().is_ok_and(|metadata| metadata.len() > 0);
        (path.is_dir() && !path.is_symlink() && is_resumable(&path)) || (part && filled())
    })
}

/// Tries to connect to an address's host.
fn connect(url: &str) -> std::result::Result<(), String> {
    let (scheme, rest) = url.split_once("://").ok_or("HF_ENDPOINT is no address")?;
    let host = rest.find(['/', '?']).map_or(rest, |end| &rest[..end]);
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let with_port = if host
        .rsplit(':')
        .next()
        .is_some_and(|port| port.parse::<u16>().is_ok())
    {
        host.to_owned()
    } else {
        format!("{host}:{}", if scheme == "http" { 80 } else { 443 })
    };
    let unreachable = |error: std::io::Error| format!("cannot reach {host}: {error}");
    let mut last = None;
    for address in with_port.to_socket_addrs().map_err(unreachable)? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(_) => return Ok(()),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| format!("{host} has no address"), unreachable))
}

/// Forwards hf-hub's progress.
struct Meter<'a> {
    file: String,
    done: u64,
    total: u64,
    observe: &'a mut dyn FnMut(FetchEvent<'_>),
}

impl Progress for Meter<'_> {
    fn init(&mut self, size: usize, _: &str) {
        self.total = size as u64;
        self.done = 0;
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        (self.observe)(FetchEvent::Bytes {
            file: &self.file,
            done: self.done,
            total: self.total,
        });
    }

    fn finish(&mut self) {}
}
