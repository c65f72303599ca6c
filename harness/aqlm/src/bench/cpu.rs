use std::hint::black_box;
use std::time::Instant;

use aqlm_optimized::cpu::product::linear;
use aqlm_optimized::cpu::{Form, PackedMatrix, Plan, SimdLevel, TablePrecision};
use aqlm_vocabulary::AqlmError;
use faer::Par;
use half::f16;
use ndarray::Array2;
use rayon::prelude::*;

use super::inputs::Inputs;
use super::verdict::{Verdict, limit_f32};
use super::{BenchCase, BenchOp, BenchOptions, BenchReport, KernelRow, Times, empty_report, least_bytes};
use aqlm_check::Outcome;
use aqlm_formats::{Error, Result};

/// Weight sets are repeated until they take this much, so that no call finds its weights in a cache; also
/// what a copy moves.
const ROTATE_BYTES: usize = 256 << 20;
/// What all calls of a kernel may take together, seconds.
const CALLS_SECONDS: f64 = 3.0;
const FEWEST_CALLS: usize = 5;

/// Runs the bench on this machine's processor: the measured plan of each SIMD level, on all threads of the
/// current pool.
///
/// `progress` gets a line before each kernel.
///
/// # Errors
/// A user's kernel (that is for GPUs), or options that cannot be used, by name.
pub(crate) fn bench_cpu(options: &BenchOptions, progress: &mut dyn FnMut(&str)) -> Result<BenchReport> {
    if let Some(path) = &options.user_kernel {
        return Err(Error::argument(
            "--kernel",
            "a CUDA source, for --backend cuda",
            path.display().to_string(),
        ));
    }
    let mut report = empty_report(options, "f32", "f32, faer");
    report.device = Some(format!(
        "this processor, {} threads",
        rayon::current_num_threads()
    ));
    if options.replays > 0 {
        report.copy_bytes_per_second = Some(copy_rate());
    }
    let (exact, random) = (Inputs::exact(options)?, Inputs::random(options)?);
    let weight = aqlm_reference::decode(&random.matrix).mapv(|value| value as f32);
    for &batch in &options.batches {
        let least = least_bytes(options, batch);
        let mut case = BenchCase {
            batch,
            dense: None,
            least_bytes: least,
            roofline_us: report.copy_bytes_per_second.map(|rate| least as f64 / rate * 1e6),
            kernels: Vec::new(),
        };
        if options.replays > 0 && options.op != BenchOp::Decode {
            progress(&format!("{batch} rows: f32, faer"));
            let x = rows_of(&random, batch, options.in_features);
            case.dense = Some(times(options.replays, |_| {
                black_box(linear(x.view(), weight.view(), Par::rayon(0)));
            }));
        }
        let best = SimdLevel::current();
        for level in SimdLevel::available() {
            let id = format!("cpu/{level}");
            if !id.contains(&options.only) {
                continue;
            }
            progress(&format!("{batch} rows: {id}"));
            let plan = Plan::choose_at(level, options.scheme, options.out_features, options.in_features);
            let mut row = KernelRow::new(&id, Some(describe(&plan)));
            row.dispatched = level == best;
            case.kernels
                .push(measure(row, options, &plan, batch, [&exact, &random]));
        }
        report.cases.push(case);
    }
    Ok(report)
}

fn describe(plan: &Plan) -> String {
    match plan.form {
        Form::Direct => "codewords".to_owned(),
        Form::Table(TablePrecision::F32) => "tables, f32".to_owned(),
        Form::Table(TablePrecision::I24) => "tables, 24 bits".to_owned(),
        Form::Table(TablePrecision::I16) => "tables, 16 bits".to_owned(),
        Form::Table(TablePrecision::I8) => "tables, 8 bits".to_owned(),
    }
}

