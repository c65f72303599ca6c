use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::error::{During, check_lengths};
use super::pack::Packed;
use super::{Activation, Blas, Buffer, Device, DeviceMatrix, Result};

/// Matmul for large batches: a chunk of the weight's rows is decoded into a buffer, cuBLAS multiplies it, and
/// the next chunk is decoded on a second stream, as far as the product leaves room.
///
/// Where the batch is large enough that the product is bound by arithmetic, decoding costs little beside it,
/// and the library's product is the fastest there is. A product's blocks fill multiprocessors to the last
/// register, so that nothing runs beside it on the same one: decoding and product take turns rather than
/// overlap.
pub struct DecodedMatmul<T: Activation> {
    chunks: Vec<Chunk>,
    /// decoded chunks, used in turn
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
    /// `matrix` is on the device for decode k2, `packed` its launch; `chunk_rows` rows, rounded up to a
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

    /// Bytes on the device beside the matrix: the decoded chunks.
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
        // The side stream starts after everything before this call: the buffers may be in use there.
        let mut multiplied = vec![main.record_event(None).during("recording an event")?];
        for (index, chunk) in self.chunks.iter().enumerate() {
            let turn = index % self.buffers.len();
            // The buffer's last product must be over; before the first of each buffer, what came before this
            // call.
            let free = &multiplied[(index + 1).saturating_sub(self.buffers.len())];
            self.side.wait(free).during("waiting for an event")?;
            let buffer = &mut self.buffers[turn];
            let mut view = buffer.slice_mut(..chunk.rows * in_features);
            chunk
                .decode
                .start_on(device, &self.side, None, &mut view, false)?;
            let decoded = self.side.record_event(None).during("recording an event")?;
            main.wait(&decoded).during("waiting for an event")?;
            let mut target = y.slice_mut(chunk.first_row..);
            // SAFETY: the chunk's rows are decoded into `view`, x has been checked, and rows of y are
            // `out_features` apart, the last element being (batch - 1) * out_features + first_row + rows - 1.
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
