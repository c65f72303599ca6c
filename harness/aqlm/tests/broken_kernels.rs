//! Tests that the check catches mistakes. Every operation lists mistakes in implementations
//! (harness/check/src/ops), and the check must reject, by comparison, a machine with any of them. A different
//! rule for ties is no mistake and must pass.

use aqlm_check::cases::{Case, Operation, corners};
use aqlm_check::{CaseRow, Machines, Outcome, check_broken};
use aqlm_engine::backends::BackendKind;
use aqlm_formats::safetensors::SafetensorFiles;
use ndarray::{Ix1, Ix2, Ix3, Ix4};

/// The CPU's plainest way of computing.
fn machine() -> Machines {
    let mut machines = Machines::of(BackendKind::Cpu);
    if let Ok(subjects) = &mut machines.subjects {
        subjects.truncate(1);
    }
    machines
}

/// The rows of all corner cases of an operation.
fn rows(operation: Operation, broken: Option<&str>) -> Vec<CaseRow> {
    let rows = check_broken(&corners(operation).unwrap(), &machine(), broken, None).unwrap();
    assert!(
        rows.iter()
            .all(|row| matches!(row.outcome, Outcome::Pass | Outcome::Fail)),
        "{operation}, {broken:?}: something was not compared"
    );
    rows
}

fn failures(rows: &[CaseRow]) -> usize {
    rows.iter().filter(|row| row.outcome == Outcome::Fail).count()
}

/// Checks every breakage of some operations, and that without a breakage everything passes.
fn caught(operations: &[Operation]) {
    for &operation in operations {
        assert_eq!(failures(&rows(operation, None)), 0, "{operation}");
        let breakages = operation.breakages();
        assert!(breakages.iter().any(|(_, refused)| *refused), "{operation}");
        for (breakage, refused) in breakages {
            let rows = rows(operation, Some(breakage));
            let failed = failures(&rows);
            println!("{operation}, {breakage}: {failed} of {} cases fail", rows.len());
            if refused {
                // A single failing case could be chance.
                assert!(
                    failed >= 2,
                    "{operation}, {breakage}: caught by {failed} of {}",
                    rows.len()
                );
            } else {
                assert_eq!(failed, 0, "{operation}, {breakage}");
            }
        }
    }
}

#[test]
fn broken_products_are_refused() {
    caught(&[Operation::Decode, Operation::Matvec, Operation::Matmul]);
}

#[test]
fn broken_statistics_and_starts_are_refused() {
    use Operation::{EmInit, FeedbackInit, Hessian, Kmeans, ResidualInit};
    caught(&[Hessian, Kmeans, ResidualInit, EmInit, FeedbackInit]);
}

#[test]
fn broken_searches_and_updates_are_refused_and_other_ties_are_not() {
    caught(&[
        Operation::BeamSearch,
        Operation::CodebookUpdate,
        Operation::LayerQuantize,
    ]);
}

#[test]
fn broken_blocks_are_refused() {
    use Operation::{BlockBackward, BlockFinetune, BlockForward};
    caught(&[BlockForward, BlockBackward, BlockFinetune]);
}

#[test]
fn broken_models_are_refused() {
    caught(&[
        Operation::ModelForward,
        Operation::Perplexity,
        Operation::ModelTune,
    ]);
}

/// The minimum contents of the operations' lists.
#[test]
fn the_kinds_of_mistakes_that_kernels_make_are_tried() {
    let has = |operation: Operation, word: &str| {
        let breakages = operation.breakages();
        assert!(
            breakages
                .iter()
                .any(|(name, refused)| *refused && name.contains(word)),
            "{operation}: no {word}"
        );
    };
    for operation in [Operation::Decode, Operation::Matvec, Operation::Matmul] {
        for word in [
            "scale",
            "next input group",
            "transposed",
            "never written",
            "stale",
            "NaN",
            "thousandth",
        ] {
            has(operation, word);
        }
    }
    for operation in [Operation::Matvec, Operation::Matmul, Operation::Hessian] {
        has(operation, "left out");
    }
    for operation in [
        Operation::Hessian,
        Operation::BlockForward,
        Operation::BlockBackward,
    ] {
        has(operation, "NaN");
        has(operation, "thousandth");
    }
    assert!(
        Operation::BeamSearch
            .breakages()
            .iter()
            .any(|(_, refused)| !refused)
    );
}

#[test]
fn a_failure_shows_its_worst_elements_and_keeps_its_operands() {
    let folder = tempfile::tempdir().unwrap();
    let case: Case = "matvec-2x8g8-65x72-b3-outliers-s2".parse().unwrap();
    let broken = Some("a last tile that is never written");
    let rows = check_broken(&[case], &machine(), broken, Some(folder.path())).unwrap();
    let row = &rows[0];
    assert_eq!(row.outcome, Outcome::Fail);
    let worst = row.worst_elements();
    assert_eq!(worst.len(), 10);
    // The last 64 of 3 rows of 65 results are NaN.
    assert!(
        worst
            .iter()
            .all(|worst| worst.found.is_nan() && worst.share.is_infinite())
    );
    assert!(
        worst
            .iter()
            .all(|worst| worst.index[0] == 2 && (1..65).contains(&worst.index[1]))
    );
    let text = worst[0].to_string();
    assert!(text.contains("expected") && text.contains("NaN"), "{text}");

    let kept = folder.path().join(case.to_string());
    assert_eq!(row.kept.as_ref(), Some(&kept));
    let tensors = SafetensorFiles::open_file(&kept.join("operands.safetensors")).unwrap();
    let data = case.product().unwrap().data(case.seed);
    let matrix = &data.matrix;
    assert_eq!(tensors.read::<u16, Ix3>("codes").unwrap(), matrix.codes());
    assert_eq!(tensors.read::<f64, Ix4>("codebooks").unwrap(), matrix.codebooks());
    assert_eq!(tensors.read::<f64, Ix1>("scales").unwrap(), matrix.scales());
    assert_eq!(tensors.read::<f32, Ix2>("x").unwrap(), data.x);

    // A passing check saves nothing.
    let other = tempfile::tempdir().unwrap();
    let rows = check_broken(&[case], &machine(), None, Some(other.path())).unwrap();
    assert_eq!((rows[0].outcome, &rows[0].kept), (Outcome::Pass, &None));
    assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 0);
}
