//! Runs every kernel of the ladders on the CPU by `kernels/shim/shim.h`. Packer and kernel must agree with
//! the definition of a quantized matrix, at shapes that leave remainders everywhere. Inputs are on a dyadic
//! grid on which every sum is exact, so results must be equal.

mod shim;

use aqlm_check::cases::{ProductCase, Values};
use aqlm_optimized::cuda::Activations;
use aqlm_optimized::cuda::pack::{
    LaunchConfig, Op, Packed, Slots, Target, TileConfig, WarpgroupConfig, pack, pack_experts, pack_joined,
    with_config,
};
use aqlm_vocabulary::{QuantizedMatrix, Scheme};
use half::{bf16, f16};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shim::Launch;

/// A multiple of 1/8 of at most 1 in size. Products are multiples of 1/64 of at most 1, so sums of 32 of them
/// are exact in f16 (2^11 steps), and sums of every length here are exact in f32.
fn grid_value(rng: &mut impl Rng) -> f64 {
    f64::from(rng.random_range(-8..=8)) / 8.0
}

fn grid_matrix(
    scheme: Scheme,
    out_features: usize,
    in_features: usize,
    rng: &mut impl Rng,
) -> QuantizedMatrix {
    let (out_groups, in_groups) = scheme.groups(out_features, in_features).unwrap();
    let problem = ProductCase {
        scheme,
        out_groups,
        in_groups,
        batch: 1,
        values: Values::Dyadic,
    };
    problem.data(rng.random()).matrix
}

/// The dense weight by the definition of a quantized matrix, in f64, without scales.
fn unscaled(matrix: &QuantizedMatrix, row: usize, column: usize) -> f64 {
    let scheme = matrix.scheme();
    let (group_row, inner) = (row / scheme.out_group_size, row % scheme.out_group_size);
    let (group, i) = (column / scheme.in_group_size, column % scheme.in_group_size);
    (0..scheme.num_codebooks)
        .map(|m| {
            let code = usize::from(matrix.codes()[[group_row, group, m]]);
            matrix.codebooks()[[m, code, inner, i]]
        })
        .sum()
}

/// A number in the format of x and y, as its bits.
fn narrowed(value: f64, format: Activations) -> u16 {
    match format {
        Activations::F16 => f16::from_f64(value).to_bits(),
        Activations::Bf16 => bf16::from_f64(value).to_bits(),
    }
}

/// The operation's expected result, computed in f64 and rounded once.
fn expected(op: Op, matrix: &QuantizedMatrix, x: &[f64], format: Activations) -> Vec<u16> {
    let scale = |row: usize| matrix.scales()[row / matrix.scheme().out_group_size];
    let (rows, columns) = (matrix.out_features(), matrix.in_features());
    if op == Op::Decode {
        return (0..rows * columns)
            .map(|i| {
                narrowed(
                    unscaled(matrix, i / columns, i % columns) * scale(i / columns),
                    format,
                )
            })
            .collect();
    }
    let weight: Vec<f64> = (0..rows * columns)
        .map(|i| unscaled(matrix, i / columns, i % columns))
        .collect();
    x.chunks_exact(columns)
        .flat_map(|x| {
            let weight = &weight;
            (0..rows).map(move |row| {
                let weights = &weight[row * columns..(row + 1) * columns];
                let sum: f64 = weights.iter().zip(x).map(|(w, x)| w * x).sum();
                narrowed(sum * scale(row), format)
            })
        })
        .collect()
}

/// `None` if there is no C++ compiler.
fn run_on_cpu(packed: &Packed, x: &[u16], name: &str) -> Option<Vec<u16>> {
    let source = aqlm_kernels::kernel(packed.kernel).unwrap().source(None).unwrap();
    let found = run_source_on_cpu(packed, &source, x, name)?;
    Some(found.unwrap_or_else(|outside| panic!("{}: a write {outside}", packed.kernel)))
}

