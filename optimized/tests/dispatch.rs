//! Snapshot of the launches for many cases: any effect of a change of the table, of a rule or of a packer
//! shows in dispatch.txt. It has a line for each scheme, question and group of devices. `INSTA_UPDATE=always`
//! rewrites it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use aqlm_kernels::MEASURED_SHAPE;
use aqlm_optimized::cuda::dispatch::{dispatched, join_resident, pack_resident};
use aqlm_optimized::cuda::pack::{Op, Target};
use aqlm_vocabulary::{QuantizedMatrix, Scheme};
use ndarray::{Array1, Array3, Array4};

/// Compute capability, multiprocessors, shared memory of a block, and how many clusters of 2, 4, 8 and 16
/// blocks run at once.
type Facts = ((i32, i32), u32, usize, [u32; 4]);

const DEVICES: [Facts; 5] = [
    ((8, 0), 108, 166_912, [0; 4]),
    ((8, 6), 84, 101_376, [0; 4]),
    ((8, 9), 128, 101_376, [0; 4]),
    ((9, 0), 132, 232_448, [66, 32, 15, 0]),
    ((10, 0), 148, 232_448, [74, 36, 18, 8]),
];

/// The schemes of the table, then some that it does not name.
const SCHEMES: [&str; 20] = [
    "1x8g8", "2x8g8", "3x8g8", "4x8g8", "1x12g8", "2x12g8", "1x13g8", "1x13g16", "1x14g8", "1x14g16",
    "1x15g8", "1x16g8", "1x16g16", "8x8g8", "2x8g16", "1x10g8", "2x6g16", "9x8g8", "16x2g8", "2x5g4o2",
];

/// The schemes for which layers and groups are packed, one for each kernel because packing is slow.
const PACKED: [&str; 6] = ["2x8g8", "1x12g8", "1x13g8", "1x16g8", "1x16g16", "2x5g4o2"];

/// Batches on both sides of every limit in the table's rows.
const BATCHES: [usize; 16] = [
    1, 2, 16, 17, 32, 33, 64, 65, 128, 129, 256, 257, 1023, 1024, 2048, 100_000,
];

/// Rows and columns of layers of resident models; the second layer is too tall for some kernels.
const LAYERS: [(usize, usize); 2] = [(1024, 512), (40_000, 128)];

/// Rows of layers that read the same input: q, k and v, without and with fewer key heads; gate and up. The
/// last two are on both sides of the limit above which layers get separate launches.
const GROUPS: [&[usize]; 5] = [
    &[512, 512, 512],
    &[1024, 128, 128],
    &[1376, 1376],
    &[8192, 8184],
    &[8192, 8192],
];

/// A matrix whose codes run over the whole codebook.
fn matrix(scheme: Scheme, out_features: usize, in_features: usize) -> QuantizedMatrix {
    let (out_groups, in_groups) = scheme.groups(out_features, in_features).unwrap();
    let (m, size) = (scheme.num_codebooks, scheme.codebook_size());
    QuantizedMatrix::new(
        scheme,
        Array3::from_shape_fn((out_groups, in_groups, m), |(row, group, codebook)| {
            ((row * 31 + group * 7 + codebook).wrapping_mul(40503) % size) as u16
        }),
        Array4::zeros((m, size, scheme.out_group_size, scheme.in_group_size)),
        Array1::ones(out_groups),
    )
    .unwrap()
}

/// The table's choice, and how it divides its work.
fn fastest(op: Op, scheme: Scheme, batch: usize, compute: (i32, i32), target: &Target) -> String {
    let Some(found) = dispatched(op, scheme, MEASURED_SHAPE, batch, compute, target) else {
        return "none".into();
    };
    let config = found.config.map(|config| format!(" [{config}]"));
    let rows = found.decoded_rows.map(|rows| format!(" [{rows} rows]"));
    format!("{}{}", found.kernel, config.or(rows).unwrap_or_default())
}

/// Choices for several batches, one for each range.
fn by_batch(op: Op, scheme: Scheme, compute: (i32, i32), target: &Target) -> String {
    let mut ranges: Vec<(usize, usize, String)> = Vec::new();
    for batch in BATCHES {
        let found = fastest(op, scheme, batch, compute, target);
        match ranges.last_mut() {
            Some((_, last, same)) if *same == found => *last = batch,
            _ => ranges.push((batch, batch, found)),
        }
    }
    let ranges = ranges
        .iter()
        .map(|(first, last, found)| format!("{first}..{last} {found}"));
    ranges.collect::<Vec<_>>().join("; ")
}

