use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::connections::{Connections, Lost};
use super::frame::{self, Kind};
use super::place::{BEHIND_TORCHRUN, Launch, Place};
use aqlm_formats::{Error, Result};

/// First bytes of a connection between ranks, in both directions.
const MAGIC: &[u8; 8] = b"aqlm-1\r\n";

/// Ports that rank 0 tries, from the launcher's on.
const PORTS: u16 = 16;

/// Longest wait for the other ranks.
const PATIENCE: Duration = Duration::from_mins(5);

/// Wait after which the user is told who is missing.
const QUIET: Duration = Duration::from_secs(5);

/// Longest wait for a greeting's answer, and for a connection.
const ANSWER: Duration = Duration::from_secs(5);

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// Longest greeting in bytes.
const LONGEST: u64 = 1 << 20;

/// Why a rank of another run is refused; it goes on looking for its own.
const ANOTHER: &str = "another run";

/// How a rank introduces itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Greeting {
    job: String,
    rank: usize,
    size: usize,
    /// version of the program
    version: String,
    /// what the program was asked to do
    request: Vec<String>,
    /// host and process
    at: String,
}

/// Rank 0's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Answer {
    /// rank 0: host and process
    at: String,
    /// why the rank may not take part; `None` if it may
    refused: Option<String>,
}

/// What is needed to meet the other ranks.
pub struct Meeting<'a> {
    /// which rank this is
    pub place: &'a Place,
    /// what the program was asked to do, which must be the same for every rank
    pub request: Vec<String>,
    /// fails when waiting is in vain
    pub alive: &'a mut dyn FnMut() -> Result<()>,
    /// called once, after some seconds, with the ranks that are missing, in words
    pub waiting: &'a mut dyn FnMut(&str),
    /// what happens when a rank cannot go on
    pub lost: Box<Lost>,
}

/// A listener on this host alone, for ranks that this process starts, and the port that their launcher's
/// variable has to name.
///
/// # Errors
/// `Io`.
pub fn listen_here() -> Result<(TcpListener, u16)> {
    let listen = || -> io::Result<(TcpListener, u16)> {
        loop {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            // Ranks look for rank 0 behind the port of a launcher such as torchrun, which listens there.
            if let Some(port @ 1..) = listener.local_addr()?.port().checked_sub(BEHIND_TORCHRUN) {
                return Ok((listener, port));
            }
        }
    };
    listen().map_err(Error::io("a port of this host", "listen at"))
}

/// "host, process 7".
fn here() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let host = host.ok().map(|host| host.trim().to_owned());
    format!(
        "{}, process {}",
        host.filter(|host| !host.is_empty())
            .unwrap_or_else(|| "a host".into()),
        std::process::id()
    )
}

fn name(rank: usize, size: usize, at: &str) -> String {
    format!("rank {rank} of {size} ({at})")
}

impl Meeting<'_> {
    /// Meets the other ranks; `listener` is where rank 0 listens, if it listens already.
    ///
    /// # Errors
    /// `Rank` naming a rank that was started otherwise, or ranks that do not come; `Argument` when rank 0 has
    /// no port or the others no address; those of `alive`.
    pub fn meet(self, listener: Option<TcpListener>) -> Result<Connections> {
        let Place { rank, size, .. } = *self.place;
        let at = here();
        let own = name(rank, size, &at);
        let job = match &self.place.launch {
            Launch::Launcher { job, .. } => job.clone(),
            Launch::Alone | Launch::Here => String::new(),
        };
        let greeting = Greeting {
            job,
            rank,
            size,
            version: env!("CARGO_PKG_VERSION").into(),
            request: self.request,
            at,
        };
        let streams = if rank > 0 {
            vec![join(self.place, &greeting, self.alive, self.waiting)?]
        } else {
            let listener = match listener {
                Some(listener) => listener,
                None => listen(self.place)?,
            };
            gather(&listener, &greeting, self.alive, self.waiting)?
        };
        Connections::new(self.place.clone(), own, streams, self.lost)
    }
}

/// Rank 0's listener at the launcher's port, or one of those after it if that is taken.
fn listen(place: &Place) -> Result<TcpListener> {
    let Launch::Launcher { address, port, .. } = &place.launch else {
        return Err(Error::Internal("ranks without an address".into()));
    };
    let last = port.saturating_add(PORTS - 1);
    for port in *port..=last {
        let meant = (address.as_str(), port).to_socket_addrs();
        let any: SocketAddr = match meant.ok().and_then(|mut addresses| addresses.next()) {
            Some(here) if here.ip().is_loopback() => here,
            Some(SocketAddr::V6(_)) => (Ipv6Addr::UNSPECIFIED, port).into(),
            _ => (Ipv4Addr::UNSPECIFIED, port).into(),
        };
        match TcpListener::bind(any) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound.map_err(Error::io(any.to_string(), "listen at")),
        }
    }
    let expected = format!("a free port from {port} to {last}");
    Err(Error::argument("MASTER_PORT", &expected, "none"))
}

