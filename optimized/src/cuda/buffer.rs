//! Device memory, with guard bytes around each buffer on a device opened for checks.
//!
//! A kernel that writes outside a buffer then corrupts guard bytes instead of the neighbour's numbers, and
//! the next copy to the host names the buffer.

use std::collections::BTreeMap;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{
    CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceRepr, DeviceSlice,
    SyncOnDrop, result, sys,
};

use super::error::During;
use super::{CudaError, Result};

/// Guard bytes on each side of a buffer: a multiple of the alignment that kernels need.
const GUARD_BYTES: usize = 1024;
/// The value of every guard byte.
const PATTERN: u8 = 0xa5;

/// Numbers in device memory.
pub struct Buffer<T> {
    /// Must come first: fields are dropped in order, and the entry is removed before the memory is freed.
    guarded: Option<Guarded>,
    whole: CudaSlice<T>,
    /// where the buffer's own elements begin: after the guard bytes, if any
    first: usize,
    len: usize,
}

impl<T: DeviceRepr> Buffer<T> {
    /// Memory for `len` numbers, with guard bytes if `guards` are kept.
    ///
    /// # Errors
    /// `Driver`, for example when memory runs out.
    ///
    /// # Safety
    /// The numbers must be written before they are read.
    pub(super) unsafe fn new(
        stream: &Arc<CudaStream>,
        guards: Option<&Arc<Guards>>,
        len: usize,
    ) -> Result<Self> {
        let first = guards.map_or(0, |_| GUARD_BYTES / size_of::<T>());
        // The driver refuses an allocation of nothing. SAFETY: the caller's promise; guard bytes are written
        // here.
        let whole = unsafe { stream.alloc((len + 2 * first).max(1)) }.during("allocating")?;
        let mut buffer = Self {
            guarded: None,
            whole,
            first,
            len,
        };
        if let Some(guards) = guards {
            let start = buffer.device_ptr(stream).0;
            let sides = [
                start - GUARD_BYTES as sys::CUdeviceptr,
                start + (len * size_of::<T>()) as sys::CUdeviceptr,
            ];
            sides.iter().try_for_each(|&side| fill(stream, side))?;
            buffer.guarded = Some(Guarded::new(guards, sides));
        }
        Ok(buffer)
    }

    /// A copy of the numbers in memory of its own.
    ///
    /// # Errors
    /// `Driver`, for example when memory runs out.
    pub fn try_clone(&self) -> Result<Self> {
        let stream = self.whole.stream();
        let guards = self.guarded.as_ref().map(|guarded| &guarded.guards);
        // SAFETY: the copy writes all numbers.
        let mut copy = unsafe { Self::new(stream, guards, self.len) }?;
        stream
            .memcpy_dtod(self, &mut copy)
            .during("copying on the device")?;
        if let Some(guarded) = &self.guarded {
            copy = copy.named(&guarded.name());
        }
        Ok(copy)
    }
}

impl<T: DeviceRepr> Buffer<T> {
    /// Replaces the numbers from `at` on by those of another buffer in `from`.
    ///
    /// # Errors
    /// `Driver`.
    ///
    /// # Panics
    /// When the range lies outside either buffer.
    pub fn copy_from(&mut self, at: usize, other: &Self, from: Range<usize>) -> Result<()> {
        let stream = Arc::clone(self.whole.stream());
        let to = at..at + from.len();
        stream
            .memcpy_dtod(&other.slice(from), &mut self.slice_mut(to))
            .during("copying on the device")
    }

    /// Replaces the numbers from `at` on by those of the host.
    ///
    /// # Errors
    /// `Driver`.
    ///
    /// # Panics
    /// When the range lies outside the buffer.
    pub fn write(&mut self, at: usize, values: &[T]) -> Result<()> {
        let stream = Arc::clone(self.whole.stream());
        stream
            .memcpy_htod(values, &mut self.slice_mut(at..at + values.len()))
            .during("copying to the device")
    }
}

impl<T> Buffer<T> {
    /// The name that an error gives the buffer when a kernel writes outside.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        if let Some(guarded) = &self.guarded {
            guarded.rename(name);
        }
        self
    }

    /// How many numbers it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Some of its numbers.
    ///
    /// # Panics
    /// When the range lies outside the buffer.
    pub fn slice(&self, bounds: impl RangeBounds<usize>) -> CudaView<'_, T> {
        let (from, to) = self.range(bounds);
        self.whole.slice(from..to)
    }

    /// A mutable [`Buffer::slice`].
    ///
    /// # Panics
    /// When the range lies outside the buffer.
    pub fn slice_mut(&mut self, bounds: impl RangeBounds<usize>) -> CudaViewMut<'_, T> {
        let (from, to) = self.range(bounds);
        self.whole.slice_mut(from..to)
    }

    /// Bounds as offsets in the whole allocation.
    fn range(&self, bounds: impl RangeBounds<usize>) -> (usize, usize) {
        let from = match bounds.start_bound() {
            Bound::Included(&at) => at,
            Bound::Excluded(&at) => at + 1,
            Bound::Unbounded => 0,
        };
        let to = match bounds.end_bound() {
            Bound::Included(&at) => at + 1,
            Bound::Excluded(&at) => at,
            Bound::Unbounded => self.len,
        };
        assert!(
            from <= to && to <= self.len,
            "{from}..{to} of {} numbers",
            self.len
        );
        (self.first + from, self.first + to)
    }

    /// Bytes of the allocation before the buffer's own.
    fn skipped(&self) -> sys::CUdeviceptr {
        (self.first * size_of::<T>()) as sys::CUdeviceptr
    }
}