/// Checks at both tiers, then times.
fn measure(
    row: KernelRow,
    options: &BenchOptions,
    plan: &Plan,
    batch: usize,
    [exact, random]: [&Inputs<f16>; 2],
) -> KernelRow {
    let checked = check(options, plan, batch, exact, true).and_then(|(verdict, _)| match verdict {
        Verdict::Right(_) => check(options, plan, batch, random, false),
        wrong @ Verdict::Wrong(..) => Ok((wrong, None)),
    });
    let mut row = row;
    let packed = match checked {
        Ok((Verdict::Right(nmse), Some(packed))) => {
            row.nmse = Some(nmse);
            row.bytes = Some(packed.bytes());
            row.outcome = Outcome::Pass;
            packed
        }
        Ok((Verdict::Wrong(reason, worst), _)) => {
            row.worst = worst;
            return row.ended(Outcome::Fail, &reason);
        }
        Ok((Verdict::Right(_), None)) => return row.ended(Outcome::Fail, &"nothing was compared"),
        Err(AqlmError::Unsupported(reason)) => return row.ended(Outcome::Unsupported, &reason),
        Err(error) => return row.ended(Outcome::Fail, &error),
    };
    if options.replays == 0 {
        return row;
    }
    let copies = ROTATE_BYTES.div_ceil(packed.bytes().max(1)).max(2);
    let sets: std::result::Result<Vec<_>, _> = (1..copies)
        .map(|_| PackedMatrix::new(&random.matrix, plan))
        .collect();
    match sets {
        Ok(mut sets) => {
            sets.push(packed);
            let x = rows_of(random, batch, options.in_features);
            row.us = Some(times(options.replays, |call| {
                // Shapes were checked by the same call above.
                let _ = black_box(run(options.op, &sets[call % sets.len()], &x));
            }));
            row
        }
        Err(error) => row.ended(Outcome::Fail, &error),
    }
}

/// The operation's result, row-major.
fn run(op: BenchOp, packed: &PackedMatrix, x: &Array2<f32>) -> std::result::Result<Vec<f32>, AqlmError> {
    let result = match op {
        BenchOp::Decode => packed.decode(),
        BenchOp::Matmul => packed.matmul(x.view())?,
        BenchOp::Matvec => {
            let x: Vec<f32> = x.iter().copied().collect();
            let mut y = vec![f32::NAN; packed.out_features()];
            packed.matvec(&x, &mut y)?;
            return Ok(y);
        }
    };
    Ok(result.into_raw_vec_and_offset().0)
}

/// Compares with the reference; on realistic inputs, a second time for equal bytes.
fn check(
    options: &BenchOptions,
    plan: &Plan,
    batch: usize,
    inputs: &Inputs<f16>,
    exact: bool,
) -> std::result::Result<(Verdict, Option<PackedMatrix>), AqlmError> {
    let packed = PackedMatrix::new(&inputs.matrix, plan)?;
    let x = rows_of(inputs, batch, options.in_features);
    let expected = inputs.expected(batch);
    let found = run(options.op, &packed, &x)?;
    let columns = match options.op {
        BenchOp::Decode => options.in_features,
        BenchOp::Matvec | BenchOp::Matmul => options.out_features,
    };
    if exact {
        return Ok((Verdict::exact(&found, expected, columns), Some(packed)));
    }
    // What fixed-point tables may add to each element, squared and summed.
    let scale = f64::from(packed.largest_scale());
    let mut tables = 0.0;
    if options.op != BenchOp::Decode {
        for x in x.outer_iter() {
            let bound = f64::from(packed.table_error_bound(&x.to_vec())?);
            tables += (bound * scale).powi(2) * options.out_features as f64;
        }
    }
    let norm: f64 = expected.iter().map(|value| value * value).sum();
    let limit = limit_f32(options.op, options.scheme.num_codebooks, options.in_features)
        + tables / norm.max(f64::MIN_POSITIVE);
    let verdict = Verdict::close(&found, expected, columns, limit);
    let again = run(options.op, &packed, &x)?;
    if matches!(verdict, Verdict::Right(_))
        && again.iter().zip(&found).any(|(a, b)| a.to_bits() != b.to_bits())
    {
        let reason = "the same input gave different outputs".to_owned();
        return Ok((Verdict::Wrong(reason, Vec::new()), None));
    }
    Ok((verdict, Some(packed)))
}

