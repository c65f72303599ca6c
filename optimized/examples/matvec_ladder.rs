//! Measures the matvec ladder on the GPU at hand: every kernel is checked against a plain f64 product, then timed beside FP16 through cuBLAS
//! and a copy. Prints a table and, with `--json FILE`, writes one JSON line a row.
//!
//! `cargo run --release -p aqlm-optimized --example matvec_ladder -- [--kernels DIR] [--json FILE] [--only TEXT] [--replays N]`
//!
//! `--replays 0` checks without timing, for use under compute-sanitizer.

use std::io::Write;
use std::path::PathBuf;

use aqlm_optimized::cuda::pack::pack;
use aqlm_optimized::cuda::timing::{Timing, time_graph};
use aqlm_optimized::cuda::{CudaError, Device, DeviceMatrix};
use aqlm_reference::vocabulary::{QuantizedMatrix, Scheme};
use cudarc::cublas::{CudaBlas, Gemm, GemmConfig, sys as cublas};
use half::f16;
use ndarray::{Array1, Array3, Array4};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

type AnyResult<T> = Result<T, Box<dyn std::error::Error>>;

/// Weight sets are repeated until they take this much: three times the L2 cache of an H100.
const ROTATE_BYTES: usize = 150_000_000;

const CASES: &[(usize, usize, &str, &[&str])] = &[
    (
        11008,
        4096,
        "2x8g8",
        &["k1_naive", "k2_shared_codebook", "k3_lookup_table"],
    ),
    (11008, 4096, "1x8g8", &["k2_shared_codebook", "k3_lookup_table"]),
    (11008, 4096, "1x16g8", &["k1_naive", "k4_sliced_codebook"]),
    (11008, 4096, "1x16g16", &["k1_naive", "k4_sliced_codebook"]),
    (11008, 4096, "1x15g8", &["k1_naive", "k4_sliced_codebook"]),
    (11008, 4096, "2x12g8", &["k1_naive", "k2_shared_codebook"]),
    (11008, 4096, "1x12g8", &["k2_shared_codebook"]),
    (11008, 4096, "3x8g8", &["k2_shared_codebook", "k3_lookup_table"]),
    (11008, 4096, "4x8g8", &["k2_shared_codebook", "k3_lookup_table"]),
    (4096, 4096, "2x8g8", &["k3_lookup_table"]),
    (4096, 4096, "1x16g8", &["k4_sliced_codebook"]),
    (4096, 11008, "2x8g8", &["k3_lookup_table"]),
    (4096, 11008, "1x16g8", &["k4_sliced_codebook"]),
    (28672, 8192, "2x8g8", &["k3_lookup_table"]),
    (28672, 8192, "1x16g8", &["k4_sliced_codebook"]),
];

