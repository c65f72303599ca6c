//! Properties that hold for any numbers, over cases drawn by proptest, which shrinks a failing case to a
//! readable id.

use aqlm_check::cases::{Case, Operation, Problem, cases};
use aqlm_check::{CrossOptions, Machines, Outcome, cross_check};
use aqlm_engine::backends::BackendKind;
use aqlm_formats::model::block_file;
use aqlm_formats::safetensors::SafetensorFiles;
use aqlm_formats::tensors::TensorSource;
use aqlm_reference::{beam_search, decode, layer_error};
use aqlm_vocabulary::{LinearWeight, Purpose, QuantizedMatrix, stream, sweep_order};
use ndarray::{Array2, Axis};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};

/// Draws the same cases in every run.
fn config(cases: u32) -> Config {
    Config {
        cases,
        rng_seed: RngSeed::Fixed(240_106_118),
        failure_persistence: None,
        ..Config::default()
    }
}

/// Checks the reference's own properties (harness/check/src/ops) over drawn cases of an operation.
fn hold(operation: Operation, count: u32) {
    let property = |case: Case| {
        let options = CrossOptions::of_case(case, vec![Machines::of(BackendKind::Reference)]);
        let report = cross_check(&options, &mut |_| ()).unwrap();
        let row = &report.report.rows[0];
        prop_assert_eq!(row.outcome, Outcome::Pass, "{:?}", row.reason);
        Ok(())
    };
    TestRunner::new(config(count))
        .run(&cases(operation), property)
        .unwrap();
}

#[test]
fn decode_is_its_definition_and_linear() {
    hold(Operation::Decode, 40);
}

#[test]
fn products_are_their_definition() {
    hold(Operation::Matvec, 40);
    hold(Operation::Matmul, 40);
}

#[test]
fn the_hessian_is_the_mean_of_outer_products() {
    hold(Operation::Hessian, 30);
}

#[test]
fn kmeans_assigns_to_the_nearest_and_never_rises() {
    hold(Operation::Kmeans, 30);
}

#[test]
fn initialisations_choose_the_nearest_and_em_never_rises() {
    hold(Operation::ResidualInit, 30);
    hold(Operation::EmInit, 30);
    hold(Operation::FeedbackInit, 30);
}

#[test]
fn beam_search_descends_and_stays_above_the_optimum() {
    hold(Operation::BeamSearch, 40);
}

#[test]
fn the_closed_form_has_no_slope_and_nothing_beats_it() {
    hold(Operation::CodebookUpdate, 30);
}

#[test]
fn the_alternation_descends_and_reports_what_it_reached() {
    hold(Operation::LayerQuantize, 20);
}

#[test]
fn blocks_are_causal_and_their_gradients_are_differences() {
    hold(Operation::BlockForward, 20);
    hold(Operation::BlockBackward, 20);
    hold(Operation::BlockFinetune, 12);
}

#[test]
fn models_agree_with_their_caches_and_losses_with_their_definition() {
    hold(Operation::ModelForward, 20);
    hold(Operation::Perplexity, 20);
}

#[test]
fn gradients_of_models_are_differences() {
    hold(Operation::ModelTune, 12);
}

/// Wider beams are better on average, not on every problem. Each width is tested on 300 problems. If the true
/// mean of ln(loss at width k + 1) - ln(loss at width k) is not above zero, the measured mean exceeds zero by
/// 4.5 standard errors with probability 3.4e-6 (normal distribution, which 300 terms justify). Over the three
/// pairs, the error rate is 1.0e-5.
#[test]
fn a_wider_beam_is_not_worse_on_average() {
    const PROBLEMS: u64 = 300;
    const STANDARD_ERRORS: f64 = 4.5;
    let mut means = Vec::new();
    for width in 1..4 {
        let differences: Vec<f64> = (0..PROBLEMS)
            .map(|seed| {
                let case: Case = format!("beam_search-2x3g4-2x32-outliers-correlated-b1-single-s{seed}")
                    .parse()
                    .unwrap();
                let data = case.layer().unwrap().data(seed);
                let weight = data.weight.mapv(f64::from);
                let order = sweep_order(&mut stream(seed, 0, None, Purpose::Sweep), 8, 2, false);
                let loss = |beam| {
                    let codes = beam_search(&weight, &data.hessian, &data.matrix, &order, beam).unwrap();
                    let matrix = data.matrix.clone().with_codes(codes).unwrap();
                    layer_error(&weight, &decode(&matrix), &data.hessian)
                };
                loss(width + 1).ln() - loss(width).ln()
            })
            .collect();
        let n = differences.len() as f64;
        let mean = differences.iter().sum::<f64>() / n;
        let variance = differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (n - 1.0);
        println!(
            "width {width} to {}: mean of ln {mean:.4}, standard error {:.4}",
            width + 1,
            (variance / n).sqrt()
        );
        assert!(
            mean <= STANDARD_ERRORS * (variance / n).sqrt(),
            "width {width}: {mean}"
        );
        means.push(mean);
    }
    // The beam must also help; otherwise the test would not notice that it is ignored.
    assert!(means[0] < 0.0, "{means:?}");
}

fn permutation(len: usize, seed: u64) -> Vec<usize> {
    let mut rng = stream(seed, 3, None, Purpose::TestData);
    aqlm_vocabulary::sample_distinct(&mut rng, len, len)
}