/// Accepts every other rank.
fn gather(
    listener: &TcpListener,
    own: &Greeting,
    alive: &mut dyn FnMut() -> Result<()>,
    waiting: &mut dyn FnMut(&str),
) -> Result<Vec<(usize, String, TcpStream)>> {
    let accept = || Error::io("ranks", "accept");
    listener.set_nonblocking(true).map_err(accept())?;
    let mut streams: Vec<(usize, String, TcpStream)> = Vec::new();
    let started = Instant::now();
    let mut told = false;
    while streams.len() + 1 < own.size {
        alive()?;
        let missing = || (1..own.size).filter(|rank| !streams.iter().any(|(there, ..)| there == rank));
        let names = || {
            let missing: Vec<String> = missing().map(|rank| rank.to_string()).collect();
            format!("rank {} of {}", missing.join(", "), own.size)
        };
        if started.elapsed() > QUIET && !told {
            waiting(&format!("waiting up to {} s for {}", PATIENCE.as_secs(), names()));
            told = true;
        }
        if started.elapsed() > PATIENCE {
            return Err(Error::Rank {
                name: names(),
                reason: format!("did not come within {} s", PATIENCE.as_secs()),
            });
        }
        let mut stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(PAUSE);
                continue;
            }
            Err(error) => return Err(accept()(error)),
        };
        // Whoever does not greet as a rank, or belongs to another run, is not meant.
        let Ok(theirs) = greeted(&mut stream) else {
            continue;
        };
        let refused = refusal(own, &theirs).or_else(|| {
            let twice = !missing().any(|rank| rank == theirs.rank);
            twice.then(|| "another process is this rank already".to_owned())
        });
        let answer = Answer {
            at: own.at.clone(),
            refused: refused.clone(),
        };
        let sent = send(&mut stream, &answer);
        let name = name(theirs.rank, own.size, &theirs.at);
        match refused {
            _ if theirs.job != own.job => {}
            Some(reason) => return Err(Error::Rank { name, reason }),
            None if sent.is_ok() => streams.push((theirs.rank, name, stream)),
            None => {}
        }
    }
    streams.sort_by_key(|(rank, ..)| *rank);
    Ok(streams)
}

fn greeted(stream: &mut TcpStream) -> io::Result<Greeting> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(ANSWER))?;
    receive(stream)
}

/// Why a rank may not take part.
fn refusal(own: &Greeting, theirs: &Greeting) -> Option<String> {
    let differs = |what: &str, own: &str, theirs: &str| {
        (own != theirs).then(|| format!("{what}: expected {own} as on rank 0, found {theirs}"))
    };
    // The job may be a secret of this run.
    (own.job != theirs.job)
        .then(|| ANOTHER.to_owned())
        .or_else(|| differs("version", &own.version, &theirs.version))
        .or_else(|| differs("number of ranks", &own.size.to_string(), &theirs.size.to_string()))
        .or_else(|| differs("arguments", &own.request.join(" "), &theirs.request.join(" ")))
}

/// Connects to rank 0, at whichever of its ports it listens.
fn join(
    place: &Place,
    own: &Greeting,
    alive: &mut dyn FnMut() -> Result<()>,
    waiting: &mut dyn FnMut(&str),
) -> Result<(usize, String, TcpStream)> {
    let Launch::Launcher { address, port, .. } = &place.launch else {
        return Err(Error::Internal("ranks without an address".into()));
    };
    let last = port.saturating_add(PORTS - 1);
    let started = Instant::now();
    let mut reason = "no answer".to_owned();
    let mut told = false;
    while started.elapsed() < PATIENCE {
        if started.elapsed() > QUIET && !told {
            waiting(&format!(
                "rank {} of {} is waiting up to {} s for rank 0 at {address}, ports {port} to {last}: {reason}",
                own.rank,
                own.size,
                PATIENCE.as_secs()
            ));
            told = true;
        }
        for port in *port..=last {
            alive()?;
            let found = match (address.as_str(), port).to_socket_addrs() {
                Ok(addresses) => addresses,
                Err(error) => {
                    reason = error.to_string();
                    continue;
                }
            };
            for at in found {
                match greet(at, own) {
                    Ok((
                        _,
                        Answer {
                            refused: Some(reason),
                            ..
                        },
                    )) if reason == ANOTHER => {}
                    Ok((
                        _,
                        Answer {
                            refused: Some(reason),
                            ..
                        },
                    )) => {
                        let name = name(own.rank, own.size, &own.at);
                        return Err(Error::Rank { name, reason });
                    }
                    Ok((stream, answer)) => return Ok((0, name(0, own.size, &answer.at), stream)),
                    Err(error) => reason = error.to_string(),
                }
            }
        }
        std::thread::sleep(PAUSE);
    }
    Err(Error::Rank {
        name: format!("rank 0 of {}", own.size),
        reason: format!(
            "was not found within {} s at {address}, ports {port} to {last}: {reason}",
            PATIENCE.as_secs()
        ),
    })
}

fn greet(at: SocketAddr, own: &Greeting) -> io::Result<(TcpStream, Answer)> {
    let mut stream = TcpStream::connect_timeout(&at, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    send(&mut stream, own)?;
    let answer = receive(&mut stream)?;
    Ok((stream, answer))
}

fn send(stream: &mut TcpStream, what: &impl Serialize) -> io::Result<()> {
    stream.write_all(MAGIC)?;
    frame::write(stream, Kind::Message, &serde_json::to_vec(what)?)
}

fn receive<T: for<'a> Deserialize<'a>>(stream: &mut TcpStream) -> io::Result<T> {
    let mut magic = [0; MAGIC.len()];
    stream.read_exact(&mut magic)?;
    let (kind, bytes) = frame::read(stream, Some(LONGEST))?;
    if magic != *MAGIC || kind != Kind::Message {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(serde_json::from_slice(&bytes)?)
}
