use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use aqlm_optimized::cuda::dispatch::{Dispatched, dispatched};
use aqlm_optimized::cuda::pack::{Op, Packed, launch_configs, pack, with_config};
use aqlm_optimized::cuda::timing::{Timing, time_rested_graph};
use aqlm_optimized::cuda::{Activation, Blas, Buffer, CudaError, DecodedMatmul, Device, DeviceMatrix};
use aqlm_vocabulary::AqlmError;
use half::{bf16, f16};

use super::user_kernel::UserKernel;
use super::{
    BenchActivations, BenchCase, BenchOptions, BenchReport, KernelRow, Times, compared, empty_report,
    memory_rate, tiers, times,
};
use aqlm_check::cases::Operation;
use aqlm_check::{CaseRow, Cuda, Outcome, ProductCheck, Subject};
use aqlm_formats::Result;

/// Weight sets are duplicated until they reach this size: three times the L2 cache of an H100.
const ROTATE_BYTES: usize = 150_000_000;
/// Minimum number of calls in a graph, to amortize the cost of starting the graph. Fewer if that many take
/// longer than `GRAPH_US`.
const GRAPH_CALLS: usize = 64;
const GRAPH_US: f64 = 20_000.0;
/// The same limit if the device rests before each replay: the power limit takes longer than this to act.
const RESTED_GRAPH_US: f64 = 3_000.0;
/// Maximum total time of all replays of a kernel.
const REPLAYS_US: f64 = 400_000.0;
/// Numbers of weight rows that a matmul through cuBLAS decodes at a time, in the order tried. 33 tiles of 128
/// rows make two full rounds of 128 x 256 tiles at 2,048 rows of x on 132 multiprocessors.
const CHUNK_ROWS: [usize; 6] = [4224, 5632, 2816, 5504, 2112, 1408];
/// Name in listings of decoding followed by a cuBLAS product.
const DECODED: &str = "matmul/decode_cublas";
/// Smallest batch for which that is tried. Below it, decoding to memory takes several times as long as the
/// product.
const DECODED_FROM: usize = 64;

/// Runs the bench on the first GPU. Without a GPU, the report gives the reason in `waived`.
///
/// `progress` receives a line before each kernel.
///
/// # Errors
/// An invalid option or user's file, by name.
pub(crate) fn bench_cuda(options: &BenchOptions, progress: &mut dyn FnMut(&str)) -> Result<BenchReport> {
    let user = options
        .user_kernel
        .as_deref()
        .map(|path| UserKernel::read(path, options.op))
        .transpose()?;
    let dense = match options.activations {
        BenchActivations::F16 => "FP16, cuBLAS",
        BenchActivations::Bf16 => "BF16, cuBLAS",
    };
    let mut report = empty_report(options, options.activations.name(), dense);
    let opened = Device::open(0, options.kernel_folder.as_deref());
    let outcome = opened.and_then(|device| {
        report.device = Some(format!(
            "{}, compute capability {}.{}",
            device.name()?,
            device.compute().0,
            device.compute().1
        ));
        if options.replays > 0 {
            report.memory = Some(memory_rate(&device)?);
        }
        Ok(device)
    });
    let device = match outcome {
        Ok(device) => Arc::new(device),
        Err(CudaError::Absent(reason)) => {
            report.waived = Some(reason);
            return Ok(report);
        }
        Err(error) => return Err(AqlmError::from(error).into()),
    };
    match options.activations {
        BenchActivations::F16 => run::<f16>(&device, options, user.as_ref(), &mut report, progress)?,
        BenchActivations::Bf16 => run::<bf16>(&device, options, user.as_ref(), &mut report, progress)?,
    }
    Ok(report)
}

/// A format of x and y.
trait Element: Activation {
    fn nearest(value: f32) -> Self;
    fn widened(self) -> f64;
}

macro_rules! element {
    ($($format:ty),+) => {
        $(impl Element for $format {
            fn nearest(value: f32) -> Self {
                Self::from_f32(value)
            }

            fn widened(self) -> f64 {
                self.to_f64()
            }
        })+
    };
}
element!(f16, bf16);