/// [`run_on_cpu`] with another source; the error names the buffer outside which the kernel wrote.
fn run_source_on_cpu(
    packed: &Packed,
    source: &str,
    x: &[u16],
    name: &str,
) -> Option<Result<Vec<u16>, String>> {
    let x_bytes: Vec<u8> = x.iter().flat_map(|value| value.to_le_bytes()).collect();
    let poison = vec![0xff_u8; packed.y_len() * 2];
    let mut contents: Vec<&[u8]> = packed
        .operands
        .iter()
        .map(|operand| operand.bytes.as_slice())
        .collect();
    if packed.op() != Op::Decode {
        contents.push(&x_bytes);
    }
    contents.push(&poison);
    let launch = Launch {
        kernel: packed.kernel,
        defines: &packed.defines,
        integers: &packed.integers(),
        grid: packed.grid,
        block: packed.block,
        // Blocks that wait for each other run as one cluster.
        cluster: if aqlm_kernels::kernel(packed.kernel).unwrap().meets {
            packed.grid[0] * packed.grid[1]
        } else {
            packed.cluster
        },
        shared_bytes: packed.shared_bytes,
    };
    let found = shim::run(&launch, source, &contents, contents.len() - 1, name)?;
    Some(found.map(|bytes| {
        bytes
            .chunks_exact(2)
            .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
            .collect()
    }))
}

/// A device small enough to simulate: few blocks, clusters of two at most.
fn small_target() -> Target {
    Target {
        multiprocessors: 3,
        clusters: [3, 2, 0, 0, 0],
        ..Target::h100()
    }
}

