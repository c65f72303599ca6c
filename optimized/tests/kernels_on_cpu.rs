//! Every matvec kernel of the ladder, run on the CPU by `kernels/shim/shim.h`: packer and kernel must agree with the definition of a quantized
//! matrix, at shapes that leave remainders everywhere. Inputs are on a dyadic grid on which every sum is exact, so results must be equal.

use std::path::{Path, PathBuf};
use std::process::Command;

use aqlm_optimized::cuda::pack::{Packed, Target, pack};
use aqlm_reference::vocabulary::{QuantizedMatrix, Scheme};
use half::f16;
use ndarray::{Array1, Array3, Array4};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A multiple of 1/8 of at most 1 in size: products are multiples of 1/64 of at most 1, so that sums of 32 of them are exact in f16
/// (2^11 steps) and of any length that occurs in f32.
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
    let codebooks = Array4::from_shape_simple_fn(shape, || grid_value(rng));
    // Powers of two, so that scaling is exact.
    let scales = Array1::from_shape_simple_fn(out_groups, || [0.25, 0.5, 1.0][rng.random_range(0..3)]);
    QuantizedMatrix::new(scheme, codes, codebooks, scales).unwrap()
}

/// y = W x by the definition of a quantized matrix, in f64, rounded to f16 once.
fn expected(matrix: &QuantizedMatrix, x: &[f16]) -> Vec<f16> {
    let scheme = matrix.scheme;
    (0..matrix.out_features())
        .map(|row| {
            let (group_row, inner) = (row / scheme.out_group_size, row % scheme.out_group_size);
            let mut sum = 0.0;
            for (column, value) in x.iter().enumerate() {
                let (group, i) = (column / scheme.in_group_size, column % scheme.in_group_size);
                for m in 0..scheme.num_codebooks {
                    let code = usize::from(matrix.codes[[group_row, group, m]]);
                    sum += matrix.codebooks[[m, code, inner, i]] * value.to_f64();
                }
            }
            f16::from_f64(sum * matrix.scales[group_row])
        })
        .collect()
}

/// `None` when there is no C++ compiler.
fn run_on_cpu(packed: &Packed, x: &[f16], folder: &Path) -> Option<Vec<f16>> {
    let kernel = aqlm_kernels::kernel(packed.kernel).unwrap();
    let shim = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/shim/shim.h");
    let source = format!(
        "#include \"{}\"\n{}\nint main(int, char** a) {{ return run_file(a[1], a[2], [] {{ call(matvec); }}); }}\n",
        shim.display(),
        kernel.source(None).unwrap()
    );
    let [cpp, program, input, output] = ["k.cpp", "k", "in", "out"].map(|name| folder.join(name));
    std::fs::write(&cpp, source).unwrap();
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let compiled = Command::new(compiler)
        .args(["-std=c++17", "-O1", "-w", "-o"])
        .args([&program, &cpp])
        .args(
            packed
                .defines
                .iter()
                .map(|(name, value)| format!("-D{name}={value}")),
        )
        .output();
    let Ok(compiled) = compiled else {
        println!("waived: no C++ compiler");
        return None;
    };
    assert!(
        compiled.status.success(),
        "{}",
        String::from_utf8_lossy(&compiled.stderr)
    );

    let x_bytes: Vec<u8> = x.iter().flat_map(|value| value.to_le_bytes()).collect();
    let poison = vec![0xff_u8; packed.out_features * 2];
    let mut contents: Vec<&[u8]> = packed.buffers.iter().map(Vec::as_slice).collect();
    contents.extend([x_bytes.as_slice(), poison.as_slice()]);
    let mut integers = vec![packed.out_features as i32, packed.in_features as i32];
    integers.extend(&packed.sizes);
    let mut words = vec![
        u64::from(packed.grid[0]),
        u64::from(packed.grid[1]),
        u64::from(packed.block),
    ];
    words.extend([u64::from(packed.cluster), packed.shared_bytes as u64]);
    words.extend([contents.len(), integers.len(), contents.len() - 1].map(|n| n as u64));
    words.extend(contents.iter().map(|bytes| bytes.len() as u64));
    words.extend(integers.iter().map(|&n| n as u64));
    let mut file: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    for bytes in contents {
        file.extend_from_slice(bytes);
    }
    std::fs::write(&input, file).unwrap();

    let status = Command::new(&program).args([&input, &output]).status().unwrap();
    assert!(status.success(), "{} ended with {status}", packed.kernel);
    let bytes = std::fs::read(&output).unwrap();
    Some(
        bytes
            .chunks_exact(2)
            .map(|pair| f16::from_le_bytes([pair[0], pair[1]]))
            .collect(),
    )
}

