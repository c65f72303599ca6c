use std::io;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Ranks;
use super::frame::{self, Kind};
use super::place::Place;
use aqlm_formats::{Error, Result};

/// Time between two signs of life.
const BEAT: Duration = Duration::from_secs(2);

/// A rank that sends nothing for this long is lost.
const SILENCE: Duration = Duration::from_secs(30);

/// Between the news of a failure and what `lost` does: time for the policy to end by itself, with an error of
/// its own that says more.
const GRACE: Duration = Duration::from_secs(1);

/// Maximum wait for another thread's message to be written before news of a failure.
const URGENT: Duration = Duration::from_secs(1);

/// Called once, from another thread, when a rank cannot go on, with whether another rank has told so. Rank 0
/// tells all; what it has told, it also prints.
pub(super) type Lost = dyn Fn(&Error, bool) + Send + Sync;

/// Why a run failed, as ranks tell each other.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Reason {
    name: String,
    reason: String,
}

/// TCP connections of host memory between rank 0 and each other rank. They need no library, and are not
/// encrypted.
///
/// A thread for each connection reads messages as they come, so that nobody waits for this rank to compute.
/// When a connection ends without notice, or a rank reports an error, every rank learns of it within seconds.
pub struct Connections {
    place: Place,
    /// by rank; rank 0 has all but itself, every other rank only rank 0
    peers: Vec<Option<Peer>>,
    news: Arc<News>,
}

struct Peer {
    writer: Writer,
    inbox: Receiver<Vec<u8>>,
    /// set after its last message
    done: Arc<AtomicBool>,
}

type Writer = Arc<Mutex<TcpStream>>;

/// What is shared with the threads of the connections.
struct News {
    /// this rank in words
    name: String,
    failure: Mutex<Option<Reason>>,
    /// whether another rank has told of the failure
    told: AtomicBool,
    /// whether this rank has finished or failed, so that connections may end
    leaving: AtomicBool,
    writers: Vec<Writer>,
    lost: Box<Lost>,
}

