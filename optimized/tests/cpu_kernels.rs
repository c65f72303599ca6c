//! decode, matvec and matmul of the CPU backend against the reference, at every SIMD level
//! that this machine has.

use aqlm_optimized::cpu::{CodebookPrecision, Form, PackedMatrix, Plan, SimdLevel, TablePrecision};
use aqlm_reference::decode;
use aqlm_reference::vocabulary::{AqlmError, Purpose, QuantizedMatrix, Scheme, Stream, stream};
use ndarray::{Array1, Array2, Array3, Array4};
use proptest::prelude::*;
use rand::RngExt;

/// Values of the exact tier: multiples of 1/8 of size at most 1 in codebooks and x, scales that are powers of two. A
/// product is then a multiple of 1/64, and any sum of fewer than 2^17 of them is exact in f32.
fn dyadic(rng: &mut Stream) -> f64 {
    f64::from(rng.random_range(-8..=8)) / 8.0
}

/// Values of the random tier: bell-shaped with some outliers of twenty times the size, rounded to f16.
fn realistic(rng: &mut Stream) -> f64 {
    let bell: f64 = (0..4).map(|_| rng.random_range(-1.0..1.0)).sum();
    let value = if rng.random_bool(0.01) { 20.0 * bell } else { bell };
    half_rounded(value)
}

