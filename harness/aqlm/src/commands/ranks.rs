//! Starting and ending the processes that do one run together (docs/scaling.md).

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::output;
use super::output::complain;
use aqlm_engine::backends::BackendKind;
use aqlm_engine::ranks::{Alone, Connections, Launch, Meeting, Place, Ranks, listen_here};
use aqlm_formats::{Error, Result};

/// Longest wait for processes that have done their work to end.
const LEAVING: Duration = Duration::from_secs(30);

/// Time for a message to be written, and for libraries to end, before the process is ended by force.
const FORCE: Duration = Duration::from_secs(3);

/// Reads which of how many ranks this process is, and prepares it: ranks of one host share its cores, and
/// only rank 0 prints progress and notes. `gpus` is the number of ranks that the user asked for.
///
/// # Errors
/// `Argument` for a variable or a number that cannot be right.
pub(crate) fn place(gpus: Option<usize>, backend: BackendKind) -> Result<Place> {
    let place = Place::of(&|name| std::env::var(name).ok(), gpus)?;
    if place.rank > 0 {
        output::only_errors();
    }
    if place.launch == Launch::Here && backend == BackendKind::Cuda {
        let found = aqlm_optimized::cuda::Device::count();
        if found < place.size {
            let expected = format!("at most the number of GPUs, {found}");
            return Err(Error::argument("gpus", &expected, place.size.to_string()));
        }
    }
    if place.local_size > 1 && std::env::var_os("RAYON_NUM_THREADS").is_none() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // A pool that exists already computes the same; it is only larger.
        let _ = rayon::ThreadPoolBuilder::new()
            .num_threads((cores / place.local_size).max(1))
            .build_global();
    }
    Ok(place)
}

/// Refuses standard input for several ranks, each of which would have to read it.
///
/// # Errors
/// `Argument`.
pub(crate) fn refuse_standard_input(place: &Place, option: &str, path: &std::path::Path) -> Result<()> {
    if place.size > 1 && path.as_os_str() == "-" {
        let expected = "a file, which every rank can read";
        return Err(Error::argument(option, expected, "standard input"));
    }
    Ok(())
}

/// Does `work` on every rank: starts those that this process has to start, and meets all. When this rank
/// fails, the others are told why. When another fails, this process ends with its name.
///
/// # Errors
/// Those of `work`; `Rank`.
pub(crate) fn on_ranks<T>(place: &Place, work: impl FnOnce(&dyn Ranks) -> Result<T>) -> Result<T> {
    if place.size == 1 {
        return work(&Alone);
    }
    let started = Started::default();
    let ranks = meet(place, &started);
    let outcome = ranks.and_then(|ranks| {
        let outcome = work(&ranks).and_then(|done| {
            ranks.finish()?;
            Ok(done)
        });
        if let Err(error) = &outcome {
            // Rank 0 prints this rank's errors and those of others, unless it is the one that is lost.
            let told = ranks.was_told() || !matches!(error, Error::Rank { .. });
            if told && is_here(place) {
                output::be_silent();
            }
            ranks.fail(error);
        }
        outcome
    });
    if outcome.is_err() && started.0.ending.swap(true, Ordering::SeqCst) {
        // Another thread prints the reason and ends the process.
        std::thread::sleep(2 * FORCE);
    }
    started.end(outcome.is_ok())?;
    outcome
}

/// The ranks that this process has started.
#[derive(Default, Clone)]
struct Started(Arc<Shared>);

#[derive(Default)]
struct Shared {
    children: Mutex<Vec<(usize, Child)>>,
    /// whether a thread has begun to end the process
    ending: AtomicBool,
}

impl Started {
    fn children(&self) -> std::sync::MutexGuard<'_, Vec<(usize, Child)>> {
        self.0.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts this program again as the ranks 1 to `size`, with the variables of torchrun.
    fn start(&self, size: usize, port: u16) -> Result<()> {
        let program = std::env::current_exe().map_err(Error::io("this program", "find"))?;
        let mut children = self.children();
        for rank in 1..size {
            let variables = variables(rank, size, port);
            let child = Command::new(&program)
                .args(std::env::args_os().skip(1))
                .envs(variables)
                // They would become part of the run's id, which this process has without them.
                .env_remove("TORCHELASTIC_RESTART_COUNT")
                .env_remove("PMIX_NAMESPACE")
                .env_remove("SLURM_JOB_ID")
                .env_remove("SLURM_STEP_ID")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .map_err(Error::io(&program, "start"))?;
            children.push((rank, child));
        }
        Ok(())
    }

