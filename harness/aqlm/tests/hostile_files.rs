//! Damaged and malicious files: every reader gets thousands of mutations of small valid files. A reader may
//! reject them, but must not panic, hang, or use more memory than the file's size justifies.
//!
//! `AQLM_FUZZ_RUNS=1000000 cargo test --release --test hostile_files -- --nocapture` is the long run of
//! docs/checking.md; the same targets under libFuzzer are in `harness/tools/fuzz/`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Instant;

use aqlm_engine::hostile::JOURNAL;
use aqlm_formats::hostile::{TARGETS, Target};
use aqlm_vocabulary::{Purpose, Stream, stream};
use peak_alloc::PeakAlloc;
use rand::RngExt;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// The allocation counter is process-wide, so only one target runs at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Number of executions of each target in an ordinary test run.
const RUNS: usize = 3000;

/// Allowed bytes of memory per byte of file. Parsed JSON keeps a value of 72 bytes and a map entry for as
/// little as two bytes of text, maps are up to half empty, and errors quote the file.
const BYTES_PER_BYTE: usize = 256;

/// Allowed bytes for any file: buffers, the tokenizer's compiled expressions and byte tables.
const BYTES_ALWAYS: usize = 8 << 20;

/// Maximum size to which mutations grow a file.
const LONGEST: usize = 1 << 12;

fn runs() -> usize {
    std::env::var("AQLM_FUZZ_RUNS").map_or(RUNS, |runs| runs.parse().expect("AQLM_FUZZ_RUNS is a number"))
}

/// Applies one small mutation.
fn mutate(rng: &mut Stream, bytes: &mut Vec<u8>, target: &Target, corpus: &[Vec<u8>]) {
    let at = |rng: &mut Stream, len: usize| rng.random_range(0..=len as u64) as usize;
    let place = at(rng, bytes.len());
    match rng.random_range(0..9u32) {
        0 if !bytes.is_empty() => {
            let place = place.min(bytes.len() - 1);
            bytes[place] ^= 1 << rng.random_range(0..8u32);
        }
        1 if !bytes.is_empty() => {
            let place = place.min(bytes.len() - 1);
            bytes[place] = rng.random();
        }
        2 => bytes.truncate(place),
        3 => {
            let end = at(rng, bytes.len());
            bytes.drain(place.min(end)..place.max(end));
        }
        4 => {
            let end = at(rng, bytes.len());
            let copy = bytes[place.min(end)..place.max(end)].to_vec();
            bytes.splice(place..place, copy);
        }
        5 => {
            let word = target.words[at(rng, target.words.len() - 1)];
            bytes.splice(place..place, word.bytes());
        }
        6 => {
            // a length or an offset that no file has
            let numbers = [
                0,
                1,
                7,
                1 << 31,
                u64::from(u32::MAX),
                1 << 40,
                1 << 62,
                u64::MAX - 7,
                u64::MAX,
            ];
            let number = numbers[at(rng, numbers.len() - 1)].to_le_bytes();
            let width = if rng.random_bool(0.5) { 4 } else { 8 };
            let end = (place + width).min(bytes.len());
            bytes.splice(place..end, number[..width].iter().copied());
        }
        7 => {
            // replaces the digits at this position with another number
            let start = bytes[..place]
                .iter()
                .rposition(|b| !b.is_ascii_digit())
                .map_or(0, |i| i + 1);
            let end = place
                + bytes[place..]
                    .iter()
                    .position(|b| !b.is_ascii_digit())
                    .unwrap_or(bytes.len() - place);
            let numbers = [
                "-1",
                "0",
                "3",
                "1e999",
                "4294967296",
                "9007199254740993",
                "18446744073709551616",
                "0.5",
            ];
            let number = numbers[at(rng, numbers.len() - 1)];
            bytes.splice(start..end, number.bytes());
        }
        _ => {
            let other = &corpus[at(rng, corpus.len() - 1)];
            let from = at(rng, other.len());
            bytes.truncate(place);
            bytes.extend(&other[from..]);
        }
    }
    bytes.truncate(LONGEST);
}

fn attack(name: &str) {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let target = TARGETS
        .iter()
        .chain([&JOURNAL])
        .find(|target| target.name == name)
        .expect("a target of this name");
    // Files are written to memory if the machine has such a folder.
    let memory = std::path::Path::new("/dev/shm");
    let folder = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    let folder = folder.expect("a temporary folder");
    let seeds: Vec<Vec<u8>> = target.seeds.iter().map(|seed| seed.to_vec()).collect();
    for seed in &seeds {
        (target.read)(seed, folder.path());
    }
    // A failure must not print a backtrace a thousand times.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let mut rng = stream(name.len() as u64, 0, None, Purpose::TestData);
    let mut corpus = seeds.clone();
    let (mut most, mut failure) = (0usize, None);
    let started = Instant::now();
    for run in 0..runs() {
        let mut bytes = corpus[rng.random_range(0..corpus.len() as u64) as usize].clone();
        for _ in 0..rng.random_range(1..=4u32) {
            mutate(&mut rng, &mut bytes, target, &seeds);
        }
        let before = MEMORY.current_usage();
        MEMORY.reset_peak_usage();
        let result = catch_unwind(AssertUnwindSafe(|| (target.read)(&bytes, folder.path())));
        let taken = MEMORY.peak_usage().saturating_sub(before);
        most = most.max(taken);
        let allowed = BYTES_ALWAYS + BYTES_PER_BYTE * bytes.len();
        if result.is_err() || taken > allowed {
            let what = if result.is_err() {
                "panicked".to_owned()
            } else {
                format!("took {taken} bytes of memory")
            };
            failure = Some(format!(
                "{name}, run {run}: {what} on {} bytes: {}",
                bytes.len(),
                bytes.escape_ascii()
            ));
            break;
        }
        // Occasionally a mutated file joins the corpus, so that mutations accumulate and reach deeper code.
        if run % 50 == 0 && corpus.len() < 200 {
            corpus.push(bytes);
        }
    }
    std::panic::set_hook(hook);
    println!(
        "{name}: {} executions, at most {most} bytes of memory, {:.1} s",
        runs(),
        started.elapsed().as_secs_f64()
    );
    assert!(failure.is_none(), "{}", failure.unwrap_or_default());
}

#[test]
fn safetensors_files() {
    attack("safetensors");
}

#[test]
fn gguf_files() {
    attack("gguf");
}

#[test]
fn split_gguf_files() {
    attack("split-gguf");
}

#[test]
fn k_quants() {
    attack("k-quants");
}

#[test]
fn sentence_piece_models() {
    attack("sentence-piece");
}

#[test]
fn parquet_files() {
    attack("parquet");
}

#[test]
fn configurations() {
    attack("config");
}

#[test]
fn tokenizers() {
    attack("tokenizer");
}

#[test]
fn indices() {
    attack("index");
}

#[test]
fn journals() {
    attack("journal");
}

#[test]
fn a_reader_that_panics_or_takes_too_much_is_found() {
    // Tests the tests above: the counter counts, and panics are caught.
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let large = vec![1u8; 2 * BYTES_ALWAYS];
    // The test runner's own threads free small pieces meanwhile, so the difference can be below the vector's
    // length by a few bytes. It must exceed what the tests above always allow.
    let taken = MEMORY.peak_usage().saturating_sub(before);
    assert!(
        taken > BYTES_ALWAYS,
        "the counter saw {taken} of {} bytes",
        large.len()
    );
    assert!(catch_unwind(|| assert!(large.is_empty(), "caught")).is_err());
}