/// All cases, with x and y in one format.
fn run<T: Element>(
    device: &Arc<Device>,
    options: &BenchOptions,
    user: Option<&UserKernel>,
    report: &mut BenchReport,
    progress: &mut dyn FnMut(&str),
) -> Result<()> {
    // The dense product is only a comparison, so its absence is not an error.
    let blas = Blas::new(device).ok().map(Arc::new);
    for &batch in &options.batches {
        let [exact, random] = tiers(options, batch)?;
        let bench = Bench::<T> {
            exact,
            random,
            blas: blas.clone(),
            device,
            options,
            format: PhantomData,
        };
        let case = bench.case(batch, user, report, progress);
        report.cases.push(case);
    }
    Ok(())
}

/// One batch.
struct Bench<'a, T> {
    device: &'a Arc<Device>,
    options: &'a BenchOptions,
    blas: Option<Arc<Blas>>,
    exact: ProductCheck,
    random: ProductCheck,
    format: PhantomData<T>,
}

/// A function that computes the operation on the device, launched with (x, y, overlap).
type Launch<'a, T> =
    Box<dyn FnMut(Option<&Buffer<T>>, &mut Buffer<T>, bool) -> std::result::Result<(), CudaError> + 'a>;

/// A function that computes the operation once, launched with (x, y).
type SingleLaunch<'a, T> =
    dyn FnMut(Option<&Buffer<T>>, &mut Buffer<T>) -> std::result::Result<(), CudaError> + 'a;

