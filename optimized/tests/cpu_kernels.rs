//! Promises of the CPU kernels beyond right results, at every SIMD level of this machine: refusals, ranges,
//! threads and numbers that are not finite. Results are compared by `aqlm check` and
//! harness/aqlm/tests/cross_check.rs.

use aqlm_check::cases::{ProductCase, Values};
use aqlm_optimized::cpu::{CodebookPrecision, Form, PackedMatrix, Plan, SimdLevel, TablePrecision};
use aqlm_vocabulary::{AqlmError, QuantizedMatrix, Scheme};
use ndarray::{Array1, Array2, Array3, Array4};

/// The check's own product with these groups; x is [batch, in_features].
fn product(
    scheme: Scheme,
    [out_groups, in_groups]: [usize; 2],
    batch: usize,
    values: Values,
    seed: u64,
) -> (QuantizedMatrix, Array2<f32>) {
    let problem = ProductCase {
        scheme,
        out_groups,
        in_groups,
        batch,
        values,
    };
    let data = problem.data(seed);
    (data.matrix, data.x)
}

/// A realistic matrix and x.
fn case(
    scheme: Scheme,
    out_groups: usize,
    in_groups: usize,
    batch: usize,
    seed: u64,
) -> (QuantizedMatrix, Array2<f32>) {
    product(scheme, [out_groups, in_groups], batch, Values::Outliers, seed)
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

/// A matrix and x of small multiples of powers of two, every third row negative. Every sum is exact in f32,
/// in any order.
fn dyadic(
    scheme: Scheme,
    out_groups: usize,
    in_groups: usize,
    batch: usize,
) -> (QuantizedMatrix, Array2<f32>) {
    let (mut matrix, x) = product(scheme, [out_groups, in_groups], batch, Values::Dyadic, 3);
    matrix.tune(|_, mut scales| scales.iter_mut().step_by(3).for_each(|scale| *scale *= -1.0));
    (matrix, x)
}

/// The weight by its definition (section 3.1): the scaled sum of the codewords.
fn by_definition(matrix: &QuantizedMatrix) -> Array2<f32> {
    let scheme = matrix.scheme();
    let (go, gi) = (scheme.out_group_size, scheme.in_group_size);
    Array2::from_shape_fn((matrix.out_features(), matrix.in_features()), |(row, column)| {
        let (i, j) = (row / go, column / gi);
        let sum: f64 = (0..scheme.num_codebooks)
            .map(|m| matrix.codebooks()[[m, usize::from(matrix.codes()[[i, j, m]]), row % go, column % gi]])
            .sum();
        (matrix.scales()[i] * sum) as f32
    })
}

#[test]
fn exact_sums_come_out_exactly_in_every_form() {
    for (text, out_groups, in_groups) in [
        ("1x4g4", 150, 9),
        ("2x8g8", 70, 5),
        ("3x5g5o2", 65, 19),
        ("4x3g7", 20, 6),
        ("4x8g8", 66, 17),
        ("1x9g8", 5, 3),
        ("2x6g16", 64, 2),
        ("8x2g12", 1, 3),
        ("2x1g6o4", 7, 33),
    ] {
        let (matrix, x) = dyadic(scheme(text), out_groups, in_groups, 6);
        let weight = by_definition(&matrix);
        for plan in plans(matrix.scheme()) {
            let packed = PackedMatrix::new(&matrix, &plan).unwrap();
            assert_eq!(packed.decode(), weight, "{text} {plan:?}");
            if plan.form == Form::Table(TablePrecision::I8) {
                continue;
            }
            for rows in [1, 3, 6] {
                let x = x.slice(ndarray::s![..rows, ..]);
                assert_eq!(
                    packed.matmul(x).unwrap(),
                    x.dot(&weight.t()),
                    "{text} {rows} {plan:?}"
                );
            }
        }
    }
}

#[test]
fn codebooks_are_kept_in_f16_only_where_that_saves_much_and_loses_nothing() {
    // 32 KiB of f32 are 2^13 values: 1x10g8. "Large" begins above that.
    for (text, rounded, in_f16) in [
        ("1x10g8", true, false),
        ("1x11g8", true, true),
        ("1x11g8", false, false),
        ("2x10g8", true, true),
        ("1x11g5", true, true),
    ] {
        let (mut matrix, _) = case(scheme(text), 4, 3, 1, 8);
        if !rounded {
            matrix.tune(|mut codebooks, _| codebooks[[0, 2047, 0, 7]] = 1.0 + f64::from(f32::EPSILON));
        }
        let bytes = |codebooks| {
            let plan = Plan {
                form: Form::Direct,
                codebooks,
                ..Plan::choose(matrix.scheme(), 4, matrix.in_features())
            };
            PackedMatrix::new(&matrix, &plan).unwrap().bytes()
        };
        let expected = if in_f16 {
            CodebookPrecision::F16
        } else {
            CodebookPrecision::F32
        };
        assert_eq!(
            bytes(CodebookPrecision::Auto),
            bytes(expected),
            "{text} {rounded}"
        );
        let codebook = matrix.scheme().num_codebooks << matrix.scheme().nbits;
        let codes = 2 * matrix.codes().len();
        // padded to 8 values; the scales in f32
        assert_eq!(
            bytes(CodebookPrecision::F32),
            codes + 32 * codebook + 16,
            "{text}"
        );
        assert_eq!(
            bytes(CodebookPrecision::F16),
            codes + 16 * codebook + 16,
            "{text}"
        );
    }
    let (mut matrix, _) = case(scheme("2x5g8"), 70, 3, 1, 8);
    matrix.tune(|_, mut scales| scales[9] = -7.5);
    let plan = |form| Plan {
        form,
        codebooks: CodebookPrecision::F32,
        ..Plan::choose(matrix.scheme(), 70, 24)
    };
    let packed = |form| PackedMatrix::new(&matrix, &plan(form)).unwrap();
    assert_eq!(packed(Form::Direct).largest_scale(), 7.5);
    assert_eq!(packed(Form::Direct).bytes(), 70 * 3 * 2 + 2 * 32 * 8 * 4 + 70 * 4);
    // two tiles of 64 rows; tables of 2^5 codewords are padded to 64 entries, the least that a permutation
    // takes
    let tiled = packed(Form::Table(TablePrecision::F32)).bytes();
    assert_eq!(tiled, 128 * 3 * 2 + 2 * 8 * 64 * 4 + 70 * 4);
}

#[test]
fn the_choice_of_a_form_is_the_measured_one() {
    let form = |level, text, out_features| Plan::choose_at(level, scheme(text), out_features, 4096).form;
    for (level, fewest, precision) in [
        (SimdLevel::Avx512, 5, TablePrecision::I24),
        (SimdLevel::Portable, 2, TablePrecision::F32),
    ] {
        let rows = fewest * 256;
        assert_eq!(form(level, "2x8g8", rows), Form::Table(precision), "{level}");
        assert_eq!(form(level, "2x8g8", 5 * rows), Form::Table(precision), "{level}");
        assert_eq!(form(level, "2x8g8", rows - 1), Form::Direct, "{level}");
        assert_eq!(
            form(level, "2x8g8o2", 2 * rows),
            Form::Table(precision),
            "{level}"
        );
        assert_eq!(form(level, "2x8g8o2", 2 * rows - 2), Form::Direct, "{level}");
        assert_eq!(form(level, "2x9g8", 1 << 20), Form::Direct, "{level}");
    }
    for level in [SimdLevel::Avx2, SimdLevel::Neon] {
        assert_eq!(form(level, "2x8g8", 1 << 20), Form::Direct, "{level}");
    }
}

#[test]
fn coarser_tables_are_coarser() {
    let (matrix, x) = case(scheme("2x6g8"), 200, 30, 1, 6);
    let x = x.row(0).to_vec();
    for level in SimdLevel::available() {
        let [exact, fine, middle, coarse] = [
            TablePrecision::F32,
            TablePrecision::I24,
            TablePrecision::I16,
            TablePrecision::I8,
        ]
        .map(|precision| {
            let plan = Plan {
                level,
                form: Form::Table(precision),
                ..Plan::choose(matrix.scheme(), 200, 240)
            };
            let mut y = vec![0.0; 200];
            PackedMatrix::new(&matrix, &plan)
                .unwrap()
                .matvec(&x, &mut y)
                .unwrap();
            y
        });
        let off = |y: &[f32]| -> f32 { y.iter().zip(&exact).map(|(a, b)| (a - b).powi(2)).sum() };
        // steps of 2^-23, 2^-15 and 2^-7 of the largest entry: squared errors a factor of 2^16 apart, apart
        // from the rounding of f32
        assert!(
            off(&coarse) > 1e3 * off(&middle),
            "{level}: {} {}",
            off(&coarse),
            off(&middle)
        );
        assert!(
            off(&middle) > 1e2 * off(&fine),
            "{level}: {} {}",
            off(&middle),
            off(&fine)
        );
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn levels_are_those_of_the_processor() {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let flags: Vec<&str> = info
        .lines()
        .find(|line| line.starts_with("flags"))
        .unwrap()
        .split_whitespace()
        .collect();
    let has = |wanted: &[&str]| wanted.iter().all(|flag| flags.contains(flag));
    let avx2 = has(&["avx2", "fma", "f16c"]);
    let avx512 = avx2 && has(&["avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vbmi"]);
    assert_eq!(SimdLevel::Avx2.is_available(), avx2);
    assert_eq!(SimdLevel::Avx512.is_available(), avx512);
    assert!(SimdLevel::Portable.is_available() && !SimdLevel::Neon.is_available());
}

#[test]
fn a_matrix_without_columns_or_rows_is_empty() {
    for (out_groups, in_groups) in [(4, 0), (0, 4)] {
        let codes = Array3::zeros((out_groups, in_groups, 2));
        let (codebooks, scales) = (Array4::ones((2, 16, 1, 8)), Array1::ones(out_groups));
        let matrix = QuantizedMatrix::new(scheme("2x4g8"), codes, codebooks, scales).unwrap();
        let x = Array2::ones((5, 8 * in_groups));
        for plan in plans(matrix.scheme()) {
            let packed = PackedMatrix::new(&matrix, &plan).unwrap();
            assert_eq!(packed.decode().dim(), (out_groups, 8 * in_groups), "{plan:?}");
            let y = packed.matmul(x.view()).unwrap();
            assert_eq!(y.dim(), (5, out_groups), "{plan:?}");
            assert!(y.iter().all(|&y| y == 0.0), "{plan:?}");
        }
    }
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
    for plan in plans(matrix.scheme()) {
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
    let plan = Plan::choose(matrix.scheme(), 4, 24);
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
        assert!(matches!(level.pool(1), Err(AqlmError::Unsupported(_))));
    }
    // A matrix that breaks the invariants of the kernels cannot be built.
    let mut codes = matrix.codes().clone();
    codes[[3, 2, 1]] = 512;
    assert!(matches!(
        matrix.clone().with_codes(codes),
        Err(AqlmError::CodeOutOfRange {
            code: 512,
            index: [3, 2, 1],
            ..
        })
    ));
    assert!(matches!(
        matrix.clone().with_scales(Array1::ones(5)),
        Err(AqlmError::Shape { .. })
    ));
    let mut broken = matrix.clone();
    broken.tune(|mut codebooks, _| codebooks[[1, 7, 0, 2]] = 1.0e6);
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
fn a_pools_level_is_used_by_its_new_plans_and_by_no_other() {
    for level in SimdLevel::available() {
        let pool = level.pool(2).unwrap();
        let plans = pool.broadcast(|_| Plan::choose(scheme("2x8g8"), 4096, 4096).level);
        assert_eq!(plans, [level, level]);
        assert_eq!(level.to_string().parse::<SimdLevel>().unwrap(), level);
    }
    assert_eq!(Some(&SimdLevel::current()), SimdLevel::available().last());
    assert!("sse9".parse::<SimdLevel>().is_err());
}
