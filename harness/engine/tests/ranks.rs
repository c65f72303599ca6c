//! Several ranks as threads of one process, over real connections: the same bits as one rank, and failures
//! with the name of the rank.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aqlm_check::cases::{LlamaData, THREE_BLOCKS, llama};
use aqlm_engine::backends::{CpuBackend, ReferenceBackend};
use aqlm_engine::ops::{PartSums, TrainOps};
use aqlm_engine::ranks::{
    Alone, Connections, Meeting, Place, Ranks, agree, broadcast, listen_here, share, wait_for_all,
};
use aqlm_engine::{Error, Result, hessians, tune_block};
use aqlm_vocabulary::{
    BlockWeights, FinetuneReport, FinetuneSettings, StreamKey,
    llama::{DOWN, QUERY},
};

const TOKENS: usize = 70;

const SETTINGS: FinetuneSettings = FinetuneSettings {
    epochs: 2,
    batch: 3,
    lr: 1e-3,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    patience: 2,
    codebooks: true,
    scales: true,
    norms: true,
};

/// The place of a rank that a launcher has started on this host.
fn place(rank: usize, size: usize, port: u16) -> Place {
    let variables = [
        ("RANK", rank),
        ("WORLD_SIZE", size),
        ("LOCAL_RANK", rank),
        ("LOCAL_WORLD_SIZE", size),
        ("MASTER_PORT", usize::from(port)),
    ];
    let text = |name: &str| match name {
        "MASTER_ADDR" => Some("127.0.0.1".to_owned()),
        "TORCHELASTIC_RUN_ID" => Some(format!("test {port}")),
        _ => variables
            .iter()
            .find_map(|(known, value)| (*known == name).then(|| value.to_string())),
    };
    Place::of(&text, None).unwrap()
}

/// What `work` returns on every rank; `request` is what each was asked to do. `lost` learns of failures.
fn on_ranks<T: Send>(
    size: usize,
    request: &(dyn Fn(usize) -> String + Sync),
    lost: &(dyn Fn(usize, &Error) + Sync),
    work: &(dyn Fn(Connections) -> T + Sync),
) -> Vec<Result<T>> {
    let (listener, port) = listen_here().unwrap();
    let mut listener = Some(listener);
    let news = Arc::new(Mutex::new(Vec::new()));
    let outcomes = std::thread::scope(|scope| {
        let start = |rank: usize| {
            let listener = listener.take();
            let news = Arc::clone(&news);
            scope.spawn(move || {
                let meeting = Meeting {
                    place: &place(rank, size, port),
                    request: vec![request(rank)],
                    alive: &mut || Ok(()),
                    waiting: &mut |_| (),
                    lost: Box::new(move |error, _| news.lock().unwrap().push((rank, error.to_string()))),
                };
                Ok(work(meeting.meet(listener)?))
            })
        };
        let threads: Vec<_> = (0..size).map(start).collect();
        let joined = threads.into_iter().map(|thread| thread.join().unwrap());
        joined.collect()
    });
    for (rank, reason) in news.lock().unwrap().drain(..) {
        let name = String::new();
        lost(rank, &Error::Rank { name, reason });
    }
    outcomes
}

fn nobody_is_lost(rank: usize, error: &Error) {
    panic!("rank {rank} lost another: {error}");
}

/// What every rank returns that finishes well.
fn well<T: Send>(size: usize, work: &(dyn Fn(&dyn Ranks) -> T + Sync)) -> Vec<T> {
    let whole = |ranks: Connections| {
        let done = work(&ranks);
        ranks.finish().unwrap();
        done
    };
    let outcomes = on_ranks(size, &|_| "the same".into(), &nobody_is_lost, &whole);
    outcomes.into_iter().map(Result::unwrap).collect()
}

/// Hessians and a tuned block of a machine.
fn computed<M: TrainOps>(
    machine: &M,
    case: &LlamaData,
    tokens: &[&[u32]],
    ranks: &dyn Ranks,
) -> (Vec<Vec<u64>>, BlockWeights, FinetuneReport) {
    let hidden = machine.embed(&case.embedding, tokens).unwrap();
    let other = machine.load_block(1, &case.blocks[1]).unwrap();
    let targets = machine.block_forward(&other, &hidden).unwrap();
    let mut block = machine.load_block(0, &case.blocks[0]).unwrap();
    let all = 1..tokens.len();
    let sums = hessians(machine, &block, &hidden, all, &[QUERY, DOWN], ranks).unwrap();
    let bits = |mut hessian: M::Hessian| hessian.take().into_iter().map(f64::to_bits).collect();
    let key = StreamKey {
        seed: 2,
        block: 0,
        layer: None,
    };
    let settings = &FinetuneSettings {
        batch: 11,
        ..SETTINGS
    };
    let report = tune_block(
        machine,
        &mut block,
        &hidden,
        &targets,
        2,
        settings,
        key,
        ranks,
        &mut |_| (),
    );
    let sums = sums.into_iter().map(bits).collect();
    (sums, machine.store_block(&block).unwrap(), report.unwrap())
}

