//! The cross-check itself, as `aqlm check` runs it: fewer drawn cases, all operations, all backends that are here.

use aqlm_harness::cases::{Case, Operation};
use aqlm_harness::check::{CheckedBackend, CrossOptions, Outcome, cross_check};

fn options() -> CrossOptions {
    CrossOptions {
        backend: None,
        operation: None,
        case: None,
        cases: 4,
        seed: 0,
    }
}

#[test]
fn every_backend_agrees_with_the_reference_over_all_operations() {
    let report = cross_check(&options(), &mut |row| {
        assert_ne!(
            row.outcome,
            Outcome::Fail,
            "{} on {}: {:?}; replay: aqlm check --backend {} --case {}",
            row.op,
            row.backend,
            row.reason,
            row.backend,
            row.case
        );
    })
    .unwrap();
    assert!(report.holds());
    assert_eq!(
        report.summary.len(),
        Operation::ALL.len() * CheckedBackend::ALL.len()
    );
    for line in &report.summary {
        assert_eq!(line.cases, line.pass + line.fail + line.unsupported + line.waived);
        // The reference and the CPU are always there.
        if line.backend != "cuda" {
            assert_eq!(line.pass, line.cases, "{} on {}", line.op, line.backend);
        }
    }
}

#[test]
fn one_case_can_be_asked_for_and_gives_the_same_twice() {
    let case: Case = "matvec-2x8g8-65x72-b3-outliers-s2".parse().unwrap();
    let of_case = CrossOptions {
        case: Some(case),
        ..options()
    };
    let run = || cross_check(&of_case, &mut |_| ()).unwrap();
    let report = run();
    assert_eq!(report, run());
    assert_eq!(report.report.rows.len(), CheckedBackend::ALL.len());
    assert!(report.report.rows.iter().all(|row| row.case == case.to_string()));
    let other = CrossOptions {
        operation: Some(Operation::Decode),
        ..of_case
    };
    assert!(cross_check(&other, &mut |_| ()).is_err());
}

#[test]
fn a_seed_draws_the_same_cases_and_another_seed_others() {
    let ids = |seed| {
        let options = CrossOptions {
            backend: Some(CheckedBackend::Reference),
            operation: Some(Operation::Decode),
            seed,
            ..options()
        };
        let report = cross_check(&options, &mut |_| ()).unwrap();
        report
            .report
            .rows
            .into_iter()
            .map(|row| row.case)
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(1), ids(1));
    assert_ne!(ids(1), ids(2));
}