impl<T: Element> Bench<'_, T> {
    fn case(
        &self,
        batch: usize,
        user: Option<&UserKernel>,
        report: &BenchReport,
        progress: &mut dyn FnMut(&str),
    ) -> BenchCase {
        let options = self.options;
        let least = self.random.cost().bytes;
        let mut case = BenchCase {
            batch,
            dense: None,
            least_bytes: least,
            roofline_us: report.memory.map(|rate| rate.least_us(least)),
            kernels: Vec::new(),
        };
        if options.replays > 0 && options.op != Operation::Decode {
            progress(&format!("{batch} rows: FP16 through cuBLAS"));
            case.dense = self.dense(batch).ok();
        }
        let scheme = options.scheme;
        let claiming = aqlm_kernels::kernels().iter().filter(|kernel| {
            kernel.op == options.op.word()
                && kernel.id.contains(&options.only)
                && kernel.claims(
                    scheme.num_codebooks,
                    scheme.nbits,
                    scheme.in_group_size,
                    scheme.out_group_size,
                )
                && (kernel.batch[0]..=kernel.batch[1]).contains(&batch)
        });
        for kernel in claiming {
            progress(&format!("{batch} rows: {}", kernel.id));
            let (major, minor) = self.device.compute();
            let found = (major * 10 + minor) as u32;
            if found < kernel.min_compute || kernel.max_compute.is_some_and(|most| found > most) {
                let version = |compute: u32| format!("{}.{}", compute / 10, compute % 10);
                let most = kernel
                    .max_compute
                    .map_or_else(String::new, |most| format!(" to {}", version(most)));
                let reason = format!(
                    "needs compute capability {}{most}, this is {}",
                    version(kernel.min_compute),
                    version(found)
                );
                case.kernels
                    .push(KernelRow::new(&kernel.id, None).ended(Outcome::Unsupported, &reason));
                continue;
            }
            case.kernels.extend(self.shipped(&kernel.id, batch));
        }
        let decodes = aqlm_kernels::kernel("decode/k2_tiles").is_ok_and(|kernel| {
            kernel.claims(
                scheme.num_codebooks,
                scheme.nbits,
                scheme.in_group_size,
                scheme.out_group_size,
            )
        });
        if options.op == Operation::Matmul
            && batch >= DECODED_FROM
            && decodes
            && DECODED.contains(&options.only)
            && let Some(blas) = &self.blas
        {
            let table = self.table(batch).and_then(|table| table.decoded_rows);
            let choices = table_first(CHUNK_ROWS.to_vec(), table)
                .into_iter()
                .filter(|rows| decoded_config(*rows).contains(&options.config));
            for rows in choices.take(options.configs) {
                progress(&format!("{batch} rows: {DECODED}, {rows} rows at a time"));
                let mut row = self.decoded(blas, batch, rows);
                row.dispatched = table == Some(rows);
                case.kernels.push(row);
            }
        }
        if let Some(user) = user {
            let name = user.path.display().to_string();
            progress(&format!("{batch} rows: {name}"));
            case.kernels.push(self.users(user, batch));
        }
        case
    }

    /// A kernel of the ladder, in as many configurations as requested.
    fn shipped(&self, id: &str, batch: usize) -> Vec<KernelRow> {
        let options = self.options;
        let choices = launch_configs(
            id,
            options.scheme,
            options.out_features,
            options.in_features,
            batch,
            self.device.target(),
        );
        let table = self.table(batch).filter(|table| table.kernel == id);
        let configs: Vec<_> = if choices.is_empty() {
            vec![None]
        } else {
            table_first(choices, table.and_then(|table| table.config))
                .into_iter()
                .filter(|config| config.to_string().contains(&options.config))
                .take(options.configs)
                .map(Some)
                .collect()
        };
        configs
            .into_iter()
            .map(|config| {
                let name = config.map(|config| config.to_string());
                let pack_for = |inputs: &ProductCheck| {
                    let packed = self.packed(id, inputs, batch)?;
                    Ok(config.map_or_else(
                        || packed.clone(),
                        |config| with_config(&packed, self.options.scheme, self.device.target(), config),
                    ))
                };
                let mut row = KernelRow::new(id, name);
                row.dispatched = table.is_some_and(|table| table.config == config);
                self.measure(row, &pack_for, &|packed| DeviceMatrix::new(self.device, packed))
            })
            .collect()
    }

    /// A matrix for kernel `id` and this format of x and y.
    fn packed(
        &self,
        id: &str,
        inputs: &ProductCheck,
        batch: usize,
    ) -> std::result::Result<Packed, AqlmError> {
        pack(id, &inputs.data().matrix, self.device.target(), batch)?.with_activations(T::FORMAT)
    }

    /// The launch that the table of measurements chooses.
    fn table(&self, batch: usize) -> Option<Dispatched> {
        let op = match self.options.op {
            Operation::Matvec => Op::Matvec,
            Operation::Decode => Op::Decode,
            _ => Op::Matmul,
        };
        let shape = [self.options.out_features, self.options.in_features];
        let target = self.device.target();
        dispatched(
            op,
            self.options.scheme,
            shape,
            batch,
            self.device.compute(),
            target,
        )
    }

    /// The user's kernel, with the operands and the launch of the kernel named by `like`.
    fn users(&self, user: &UserKernel, batch: usize) -> KernelRow {
        let name = user.path.display().to_string();
        let row = KernelRow::new(&name, Some(format!("like {}", user.like)));
        let source =
            match aqlm_kernels::user_source(&user.source, &name, self.options.kernel_folder.as_deref()) {
                Ok(source) => source,
                Err(error) => return row.ended(Outcome::Fail, &error),
            };
        let pack_for = |inputs: &ProductCheck| {
            let mut packed = self.packed(&user.like, inputs, batch)?;
            packed.block = user.block.unwrap_or(packed.block);
            packed.shared_bytes = user.shared.unwrap_or(packed.shared_bytes);
            if let Some(rows) = user.rows_per_block {
                packed.grid[0] = packed.out_features.div_ceil(rows as usize) as u32;
            }
            Ok(packed)
        };
        self.measure(row, &pack_for, &|packed| {
            DeviceMatrix::with_source(self.device, packed, &name, &source)
        })
    }

    /// Checks at both tiers, then times.
    fn measure(
        &self,
        row: KernelRow,
        pack_for: &dyn Fn(&ProductCheck) -> std::result::Result<Packed, AqlmError>,
        upload: &dyn Fn(&Packed) -> std::result::Result<DeviceMatrix, CudaError>,
    ) -> KernelRow {
        let packed = match pack_for(&self.exact) {
            Ok(packed) => packed,
            Err(AqlmError::Unsupported(reason)) => return row.ended(Outcome::Unsupported, &reason),
            Err(error) => return row.ended(Outcome::Fail, &error),
        };
        let checked = upload(&packed)
            .and_then(|matrix| self.check(&self.exact, &mut |x, y| matrix.start(self.device, x, y, false)));
        let row = match Self::judged(row, checked) {
            Ok((row, _)) => row,
            Err(row) => return *row,
        };
        let packed = match pack_for(&self.random) {
            Ok(packed) => packed,
            Err(error) => return row.ended(Outcome::Fail, &error),
        };
        let first = match upload(&packed) {
            Ok(first) => first,
            Err(error) => return row.ended(Outcome::Fail, &error),
        };
        let checked = self.check(&self.random, &mut |x, y| first.start(self.device, x, y, false));
        let (mut row, output) = match Self::judged(row, checked) {
            Ok(passed) => passed,
            Err(row) => return *row,
        };
        row.outcome = Outcome::Pass;
        row.bytes = Some(first.bytes());
        row.registers = first.resources().ok();
        if self.options.replays == 0 {
            return row;
        }
        let timed = self.sets(first.bytes(), packed.y_len() * 2).and_then(|sets| {
            let mut matrices = vec![first];
            for _ in 1..sets {
                matrices.push(upload(&packed)?);
            }
            let launches = matrices
                .iter()
                .map(|matrix| -> Launch<'_, T> {
                    Box::new(|x, y, overlap| matrix.start(self.device, x, y, overlap))
                })
                .collect();
            self.time(launches, &output, true)
        });
        match timed {
            Ok((plain, overlapped)) => {
                row.us = Some(times(plain));
                row.us_overlapped = overlapped.map(|timing| timing.median);
                row
            }
            Err(error) => row.ended(Outcome::Fail, &error),
        }
    }

    /// Decodes chunks of the weight and multiplies each by cuBLAS.
    fn decoded(&self, blas: &Arc<Blas>, batch: usize, chunk_rows: usize) -> KernelRow {
        let mut row = KernelRow::new(DECODED, Some(decoded_config(chunk_rows)));
        let make = |packed: &Packed| {
            let matrix = DeviceMatrix::new(self.device, packed)?;
            DecodedMatmul::<T>::new(self.device, blas, &matrix, packed, chunk_rows)
                .map(|product| (product, matrix.bytes()))
        };
        let mut output = Vec::new();
        for inputs in [&self.exact, &self.random] {
            let packed = match self.packed("decode/k2_tiles", inputs, 1) {
                Ok(packed) => packed,
                Err(error) => return row.ended(Outcome::Unsupported, &error),
            };
            let checked = make(&packed).and_then(|(mut product, bytes)| {
                row.bytes = Some(bytes + product.buffer_bytes());
                self.check(inputs, &mut |x, y| match x {
                    Some(x) => product.start(self.device, x, y, batch),
                    None => Err(CudaError::Absent("matmul needs x".into())),
                })
            });
            (row, output) = match Self::judged(row, checked) {
                Ok(passed) => passed,
                Err(row) => return *row,
            };
        }
        row.outcome = Outcome::Pass;
        if self.options.replays == 0 {
            return row;
        }
        let timed = self
            .packed("decode/k2_tiles", &self.random, 1)
            .map_err(CudaError::from)
            .and_then(|packed| {
                let sets = self.sets(packed.bytes(), self.random.len() * 2)?;
                let products = (0..sets)
                    .map(|_| make(&packed).map(|(product, _)| product))
                    .collect::<std::result::Result<Vec<_>, _>>()?;
                let launches = products
                    .into_iter()
                    .map(|mut product| -> Launch<'_, T> {
                        Box::new(move |x, y, _| match x {
                            Some(x) => product.start(self.device, x, y, batch),
                            None => Err(CudaError::Absent("matmul needs x".into())),
                        })
                    })
                    .collect();
                self.time(launches, &output, false)
            });
        match timed {
            Ok((plain, _)) => {
                row.us = Some(times(plain));
                row
            }
            Err(error) => row.ended(Outcome::Fail, &error),
        }
    }

    /// Runs twice on poisoned outputs and compares the results. Returns the first output.
    fn check(
        &self,
        inputs: &ProductCheck,
        launch: &mut SingleLaunch<'_, T>,
    ) -> std::result::Result<(CaseRow, Vec<T>), CudaError> {
        let x = self.upload_x(inputs)?;
        let mut output = || -> std::result::Result<Vec<T>, CudaError> {
            let mut y = self.device.upload(&vec![T::NAN; inputs.len()])?;
            launch(x.as_ref(), &mut y)?;
            self.device.download(&y)
        };
        let (found, again) = (output()?, output()?);
        let wide = |y: &[T]| -> Vec<f64> { y.iter().map(|y| y.widened()).collect() };
        let compared = Cuda::on(Arc::clone(self.device), T::FORMAT)
            .and_then(|cuda| inputs.compare(&Subject::Cuda(cuda), &wide(&found), &wide(&again)));
        let checked = compared.unwrap_or_else(|error| {
            let (operation, case) = (inputs.case().operation.word(), inputs.case().to_string());
            CaseRow::without(operation, &case, "cuda", Outcome::Fail, error.to_string())
        });
        Ok((checked, found))
    }

    /// x in this format.
    fn x(inputs: &ProductCheck) -> Vec<T> {
        inputs.data().x.iter().map(|&x| T::nearest(x)).collect()
    }

    fn upload_x(&self, inputs: &ProductCheck) -> std::result::Result<Option<Buffer<T>>, CudaError> {
        let has_x = inputs.case().operation != Operation::Decode;
        has_x.then(|| self.device.upload(&Self::x(inputs))).transpose()
    }

    fn judged(
        row: KernelRow,
        checked: std::result::Result<(CaseRow, Vec<T>), CudaError>,
    ) -> std::result::Result<(KernelRow, Vec<T>), Box<KernelRow>> {
        match checked {
            Ok((checked, output)) => Ok((compared(row, &checked)?, output)),
            Err(CudaError::Aqlm(AqlmError::Unsupported(reason))) => {
                Err(Box::new(row.ended(Outcome::Unsupported, &reason)))
            }
            Err(error) => Err(Box::new(row.ended(Outcome::Fail, &error))),
        }
    }

    /// Number of copies of the weight to rotate over: more than fit in L2, at most half of the free memory.
    fn sets(&self, bytes: usize, output_bytes: usize) -> std::result::Result<usize, CudaError> {
        let wanted = ROTATE_BYTES.div_ceil(bytes.max(1)).max(2);
        let room = self.device.free_bytes()? / 2 / (bytes + output_bytes).max(1);
        Ok(wanted.min(room).max(1))
    }

    /// Times calls that cycle through the `launches`, then compares every output with the checked one.
    fn time(
        &self,
        mut launches: Vec<Launch<'_, T>>,
        checked: &[T],
        overlap: bool,
    ) -> std::result::Result<(Timing, Option<Timing>), CudaError> {
        let sets = launches.len();
        let x = self.upload_x(&self.random)?;
        let mut outputs = (0..sets)
            .map(|_| self.device.zeros(checked.len()))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let mut run = |calls: usize, replays: usize, overlapped: bool| {
            time_rested_graph(self.device, calls, replays, self.rest(), |i| {
                launches[i % sets](x.as_ref(), &mut outputs[i % sets], overlapped)
            })
        };
        let (calls, replays) = plan_replays(run(sets.min(8), 1, false)?.median, sets, self.options);
        let plain = run(calls, replays, false)?;
        let overlapped = if overlap && self.device.compute().0 >= 9 {
            Some(run(calls, replays, true)?)
        } else {
            None
        };
        for output in outputs.iter().take(calls) {
            if !same_bytes(&self.device.download(output)?, checked) {
                return Err(CudaError::Changed);
            }
        }
        Ok((plain, overlapped))
    }

    fn rest(&self) -> Duration {
        Duration::from_millis(self.options.rest)
    }

    /// Times the FP16 product of the same shape through cuBLAS.
    fn dense(&self, batch: usize) -> std::result::Result<Times, CudaError> {
        let blas = self
            .blas
            .as_ref()
            .ok_or_else(|| CudaError::Absent("no cuBLAS".into()))?;
        let (out_features, in_features) = (self.options.out_features, self.options.in_features);
        let count = out_features * in_features;
        let sets = self.sets(count * 2, batch * out_features * 2)?;
        // The order of x's values does not matter, but they must not be zeros, which draw less power.
        let x = Self::x(&self.random);
        let host: Vec<T> = x.iter().copied().cycle().take(count).collect();
        let weights = (0..sets)
            .map(|_| self.device.upload(&host))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let x = self.device.upload(&x)?;
        let mut y = self.device.zeros(batch * out_features)?;
        let mut run = |calls: usize, replays: usize| {
            time_rested_graph(self.device, calls, replays, self.rest(), |i| {
                blas.start(&weights[i % sets], &x, &mut y, [out_features, in_features, batch])
            })
        };
        let (calls, replays) = plan_replays(run(sets, 1)?.median, sets, self.options);
        run(calls, replays).map(times)
    }
}

