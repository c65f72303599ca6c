//! Runs work on several threads.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;

/// Calls `work` with every index below `count`, in order, on `jobs` threads. Each thread ends at its first
/// error. After all have ended, one of the errors is returned.
pub(crate) fn for_each_index(
    jobs: usize,
    count: usize,
    work: impl Fn(usize) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.max(1))
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= count {
                            return Ok(());
                        }
                        work(index)?;
                    }
                })
            })
            .collect();
        for worker in workers {
            worker
                .join()
                .map_err(|_| anyhow::anyhow!("a worker panicked"))??;
        }
        Ok(())
    })
}
