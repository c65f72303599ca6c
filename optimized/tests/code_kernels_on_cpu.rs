//! The kernels of steps that change codes, run on the CPU by `kernels/shim/shim.h` and compared with the
//! reference. `codes_without_gpu.rs` runs whole steps.

mod shim;

use aqlm_optimized::cuda::llama::plan::Plan;
use aqlm_optimized::cuda::training::plan::codes;
use aqlm_reference::decode;
use aqlm_reference::pv::{delta_decay, group_norms, largest, trusted};
use aqlm_vocabulary::{QuantizedMatrix, Scheme};
use ndarray::{Array1, Array2, Array3, Array4};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use shim::Launch;

/// The buffers after a launch.
fn run(plan: &Plan, buffers: &mut [Vec<u8>], outputs: &[usize], name: &str) -> Option<()> {
    let launch = Launch::from(plan);
    let source = aqlm_kernels::kernel(plan.kernel).unwrap().source(None).unwrap();
    let given: Vec<&[u8]> = buffers.iter().map(Vec::as_slice).collect();
    let found: Vec<(usize, Vec<u8>)> = outputs
        .iter()
        .map(|&output| {
            let found = shim::run(&launch, &source, &given, output, name)?;
            let found = found.unwrap_or_else(|outside| panic!("{}: a write {outside}", plan.kernel));
            Some((output, found))
        })
        .collect::<Option<_>>()?;
    for (output, bytes) in found {
        buffers[output] = bytes;
    }
    Some(())
}