proptest! {
    #![proptest_config(config(40))]

    /// Renaming codewords changes codes and nothing else.
    #[test]
    fn permuting_codewords_permutes_codes_and_keeps_the_weight(case in cases(Operation::Decode)) {
        let matrix = case.product().unwrap().data(case.seed).matrix;
        let by = permutation(matrix.scheme().codebook_size(), case.seed);
        let codebooks = matrix.codebooks().select(Axis(1), &by);
        let mut new_of = vec![0; by.len()];
        for (to, &from) in by.iter().enumerate() {
            new_of[from] = to as u16;
        }
        let codes = matrix.codes().mapv(|code| new_of[usize::from(code)]);
        let renamed = matrix.clone().with_codebooks(codebooks).unwrap().with_codes(codes).unwrap();
        prop_assert_eq!(decode(&renamed), decode(&matrix));
    }

    /// Output groups are independent of one another; input groups interact only through sums.
    #[test]
    fn permuting_groups_permutes_the_weight(case in cases(Operation::Decode)) {
        let matrix = case.product().unwrap().data(case.seed).matrix;
        let (out_groups, in_groups) = matrix.groups();
        let (rows, columns) = (permutation(out_groups, case.seed), permutation(in_groups, case.seed + 1));
        let codes = matrix.codes().select(Axis(0), &rows).select(Axis(1), &columns);
        let scales = matrix.scales().select(Axis(0), &rows);
        let moved = matrix.clone().with_codes(codes).unwrap().with_scales(scales).unwrap();
        let spread = |by: &[usize], size: usize| -> Vec<usize> {
            by.iter().flat_map(|&group| group * size..(group + 1) * size).collect()
        };
        let (go, gi) = (matrix.scheme().out_group_size, matrix.scheme().in_group_size);
        let expected = decode(&matrix).select(Axis(0), &spread(&rows, go)).select(Axis(1), &spread(&columns, gi));
        prop_assert_eq!(decode(&moved), expected);
        let some = &rows[..rows.len().div_ceil(2)];
        let of_some = decode(&matrix).select(Axis(0), &spread(some, go));
        prop_assert_eq!(decode(&matrix.of_out_groups(some)), of_some);
    }

    /// Rows are searched independently: permuting them permutes their codes, if every score is exact.
    #[test]
    fn permuting_rows_permutes_the_codes_of_a_search(seed in 0u64..500, rows in 2usize..20, beam in 1usize..4) {
        let id = format!("beam_search-2x3g4-{rows}x16-dyadic-white-b{beam}-single-s{seed}");
        let data = id.parse::<Case>().unwrap().layer().unwrap().data(seed);
        let order = sweep_order(&mut stream(seed, 0, None, Purpose::Sweep), 4, 2, false);
        let search = |weight: &Array2<f64>, matrix: &QuantizedMatrix| {
            beam_search(weight, &data.hessian, matrix, &order, beam).unwrap()
        };
        let by = permutation(rows, seed);
        let weight = data.weight.mapv(f64::from);
        let codes = data.matrix.codes().select(Axis(0), &by);
        let scales = data.matrix.scales().select(Axis(0), &by);
        let moved = data.matrix.clone().with_codes(codes).unwrap().with_scales(scales).unwrap();
        let found = search(&weight.select(Axis(0), &by), &moved);
        prop_assert_eq!(found, search(&weight, &data.matrix).select(Axis(0), &by));
    }

    /// A block that is stored and read back is the same block, and the same block gives the same bytes.
    #[test]
    fn saving_and_loading_is_the_identity(case in cases(Operation::BlockForward)) {
        let Problem::Llama(problem) = case.problem else { unreachable!() };
        let data = problem.data(case.seed);
        let spec = &data.config.blocks[0];
        let mut block = data.blocks[0].clone();
        for layer in &mut block.layers {
            if let LinearWeight::Quantized(matrix) = &mut layer.weight {
                *matrix = matrix.rounded_to_f16().unwrap();
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("a"), folder.path().join("b"));
        let digest = block_file::write(&first, spec, &block).unwrap();
        let read = block_file::read(&first, spec).unwrap();
        prop_assert_eq!(&read, &block);
        prop_assert_eq!(block_file::write(&second, spec, &read).unwrap(), digest);
        prop_assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap());
    }

    /// The formula for bits equals the bytes on disk if codes fill their type: 8 and 16 bits.
    #[test]
    fn the_bits_formula_counts_the_bytes_on_disk(codebooks in 1usize..4, wide: bool, rows in 1usize..6) {
        let nbits = if wide { 16 } else { 8 };
        let id = format!("block_forward-16x{}-k1-q1-d16-n1-t2-w0-nobias-plain-{codebooks}x{nbits}g8-s1", 8 * rows);
        let case: Case = id.parse().unwrap();
        let data = case.llama().unwrap().data(case.seed);
        let mut block = data.blocks[0].clone();
        let mut formula = 0.0;
        for layer in &mut block.layers {
            if let LinearWeight::Quantized(matrix) = &mut layer.weight {
                *matrix = matrix.rounded_to_f16().unwrap();
                formula += matrix.scheme().bits(matrix.out_features(), matrix.in_features());
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("block.safetensors");
        block_file::write(&path, &data.config.blocks[0], &block).unwrap();
        let tensors = SafetensorFiles::open_file(&path).unwrap();
        let stored: u64 = tensors
            .names()
            .iter()
            .filter(|name| ["codes", "codebooks", "scales"].iter().any(|part| name.ends_with(part)))
            .map(|name| tensors.info(name).unwrap().bytes)
            .sum();
        prop_assert_eq!(8.0 * stored as f64, formula);
    }
}

#[test]
fn permutations_are_permutations() {
    let mut sorted = permutation(9, 4);
    assert_ne!(sorted, (0..9).collect::<Vec<_>>());
    sorted.sort_unstable();
    assert_eq!(sorted, (0..9).collect::<Vec<_>>());
}