/// The kernels of a resident model's layer, for one row and for chunks of a prompt.
fn of_layer(matrix: &QuantizedMatrix, compute: (i32, i32), target: &Target) -> String {
    let mut questions = vec![(Op::Matvec, 1, false), (Op::Matvec, 1, true)];
    if matrix.out_features() == LAYERS[0].0 {
        questions.extend([16, 64, 128, 512].map(|rows| (Op::Matmul, rows, false)));
        questions.push((Op::Matmul, 64, true));
    }
    let answers = questions.into_iter().map(|(op, rows, plain)| {
        let packed = pack_resident(op, matrix, rows, compute, target, plain).unwrap();
        let [x, y] = packed.grid;
        let plain = if plain { " plain" } else { "" };
        format!("{rows}{plain} {} in {x}x{y} of {}", packed.kernel, packed.block)
    });
    answers.collect::<Vec<_>>().join("; ")
}

fn of_group(matrices: &[QuantizedMatrix], compute: (i32, i32), target: &Target) -> String {
    let parts: Vec<&QuantizedMatrix> = matrices.iter().collect();
    join_resident(&parts, compute, target).unwrap().map_or_else(
        || "apart".to_owned(),
        |joined| {
            let [x, y] = joined.packed.grid;
            format!("{} in {x}x{y} at {:?}", joined.packed.kernel, joined.offsets)
        },
    )
}

fn choices() -> String {
    let mut text = String::new();
    for name in SCHEMES {
        let scheme: Scheme = name.parse().unwrap();
        let packed = PACKED.contains(&name);
        let layers = LAYERS.map(|(rows, columns)| matrix(scheme, rows, columns));
        let groups =
            GROUPS.map(|rows| -> Vec<_> { rows.iter().map(|&rows| matrix(scheme, rows, 256)).collect() });
        // Devices, grouped by their answer.
        let mut answers: BTreeMap<(usize, String, String), Vec<String>> = BTreeMap::new();
        for (compute, multiprocessors, shared_bytes, [two, four, eight, sixteen]) in DEVICES {
            let target = Target {
                multiprocessors,
                shared_bytes,
                clusters: [multiprocessors, two, four, eight, sixteen],
                embedded_only: false,
            };
            let mut questions = vec![
                (
                    "matvec".to_owned(),
                    fastest(Op::Matvec, scheme, 1, compute, &target),
                ),
                (
                    "decode".to_owned(),
                    fastest(Op::Decode, scheme, 1, compute, &target),
                ),
                (
                    "matmul".to_owned(),
                    by_batch(Op::Matmul, scheme, compute, &target),
                ),
            ];
            for (layer, (rows, columns)) in layers.iter().zip(LAYERS).filter(|_| packed) {
                questions.push((
                    format!("layer {rows}x{columns}"),
                    of_layer(layer, compute, &target),
                ));
            }
            for (group, rows) in groups.iter().zip(GROUPS).filter(|_| packed) {
                questions.push((format!("group {rows:?}"), of_group(group, compute, &target)));
            }
            for (number, (question, answer)) in questions.into_iter().enumerate() {
                let device = format!("{}.{}", compute.0, compute.1);
                answers
                    .entry((number, question, answer))
                    .or_default()
                    .push(device);
            }
        }
        for ((_, question, answer), devices) in answers {
            writeln!(text, "{name} {question} on {}: {answer}", devices.join(" ")).unwrap();
        }
    }
    text
}

#[test]
fn what_is_chosen_is_what_it_was() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dispatch.txt");
    let found = choices();
    if std::env::var("INSTA_UPDATE").is_ok_and(|update| update == "always") {
        std::fs::write(&path, &found).unwrap();
    }
    let recorded = std::fs::read_to_string(&path).unwrap();
    let (mut found, mut recorded) = (found.lines(), recorded.lines());
    loop {
        match (found.next(), recorded.next()) {
            (None, None) => break,
            (found, recorded) => assert_eq!(found, recorded, "if this is meant: INSTA_UPDATE=always"),
        }
    }
}
