use std::time::{Duration, Instant};

/// Seconds per call.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// of the fastest call
    pub min: f64,
    /// of the call in the middle
    pub median: f64,
    /// the same of processor time, all threads of this process together: what stays meaningful when other
    /// work takes the cores away in between; zero where the system does not tell (only Linux does)
    pub cpu_min: f64,
    /// processor time of the call in the middle
    pub cpu_median: f64,
    /// calls
    pub calls: usize,
}

/// Calls `f` for about `budget` (at least three times, after one call that is not counted).
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

/// Nanoseconds that every thread has run, from the kernel's scheduler statistics.
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