#[test]
fn bits_do_not_depend_on_the_number_of_ranks() {
    let (_, case) = llama(THREE_BLOCKS[1]).unwrap();
    // Neighbouring lengths differ, so that each sequence is a part. The first few are fewer than leaves.
    let lengths = [40, 9, 70, 33, 12, 50, 21, 8, 17, 11, 62, 5, 30, 14];
    for count in [6, lengths.len()] {
        let text = |(i, &length): (usize, &usize)| -> Vec<u32> {
            (0..length).map(|t| ((i * 31 + t * 7) % 50) as u32).collect()
        };
        let tokens: Vec<Vec<u32>> = lengths[..count].iter().enumerate().map(text).collect();
        let tokens: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
        let of = |ranks: &dyn Ranks, reference: bool| {
            if reference {
                let machine = ReferenceBackend::new(&case.config, TOKENS).unwrap();
                computed(&machine, &case, &tokens, ranks)
            } else {
                let machine = CpuBackend::new(&case.config, TOKENS).unwrap();
                computed(&machine, &case, &tokens, ranks)
            }
        };
        for reference in [false, true] {
            let alone = of(&Alone, reference);
            assert!(alone.2.best_epoch > 0, "nothing was learned");
            for size in [2, 3, 10] {
                for (rank, found) in well(size, &|ranks| of(ranks, reference)).into_iter().enumerate() {
                    assert!(found == alone, "rank {rank} of {size}, {count} sequences");
                }
            }
        }
    }
}

#[test]
fn messages_go_from_every_rank_to_all() {
    let found = well(3, &|ranks| {
        let of = |from| share(ranks, from, || Ok(format!("from {}", ranks.rank()))).unwrap();
        let texts: Vec<String> = (0..3).map(of).collect();
        // more than a socket holds, in both directions at once
        let large = vec![ranks.rank() as u8; 1 << 24];
        for from in 0..3 {
            let own = (ranks.rank() == from).then(|| large.clone());
            assert!(
                broadcast(ranks, from, own)
                    .unwrap()
                    .iter()
                    .all(|&byte| byte == from as u8)
            );
        }
        wait_for_all(ranks).unwrap();
        agree(ranks, "a word", "one").unwrap();
        texts
    });
    assert!(found.iter().all(|texts| *texts == ["from 0", "from 1", "from 2"]));
}

/// The texts of all errors, by rank.
fn errors(outcomes: Vec<Result<Result<()>>>) -> Vec<String> {
    let text = |outcome: Result<Result<()>>| outcome.and_then(|done| done).unwrap_err().to_string();
    outcomes.into_iter().map(text).collect()
}

#[test]
fn a_rank_that_ends_without_a_word_is_named_everywhere() {
    let told = AtomicBool::new(false);
    let lost = |_: usize, _: &Error| told.store(true, Ordering::SeqCst);
    let started = Instant::now();
    let found = on_ranks(3, &|_| "the same".into(), &lost, &|ranks| {
        if ranks.rank() == 2 {
            // ends without finishing
            return Err(Error::Internal("gone".into()));
        }
        let received = ranks.receive(if ranks.rank() == 0 { 2 } else { 0 });
        let error = received.map(|_| ()).unwrap_err();
        ranks.fail(&error);
        Err(error)
    });
    let errors = errors(found);
    for error in &errors[..2] {
        assert!(
            error.contains("rank 2 of 3 (") && error.contains("ended early"),
            "{error}"
        );
    }
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_rank_that_fails_says_why() {
    let found = on_ranks(3, &|_| "the same".into(), &|_, _| (), &|ranks| {
        let outcome = if ranks.rank() == 1 {
            Err(Error::argument("beam", "1 or more", "0"))
        } else {
            share(&ranks, 1, || Ok(())).and_then(|()| ranks.receive(0).map(|_| ()))
        };
        if let Err(error) = &outcome {
            ranks.fail(error);
        }
        outcome
    });
    let errors = errors(found);
    for error in [&errors[0], &errors[2]] {
        assert!(error.contains("rank 1 of 3 ("), "{error}");
        assert!(
            error.contains("failed: beam: expected 1 or more, found 0"),
            "{error}"
        );
    }
}

#[test]
fn whoever_computes_elsewhere_learns_of_a_failure_too() {
    let ended = AtomicBool::new(false);
    let found = Mutex::new(Vec::new());
    let lost = |rank: usize, error: &Error| found.lock().unwrap().push((rank, error.to_string()));
    on_ranks(2, &|_| "the same".into(), &lost, &|ranks| {
        if ranks.rank() == 0 {
            // computes, and asks nobody
            while !ended.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(10));
            }
            std::thread::sleep(Duration::from_millis(1500));
        }
        ended.store(true, Ordering::SeqCst);
    });
    let found = found.into_inner().unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].0 == 0 && found[0].1.contains("rank 1 of 2 ("),
        "{found:?}"
    );
}

#[test]
fn ranks_that_were_asked_otherwise_are_refused() {
    let request = |rank: usize| format!("--seed {rank}");
    let errors = errors(on_ranks(2, &request, &|_, _| (), &|_| Ok(())));
    for error in errors {
        assert!(error.contains("rank 1 of 2 ("), "{error}");
        let reason = "arguments: expected --seed 0 as on rank 0, found --seed 1";
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn what_differs_between_ranks_is_an_error() {
    let found = on_ranks(2, &|_| "the same".into(), &|_, _| (), &|ranks| {
        let outcome = agree(&ranks, "weights of block 3", &ranks.rank().to_string());
        if let Err(error) = &outcome {
            ranks.fail(error);
            return outcome;
        }
        ranks.receive(0).map(|_| ())
    });
    for error in errors(found) {
        let words = "rank 1 of 2: weights of block 3: expected 0 as on rank 0, found 1";
        assert!(error.contains(words), "{error}");
    }
}
