use std::hint::black_box;
use std::time::Instant;

use aqlm_optimized::cpu::product::linear;
use aqlm_optimized::cpu::{Form, PackedMatrix, Plan, SimdLevel, TablePrecision};
use aqlm_vocabulary::{AqlmError, QuantizedMatrix};
use faer::Par;
use ndarray::Array2;
use rayon::prelude::*;

use super::{
    BenchCase, BenchOptions, BenchReport, KernelRow, MemoryRate, Times, compared, empty_report, tiers,
};
use aqlm_check::cases::Operation;
use aqlm_check::{CaseRow, Cpu, Outcome, ProductCheck, Subject};
use aqlm_formats::{Error, Result};

/// Weight sets are duplicated until they reach this size, so that no call finds its weights in a cache. Also
/// the size of the array that is read and copied to measure the rates of memory.
const ROTATE_BYTES: usize = 256 << 20;
/// Maximum total time of all calls of a kernel, seconds.
const CALLS_SECONDS: f64 = 3.0;
const FEWEST_CALLS: usize = 5;

/// Runs the bench on this machine's processor: the measured plan of each SIMD level, on all threads of the
/// current pool.
///
/// `progress` receives a line before each kernel.
///
/// # Errors
/// A user's kernel, because these are for GPUs; invalid options, by name.
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
        report.memory = Some(memory_rate());
    }
    for &batch in &options.batches {
        let tiers = tiers(options, batch)?;
        let random = tiers[1].data();
        let least = tiers[1].cost().bytes;
        let mut case = BenchCase {
            batch,
            dense: None,
            least_bytes: least,
            roofline_us: report.memory.map(|rate| rate.least_us(least)),
            kernels: Vec::new(),
        };
        if options.replays > 0 && options.op != Operation::Decode {
            progress(&format!("{batch} rows: f32, faer"));
            let weight = aqlm_reference::decode(&random.matrix).mapv(|value| value as f32);
            case.dense = Some(times(options.replays, |_| {
                black_box(linear(random.x.view(), weight.view(), Par::rayon(0)));
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
            case.kernels.push(measure(row, options, &plan, &tiers));
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
fn measure(row: KernelRow, options: &BenchOptions, plan: &Plan, tiers: &[ProductCheck; 2]) -> KernelRow {
    let mut row = row;
    for tier in tiers {
        row = match check(tier, &tier.data().matrix, plan) {
            Ok(checked) => match compared(row, &checked) {
                Ok(row) => row,
                Err(row) => return *row,
            },
            Err(Error::Aqlm(AqlmError::Unsupported(reason))) => {
                return row.ended(Outcome::Unsupported, &reason);
            }
            Err(error) => return row.ended(Outcome::Fail, &error),
        };
    }
    row.outcome = Outcome::Pass;
    let random = tiers[1].data();
    let packed = match PackedMatrix::new(&random.matrix, plan) {
        Ok(packed) => packed,
        Err(error) => return row.ended(Outcome::Fail, &error),
    };
    row.bytes = Some(packed.bytes());
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
            row.us = Some(times(options.replays, |call| {
                // The same call checked the shapes above.
                let _ = black_box(run(options.op, &sets[call % sets.len()], &random.x));
            }));
            row
        }
        Err(error) => row.ended(Outcome::Fail, &error),
    }
}

/// The operation's result, row-major.
fn run(op: Operation, packed: &PackedMatrix, x: &Array2<f32>) -> std::result::Result<Vec<f32>, AqlmError> {
    let result = match op {
        Operation::Decode => packed.decode(),
        Operation::Matvec => {
            let x: Vec<f32> = x.iter().copied().collect();
            let mut y = vec![f32::NAN; packed.out_features()];
            packed.matvec(&x, &mut y)?;
            return Ok(y);
        }
        _ => packed.matmul(x.view())?,
    };
    Ok(result.into_raw_vec_and_offset().0)
}

/// Compares two results of a matrix with the reference's.
fn check(tier: &ProductCheck, matrix: &QuantizedMatrix, plan: &Plan) -> Result<CaseRow> {
    let packed = PackedMatrix::new(matrix, plan)?;
    let op = tier.case().operation;
    let result = || -> Result<Vec<f64>> {
        let found = run(op, &packed, &tier.data().x)?;
        Ok(found.into_iter().map(f64::from).collect())
    };
    let subject = Subject::Cpu(Cpu {
        plan: Some(*plan),
        ..Cpu::at(plan.level)?
    });
    tier.compare(&subject, &result()?, &result()?)
}

/// Times single calls: `most` of them, or as many as the time allows. The first call is not counted.
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

/// Rates of reading and of copying on all threads, bypassing the caches.
fn memory_rate() -> MemoryRate {
    let source = vec![1_u64; ROTATE_BYTES / size_of::<u64>()];
    let mut target = vec![0_u64; source.len()];
    let chunk = (1 << 20) / size_of::<u64>();
    let read = times(20, |_| {
        let sum: u64 = source
            .par_chunks(chunk)
            .map(|part| part.iter().fold(0_u64, |sum, word| sum.wrapping_add(*word)))
            .sum();
        black_box(sum);
    });
    let copied = times(20, |_| {
        target
            .par_chunks_mut(chunk)
            .zip(source.par_chunks(chunk))
            .for_each(|(target, source)| target.copy_from_slice(source));
        black_box(&target);
    });
    let rate = |bytes: usize, took: Times| bytes as f64 / (took.median * 1e-6);
    MemoryRate {
        read: rate(ROTATE_BYTES, read),
        copy: rate(2 * ROTATE_BYTES, copied),
    }
}

#[cfg(test)]
mod tests {
    use super::super::BenchActivations;
    use super::*;

    fn options(op: Operation, scheme: &str, batches: &[usize]) -> BenchOptions {
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
                (Operation::Matvec, &[1][..]),
                (Operation::Matmul, &[1, 33]),
                (Operation::Decode, &[1]),
            ] {
                let report = bench_cpu(&options(op, scheme, batches), &mut |_| ()).unwrap();
                let expected = batches.len() * SimdLevel::available().len();
                assert_eq!(report.count(Outcome::Pass), expected, "{report:?}");
            }
        }
    }

    #[test]
    fn a_matrix_other_than_the_expected_one_fails() {
        let options = options(Operation::Matmul, "2x8g8", &[3]);
        let plan = Plan::choose(options.scheme, options.out_features, options.in_features);
        let others = tiers(
            &BenchOptions {
                seed: 4,
                ..options.clone()
            },
            3,
        )
        .unwrap();
        for (tier, other) in tiers(&options, 3).unwrap().iter().zip(&others) {
            let right = check(tier, &tier.data().matrix, &plan).unwrap();
            assert_eq!(right.outcome, Outcome::Pass, "{right:?}");
            let wrong = check(tier, &other.data().matrix, &plan).unwrap();
            assert_eq!(wrong.outcome, Outcome::Fail);
            let row = compared(KernelRow::new("x", None), &wrong).unwrap_err();
            assert_eq!((row.outcome, row.worst.len()), (Outcome::Fail, 10));
        }
    }

    #[test]
    fn a_users_cuda_kernel_is_refused() {
        let mut options = options(Operation::Matvec, "2x8g8", &[1]);
        options.user_kernel = Some("x.cu".into());
        let error = bench_cpu(&options, &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains("--kernel") && error.contains("x.cu"), "{error}");
    }
}