impl<T> DeviceSlice<T> for Buffer<T> {
    fn len(&self) -> usize {
        self.len
    }

    fn stream(&self) -> &Arc<CudaStream> {
        self.whole.stream()
    }
}

impl<T> DevicePtr<T> for Buffer<T> {
    fn device_ptr<'a>(&'a self, stream: &'a CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'a>) {
        let (start, used) = self.whole.device_ptr(stream);
        (start + self.skipped(), used)
    }
}

impl<T> DevicePtrMut<T> for Buffer<T> {
    fn device_ptr_mut<'a>(&'a mut self, stream: &'a CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'a>) {
        let skipped = self.skipped();
        let (start, used) = self.whole.device_ptr_mut(stream);
        (start + skipped, used)
    }
}

/// The guard bytes of all live buffers of a device.
#[derive(Default)]
pub(super) struct Guards {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    alive: BTreeMap<u64, Entry>,
    /// kernels started since the guard bytes were last found intact
    started: Vec<String>,
}

struct Entry {
    name: String,
    /// where the guard bytes on each side begin
    sides: [sys::CUdeviceptr; 2],
}

impl Guards {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a kernel for error messages.
    pub(super) fn started(&self, kernel: &str) {
        let mut state = self.state();
        if state.started.last().is_none_or(|last| last != kernel) {
            state.started.push(kernel.to_owned());
        }
    }

    /// Waits for the stream and checks all guard bytes. Restores those that were overwritten, so that each
    /// mistake is reported once.
    ///
    /// # Errors
    /// `Outside` with the first buffer whose guard bytes have changed; `Driver`.
    pub(super) fn verify(&self, stream: &Arc<CudaStream>) -> Result<()> {
        let mut state = self.state();
        let sides = |entry: &Entry| ["before", "after"].into_iter().zip(entry.sides);
        let all = state.alive.values();
        let all: Vec<_> = all
            .flat_map(|entry| sides(entry).map(move |side| (entry, side)))
            .collect();
        let mut outside = None;
        for ((entry, (side, at)), bytes) in all.iter().zip(gathered(stream, &all)?.chunks(GUARD_BYTES)) {
            if bytes != [PATTERN; GUARD_BYTES] {
                fill(stream, *at)?;
                outside = outside.or_else(|| Some((entry.name.clone(), *side)));
            }
        }
        let started = std::mem::take(&mut state.started);
        match outside {
            None => Ok(()),
            Some((buffer, side)) => Err(CudaError::Outside {
                buffer,
                side,
                started: started.join(", "),
            }),
        }
    }
}

/// The guard bytes of these sides, one side after the other. They are gathered on the device, since a copy to
/// the host takes longer than thousands of bytes do.
fn gathered(
    stream: &Arc<CudaStream>,
    sides: &[(&Entry, (&'static str, sys::CUdeviceptr))],
) -> Result<Vec<u8>> {
    if sides.is_empty() {
        return Ok(Vec::new());
    }
    // SAFETY: all bytes are written by the copies below, before the host reads them.
    let gathered: CudaSlice<u8> = unsafe { stream.alloc(sides.len() * GUARD_BYTES) }.during("allocating")?;
    let mut to = gathered.device_ptr(stream).0;
    for &(_, (_, at)) in sides {
        // SAFETY: a buffer removes its entry before its memory is freed, so `at` is still allocated; `to` has
        // room for a side.
        unsafe { result::memcpy_dtod_async(to, at, GUARD_BYTES, stream.cu_stream()) }
            .during("gathering guard bytes")?;
        to += GUARD_BYTES as sys::CUdeviceptr;
    }
    stream.clone_dtoh(&gathered).during("reading guard bytes")
}

/// Writes a side's guard bytes.
fn fill(stream: &Arc<CudaStream>, at: sys::CUdeviceptr) -> Result<()> {
    // SAFETY: `at` is a side of a buffer, which has room for GUARD_BYTES.
    unsafe { result::memset_d8_async(at, PATTERN, GUARD_BYTES, stream.cu_stream()) }
        .during("writing guard bytes")
}

/// A buffer's entry among the guards; removed when the buffer is dropped.
struct Guarded {
    guards: Arc<Guards>,
    id: u64,
}

impl Guarded {
    fn new(guards: &Arc<Guards>, sides: [sys::CUdeviceptr; 2]) -> Self {
        let mut state = guards.state();
        let id = state.next;
        state.next += 1;
        let name = "a buffer without a name".to_owned();
        state.alive.insert(id, Entry { name, sides });
        drop(state);
        Self {
            guards: Arc::clone(guards),
            id,
        }
    }

    fn name(&self) -> String {
        let state = self.guards.state();
        state
            .alive
            .get(&self.id)
            .map(|entry| entry.name.clone())
            .expect("it is removed when dropped")
    }

    fn rename(&self, name: &str) {
        if let Some(entry) = self.guards.state().alive.get_mut(&self.id) {
            name.clone_into(&mut entry.name);
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.guards.state().alive.remove(&self.id);
    }
}
