use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream};

use super::error::{During, check_lengths};
use super::pack::Packed;
use super::{Activation, Blas, Device, DeviceMatrix, Result};

/// How [`DecodedMatmul`] divides its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DecodedConfig {
    /// rows of the weight that are decoded at a time
    pub rows: usize,
    /// products that run beside each other
    pub products: usize,
}

impl fmt::Display for DecodedConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows, {} products", self.rows, self.products)
    }
}

impl FromStr for DecodedConfig {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let parse = || {
            let (rows, products) = text.strip_suffix(" products")?.split_once(" rows, ")?;
            Some(Self {
                rows: rows.parse().ok()?,
                products: products.parse().ok()?,
            })
        };
        parse().ok_or_else(|| format!("expected `N rows, N products`, found `{text}`"))
    }
}

/// Matmul for large batches: chunks of the weight's rows are decoded into buffers that stay in the L2 cache, cuBLAS multiplies them, and other
/// chunks are decoded and multiplied meanwhile on streams of their own.
///
/// Where the batch is large enough that the product is bound by arithmetic, decoding costs little beside it, and the library's product is
/// the fastest there is. A product's last blocks leave multiprocessors idle; the next chunk's product, on another stream, fills them.
pub struct DecodedMatmul<T: Activation> {
    chunks: Vec<Chunk>,
    /// decoded chunks, used in turn: one for each product that runs, and one that is being decoded
    buffers: Vec<CudaSlice<T>>,
    /// the products' streams, each with its own handle: a handle has one stream and one workspace
    lanes: Vec<(Arc<CudaStream>, Arc<Blas>)>,
    decoder: Arc<CudaStream>,
    shape: [usize; 2],
}

struct Chunk {
    first_row: usize,
    rows: usize,
    decode: DeviceMatrix,
}

impl<T: Activation> DecodedMatmul<T> {
    /// `matrix` is on the device for decode k2, `packed` its launch. Rows are rounded up to a multiple of 8. `blas` is of the device's stream; the
    /// products beside the first take handles of their own.
    ///
    /// # Errors
    /// As [`DeviceMatrix::new`] and [`Blas::new`].
    pub fn new(
        device: &Device,
        blas: &Arc<Blas>,
        matrix: &DeviceMatrix,
        packed: &Packed,
        config: DecodedConfig,
    ) -> Result<Self> {
        let (out_features, in_features) = matrix.shape();
        let chunk_rows = config
            .rows
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
        let new_stream = || device.stream().context().new_stream().during("creating a stream");
        let mut lanes = vec![(Arc::clone(device.stream()), Arc::clone(blas))];
        for _ in 1..config.products.clamp(1, chunks.len()) {
            let stream = new_stream()?;
            let blas = Arc::new(Blas::on(&stream)?);
            lanes.push((stream, blas));
        }
        let buffers = (0..chunks.len().min(lanes.len() + 1))
            .map(|_| device.zeros(chunk_rows * in_features))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            chunks,
            buffers,
            lanes,
            decoder: new_stream()?,
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
    pub fn start(
        &mut self,
        device: &Device,
        x: &CudaSlice<T>,
        y: &mut CudaSlice<T>,
        batch: usize,
    ) -> Result<()> {
        let [out_features, in_features] = self.shape;
        check_lengths(&[
            ("x", batch * in_features, x.len()),
            ("y", batch * out_features, y.len()),
        ])?;
        let main = device.stream();
        let record = |stream: &Arc<CudaStream>| stream.record_event(None).during("recording an event");
        // All other streams start after everything before this call: the buffers may be in use there.
        let before = record(main)?;
        let mut multiplied = Vec::with_capacity(self.chunks.len());
        for (stream, _) in &self.lanes[1..] {
            stream.wait(&before).during("waiting for an event")?;
        }
        self.decoder.wait(&before).during("waiting for an event")?;
        for (index, chunk) in self.chunks.iter().enumerate() {
            let (turn, lane) = (index % self.buffers.len(), index % self.lanes.len());
            let (stream, blas) = &self.lanes[lane];
            // The buffer's last product must be over.
            if let Some(last) = index.checked_sub(self.buffers.len()) {
                self.decoder
                    .wait(&multiplied[last])
                    .during("waiting for an event")?;
            }
            let mut view = self.buffers[turn].slice_mut(..chunk.rows * in_features);
            chunk
                .decode
                .start_on(device, &self.decoder, None, &mut view, false)?;
            stream
                .wait(&record(&self.decoder)?)
                .during("waiting for an event")?;
            let mut target = y.slice_mut(chunk.first_row..);
            // SAFETY: the chunk's rows are decoded into `view`, x has been checked, and rows of y are `out_features` apart, the last
            // element being (batch - 1) * out_features + first_row + rows - 1.
            unsafe {
                blas.start_unchecked(
                    &view,
                    x,
                    &mut target,
                    [chunk.rows, in_features, batch],
                    out_features,
                )?;
            }
            multiplied.push(record(stream)?);
        }
        // What follows on the device's stream follows all of it.
        for done in multiplied.iter().rev().take(self.lanes.len()) {
            main.wait(done).during("waiting for an event")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::DecodedConfig;

    #[test]
    fn a_configuration_is_read_as_it_is_written() {
        let config = DecodedConfig {
            rows: 1408,
            products: 3,
        };
        assert_eq!(config.to_string().parse(), Ok(config));
        for bad in ["", "1408 rows", "x rows, 3 products", "1408 rows, products"] {
            assert!(bad.parse::<DecodedConfig>().is_err(), "{bad}");
        }
    }
}
