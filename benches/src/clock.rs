use std::time::{Duration, Instant};

/// Seconds per call.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// of the fastest call
    pub min: f64,
    /// of the median call
    pub median: f64,
    /// least processor time of a call, over all threads of this process: the meaningful figure if other work
    /// takes cores away; zero where the system does not report it (only Linux does)
    pub cpu_min: f64,
    /// median processor time of a call
    pub cpu_median: f64,
    /// number of calls
    pub calls: usize,
}

/// Calls `f` for about `budget`, at least three times, after one call that is not counted.
pub fn time(budget: Duration, mut f: impl FnMut()) -> Times {
    f();
    let (mut wall, mut cpu) = (Vec::new(), Vec::new());
    let start = Instant::now();
    while wall.len() < 3 || start.elapsed() < budget {
        let (before, call) = (cpu_seconds(), Instant::now());
        f();
        wall.push(call.elapsed().as_secs_f64());
        cpu.push(cpu_seconds() - before);
    }
    wall.sort_by(f64::total_cmp);
    cpu.sort_by(f64::total_cmp);
    Times {
        min: wall[0],
        median: wall[wall.len() / 2],
        cpu_min: cpu[0],
        cpu_median: cpu[cpu.len() / 2],
        calls: wall.len(),
    }
}

/// Total running time of all threads in seconds, from the kernel's scheduler statistics.
fn cpu_seconds() -> f64 {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else {
        return 0.0;
    };
    threads
        .filter_map(|thread| {
            let text = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<f64>().ok()
        })
        .sum::<f64>()
        * 1e-9
}
