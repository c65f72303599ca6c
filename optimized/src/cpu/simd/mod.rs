//! The vector instructions to use: detected at run time, unless a thread pool has its own level.

pub(crate) mod vector;

use std::cell::Cell;
use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use aqlm_vocabulary::{AqlmError, Result};
use rayon::{ThreadPool, ThreadPoolBuilder};

use vector::Vector;

/// A set of vector instructions that kernels are written for.
///
/// Within one level, results have the same bytes on every machine. Between levels, sums differ in their last
/// bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SimdLevel {
    /// plain Rust, with what the compiler's baseline allows
    Portable,
    /// 64-bit ARM
    Neon,
    /// x86-64 with AVX2, FMA and F16C
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VBMI (Intel since Ice Lake, AMD since Zen 4)
    Avx512,
}

thread_local! {
    /// The level of this thread's pool, if it has one ([`SimdLevel::pool`]).
    static OF_POOL: Cell<Option<SimdLevel>> = const { Cell::new(None) };
}

impl SimdLevel {
    /// Every level, whether or not this machine has it.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Neon, Self::Avx2, Self::Avx512];

    /// Whether this machine supports it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            Self::Neon => cfg!(target_arch = "aarch64"),
            Self::Avx2 => has_avx2(),
            Self::Avx512 => has_avx512(),
        }
    }

    /// The levels that this machine supports, slowest first.
    pub fn available() -> Vec<Self> {
        Self::ALL
            .into_iter()
            .filter(|level| level.is_available())
            .collect()
    }

    /// The level for kernels and new plans of this thread: that of its pool, else the fastest available,
    /// detected once.
    pub fn current() -> Self {
        static BEST: OnceLock<SimdLevel> = OnceLock::new();
        let best = || *BEST.get_or_init(|| Self::available().pop().unwrap_or(Self::Portable));
        OF_POOL.get().unwrap_or_else(best)
    }

    /// A thread pool that computes with this level: everything installed in the pool does. Matrices that are
    /// already packed keep their level.
    ///
    /// # Errors
    /// `Unsupported` when this machine lacks the level or allows no more threads.
    pub fn pool(self, threads: usize) -> Result<ThreadPool> {
        self.require()?;
        ThreadPoolBuilder::new()
            .num_threads(threads)
            .start_handler(move |_| OF_POOL.set(Some(self)))
            .build()
            .map_err(|error| AqlmError::Unsupported(format!("{threads} more threads: {error}")))
    }

    /// # Errors
    /// `Unsupported` when this machine lacks the level.
    pub(crate) fn require(self) -> Result<()> {
        if self.is_available() {
            Ok(())
        } else {
            Err(AqlmError::Unsupported(format!(
                "this processor has no {self}; it has {}",
                Self::available()
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(", ")
            )))
        }
    }
}

impl fmt::Display for SimdLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        })
    }
}

impl FromStr for SimdLevel {
    type Err = AqlmError;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|level| level.to_string() == text)
            .ok_or_else(|| AqlmError::argument("SIMD level", "portable, neon, avx2 or avx512", text))
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vbmi")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx2() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx512() -> bool {
    false
}

/// Prefetches the cache lines of `slice` on processors that support it.
#[inline(always)]
pub(crate) fn prefetch<T>(slice: &[T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let start = slice.as_ptr().cast::<i8>();
        for offset in (0..size_of_val(slice)).step_by(64) {
            // SAFETY: SSE is part of x86-64, and a prefetch of any address is harmless.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(offset)) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = slice;
}

/// A computation written once for all vector types.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;

    /// Runs with vectors of type `V`. Implementations must be `#[inline(always)]`. Otherwise their bodies are
    /// compiled without the instructions that `V` needs.
    ///
    /// # Safety
    /// The caller has the instructions of `V` enabled, and the kernel's own contract holds.
    unsafe fn run<V: Vector>(self) -> Self::Output;
}

/// Widest vector that a kernel's data lengths allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    /// at most 8 lanes: lengths are multiples of 8
    Eight,
    /// 16 lanes if the level has them: lengths are multiples of 16
    Sixteen,
}

/// Runs `kernel` with a level's vectors.
///
/// # Safety
/// The machine has `level` ([`SimdLevel::require`]), and the kernel's own contract holds.
#[inline]
pub(crate) unsafe fn run<K: Kernel>(level: SimdLevel, width: Width, kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn avx2<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: this function has AVX2, FMA and F16C; the caller guarantees the rest.
        unsafe { kernel.run::<vector::Avx2>() }
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
    unsafe fn avx512<K: Kernel>(kernel: K, width: Width) -> K::Output {
        // SAFETY: this function has all parts of AVX-512 used here; the caller guarantees the rest.
        unsafe {
            match width {
                Width::Eight => kernel.run::<vector::Avx2>(),
                Width::Sixteen => kernel.run::<vector::Avx512>(),
            }
        }
    }
    let _ = width;
    // SAFETY: the machine has the level, by this function's contract.
    unsafe {
        match level {
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx2 => avx2(kernel),
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512 => avx512(kernel, width),
            #[cfg(target_arch = "aarch64")]
            SimdLevel::Neon => kernel.run::<vector::Neon>(),
            _ => kernel.run::<vector::Portable>(),
        }
    }
}