/// x [batch, in_features]; no rows for a decode.
fn rows_of(inputs: &Inputs<f16>, batch: usize, in_features: usize) -> Array2<f32> {
    let x = inputs.x(batch);
    Array2::from_shape_fn((x.len() / in_features.max(1), in_features), |(n, i)| {
        x[n * in_features + i].to_f32()
    })
}

/// Times calls one by one, `most` of them or as many as fit the time; the first is not counted.
fn times(most: usize, mut call: impl FnMut(usize)) -> Times {
    call(0);
    let start = Instant::now();
    let mut samples = Vec::with_capacity(most);
    while samples.len() < FEWEST_CALLS
        || samples.len() < most && start.elapsed().as_secs_f64() < CALLS_SECONDS
    {
        let begin = Instant::now();
        call(samples.len() + 1);
        samples.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    samples.sort_by(f64::total_cmp);
    let at = |part: f64| samples[((samples.len() - 1) as f64 * part).round() as usize];
    Times {
        median: at(0.5),
        p10: at(0.1),
        p90: at(0.9),
    }
}

/// Bytes read and written a second by copying on all threads, past the caches.
fn copy_rate() -> f64 {
    let source = vec![1_u8; ROTATE_BYTES];
    let mut target = vec![0_u8; ROTATE_BYTES];
    let chunk = 1 << 20;
    let took = times(20, |_| {
        target
            .par_chunks_mut(chunk)
            .zip(source.par_chunks(chunk))
            .for_each(|(target, source)| target.copy_from_slice(source));
        black_box(&target);
    });
    2.0 * ROTATE_BYTES as f64 / (took.median * 1e-6)
}

#[cfg(test)]
mod tests {
    use super::super::BenchActivations;
    use super::*;

    fn options(op: BenchOp, scheme: &str, batches: &[usize]) -> BenchOptions {
        BenchOptions {
            op,
            scheme: scheme.parse().unwrap(),
            out_features: 264,
            in_features: 176,
            activations: BenchActivations::F16,
            batches: batches.to_vec(),
            seed: 3,
            replays: 0,
            rest: 0,
            only: String::new(),
            kernel_folder: None,
            user_kernel: None,
            configs: 1,
            config: String::new(),
        }
    }

    #[test]
    fn every_level_passes_both_tiers() {
        for scheme in ["2x8g8", "1x16g8", "2x5g4o2"] {
            for (op, batches) in [
                (BenchOp::Matvec, &[1][..]),
                (BenchOp::Matmul, &[1, 33]),
                (BenchOp::Decode, &[1]),
            ] {
                let report = bench_cpu(&options(op, scheme, batches), &mut |_| ()).unwrap();
                let expected = batches.len() * SimdLevel::available().len();
                assert_eq!(report.count(Outcome::Pass), expected, "{report:?}");
            }
        }
    }

    #[test]
    fn a_matrix_other_than_the_expected_one_fails() {
        let options = options(BenchOp::Matmul, "2x8g8", &[3]);
        let plan = Plan::choose(options.scheme, options.out_features, options.in_features);
        for exact in [true, false] {
            let make = |seed| {
                let options = BenchOptions {
                    seed,
                    ..options.clone()
                };
                if exact {
                    Inputs::exact(&options)
                } else {
                    Inputs::random(&options)
                }
                .unwrap()
            };
            let mut inputs = make(3);
            inputs.matrix = make(4).matrix;
            let (verdict, _) = check(&options, &plan, 3, &inputs, exact).unwrap();
            assert!(matches!(verdict, Verdict::Wrong(..)), "{verdict:?}");
        }
    }

    #[test]
    fn a_users_cuda_kernel_is_refused() {
        let mut options = options(BenchOp::Matvec, "2x8g8", &[1]);
        options.user_kernel = Some("x.cu".into());
        let error = bench_cpu(&options, &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains("--kernel") && error.contains("x.cu"), "{error}");
    }
}