/// A device small enough to play: few blocks, clusters of two at most.
fn small_target() -> Target {
    Target {
        multiprocessors: 3,
        clusters: [3, 2, 0, 0, 0],
        ..Target::h100()
    }
}

fn check(kernel: &str, scheme: &str, out_features: usize, in_features: usize) {
    let mut rng = ChaCha8Rng::seed_from_u64(out_features as u64 * 1_000_003 + in_features as u64);
    let matrix = grid_matrix(scheme.parse().unwrap(), out_features, in_features, &mut rng);
    let x: Vec<f16> = (0..in_features)
        .map(|_| f16::from_f64(grid_value(&mut rng)))
        .collect();
    let packed = pack(kernel, &matrix, &small_target()).unwrap();
    let folder = std::env::temp_dir().join(format!(
        "aqlm-shim-{}-{}-{scheme}-{out_features}-{in_features}",
        std::process::id(),
        kernel.replace('/', "-")
    ));
    std::fs::create_dir_all(&folder).unwrap();
    let found = run_on_cpu(&packed, &x, &folder);
    std::fs::remove_dir_all::<PathBuf>(folder).unwrap();
    let Some(found) = found else { return };
    let expected = expected(&matrix, &x);
    assert!(expected.iter().any(|value| value.to_f64() != 0.0));
    let wrong: Vec<_> = expected
        .iter()
        .zip(&found)
        .enumerate()
        .filter(|(_, (a, b))| a != b)
        .take(10)
        .collect();
    assert!(
        wrong.is_empty(),
        "{kernel} {scheme} {out_features}x{in_features}: (row, (expected, found)) {wrong:?}"
    );
}

#[test]
fn k1_naive() {
    check("matvec/k1_naive", "3x5g4o2", 22, 52);
    check("matvec/k1_naive", "2x8g8", 13, 264);
}

#[test]
fn k2_shared_codebook() {
    // Codebooks stored once (2x12) and eight times (2x8); a last task of fewer than four rows; input groups that end inside a unit.
    check("matvec/k2_shared_codebook", "2x12g8", 21, 776);
    check("matvec/k2_shared_codebook", "2x8g8", 18, 520);
    check("matvec/k2_shared_codebook", "1x12g16", 9, 1040);
    check("matvec/k2_shared_codebook", "3x8g8", 5, 256);
}

#[test]
fn k3_lookup_table() {
    // One rank; several ranks with a padded slot; several rounds; codebooks that straddle a block's slots.
    check("matvec/k3_lookup_table", "2x8g8", 26, 264);
    check("matvec/k3_lookup_table", "1x8g8", 45, 2056);
    check("matvec/k3_lookup_table", "2x8g16", 7, 1040);
    check("matvec/k3_lookup_table", "3x8g8", 38, 1288);
}

#[test]
fn k4_sliced_codebook() {
    // One and several slices, of which a block holds one or more; two windows of input groups.
    check("matvec/k4_sliced_codebook", "1x13g8", 37, 264);
    check("matvec/k4_sliced_codebook", "1x15g8", 70, 4424);
    check("matvec/k4_sliced_codebook", "1x16g8", 35, 1032);
    check("matvec/k4_sliced_codebook", "1x16g16", 33, 4112);
}
