//! What the CPU kernels promise beyond right results, at every SIMD level that this machine has: refusals, ranges, threads
//! and numbers that are not finite. Results are compared by `aqlm check` and harness/tests/cross_check.rs.

use aqlm_optimized::cpu::{CodebookPrecision, Form, PackedMatrix, Plan, SimdLevel, TablePrecision};
use aqlm_reference::vocabulary::{AqlmError, Purpose, QuantizedMatrix, Scheme, Stream, stream};
use ndarray::{Array1, Array2, Array3, Array4};
use rand::RngExt;

/// Values of the random tier: bell-shaped with some outliers of twenty times the size, rounded to f16.
fn realistic(rng: &mut Stream) -> f64 {
    let bell: f64 = (0..4).map(|_| rng.random_range(-1.0..1.0)).sum();
    let value = if rng.random_bool(0.01) { 20.0 * bell } else { bell };
    half_rounded(value)
}

fn half_rounded(value: f64) -> f64 {
    half::f16::from_f64(value).to_f64()
}

/// A matrix and x [batch, in_features].
fn case(
    scheme: Scheme,
    out_groups: usize,
    in_groups: usize,
    batch: usize,
    seed: u64,
) -> (QuantizedMatrix, Array2<f32>) {
    let mut rng = stream(seed, 0, None, Purpose::TestData);
    let size = scheme.codebook_size();
    let codes = Array3::from_shape_simple_fn((out_groups, in_groups, scheme.num_codebooks), || {
        rng.random_range(0..size) as u16
    });
    let shape = (
        scheme.num_codebooks,
        size,
        scheme.out_group_size,
        scheme.in_group_size,
    );
    let codebooks = Array4::from_shape_simple_fn(shape, || realistic(&mut rng));
    let scales = Array1::from_shape_simple_fn(out_groups, || half_rounded(rng.random_range(0.01..0.1)));
    let matrix = QuantizedMatrix::new(scheme, codes, codebooks, scales).unwrap();
    let x = Array2::from_shape_simple_fn((batch, matrix.in_features()), || realistic(&mut rng) as f32);
    (matrix, x)
}

/// Every plan that this machine can run for a scheme.
fn plans(scheme: Scheme) -> Vec<Plan> {
    let mut forms = vec![Form::Direct];
    if scheme.nbits <= 8 {
        forms.extend(
            [
                TablePrecision::F32,
                TablePrecision::I24,
                TablePrecision::I16,
                TablePrecision::I8,
            ]
            .map(Form::Table),
        );
    }
    let mut plans = Vec::new();
    for level in SimdLevel::available() {
        for &form in &forms {
            for codebooks in [CodebookPrecision::F32, CodebookPrecision::F16] {
                for largest_matvec_batch in [0, 64] {
                    plans.push(Plan {
                        level,
                        form,
                        codebooks,
                        largest_matvec_batch,
                    });
                }
            }
        }
    }
    plans
}

fn scheme(text: &str) -> Scheme {
    text.parse().unwrap()
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let (matrix, x) = case(scheme("2x8g8"), 700, 40, 6, 1);
    for plan in plans(scheme("2x8g8")) {
        let packed = PackedMatrix::new(&matrix, &plan).unwrap();
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| (packed.decode(), packed.matmul(x.view()).unwrap()))
        };
        let alone = run(1);
        for threads in [2, 3, 7] {
            assert_eq!(run(threads), alone, "{threads} threads {plan:?}");
        }
    }
}

#[test]
fn infinite_and_nan_inputs_are_never_hidden() {
    for text in ["2x8g8", "1x4g8"] {
        let (matrix, x) = case(scheme(text), 70, 20, 1, 2);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = x.row(0).to_vec();
            x[77] = bad;
            for plan in plans(scheme(text)) {
                let mut y = vec![0.0; 70];
                PackedMatrix::new(&matrix, &plan)
                    .unwrap()
                    .matvec(&x, &mut y)
                    .unwrap();
                assert!(y.iter().all(|y| !y.is_finite()), "{plan:?}");
            }
        }
    }
}