/// A matrix and rows of x: scheme, output features, input features, rows.
type Shape = (&'static str, usize, usize, usize);

fn check(kernel: &str, shapes: &[Shape]) {
    for &shape in shapes {
        check_on(kernel, shape, None, &small_target());
    }
}

fn check_on(
    kernel: &str,
    (scheme, out_features, in_features, batch): Shape,
    config: Option<LaunchConfig>,
    target: &Target,
) {
    let mut rng = ChaCha8Rng::seed_from_u64(out_features as u64 * 1_000_003 + in_features as u64);
    let scheme: Scheme = scheme.parse().unwrap();
    let matrix = grid_matrix(scheme, out_features, in_features, &mut rng);
    let x: Vec<f64> = (0..batch * in_features).map(|_| grid_value(&mut rng)).collect();
    let formats = if aqlm_kernels::kernel(kernel).unwrap().bf16 {
        &[Activations::F16, Activations::Bf16][..]
    } else {
        &[Activations::F16]
    };
    for &format in formats {
        let mut packed = pack(kernel, &matrix, target, batch)
            .unwrap()
            .with_activations(format)
            .unwrap();
        if let Some(config) = config {
            packed = with_config(&packed, scheme, target, config);
        }
        check_packed(&packed, &matrix, &x);
    }
}

fn check_packed(packed: &Packed, matrix: &QuantizedMatrix, x: &[f64]) {
    let (kernel, scheme, batch, format) = (packed.kernel, matrix.scheme(), packed.batch, packed.activations);
    let (out_features, in_features) = (packed.out_features, packed.in_features);
    let name = format!(
        "{}-{scheme}-{out_features}-{in_features}-{batch}-{}-{}-{format:?}",
        kernel.replace('/', "-"),
        packed.block,
        packed.cluster
    );
    let bits: Vec<u16> = x.iter().map(|&x| narrowed(x, format)).collect();
    let found = run_on_cpu(packed, &bits, &name);
    let Some(found) = found else { return };
    let expected = expected(packed.op(), matrix, x, format);
    assert!(expected.iter().any(|value| value & 0x7fff != 0));
    assert_eq!(expected.len(), found.len());
    let wrong: Vec<_> = expected
        .iter()
        .zip(&found)
        .enumerate()
        // +0 and -0 are equal.
        .filter(|(_, (a, b))| a != b && (**a | **b) & 0x7fff != 0)
        .take(10)
        .collect();
    assert!(
        wrong.is_empty(),
        "{kernel} {scheme} {out_features}x{in_features}, {batch} rows, {format:?}, {:?}: (element, (expected, found)) {wrong:?}",
        packed.defines
    );
}

/// Matrices of several numbers of rows in one launch: each must get its own codebooks.
fn check_joined(kernel: &str, scheme: &str, rows: &[usize], in_features: usize) {
    let mut rng = ChaCha8Rng::seed_from_u64(rows.len() as u64 * 1_000_003 + in_features as u64);
    let scheme: Scheme = scheme.parse().unwrap();
    let matrices: Vec<QuantizedMatrix> = rows
        .iter()
        .map(|&rows| grid_matrix(scheme, rows, in_features, &mut rng))
        .collect();
    let x: Vec<f64> = (0..in_features).map(|_| grid_value(&mut rng)).collect();
    let target = Target {
        clusters: [7, 5, 0, 0, 0],
        ..small_target()
    };
    let parts: Vec<&QuantizedMatrix> = matrices.iter().collect();
    let joined = pack_joined(kernel, &parts, &target).unwrap();
    assert!(joined.packed.grid[1] <= 7, "all slabs run at once");
    let name = format!("joined-{}-{}", kernel.replace('/', "-"), rows.len());
    let bits: Vec<u16> = x.iter().map(|&x| narrowed(x, Activations::F16)).collect();
    let Some(found) = run_on_cpu(&joined.packed, &bits, &name) else {
        return;
    };
    for (matrix, &offset) in matrices.iter().zip(&joined.offsets) {
        let expected = expected(Op::Matvec, matrix, &x, Activations::F16);
        assert_eq!(
            expected,
            found[offset..offset + expected.len()],
            "{kernel} {rows:?}"
        );
    }
}

#[test]
fn joined_matrices() {
    check_joined("matvec/k3_lookup_table", "2x8g8", &[37, 21, 22], 264);
    check_joined("matvec/k3_lookup_table", "1x8g8", &[45, 45], 2056);
    check_joined("matvec/k4_sliced_codebook", "1x15g8", &[70, 35], 264);
    check_joined("matvec/k4_sliced_codebook", "1x13g8", &[33, 64, 31], 520);
}

/// Experts, each of one matrix or of two that share its part of the launch. Two slots compute two of them,
/// with an x each or with the same x.
fn check_experts(kernel: &str, scheme: &str, rows: &[usize], in_features: usize, same_x: bool) {
    let mut rng = ChaCha8Rng::seed_from_u64(rows.len() as u64 * 1_000_003 + in_features as u64);
    let scheme: Scheme = scheme.parse().unwrap();
    let matrices: Vec<Vec<QuantizedMatrix>> = (0..4)
        .map(|_| {
            let of_rows = |&rows: &usize| grid_matrix(scheme, rows, in_features, &mut rng);
            rows.iter().map(of_rows).collect()
        })
        .collect();
    let target = Target {
        multiprocessors: 9,
        clusters: [14, 10, 0, 0, 0],
        ..small_target()
    };
    let experts: Vec<Vec<&QuantizedMatrix>> = matrices.iter().map(|expert| expert.iter().collect()).collect();
    let slots = Slots {
        count: 2,
        same_x,
        y_stride: None,
    };
    let packed = pack_experts(kernel, &experts, slots, &target).unwrap();
    let xs = if same_x { 1 } else { 2 };
    let x: Vec<f64> = (0..xs * in_features).map(|_| grid_value(&mut rng)).collect();
    let words = |values: &[f64]| -> Vec<u8> {
        let bits = values.iter().map(|&x| narrowed(x, Activations::F16));
        bits.flat_map(u16::to_le_bytes).collect()
    };
    let (x_bytes, chosen) = (words(&x), [3_u32, 1]);
    let chosen_bytes: Vec<u8> = chosen.iter().flat_map(|number| number.to_le_bytes()).collect();
    let poison = vec![0xff_u8; 2 * packed.y_stride * 2];
    let mut contents: Vec<&[u8]> = packed
        .packed
        .operands
        .iter()
        .map(|operand| operand.bytes.as_slice())
        .collect();
    contents.extend([&x_bytes[..], &poison, &chosen_bytes]);
    let launch = Launch {
        kernel: packed.packed.kernel,
        defines: &packed.packed.defines,
        integers: &packed.packed.integers(),
        grid: packed.packed.grid,
        block: packed.packed.block,
        cluster: packed.packed.cluster,
        shared_bytes: packed.packed.shared_bytes,
    };
    let source = aqlm_kernels::kernel(kernel).unwrap().source(None).unwrap();
    let name = format!(
        "experts-{}-{scheme}-{}-{same_x}",
        kernel.replace('/', "-"),
        rows.len()
    );
    let Some(found) = shim::run(&launch, &source, &contents, contents.len() - 2, &name) else {
        return;
    };
    let found: Vec<u16> = found
        .unwrap()
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .collect();
    for (slot, &expert) in chosen.iter().enumerate() {
        let from = if same_x { 0 } else { slot * in_features };
        for (matrix, &offset) in matrices[expert as usize].iter().zip(&packed.offsets) {
            let expected = expected(Op::Matvec, matrix, &x[from..from + in_features], Activations::F16);
            let at = slot * packed.y_stride + offset;
            assert_eq!(expected, found[at..at + expected.len()], "{name} slot {slot}");
        }
    }
}

#[test]
fn chosen_experts() {
    for same_x in [true, false] {
        check_experts("matvec/k1_naive", "3x5g4o2", &[22], 52, same_x);
        check_experts("matvec/k2_shared_codebook", "2x8g8", &[18], 520, same_x);
        check_experts("matvec/k3_lookup_table", "2x8g8", &[45], 2056, same_x);
        check_experts("matvec/k4_sliced_codebook", "1x13g8", &[70], 264, same_x);
    }
    check_experts("matvec/k3_lookup_table", "2x8g8", &[37, 37], 264, true);
    check_experts("matvec/k4_sliced_codebook", "1x13g8", &[33, 33], 520, true);
}

#[test]
fn experts_that_do_not_fit_are_refused() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let [a, b] = [264, 520].map(|inputs| grid_matrix("2x8g8".parse().unwrap(), 16, inputs, &mut rng));
    for (kernel, experts, count) in [
        ("matvec/k5_staged_codes", vec![vec![&a], vec![&a]], 1),
        ("matvec/k3_lookup_table", vec![vec![&a], vec![&b]], 1),
        ("matvec/k3_lookup_table", vec![vec![&a], vec![&a]], 3),
        ("matvec/k3_lookup_table", vec![], 1),
        ("matvec/k1_naive", vec![vec![&a, &a]], 1),
    ] {
        let slots = Slots {
            count,
            same_x: true,
            y_stride: None,
        };
        assert!(
            pack_experts(kernel, &experts, slots, &small_target()).is_err(),
            "{kernel} {count}"
        );
    }
}

