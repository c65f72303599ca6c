//! Buffers that start on a cache line, so that no vector of 32 or 64 bytes straddles two lines.

use bytemuck::{Pod, Zeroable};

#[derive(Clone, Copy, Zeroable, Pod)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A zeroed slice of `T` whose first element is 64-byte aligned.
#[derive(Debug, Clone)]
pub(crate) struct Aligned<T> {
    lines: Vec<Line>,
    len: usize,
    element: std::marker::PhantomData<T>,
}

impl<T: Pod> Default for Aligned<T> {
    fn default() -> Self {
        Self::zeroed(0)
    }
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0).finish()
    }
}

impl<T: Pod> Aligned<T> {
    pub(crate) fn zeroed(len: usize) -> Self {
        let lines = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        Self {
            lines: vec![Line::zeroed(); lines],
            len,
            element: std::marker::PhantomData,
        }
    }

    /// The first `len` elements, with unspecified contents. Grows the buffer if it is shorter.
    pub(crate) fn resized(&mut self, len: usize) -> &mut [T] {
        if self.lines.len() * size_of::<Line>() < len * size_of::<T>() {
            *self = Self::zeroed(len);
        }
        self.len = len;
        self.as_mut_slice()
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_on_a_line_and_has_its_length() {
        for len in [0, 1, 7, 64, 1000] {
            let mut buffer = Aligned::<f32>::zeroed(len);
            assert_eq!(buffer.as_slice().len(), len);
            assert_eq!(buffer.as_slice().as_ptr() as usize % 64, 0);
            buffer.as_mut_slice().fill(1.0);
            assert!(buffer.as_slice().iter().all(|&x| x == 1.0));
        }
    }

    #[test]
    fn a_buffer_is_kept_where_it_is_long_enough() {
        for len in [16, 17, 1000] {
            let mut buffer = Aligned::<f32>::zeroed(len);
            buffer.as_mut_slice().fill(1.0);
            assert_eq!(buffer.resized(3), [1.0; 3]);
            assert_eq!(buffer.resized(len), vec![1.0; len]);
            assert_eq!(buffer.resized(len + 16).len(), len + 16);
        }
    }

    #[test]
    fn its_bytes_are_printed() {
        let mut buffer = Aligned::<u8>::zeroed(2);
        buffer.as_mut_slice().copy_from_slice(&[7, 9]);
        assert!(format!("{buffer:?}").contains("7, 9"));
    }
}