#[test]
fn ranges_of_rows_decode_alone() {
    let (matrix, _) = case(scheme("2x4g8o2"), 150, 6, 1, 5);
    for plan in plans(matrix.scheme) {
        let packed = PackedMatrix::new(&matrix, &plan).unwrap();
        let whole = packed.decode();
        for range in [0..150, 10..20, 60..70, 100..150, 7..7] {
            let mut part = vec![f32::NAN; range.len() * 2 * 48];
            packed.decode_into(range.clone(), &mut part).unwrap();
            let rows = whole.slice(ndarray::s![2 * range.start..2 * range.end, ..]);
            assert!(part.iter().eq(rows.iter()), "{range:?} {plan:?}");
        }
        let mut part = [0.0; 96];
        assert!(matches!(
            packed.decode_into(150..151, &mut part),
            Err(AqlmError::Shape { .. })
        ));
        assert!(matches!(
            packed.decode_into(0..2, &mut part),
            Err(AqlmError::Shape { .. })
        ));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (matrix, _) = case(scheme("2x9g8"), 4, 3, 1, 0);
    let plan = Plan::choose(matrix.scheme, 4, 24);
    let table = Plan {
        form: Form::Table(TablePrecision::F32),
        ..plan
    };
    assert!(matches!(
        PackedMatrix::new(&matrix, &table),
        Err(AqlmError::Unsupported(_))
    ));
    if let Some(level) = SimdLevel::ALL.into_iter().find(|level| !level.is_available()) {
        assert!(matches!(
            PackedMatrix::new(&matrix, &Plan { level, ..plan }),
            Err(AqlmError::Unsupported(_))
        ));
        assert!(matches!(
            SimdLevel::force(Some(level)),
            Err(AqlmError::Unsupported(_))
        ));
    }
    let mut broken = matrix.clone();
    broken.codes[[3, 2, 1]] = 512;
    assert!(matches!(
        PackedMatrix::new(&broken, &plan),
        Err(AqlmError::CodeOutOfRange {
            code: 512,
            index: [3, 2, 1],
            ..
        })
    ));
    let mut broken = matrix.clone();
    broken.scales = Array1::ones(5);
    assert!(matches!(
        PackedMatrix::new(&broken, &plan),
        Err(AqlmError::Shape { .. })
    ));
    let mut broken = matrix.clone();
    broken.codebooks[[1, 7, 0, 2]] = 1.0e6;
    let narrow = Plan {
        codebooks: CodebookPrecision::F16,
        ..plan
    };
    assert!(matches!(
        PackedMatrix::new(&broken, &narrow),
        Err(AqlmError::NotFinite { index, .. }) if index == [1, 7, 0, 2]
    ));

    let packed = PackedMatrix::new(&matrix, &plan).unwrap();
    assert!(matches!(
        packed.matvec(&[0.0; 23], &mut [0.0; 4]),
        Err(AqlmError::Shape { .. })
    ));
    assert!(matches!(
        packed.matvec(&[0.0; 24], &mut [0.0; 5]),
        Err(AqlmError::Shape { .. })
    ));
    assert!(matches!(
        packed.matmul(Array2::zeros((2, 23)).view()),
        Err(AqlmError::Shape { .. })
    ));
}

#[test]
fn a_forced_level_is_used_by_new_plans() {
    for level in SimdLevel::available() {
        SimdLevel::force(Some(level)).unwrap();
        assert_eq!(Plan::choose(scheme("2x8g8"), 4096, 4096).level, level);
        assert_eq!(level.to_string().parse::<SimdLevel>().unwrap(), level);
    }
    SimdLevel::force(None).unwrap();
    assert_eq!(Some(&SimdLevel::current()), SimdLevel::available().last());
    assert!("sse9".parse::<SimdLevel>().is_err());
}