#[test]
fn matrices_that_cannot_be_joined_are_refused() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let [a, b] = [264, 520].map(|inputs| grid_matrix("2x8g8".parse().unwrap(), 16, inputs, &mut rng));
    for (kernel, matrices) in [
        ("matvec/k1_naive", vec![&a, &a]),
        ("matvec/k3_lookup_table", vec![&a, &b]),
        ("matvec/k3_lookup_table", vec![&a]),
        ("matvec/k3_lookup_table", vec![&a; 4]),
        ("matvec/k4_sliced_codebook", vec![&a, &a]),
    ] {
        assert!(
            pack_joined(kernel, &matrices, &small_target()).is_err(),
            "{kernel} {}",
            matrices.len()
        );
    }
}

#[test]
fn naive_kernels() {
    let shapes = [("3x5g4o2", 22, 52, 1), ("2x8g8", 13, 264, 1)];
    check("decode/k1_naive", &shapes);
    check("matvec/k1_naive", &shapes);
    check("matmul/k1_naive", &[("3x5g4o2", 22, 52, 3)]);
}

#[test]
fn decode_k2_tiles() {
    let shapes = [
        ("2x8g8", 45, 264, 1),
        ("1x14g16", 37, 272, 1),
        ("3x6g8", 61, 520, 1),
        ("2x12g8", 29, 136, 1),
    ];
    check("decode/k2_tiles", &shapes);
}