fn main() {
    let Err(error) = run() else { return };
    if let Some(CudaError::Absent(reason)) = error.downcast_ref::<CudaError>() {
        println!("waived: {reason}");
    } else {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn run() -> AnyResult<()> {
    let (mut kernels, mut json, mut only, mut replays) = (None, None, String::new(), 60);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments
            .next()
            .ok_or_else(|| format!("{argument} needs a value"))?;
        match argument.as_str() {
            "--kernels" => kernels = Some(PathBuf::from(value)),
            "--json" => json = Some(std::fs::File::create(value)?),
            "--only" => only = value,
            "--replays" => replays = value.parse()?,
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    let device = Device::open(0, kernels.as_deref())?;
    println!(
        "{}, compute {:?}, {:?}",
        device.name()?,
        device.compute(),
        device.target()
    );
    let copy = measure_copy(&device)?;
    println!("copy: {:.2} TB/s (bytes read + written)", copy / 1e12);
    println!(
        "{:<12} {:<8} {:<20} {:>9} {:>7} {:>7} {:>7} {:>9} {:>9} {:>10} {:>9}",
        "in->out", "scheme", "kernel", "us", "p10", "p90", "us pdl", "MB", "GB/s", "nmse", "regs/loc"
    );

    let mut shapes = Vec::new();
    for &(out_features, in_features, scheme, ids) in CASES {
        let shape = format!("{in_features}->{out_features}");
        if !shapes.contains(&shape) && replays > 0 && (only.is_empty() || "fp16".contains(&only)) {
            let timing = measure_fp16(&device, out_features, in_features)?;
            println!(
                "{shape:<12} {:<8} {:<20} {:>9.2} {:>7.2} {:>7.2}",
                "fp16", "cublas", timing.median, timing.p10, timing.p90
            );
            if let Some(file) = &mut json {
                writeln!(
                    file,
                    "{{\"in\":{in_features},\"out\":{out_features},\"scheme\":\"fp16\",\"kernel\":\"cublas\",\"us\":{:.3},\"p10\":{:.3},\"p90\":{:.3}}}",
                    timing.median, timing.p10, timing.p90
                )?;
            }
            shapes.push(shape.clone());
        }
        for kernel in ids {
            if !format!("{shape} {scheme} {kernel}").contains(&only) {
                continue;
            }
            let id = format!("matvec/{kernel}");
            match measure(&device, &id, scheme.parse()?, out_features, in_features, replays) {
                Ok(None) => println!("{shape:<12} {scheme:<8} {kernel:<20} right"),
                Ok(Some(row)) => {
                    let rate = row.bytes as f64 / row.timing.median / 1e3;
                    println!(
                        "{shape:<12} {scheme:<8} {kernel:<20} {:>9.2} {:>7.2} {:>7.2} {:>7.2} {:>9.2} {rate:>9.0} {:>10.2e} {:>5}/{}",
                        row.timing.median,
                        row.timing.p10,
                        row.timing.p90,
                        row.overlapped.median,
                        row.bytes as f64 / 1e6,
                        row.nmse,
                        row.resources.0,
                        row.resources.1
                    );
                    if let Some(file) = &mut json {
                        writeln!(
                            file,
                            "{{\"in\":{in_features},\"out\":{out_features},\"scheme\":\"{scheme}\",\"kernel\":\"{id}\",\"us\":{:.3},\"p10\":{:.3},\"p90\":{:.3},\"us_overlapped\":{:.3},\"bytes\":{},\"nmse\":{:e},\"copy_bytes_per_s\":{copy:e}}}",
                            row.timing.median,
                            row.timing.p10,
                            row.timing.p90,
                            row.overlapped.median,
                            row.bytes,
                            row.nmse
                        )?;
                    }
                }
                Err(error) => println!("{shape:<12} {scheme:<8} {kernel:<20} {error}"),
            }
        }
    }
    Ok(())
}

struct Row {
    timing: Timing,
    overlapped: Timing,
    bytes: usize,
    nmse: f64,
    resources: (i32, i32),
}

/// Checks the kernel on exact and on realistic inputs, then times it.
fn measure(
    device: &Device,
    id: &str,
    scheme: Scheme,
    out_features: usize,
    in_features: usize,
    replays: usize,
) -> AnyResult<Option<Row>> {
    let mut rng = ChaCha8Rng::seed_from_u64(out_features as u64 * 31 + in_features as u64);
    let stream = device.stream();

    // Exact tier: multiples of 1/8 of at most 1, so every product is a multiple of 1/64 and every sum is exact.
    let grid = |rng: &mut ChaCha8Rng| f64::from(rng.random_range(-8..=8)) / 8.0;
    let matrix = random_matrix(scheme, out_features, in_features, &mut rng, grid, |_| 0.25)?;
    let x: Vec<f16> = (0..in_features).map(|_| f16::from_f64(grid(&mut rng))).collect();
    let want = product(&matrix, &x);
    let found = apply(
        device,
        &DeviceMatrix::new(device, &pack(id, &matrix, device.target())?)?,
        &x,
    )?;
    let wrong: Vec<_> = want
        .iter()
        .zip(&found)
        .enumerate()
        .filter(|(_, (a, b))| f16::from_f64(**a) != **b)
        .collect();
    if let Some((row, (a, b))) = wrong.first() {
        return Err(format!(
            "exact tier: {} of {} rows differ, row {row}: {a} expected, {b} found",
            wrong.len(),
            want.len()
        )
        .into());
    }

    // Random tier: normal codewords, x with outliers.
    let matrix = random_matrix(
        scheme,
        out_features,
        in_features,
        &mut rng,
        |rng| 0.3 * normal(rng),
        |rng| 0.5 + 0.1 * normal(rng).abs(),
    )?
    .rounded_to_f16()?;
    let x: Vec<f16> = (0..in_features)
        .map(|_| f16::from_f64(normal(&mut rng) * if rng.random_range(0..100) == 0 { 20.0 } else { 1.0 }))
        .collect();
    let want = product(&matrix, &x);
    let packed = pack(id, &matrix, device.target())?;
    let first = DeviceMatrix::new(device, &packed)?;
    let found = apply(device, &first, &x)?;
    if found != apply(device, &first, &x)? {
        return Err("the same input gave different outputs".into());
    }
    let norm: f64 = want.iter().map(|a| a * a).sum();
    let nmse = want
        .iter()
        .zip(&found)
        .map(|(a, b)| (a - b.to_f64()).powi(2))
        .sum::<f64>()
        / norm;
    // f16 rounds with a relative error of at most u = 2^-11: once for the output, and in kernels that add up a group in f16 once a term of a
    // half group. Errors of different terms are independent, so their squares add up.
    let chain = scheme.num_codebooks * scheme.in_group_size / 2;
    let limit = 2f64.powi(-22) * (1 + chain) as f64;
    if !(norm > 0.0 && nmse <= limit) {
        return Err(format!("random tier: nmse {nmse:e}, limit {limit:e}").into());
    }

    if replays == 0 {
        return Ok(None);
    }
    let sets = ROTATE_BYTES.div_ceil(first.bytes()).max(2);
    let mut matrices = vec![first];
    for _ in 1..sets {
        matrices.push(DeviceMatrix::new(device, &packed)?);
    }
    let x = stream.clone_htod(&x)?;
    let mut outputs = (0..sets)
        .map(|_| stream.alloc_zeros::<f16>(out_features))
        .collect::<Result<Vec<_>, _>>()?;
    let calls = sets * 64_usize.div_ceil(sets);
    let timing = time_graph(device, calls, replays, |i| {
        matrices[i % sets].start(device, &x, &mut outputs[i % sets], false)
    })?;
    let overlapped = time_graph(device, calls, replays, |i| {
        matrices[i % sets].start(device, &x, &mut outputs[i % sets], true)
    })?;
    // What was timed is still what was checked.
    for output in &outputs {
        if stream.clone_dtoh(output)? != found {
            return Err("an output of a timed run differs from the checked one".into());
        }
    }
    Ok(Some(Row {
        timing,
        overlapped,
        bytes: matrices[0].bytes(),
        nmse,
        resources: matrices[0].resources()?,
    }))
}

fn apply(device: &Device, matrix: &DeviceMatrix, x: &[f16]) -> AnyResult<Vec<f16>> {
    let stream = device.stream();
    let x = stream.clone_htod(x)?;
    let mut y = stream.clone_htod(&vec![f16::NAN; matrix.shape().0])?;
    matrix.start(device, &x, &mut y, false)?;
    Ok(stream.clone_dtoh(&y)?)
}

fn random_matrix(
    scheme: Scheme,
    out_features: usize,
    in_features: usize,
    rng: &mut ChaCha8Rng,
    codeword: impl Fn(&mut ChaCha8Rng) -> f64,
    scale: impl Fn(&mut ChaCha8Rng) -> f64,
) -> AnyResult<QuantizedMatrix> {
    let (out_groups, in_groups) = scheme.groups(out_features, in_features)?;
    let mask = (scheme.codebook_size() - 1) as u32;
    let codes = Array3::from_shape_simple_fn((out_groups, in_groups, scheme.num_codebooks), || {
        (rng.next_u32() & mask) as u16
    });
    let shape = (
        scheme.num_codebooks,
        scheme.codebook_size(),
        scheme.out_group_size,
        scheme.in_group_size,
    );
    let codebooks = Array4::from_shape_simple_fn(shape, || codeword(rng));
    let scales = Array1::from_shape_simple_fn(out_groups, || scale(rng));
    Ok(QuantizedMatrix::new(scheme, codes, codebooks, scales)?)
}

/// Normal by the sum of twelve uniforms: tails don't matter here, codewords and inputs of varied size do.
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    (0..12).map(|_| rng.random_range(0.0..1.0)).sum::<f64>() - 6.0
}

/// W x by the definition, f64.
fn product(matrix: &QuantizedMatrix, x: &[f16]) -> Vec<f64> {
    let scheme = matrix.scheme;
    let x: Vec<f64> = x.iter().map(|value| value.to_f64()).collect();
    (0..matrix.out_features())
        .into_par_iter()
        .map(|row| {
            let (out_group, inner) = (row / scheme.out_group_size, row % scheme.out_group_size);
            let mut sum = 0.0;
            for (group, x) in x.chunks_exact(scheme.in_group_size).enumerate() {
                for m in 0..scheme.num_codebooks {
                    let code = usize::from(matrix.codes[[out_group, group, m]]);
                    for (i, value) in x.iter().enumerate() {
                        sum += matrix.codebooks[[m, code, inner, i]] * value;
                    }
                }
            }
            sum * matrix.scales[out_group]
        })
        .collect()
}

fn measure_copy(device: &Device) -> AnyResult<f64> {
    let stream = device.stream();
    let bytes = 512 << 20;
    let from = stream.alloc_zeros::<u8>(bytes)?;
    let mut to = stream.alloc_zeros::<u8>(bytes)?;
    let timing = time_graph(device, 4, 10, |_| {
        stream
            .memcpy_dtod(&from, &mut to)
            .map_err(|error| CudaError::Driver {
                during: "copying",
                error,
            })
    })?;
    Ok(2.0 * bytes as f64 / (timing.median * 1e-6))
}

fn measure_fp16(device: &Device, out_features: usize, in_features: usize) -> AnyResult<Timing> {
    let stream = device.stream();
    let blas = CudaBlas::new(stream.clone())?;
    let sets = ROTATE_BYTES.div_ceil(out_features * in_features * 2).max(2);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let host: Vec<f16> = (0..out_features * in_features)
        .map(|_| f16::from_bits((rng.next_u32() & 0x83ff) as u16 | 0x2c00))
        .collect();
    let weights = (0..sets)
        .map(|_| stream.clone_htod(&host))
        .collect::<Result<Vec<_>, _>>()?;
    let x = stream.clone_htod(&host[..in_features])?;
    let mut y = stream.alloc_zeros::<f16>(out_features)?;
    let config = GemmConfig {
        transa: cublas::cublasOperation_t::CUBLAS_OP_T,
        transb: cublas::cublasOperation_t::CUBLAS_OP_N,
        m: out_features as i32,
        n: 1,
        k: in_features as i32,
        alpha: f16::ONE,
        lda: in_features as i32,
        ldb: in_features as i32,
        beta: f16::ZERO,
        ldc: out_features as i32,
    };
    Ok(time_graph(device, sets * 16, 30, |i| {
        // SAFETY: the shapes above are those of the buffers.
        unsafe { blas.gemm(config, &weights[i % sets], &x, &mut y) }
            .map_err(|error| CudaError::Absent(format!("cuBLAS: {error:?}")))
    })?)
}