/// A poisoned lock of a socket or a reason holds nothing that could be half-done for long.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl News {
    /// Keeps the first failure; whether this is it.
    fn keep(&self, reason: Reason) -> bool {
        let mut failure = locked(&self.failure);
        if failure.is_some() || self.leaving.load(Ordering::SeqCst) {
            return false;
        }
        *failure = Some(reason);
        true
    }

    fn error(&self) -> Option<Error> {
        let failure = locked(&self.failure).clone();
        failure.map(|Reason { name, reason }| Error::Rank { name, reason })
    }

    /// Tells the others, as far as they can be told.
    fn tell(&self, reason: &Reason) {
        let Ok(bytes) = serde_json::to_vec(reason) else {
            return;
        };
        let until = Instant::now() + URGENT;
        for writer in &self.writers {
            loop {
                if let Ok(mut stream) = writer.try_lock() {
                    // who cannot be told has ended, or will notice that this rank ends
                    let _ = frame::write(&mut *stream, Kind::Failed, &bytes);
                    break;
                }
                if Instant::now() > until {
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// Reacts to a failure of another rank.
    fn failed(&self, reason: &Reason) {
        if !self.keep(reason.clone()) {
            return;
        }
        self.tell(reason);
        std::thread::sleep(GRACE);
        if let Some(error) = self.error()
            && !self.leaving.load(Ordering::SeqCst)
        {
            (self.lost)(&error, self.told.load(Ordering::SeqCst));
        }
    }
}

impl Connections {
    /// Over open connections to (rank, its name, stream). `name` is this rank in words.
    ///
    /// # Errors
    /// `Io` when a connection or a thread cannot be set up.
    pub(super) fn new(
        place: Place,
        name: String,
        streams: Vec<(usize, String, TcpStream)>,
        lost: Box<Lost>,
    ) -> Result<Self> {
        let set_up = || Error::io("connections between ranks", "set up");
        let writer = |(_, _, stream): &(usize, String, TcpStream)| -> io::Result<Writer> {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(SILENCE))?;
            Ok(Arc::new(Mutex::new(stream.try_clone()?)))
        };
        let writers: io::Result<Vec<Writer>> = streams.iter().map(writer).collect();
        let news = Arc::new(News {
            name,
            failure: Mutex::new(None),
            told: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            writers: writers.map_err(set_up())?,
            lost,
        });
        let mut peers: Vec<Option<Peer>> = (0..place.size).map(|_| None).collect();
        for ((rank, name, stream), writer) in streams.into_iter().zip(&news.writers) {
            let (sender, inbox) = channel();
            let done = Arc::new(AtomicBool::new(false));
            let (its_news, its_done) = (Arc::clone(&news), Arc::clone(&done));
            std::thread::Builder::new()
                .name(format!("from rank {rank}"))
                .spawn(move || listen(stream, name, sender, &its_done, &its_news))
                .map_err(set_up())?;
            peers[rank] = Some(Peer {
                writer: Arc::clone(writer),
                inbox,
                done,
            });
        }
        let beating = Arc::clone(&news);
        std::thread::Builder::new()
            .name("signs of life".into())
            .spawn(move || beat(&beating))
            .map_err(set_up())?;
        Ok(Self { place, peers, news })
    }

    fn peer(&self, rank: usize) -> Result<&Peer> {
        let peer = self.peers.get(rank).and_then(Option::as_ref);
        peer.ok_or_else(|| Error::Internal(format!("rank {} has no way to rank {rank}", self.place.rank)))
    }

    /// The failure that ended a connection; waits a moment for the thread that finds out.
    fn failure(&self) -> Error {
        for _ in 0..200 {
            if let Some(error) = self.news.error() {
                return error;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Error::Rank {
            name: self.news.name.clone(),
            reason: "lost its connection".into(),
        }
    }

    /// Ends the run well: rank 0 waits until every other rank has come to its end.
    ///
    /// # Errors
    /// `Rank` when one does not.
    pub fn finish(&self) -> Result<()> {
        if self.place.rank > 0 {
            self.news.leaving.store(true, Ordering::SeqCst);
            let peer = self.peer(0)?;
            let written = frame::write(&mut *locked(&peer.writer), Kind::Done, &[]);
            return written.map_err(|_| self.failure());
        }
        for peer in self.peers.iter().flatten() {
            // The channel closes after the last message, for whatever reason.
            while peer.inbox.recv().is_ok() {}
            if !peer.done.load(Ordering::SeqCst) {
                return Err(self.failure());
            }
        }
        self.news.leaving.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Ends the run because of an error of this rank, or one that it was told of, and tells the others.
    pub fn fail(&self, error: &Error) {
        let reason = match error {
            Error::Rank { name, reason } => Reason {
                name: name.clone(),
                reason: reason.clone(),
            },
            error => Reason {
                name: self.news.name.clone(),
                reason: format!("failed: {error}"),
            },
        };
        let first = self.news.keep(reason.clone());
        self.news.leaving.store(true, Ordering::SeqCst);
        if first {
            self.news.tell(&reason);
        }
    }

    /// Whether another rank has told of the failure that ended the run.
    pub fn was_told(&self) -> bool {
        self.news.told.load(Ordering::SeqCst)
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        // A policy that ends without finishing has failed.
        if !self.news.leaving.load(Ordering::SeqCst) {
            self.fail(&Error::Rank {
                name: self.news.name.clone(),
                reason: "ended early".into(),
            });
        }
        for writer in &self.news.writers {
            // Only the direction of this rank: the other end reads what was sent before.
            let _ = locked(writer).shutdown(std::net::Shutdown::Write);
        }
    }
}

impl Ranks for Connections {
    fn rank(&self) -> usize {
        self.place.rank
    }

    fn size(&self) -> usize {
        self.place.size
    }

    fn local_rank(&self) -> usize {
        self.place.local_rank
    }

    fn send(&self, to: usize, message: &[u8]) -> Result<()> {
        let peer = self.peer(to)?;
        let written = frame::write(&mut *locked(&peer.writer), Kind::Message, message);
        written.map_err(|_| self.failure())
    }

    fn receive(&self, from: usize) -> Result<Vec<u8>> {
        let peer = self.peer(from)?;
        // A rank that has failed has ended all that others wait for.
        loop {
            match peer.inbox.recv_timeout(Duration::from_millis(100)) {
                Ok(message) => return Ok(message),
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                    if let Some(error) = self.news.error() {
                        return Err(error);
                    }
                }
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return Err(self.failure()),
            }
        }
    }
}

/// Reads what a rank sends, until it has finished or is lost.
fn listen(mut stream: TcpStream, name: String, inbox: Sender<Vec<u8>>, done: &AtomicBool, news: &News) {
    let reason = loop {
        match frame::read(&mut stream, None) {
            Ok((Kind::Beat, _)) => {}
            Ok((Kind::Message, bytes)) => {
                // a policy that has ended wants no more
                let _ = inbox.send(bytes);
            }
            Ok((Kind::Done, _)) => {
                done.store(true, Ordering::SeqCst);
                return;
            }
            Ok((Kind::Failed, bytes)) => {
                news.told.store(true, Ordering::SeqCst);
                break serde_json::from_slice(&bytes).unwrap_or(Reason {
                    name,
                    reason: "failed without a reason".into(),
                });
            }
            Err(error) => {
                let reason = match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                        format!("sent nothing for {} s", SILENCE.as_secs())
                    }
                    io::ErrorKind::InvalidData => "sent bytes that are no message".into(),
                    _ => "ended without a word; it was killed, or its host or network failed".into(),
                };
                break Reason { name, reason };
            }
        }
    };
    // whoever waits for a message learns of it
    drop(inbox);
    news.failed(&reason);
}

/// Sends signs of life until this rank leaves.
fn beat(news: &News) {
    let mut last = Instant::now();
    while !news.leaving.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(50));
        if last.elapsed() < BEAT {
            continue;
        }
        last = Instant::now();
        for writer in &news.writers {
            // A message on its way is a sign of life, too. A connection that fails is noticed by its reader.
            if let Ok(mut stream) = writer.try_lock() {
                let _ = frame::write(&mut *stream, Kind::Beat, &[]);
            }
        }
    }
}