fn f64s(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn f32s(values: &Array2<f64>) -> Vec<u8> {
    values
        .iter()
        .flat_map(|&value| (value as f32).to_le_bytes())
        .collect()
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn halves(values: impl IntoIterator<Item = u16>) -> Vec<u8> {
    values.into_iter().flat_map(u16::to_le_bytes).collect()
}

fn to_words(bytes: &[u8]) -> Vec<u32> {
    let fours = bytes.as_chunks::<4>().0.iter();
    fours.map(|&four| u32::from_le_bytes(four)).collect()
}

fn to_f64s(bytes: &[u8]) -> Vec<f64> {
    let eights = bytes.as_chunks::<8>().0.iter();
    eights.map(|&eight| f64::from_le_bytes(eight)).collect()
}

/// Unwritten memory reads as NaN, or as huge numbers.
fn poison(bytes: usize) -> Vec<u8> {
    vec![0xff; bytes]
}

/// The k largest of two arrays, found digit by digit, with many equal numbers at the cut; their order by
/// size from a sort of the chosen ones alone.
#[test]
fn the_largest_of_two_arrays_are_found_and_sorted() {
    let mut rng = ChaCha8Rng::seed_from_u64(30);
    // over several tiles of 4,096; 40 different numbers, of which one is infinite
    let mut draw = |count: usize| -> Vec<f64> {
        let number = |rank: u32| {
            if rank == 39 {
                f64::INFINITY
            } else {
                f64::from(rank) * 0.37e-3
            }
        };
        (0..count).map(|_| number(rng.random_range(0..40))).collect()
    };
    let arrays = [draw(9000), draw(4096)];
    let all = arrays.concat();
    for (number, count) in [1, 700, 5000, all.len()].into_iter().enumerate() {
        let name = format!("codes-largest-{number}");
        let (mut state, mut counts) = (poison(16), vec![0; 256 * 4]);
        for digit in 0..8 {
            for values in &arrays {
                let mut buffers = [f64s(values), state.clone(), counts.clone()];
                if run(&codes::count(values.len(), digit), &mut buffers, &[2], &name).is_none() {
                    return;
                }
                [_, _, counts] = buffers;
            }
            let mut buffers = [counts, state];
            run(
                &codes::digit((digit == 0).then_some(count)),
                &mut buffers,
                &[0, 1],
                &name,
            )
            .unwrap();
            [counts, state] = buffers;
        }
        let expected = largest(&all, count);
        let mut left = to_words(&state)[2] as usize;
        let mut found = Vec::new();
        let mut first = 0;
        for values in &arrays {
            let tiles = codes::number_tiles(values.len());
            let room = poison((tiles + 1) * 4);
            let mut buffers = [f64s(values), state.clone(), room.clone(), room];
            run(&codes::tiles(values.len()), &mut buffers, &[2, 3], &name).unwrap();
            let [values_there, _, above, equal] = buffers;
            let scanned = [above, equal].map(|counts| {
                let mut buffers = [counts];
                run(&codes::scan(tiles + 1), &mut buffers, &[0], &name).unwrap();
                let [counts] = buffers;
                counts
            });
            let total = |counts: &[u8]| to_words(counts)[tiles] as usize;
            let equals = total(&scanned[1]).min(left);
            left -= equals;
            let own = total(&scanned[0]) + equals;
            let [above, equal] = scanned;
            let mut buffers = [
                values_there,
                state.clone(),
                above,
                equal,
                poison(own * 4),
                poison(own * 8),
            ];
            let gather = codes::gather(values.len(), Some(equals), true);
            run(&gather, &mut buffers, &[4, 5], &name).unwrap();
            let [.., places, keys] = buffers;
            let places = to_words(&places);
            assert!(places.is_sorted_by(|a, b| a < b), "{name}");
            // the sort of the chosen ones
            let mut order = Vec::new();
            for digit in 0..8 {
                let numbers = keys.get(digit / 2 * 2..).unwrap_or_default().to_vec();
                let [counting, placing] = codes::sort(own, digit % 2 * 8, 4, digit == 0);
                let counters = codes::counters(own);
                let mut buffers = [numbers.clone(), order.clone(), poison(counters * 4)];
                run(&counting, &mut buffers, &[2], &name).unwrap();
                let [.., counts] = buffers;
                let mut buffers = [counts];
                run(&codes::scan(counters), &mut buffers, &[0], &name).unwrap();
                let [counts] = buffers;
                let mut buffers = [numbers, order, counts, poison(own * 4)];
                run(&placing, &mut buffers, &[3], &name).unwrap();
                [.., order] = buffers;
            }
            let by_size: Vec<usize> = to_words(&order)
                .iter()
                .map(|&i| first + places[i as usize] as usize)
                .collect();
            let here = first..first + values.len();
            let of_array: Vec<usize> = expected.iter().copied().filter(|i| here.contains(i)).collect();
            assert_eq!(by_size, of_array, "{name}");
            found.extend(by_size);
            first += values.len();
        }
        assert_eq!(found.len(), count);
    }
}

fn quantized(rng: &mut ChaCha8Rng, text: &str, out_groups: usize, in_groups: usize) -> QuantizedMatrix {
    let scheme: Scheme = text.parse().unwrap();
    let (books, states) = (scheme.num_codebooks, scheme.codebook_size());
    let codes = Array3::from_shape_simple_fn((out_groups, in_groups, books), || {
        rng.random_range(0..states) as u16
    });
    let shape = (books, states, scheme.out_group_size, scheme.in_group_size);
    let codebooks = Array4::from_shape_simple_fn(shape, || rng.sample::<f64, _>(StandardNormal));
    let scales = Array1::from_shape_simple_fn(out_groups, || rng.sample(StandardNormal));
    QuantizedMatrix::new(scheme, codes, codebooks, scales).unwrap()
}

/// A relative error of sums of a few f64 products of f32 differences: each difference is rounded to f32
/// once, and so is the weight.
const ROUNDED: f64 = 8.0 * f32::EPSILON as f64;

#[test]
fn buffers_are_compared_with_their_matrix_and_decay_towards_it() {
    let mut rng = ChaCha8Rng::seed_from_u64(31);
    for (index, (text, out_groups, in_groups)) in [("2x3g4", 9, 40), ("1x8g8", 20, 30), ("3x2g2o2", 7, 6)]
        .into_iter()
        .enumerate()
    {
        let name = format!("codes-norms-{index}");
        let matrix = quantized(&mut rng, text, out_groups, in_groups);
        let (out, inputs) = (matrix.out_features(), matrix.in_features());
        let scheme = matrix.scheme();
        let buffer = Array2::from_shape_simple_fn((out, inputs), || {
            let value: f64 = rng.sample(StandardNormal);
            f64::from(value as f32)
        });
        let groups = out_groups * in_groups;
        let blocks = codes::norm_blocks(groups);
        let of_matrix = [
            halves(matrix.codes().iter().copied()),
            f64s(&matrix.codebooks().iter().copied().collect::<Vec<_>>()),
            f64s(&matrix.scales().to_vec()),
        ];
        let [codes_there, codebooks, scales] = of_matrix.clone();
        let mut buffers = [
            f32s(&buffer),
            codes_there,
            codebooks,
            scales,
            poison(groups * 8),
            poison(blocks * 8),
        ];
        let Some(()) = run(&codes::norms(scheme, out, inputs), &mut buffers, &[4, 5], &name) else {
            return;
        };
        let weight = decode(&matrix);
        let expected = group_norms(&(&buffer - &weight), scheme);
        // differences of numbers of a few units
        for (found, expected) in to_f64s(&buffers[4]).iter().zip(&expected) {
            assert!(
                (found.sqrt() - expected.sqrt()).abs() <= 16.0 * ROUNDED,
                "{name}: {found} {expected}"
            );
        }
        let squares: f64 = to_f64s(&buffers[5]).iter().sum();
        let expected: f64 = weight.iter().map(|w| w * w).sum();
        assert!(
            (squares / expected - 1.0).abs() <= ROUNDED,
            "{name}: {squares} {expected}"
        );

        let [codes_there, codebooks, scales] = of_matrix;
        let mut buffers = [f32s(&buffer), codes_there, codebooks, scales];
        run(
            &codes::decay(scheme, out, inputs, 0.25),
            &mut buffers,
            &[0],
            &name,
        )
        .unwrap();
        let mut expected = buffer.clone();
        delta_decay(&mut expected, &weight, 0.25);
        let fours = buffers[0].as_chunks::<4>().0.iter();
        for (found, expected) in fours
            .map(|&four| f64::from(f32::from_le_bytes(four)))
            .zip(&expected)
        {
            assert!(
                (found - expected).abs() <= ROUNDED * expected.abs().max(1.0),
                "{name}"
            );
        }
    }
}

#[test]
fn changes_are_measured_trusted_and_adopted() {
    let mut rng = ChaCha8Rng::seed_from_u64(32);
    let (name, count) = ("codes-trust", 3000);
    let matrix = quantized(&mut rng, "2x4g4", 64, 64);
    let scheme = matrix.scheme();
    let old: Vec<u16> = matrix.codes().iter().copied().collect();
    // every group but each third, in order; some of the new codes are the old ones
    let chosen: Vec<u32> = (0..4096)
        .filter(|group| group % 3 != 0 || *group > 3000)
        .take(count)
        .collect();
    assert_eq!(chosen.len(), count);
    let new: Vec<u16> = (0..2 * count).map(|_| rng.random_range(0..16)).collect();
    let codebooks: Vec<f64> = matrix.codebooks().iter().copied().collect();
    let scales = matrix.scales().to_vec();
    let mut buffers = [
        halves(old.iter().copied()),
        halves(new.iter().copied()),
        words(&chosen),
        f64s(&codebooks),
        f64s(&scales),
        poison(count * 8),
    ];
    let plan = codes::changes(scheme, matrix.in_features(), count);
    let Some(()) = run(&plan, &mut buffers, &[5], name) else {
        return;
    };
    let changes = to_f64s(&buffers[5]);
    for (i, (&group, found)) in chosen.iter().zip(&changes).enumerate() {
        let word = |m: usize, code: u16, e: usize| codebooks[(m * 16 + usize::from(code)) * 4 + e];
        let old = &old[2 * group as usize..][..2];
        let moved = |e: usize| -> f64 {
            let each = (0..2).map(|m| word(m, new[2 * i + m], e) - word(m, old[m], e));
            scales[group as usize / 64] * each.sum::<f64>()
        };
        let expected: f64 = (0..4).map(|e| moved(e).powi(2)).sum();
        assert!((found - expected).abs() <= 1e-12 * expected, "{found} {expected}");
    }
    let order: Vec<u32> = largest(&changes, count).into_iter().map(|i| i as u32).collect();
    let sorted: Vec<f64> = order.iter().map(|&i| changes[i as usize]).collect();
    let squares = [9.0, 7.0, 0.0, 20.0];
    // the bound is half a unit above the norm of some first changes, below all, or above all
    for place in [0, 1, 1500, count] {
        let before: f64 = sorted[..place].iter().sum();
        let bound = if place == 0 {
            1e-9
        } else {
            before.sqrt() * (1.0 + 1e-9)
        };
        let mut buffers = [f64s(&changes), words(&order), f64s(&squares), poison(4)];
        run(
            &codes::trust(count, squares.len(), bound / 6.0),
            &mut buffers,
            &[3],
            name,
        )
        .unwrap();
        let kept = to_words(&buffers[3])[0];
        assert_eq!(kept as usize, trusted(&sorted, bound), "{place}");

        let mut buffers = [
            halves(old.iter().copied()),
            halves(new.iter().copied()),
            words(&chosen),
            words(&order),
            words(&[kept]),
            words(&[5]),
        ];
        run(&codes::adopt(count, 2, true), &mut buffers, &[0, 5], name).unwrap();
        let mut expected = old.clone();
        for &i in &order[..kept as usize] {
            let group = chosen[i as usize] as usize;
            expected[2 * group..][..2].copy_from_slice(&new[2 * i as usize..][..2]);
        }
        let differ = expected
            .chunks(2)
            .zip(old.chunks(2))
            .filter(|(a, b)| a != b)
            .count();
        assert_eq!(buffers[0], halves(expected));
        assert_eq!(to_words(&buffers[5])[0] as usize, 5 + differ);
    }
    let mut buffers = [
        f32s(&Array2::from_elem((1, 300), 0.5)),
        f32s(&Array2::from_elem((1, 300), 1.25)),
    ];
    run(&codes::add(300), &mut buffers, &[1], name).unwrap();
    assert_eq!(buffers[1], f32s(&Array2::from_elem((1, 300), 1.75)));
}
