//! Times matvec for every requested plan and prints one JSON line a plan, which benches/peers compares with
//! other libraries.
//!
//! `matvec_times SCHEME OUTxIN [SECONDS [LEVEL]]`

use std::process::ExitCode;
use std::time::Duration;

use aqlm_benches::{Times, case, copy_bandwidth, faer_matvec, ndarray_matvec, plans_at, time};
use aqlm_optimized::cpu::{PackedMatrix, SimdLevel};
use aqlm_vocabulary::Scheme;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}\nusage: matvec_times SCHEME OUTxIN [SECONDS [LEVEL]]");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &[String]) -> Result<(), String> {
    let [scheme, shape, rest @ ..] = arguments else {
        return Err("expected a scheme and a shape".into());
    };
    let scheme: Scheme = scheme.parse().map_err(|error| format!("{error}"))?;
    let (out_features, in_features) = shape
        .split_once('x')
        .and_then(|(o, i)| Some((o.parse().ok()?, i.parse().ok()?)))
        .ok_or_else(|| format!("shape `{shape}`: expected OUTxIN, for example 11008x4096"))?;
    let seconds = match rest.first() {
        Some(text) => text
            .parse()
            .map_err(|_| format!("seconds `{text}`: expected a number"))?,
        None => 1.0,
    };
    let budget = Duration::from_secs_f64(seconds);
    let levels = match rest.get(1) {
        Some(text) => vec![text.parse().map_err(|error| format!("{error}"))?],
        None => SimdLevel::available(),
    };
    let case = case(scheme, out_features, in_features, 1).map_err(|error| format!("{error}"))?;
    let mut y = vec![0.0; out_features];
    let report = |what: &str, bytes: usize, times: Times| {
        println!(
            "{{\"what\": \"{what}\", \"scheme\": \"{scheme}\", \"out\": {out_features}, \"in\": {in_features}, \
             \"threads\": {}, \"min_us\": {:.1}, \"median_us\": {:.1}, \"cpu_min_us\": {:.1}, \"cpu_median_us\": {:.1}, \"gb_per_s\": {:.2}, \"calls\": {}}}",
            rayon::current_num_threads(),
            times.min * 1e6,
            times.median * 1e6,
            times.cpu_min * 1e6,
            times.cpu_median * 1e6,
            bytes as f64 / times.median * 1e-9,
            times.calls,
        );
    };
    let mut dense = None;
    for level in levels {
        for (name, plan) in plans_at(level, scheme, out_features, in_features) {
            let packed = PackedMatrix::new(&case.matrix, &plan).map_err(|error| format!("{error}"))?;
            let weight = dense.get_or_insert_with(|| packed.decode());
            check(&packed, weight, &case.x, &mut y)?;
            let times = time(budget, || {
                // The lengths are right, because `check` has just used them.
                let _ = packed.matvec(&case.x, &mut y);
                std::hint::black_box(&mut y);
            });
            report(&name, packed.bytes(), times);
        }
    }
    let Some(weight) = dense else {
        return Err("no SIMD level".into());
    };
    let bytes = size_of_val(weight.as_slice().unwrap_or_default());
    report(
        "dense f32 faer",
        bytes,
        time(budget, || {
            std::hint::black_box(faer_matvec(&weight, &case.x));
        }),
    );
    report(
        "dense f32 ndarray",
        bytes,
        time(budget, || {
            ndarray_matvec(&weight, &case.x, &mut y);
            std::hint::black_box(&mut y);
        }),
    );
    let (best, median) = copy_bandwidth(budget);
    println!(
        "{{\"what\": \"copy\", \"gb_per_s_best\": {:.2}, \"gb_per_s_median\": {:.2}}}",
        best * 1e-9,
        median * 1e-9
    );
    Ok(())
}

/// Every result is checked before it is timed: y against the decoded weight times x in f64. The limit is the
/// rounding of a sum of that length in f32, plus the error of fixed-point tables.
fn check(
    packed: &PackedMatrix,
    weight: &ndarray::Array2<f32>,
    x: &[f32],
    y: &mut [f32],
) -> Result<(), String> {
    y.fill(f32::NAN);
    packed.matvec(x, y).map_err(|error| format!("{error}"))?;
    let tables = f64::from(packed.table_error_bound(x).map_err(|error| format!("{error}"))?);
    let scheme = packed.scheme();
    let largest_scale = packed.largest_scale();
    for (row, (found, weight)) in y.iter().zip(weight.outer_iter()).enumerate() {
        let (mut expected, mut size) = (0.0, 0.0);
        for (w, x) in weight.iter().zip(x) {
            let term = f64::from(*w) * f64::from(*x);
            expected += term;
            size += term.abs();
        }
        let roundings = (x.len() + scheme.num_codebooks + 5) as f64;
        let tables = tables * f64::from(largest_scale);
        // Codewords may cancel in the weight, but their own magnitudes are at most a few times larger.
        let limit = tables + roundings * f64::from(f32::EPSILON) * (size + tables);
        let error = (f64::from(*found) - expected).abs();
        if error.is_nan() || error > limit {
            return Err(format!(
                "row {row}: {found} against {expected}: {error:e} > {limit:e}; not timed"
            ));
        }
    }
    Ok(())
}
