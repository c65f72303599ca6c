use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::error::{During, check_lengths};
use super::pack::Packed;
use super::{Activation, Blas, Buffer, Device, DeviceMatrix, Result};

/// Matmul for large batches: decodes a chunk of the weight's rows into a buffer and multiplies it with
/// cuBLAS. The next chunk is decoded on a second stream, as far as the product leaves room.
///
/// For large batches the product is bound by arithmetic. Decoding then costs little in comparison, and cuBLAS
/// has the fastest product. The blocks of a product use all registers of a multiprocessor, so nothing else
/// runs on it at the same time: decoding and product alternate rather than overlap.
pub struct DecodedMatmul<T: Activation> {
    chunks: Vec<Chunk>,
    /// decoded chunks, used in rotation
    buffers: Vec<Buffer<T>>,
    blas: Arc<Blas>,
    side: Arc<CudaStream>,
    shape: [usize; 2],
}

struct Chunk {
    first_row: usize,
    rows: usize,
    decode: DeviceMatrix,
}

impl<T: Activation> DecodedMatmul<T> {
    /// `matrix` is on the device for decode k2 and `packed` is its launch. `chunk_rows` rows, rounded up to a
    /// multiple of 8, are decoded at a time.
    ///
    /// # Errors
    /// As [`DeviceMatrix::new`].
    pub fn new(
        device: &Device,
        blas: &Arc<Blas>,
        matrix: &DeviceMatrix,
        packed: &Packed,
        chunk_rows: usize,
    ) -> Result<Self> {
        let (out_features, in_features) = matrix.shape();
        let chunk_rows = chunk_rows
            .max(1)
            .next_multiple_of(8)
            .min(out_features.next_multiple_of(8));
        let chunks = (0..out_features)
            .step_by(chunk_rows)
            .map(|first_row| {
                let rows = chunk_rows.min(out_features - first_row);
                Ok(Chunk {
                    first_row,
                    rows,
                    decode: matrix.relaunched(device, &packed.for_rows(first_row, rows))?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let buffers = (0..chunks.len().min(2))
            .map(|_| device.zeros(chunk_rows * in_features))
            .collect::<Result<Vec<_>>>()?;
        let side = device
            .stream()
            .context()
            .new_stream()
            .during("creating a stream")?;
        Ok(Self {
            chunks,
            buffers,
            blas: Arc::clone(blas),
            side,
            shape: [out_features, in_features],
        })
    }

    /// Bytes of device memory for the decoded chunks, without the matrix.
    pub fn buffer_bytes(&self) -> usize {
        self.buffers.iter().map(|buffer| buffer.len() * 2).sum()
    }

    /// Starts Y = X W^T; x `[batch, in_features]`, y `[batch, out_features]`.
    ///
    /// # Errors
    /// `Length` when x or y does not fit, `Driver`, `Library`.
    pub fn start(&mut self, device: &Device, x: &Buffer<T>, y: &mut Buffer<T>, batch: usize) -> Result<()> {
        let [out_features, in_features] = self.shape;
        check_lengths(&[
            ("x", batch * in_features, x.len()),
            ("y", batch * out_features, y.len()),
        ])?;
        let main = device.stream();
        // The side stream starts after everything before this call, which may still use the buffers.
        let mut multiplied = vec![main.record_event(None).during("recording an event")?];
        for (index, chunk) in self.chunks.iter().enumerate() {
            let turn = index % self.buffers.len();
            // Waits for the last product that used the buffer, or, for the first use of each buffer, for
            // everything before this call.
            let free = &multiplied[(index + 1).saturating_sub(self.buffers.len())];
            self.side.wait(free).during("waiting for an event")?;
            let buffer = &mut self.buffers[turn];
            let mut view = buffer.slice_mut(..chunk.rows * in_features);
            chunk
                .decode
                .start_on(device, &self.side, None::<&Buffer<T>>, &mut view, false)?;
            let decoded = self.side.record_event(None).during("recording an event")?;
            main.wait(&decoded).during("waiting for an event")?;
            let mut target = y.slice_mut(chunk.first_row..);
            // SAFETY: the chunk's rows are decoded into `view`, and x has been checked. Rows of y are
            // `out_features` apart, so the last element is (batch - 1) * out_features + first_row + rows - 1.
            unsafe {
                self.blas.start_unchecked(
                    &view,
                    x,
                    &mut target,
                    [chunk.rows, in_features, batch],
                    out_features,
                )?;
            }
            multiplied.push(main.record_event(None).during("recording an event")?);
        }
        Ok(())
    }
}