    /// Fails if one of them has ended.
    fn alive(&self, size: usize) -> Result<()> {
        for (rank, child) in self.children().iter_mut() {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(Error::Rank {
                    name: format!("rank {rank} of {size} (process {})", child.id()),
                    reason: format!("ended before it met the others ({status})"),
                });
            }
        }
        Ok(())
    }

    /// Waits for them after their work, or ends them.
    fn end(&self, well: bool) -> Result<()> {
        let until = Instant::now() + if well { LEAVING } else { Duration::from_millis(500) };
        for (rank, child) in self.children().iter_mut() {
            let status = loop {
                match child.try_wait() {
                    Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
                    Ok(Some(status)) => break Some(status),
                    Ok(None) | Err(_) => break None,
                }
            };
            if status.is_none() {
                // It has nothing to write, and may have ended in the meantime.
                let _ = child.kill();
                let _ = child.wait();
            }
            if let (true, Some(status)) = (well, status)
                && !status.success()
            {
                return Err(Error::Rank {
                    name: format!("rank {rank} (process {})", child.id()),
                    reason: format!("did its work and ended badly ({status})"),
                });
            }
        }
        Ok(())
    }
}

/// What torchrun would tell a rank of this host. The job is a secret, so that no other process of the host
/// can take a rank's part.
fn variables(rank: usize, size: usize, port: u16) -> [(&'static str, String); 7] {
    [
        ("RANK", rank.to_string()),
        ("LOCAL_RANK", rank.to_string()),
        ("WORLD_SIZE", size.to_string()),
        ("LOCAL_WORLD_SIZE", size.to_string()),
        ("MASTER_ADDR", "127.0.0.1".into()),
        ("MASTER_PORT", port.to_string()),
        ("TORCHELASTIC_RUN_ID", secret()),
    ]
}

/// Beginning of the run id of ranks that one of them has started.
const HERE: &str = "gpus-";

/// Whether a process like this one has started this rank. They share a terminal, so one says it for all.
fn is_here(place: &Place) -> bool {
    matches!(&place.launch, Launch::Launcher { job, .. } if place.rank > 0 && job.starts_with(HERE))
}

/// The run id, the same for every call in this process.
fn secret() -> String {
    static SECRET: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let random = || {
        use std::hash::{BuildHasher as _, RandomState};
        format!("{:016x}", RandomState::new().hash_one(std::process::id()))
    };
    SECRET
        .get_or_init(|| HERE.to_owned() + &random() + &random())
        .clone()
}

fn meet(place: &Place, started: &Started) -> Result<Connections> {
    let mut known = place.clone();
    let listener = if place.launch == Launch::Here {
        let (listener, port) = listen_here()?;
        started.start(place.size, port)?;
        // As the ranks that were just started will call themselves.
        known = Place::of(
            &|name| {
                let of = variables(0, place.size, port);
                of.into_iter()
                    .find_map(|(known, value)| (known == name).then_some(value))
            },
            None,
        )?;
        Some(listener)
    } else {
        None
    };
    let (ending, here) = (started.clone(), is_here(&known));
    let meeting = Meeting {
        place: &known,
        request: std::env::args_os()
            .skip(1)
            .map(|argument| argument.to_string_lossy().into_owned())
            .collect(),
        alive: &mut || started.alive(place.size),
        waiting: &mut |what| {
            // Ranks besides 0 print no notes, but without rank 0 nobody else would say this.
            if known.rank == 0 {
                output::say(what);
            } else if !here {
                complain(what);
            }
        },
        lost: Box::new(move |error, told| {
            if told && here {
                output::be_silent();
            }
            end(&ending, error);
        }),
    };
    meeting.meet(listener)
}

/// Ends this process, whatever its other threads do: a rank is lost, and the computation may take hours.
fn end(started: &Started, error: &Error) {
    if started.0.ending.swap(true, Ordering::SeqCst) {
        return;
    }
    complain(format_args!("error: {error}"));
    for (_, child) in started.children().iter_mut() {
        let _ = child.kill();
    }
    std::thread::spawn(|| {
        std::thread::sleep(FORCE);
        std::process::abort();
    });
    std::process::exit(2);
}