#[test]
fn k2_shared_codebook() {
    // Codebooks stored once (2x12) and eight times (2x8); a last task of fewer than four rows; input groups
    // that end inside a unit.
    let shapes = [
        ("2x12g8", 21, 776, 1),
        ("2x8g8", 18, 520, 1),
        ("1x12g16", 9, 1040, 1),
        ("3x8g8", 5, 256, 1),
    ];
    check("matvec/k2_shared_codebook", &shapes);
}

/// One rank; several ranks with a padded slot; several rounds; codebooks that straddle a block's slots.
const TABLES: [Shape; 4] = [
    ("2x8g8", 26, 264, 1),
    ("1x8g8", 45, 2056, 1),
    ("2x8g16", 7, 1040, 1),
    ("3x8g8", 38, 1288, 1),
];

#[test]
fn k3_lookup_table() {
    check("matvec/k3_lookup_table", &TABLES);
}

#[test]
fn k4_sliced_codebook() {
    // One and several slices, of which a block holds one or more; two windows of input groups.
    let shapes = [
        ("1x13g8", 37, 264, 1),
        ("1x15g8", 70, 4424, 1),
        ("1x16g8", 35, 1032, 1),
        ("1x16g16", 33, 4112, 1),
    ];
    check("matvec/k4_sliced_codebook", &shapes);
}

#[test]
fn k5_staged_codes() {
    check("matvec/k5_staged_codes", &TABLES);
    // enough rows that a lane's copies are reused, in one round and in several
    let many = [("1x8g8", 2050, 264, 1), ("1x8g8", 2050, 2312, 1)];
    check("matvec/k5_staged_codes", &many);
}

#[test]
fn k6_product_tables() {
    // Sets that end inside a block's, groups that end inside a set, more chunks than are in flight at once.
    let shapes = [
        ("1x13g8", 37, 264, 1),
        ("1x13g16", 35, 1552, 1),
        ("1x13g8", 2048, 264, 1),
        ("1x14g8", 70, 4424, 1),
    ];
    check("matvec/k6_product_tables", &shapes);
}

#[test]
fn k7_lane_inputs() {
    let target = Target {
        multiprocessors: 16,
        ..small_target()
    };
    // One slab and two; groups that leave lanes and warps empty; several rounds; more chunks than are in
    // flight at once.
    for shape in [
        ("1x13g16", 37, 272, 1),
        ("1x13g8", 70, 4424, 1),
        ("1x13g8", 2048, 264, 1),
        ("1x14g16", 1100, 784, 1),
        ("1x13g16", 35, 15_376, 1),
    ] {
        check_on("matvec/k7_lane_inputs", shape, None, &target);
    }
}

/// Codebooks in shared memory several times; codes of one byte, in words of each width; input features that
/// end inside a unit and inside a step; a last tile of fewer than eight rows; batches that end inside a tile.
const PRODUCTS: [Shape; 3] = [
    ("2x8g8", 45, 264, 5),
    ("1x8g16", 90, 1040, 17),
    ("3x6g8", 61, 520, 40),
];