/// Name in the table and listings of decoding `rows` rows at a time.
fn decoded_config(rows: usize) -> String {
    format!("{rows} rows")
}

/// `choices`, with the table's choice first.
fn table_first<T: PartialEq>(mut choices: Vec<T>, table: Option<T>) -> Vec<T> {
    if let Some(at) = table.and_then(|table| choices.iter().position(|choice| *choice == table)) {
        choices[..=at].rotate_right(1);
    }
    choices
}

/// Number of calls in a graph (if possible whole rounds over the sets) and of replays, for a call that takes
/// `us`.
fn plan_replays(us: f64, sets: usize, options: &BenchOptions) -> (usize, usize) {
    let graph_us = if options.rest > 0 {
        RESTED_GRAPH_US
    } else {
        GRAPH_US
    };
    let whole = sets * GRAPH_CALLS.div_ceil(sets);
    let calls = whole.min((graph_us / us.max(0.1)) as usize).max(1);
    let replays = options
        .replays
        .min((REPLAYS_US / (us.max(0.1) * calls as f64)) as usize)
        .max(5);
    (calls, replays)
}

/// Equal as bytes, so that NaN equals itself.
fn same_bytes<T: Activation>(a: &[T], b: &[T]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.bits() == b.bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_choice_is_tried_first() {
        assert_eq!(table_first(vec![1, 2, 3, 4], Some(3)), [3, 1, 2, 4]);
        assert_eq!(table_first(vec![1, 2], Some(9)), [1, 2]);
        assert_eq!(table_first(vec![1, 2], None), [1, 2]);
    }

    #[test]
    fn slow_kernels_are_called_less_often() {
        let options = |rest| BenchOptions {
            op: Operation::Matmul,
            scheme: "2x8g8".parse().unwrap(),
            out_features: 8,
            in_features: 8,
            activations: BenchActivations::F16,
            batches: vec![1],
            seed: 0,
            replays: 60,
            rest,
            only: String::new(),
            kernel_folder: None,
            user_kernel: None,
            configs: 1,
            config: String::new(),
        };
        assert_eq!(plan_replays(8.0, 14, &options(0)), (70, 60));
        assert_eq!(plan_replays(13_000.0, 7, &options(0)), (1, 30));
        assert_eq!(plan_replays(1e9, 2, &options(0)), (1, 5));
        assert_eq!(plan_replays(280.0, 7, &options(20)), (10, 60));
    }
}