fn half_rounded(value: f64) -> f64 {
    half::f16::from_f64(value).to_f64()
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Tier {
    Exact,
    Random,
}

/// A matrix and x [batch, in_features].
fn case(
    tier: Tier,
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
    let draw = |rng: &mut Stream| match tier {
        Tier::Exact => dyadic(rng),
        Tier::Random => realistic(rng),
    };
    let shape = (
        scheme.num_codebooks,
        size,
        scheme.out_group_size,
        scheme.in_group_size,
    );
    let codebooks = Array4::from_shape_simple_fn(shape, || draw(&mut rng));
    let scales = Array1::from_shape_simple_fn(out_groups, || match tier {
        Tier::Exact => 2f64.powi(rng.random_range(-2..=2)),
        Tier::Random => half_rounded(rng.random_range(0.01..0.1)),
    });
    let matrix = QuantizedMatrix::new(scheme, codes, codebooks, scales).unwrap();
    let x = Array2::from_shape_simple_fn((batch, matrix.in_features()), || draw(&mut rng) as f32);
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

/// What errors are compared to: the reference's results, and the sums of magnitudes that roundings are relative to.
struct Expected {
    /// the weight in f64
    weight: Array2<f64>,
    /// |scale| sum_m |codeword|, element by element
    weight_magnitudes: Array2<f64>,
    /// x W^T in f64
    product: Array2<f64>,
    /// |x| times the magnitudes of the weight
    product_magnitudes: Array2<f64>,
}

impl Expected {
    fn new(matrix: &QuantizedMatrix, x: &Array2<f32>) -> Self {
        let mut magnitudes = matrix.clone();
        magnitudes.codebooks.mapv_inplace(f64::abs);
        magnitudes.scales.mapv_inplace(f64::abs);
        let (weight, weight_magnitudes) = (decode(matrix), decode(&magnitudes));
        let expected = Self {
            product: x.mapv(f64::from).dot(&weight.t()),
            product_magnitudes: x.mapv(|x| f64::from(x.abs())).dot(&weight_magnitudes.t()),
            weight,
            weight_magnitudes,
        };
        assert!(
            expected.product.iter().any(|&y| y != 0.0),
            "a product of zeros shows nothing"
        );
        expected
    }
}

/// |found - expected| of every element within `roundings` roundings of f32, each at most eps/2 of the element's sum of
/// magnitudes (Higham's gamma_n to first order; n eps is far below 1 here), plus what the form adds itself. It bounds
/// the NMSE too, by the square of n eps/2 times the ratio of the two norms.
fn assert_close<'a>(
    found: impl IntoIterator<Item = &'a f32>,
    expected: impl IntoIterator<Item = &'a f64>,
    magnitudes: impl IntoIterator<Item = &'a f64>,
    roundings: usize,
    extra: impl Fn(usize) -> f64,
    what: &str,
) {
    let unit = f64::from(f32::EPSILON) / 2.0;
    for (i, ((&found, &expected), &magnitude)) in found.into_iter().zip(expected).zip(magnitudes).enumerate()
    {
        let limit = extra(i) + roundings as f64 * unit * (magnitude + extra(i));
        let error = (f64::from(found) - expected).abs();
        assert!(error <= limit, "{what}, element {i}: error {error:e} > {limit:e}");
    }
}

fn check(tier: Tier, scheme: Scheme, out_groups: usize, in_groups: usize, batch: usize, seed: u64) {
    let (matrix, x) = case(tier, scheme, out_groups, in_groups, batch, seed);
    let expected = Expected::new(&matrix, &x);
    for plan in plans(scheme) {
        let what = format!("{scheme} {tier:?} {out_groups}x{in_groups} batch {batch} seed {seed} {plan:?}");
        let packed = PackedMatrix::new(&matrix, &plan).unwrap();
        // 8-bit tables cannot hold the exact tier's sums; the others can: 24 and 16 bits cover 64 x 2 in steps of 1/64.
        let exact = tier == Tier::Exact && plan.form != Form::Table(TablePrecision::I8);
        // a codeword's sum and its scaling; the scaled product, its terms, and the sums of blocks
        let decode_roundings = scheme.num_codebooks + 1;
        let product_roundings = matrix.in_features() + scheme.num_codebooks + 4;

        let decoded = packed.decode();
        match tier {
            Tier::Exact => assert_eq!(decoded.mapv(f64::from), expected.weight, "decode {what}"),
            Tier::Random => assert_close(
                &decoded,
                &expected.weight,
                &expected.weight_magnitudes,
                decode_roundings,
                |_| 0.0,
                &format!("decode {what}"),
            ),
        }

        for (b, x) in x.outer_iter().enumerate() {
            let what = format!("matvec {what}");
            let x = x.as_slice().unwrap();
            let mut y = vec![f32::NAN; matrix.out_features()];
            packed.matvec(x, &mut y).unwrap();
            let mut again = vec![f32::NAN; y.len()];
            packed.matvec(x, &mut again).unwrap();
            assert_eq!(y, again, "twice the same, {what}");
            if exact {
                let y: Vec<f64> = y.iter().copied().map(f64::from).collect();
                assert_eq!(y, expected.product.row(b).to_vec(), "{what}");
            } else {
                let bound = f64::from(packed.table_error_bound(x).unwrap());
                assert_close(
                    &y,
                    expected.product.row(b),
                    expected.product_magnitudes.row(b),
                    product_roundings,
                    |row| bound * matrix.scales[row / scheme.out_group_size].abs(),
                    &what,
                );
            }
        }

        let what = format!("matmul {what}");
        let mut y = Array2::from_elem(expected.product.dim(), f32::NAN);
        packed.matmul_into(x.view(), y.view_mut()).unwrap();
        if plan.largest_matvec_batch >= batch {
            let mut row = vec![f32::NAN; matrix.out_features()];
            for (x, y) in x.outer_iter().zip(y.outer_iter()) {
                packed.matvec(x.as_slice().unwrap(), &mut row).unwrap();
                assert_eq!(y.to_vec(), row, "{what}");
            }
        } else if tier == Tier::Exact {
            assert_eq!(y.mapv(f64::from), expected.product, "{what}");
        } else {
            assert_close(
                &y,
                &expected.product,
                &expected.product_magnitudes,
                product_roundings + decode_roundings,
                |_| 0.0,
                &what,
            );
        }
    }
}

fn scheme(text: &str) -> Scheme {
    text.parse().unwrap()
}

#[test]
fn every_code_width() {
    for nbits in 1..=16 {
        let groups = if nbits > 12 { 3 } else { 5 };
        for tier in [Tier::Exact, Tier::Random] {
            check(
                tier,
                Scheme::new(2, nbits, 8).unwrap(),
                70,
                groups,
                2,
                u64::from(nbits),
            );
        }
    }
}

#[test]
fn every_number_of_codebooks() {
    for codebooks in [1, 2, 3, 4, 5, 6, 7, 8, 15, 17] {
        for tier in [Tier::Exact, Tier::Random] {
            check(
                tier,
                Scheme::new(codebooks, 4, 8).unwrap(),
                9,
                11,
                1,
                codebooks as u64,
            );
        }
    }
}

#[test]
fn every_group_shape() {
    for in_group in [1, 3, 4, 7, 8, 12, 16, 20, 24, 32, 48, 64] {
        for out_group in 1..=4 {
            let scheme = Scheme::with_out_group(2, 5, in_group, out_group).unwrap();
            for tier in [Tier::Exact, Tier::Random] {
                check(tier, scheme, 5, 6, 1, (in_group * 8 + out_group) as u64);
            }
        }
    }
}

#[test]
fn ragged_edges_of_rows_and_groups() {
    // Around the tile of 64 rows, the four rows of the direct form and the block of 16 look-ups.
    for out_groups in [1, 3, 4, 5, 63, 64, 65, 129] {
        for in_groups in [1, 7, 8, 9, 17] {
            for tier in [Tier::Exact, Tier::Random] {
                check(
                    tier,
                    scheme("2x8g8"),
                    out_groups,
                    in_groups,
                    3,
                    (out_groups * 32 + in_groups) as u64,
                );
            }
        }
    }
}

#[test]
fn tiles_of_matmul_end_anywhere() {
    // 1 MiB of decoded rows is 512 rows of 512 inputs: one tile and a bit.
    for tier in [Tier::Exact, Tier::Random] {
        check(tier, scheme("2x6g8"), 530, 64, 5, 3);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_scheme_and_shape(
        codebooks in 1..=8usize, nbits in 1..=10u32, in_group in 4..=64usize, out_group in 1..=4usize,
        out_groups in 1..80usize, in_groups in 1..20usize, batch in 1..4usize, seed: u64,
    ) {
        let scheme = Scheme::with_out_group(codebooks, nbits, in_group, out_group).unwrap();
        check(Tier::Exact, scheme, out_groups, in_groups, batch, seed);
        check(Tier::Random, scheme, out_groups, in_groups, batch, seed);
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let (matrix, x) = case(Tier::Random, scheme("2x8g8"), 700, 40, 6, 1);
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
        let (matrix, x) = case(Tier::Random, scheme(text), 70, 20, 1, 2);
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
    let (matrix, _) = case(Tier::Random, scheme("2x4g8o2"), 150, 6, 1, 5);
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
    let (matrix, _) = case(Tier::Exact, scheme("2x9g8"), 4, 3, 1, 0);
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