#[test]
fn matmul_k2_fused_tensor() {
    let kernel = "matmul/k2_fused_tensor";
    check(kernel, &PRODUCTS);
    // Codebooks in shared memory once, and in global memory; codes of two bytes; batches of several blocks.
    let shapes = [
        ("4x8g8", 33, 392, 16),
        ("1x12g8", 29, 136, 33),
        ("2x12g8", 29, 136, 150),
        ("1x14g16", 37, 272, 70),
    ];
    check(kernel, &shapes);
    // Teams of one warp and of several, tiles past the last row, more slices than units.
    for (row_warps, tiles, slices, batch_tiles) in [(1, 11, 16, 1), (2, 5, 4, 2), (4, 3, 2, 4), (8, 1, 1, 1)]
    {
        let config = LaunchConfig::Tiles(TileConfig {
            row_warps,
            tiles,
            slices,
            batch_tiles,
        });
        check_on(kernel, ("2x8g8", 75, 776, 20), Some(config), &small_target());
    }
}

#[test]
fn matmul_k3_warpgroup() {
    let kernel = "matmul/k3_warpgroup";
    check(kernel, &PRODUCTS);
    // codebooks in shared memory once, codes of two bytes
    check(kernel, &[("2x12g8", 29, 136, 70), ("1x14g16", 37, 272, 20)]);
    // Several slices and warpgroups, more slices than units, blocks that only complete a cluster; codebooks
    // spread over a cluster, in whole and in part, and in global memory.
    for (scheme, warpgroups, slices, cluster, batch, spread) in [
        ("2x8g8", 2, 2, 2, 32, 0),
        ("2x8g8", 1, 8, 8, 16, 0),
        ("1x14g8", 1, 1, 2, 16, 8),
        ("1x14g8", 2, 2, 4, 32, 3),
        ("1x15g16", 1, 4, 4, 16, 0),
    ] {
        let config = LaunchConfig::Warpgroups(WarpgroupConfig {
            warpgroups,
            slices,
            cluster,
            batch,
            spread,
        });
        check_on(kernel, (scheme, 75, 784, 20), Some(config), &small_target());
    }
}

#[test]
fn matmul_k4_hot_codewords() {
    // Input features that end inside a step, several units a warp, a partial last block and tile, all or part
    // of the codewords kept, two blocks of rows of x, two warps side by side.
    let shapes = [
        ("1x14g8", 45, 264, 5),
        ("1x16g8", 1061, 2056, 16),
        ("1x16g16", 90, 4112, 17),
        ("1x15g8", 1500, 136, 9),
        ("1x16g8", 3000, 392, 3),
    ];
    check("matmul/k4_hot_codewords", &shapes);
}

/// Kernels that are correct except that they write one number outside a buffer.
#[test]
fn a_write_outside_a_buffer_is_caught_and_named() {
    let scheme: Scheme = "2x8g8".parse().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let matrix = grid_matrix(scheme, 13, 264, &mut rng);
    let packed = pack("matvec/k1_naive", &matrix, &small_target(), 1).unwrap();
    let x = vec![0; packed.x_len()];
    let right = aqlm_kernels::kernel(packed.kernel).unwrap().source(None).unwrap();
    let store = "if (lane == 0) y[row] =";
    assert!(
        right.contains(store),
        "the kernel is written in another way: change this test"
    );
    for (number, (wrong, expected)) in [
        (
            "if (row == 0) y[out_features] = 1; if (lane == 0) y[row] =",
            Some("after y"),
        ),
        (
            "if (row == 0) y[-1] = 1; if (lane == 0) y[row] =",
            Some("before y"),
        ),
        (
            "if (row == 0) const_cast<u16*>(x)[in_features + 400] = 1; if (lane == 0) y[row] =",
            Some("after x"),
        ),
        (
            "if (row == 0) const_cast<u16*>(scales)[-1] = 1; if (lane == 0) y[row] =",
            Some("before scales"),
        ),
        (store, None),
    ]
    .into_iter()
    .enumerate()
    {
        let source = right.replace(store, wrong);
        let Some(found) = run_source_on_cpu(&packed, &source, &x, &format!("outside-{number}")) else {
            return;
        };
        let expected = expected.map(|place| format!("outside a buffer: {place}"));
        assert_eq!(found.err(), expected, "{wrong}");
    }
}
