//! The cross-check as run by `aqlm check`: fewer drawn cases, all operations, all backends of this machine.

use aqlm_check::cases::{Case, Operation};
use aqlm_check::{CrossOptions, Machines, Outcome, cross_check};
use aqlm_engine::backends::BackendKind;

fn all() -> Vec<Machines> {
    BackendKind::ALL.map(Machines::of).into()
}

fn options() -> CrossOptions {
    CrossOptions {
        machines: all(),
        operation: None,
        case: None,
        cases: 4,
        seed: 0,
        keep: None,
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
        Operation::ALL.len() * BackendKind::ALL.len()
    );
    for line in &report.summary {
        assert_eq!(line.cases, line.pass + line.fail + line.unsupported + line.waived);
        // The reference and the CPU are always present.
        if line.backend != "cuda" {
            assert_eq!(line.pass, line.cases, "{} on {}", line.op, line.backend);
        }
    }
}

#[test]
fn one_case_can_be_asked_for_and_gives_the_same_twice() {
    let case: Case = "matvec-2x8g8-65x72-b3-outliers-s2".parse().unwrap();
    let of_case = CrossOptions::of_case(case, all());
    let run = || cross_check(&of_case, &mut |_| ()).unwrap();
    let report = run();
    assert_eq!(report, run());
    assert_eq!(report.report.rows.len(), BackendKind::ALL.len());
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
            machines: vec![Machines::of(BackendKind::Reference)],
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

/// decode, matvec and matmul on the CPU, for an id without its operation.
fn products(problem: &str) {
    for operation in [Operation::Decode, Operation::Matvec, Operation::Matmul] {
        let case: Case = format!("{operation}-{problem}").parse().unwrap();
        let of_case = CrossOptions::of_case(case, vec![Machines::of(BackendKind::Cpu)]);
        let report = cross_check(&of_case, &mut |_| ()).unwrap();
        let row = &report.report.rows[0];
        assert_eq!(row.outcome, Outcome::Pass, "{case}: {:?}", row.reason);
    }
}

#[test]
fn products_of_every_code_width() {
    for nbits in 1..=16 {
        let inputs = if nbits > 12 { 24 } else { 40 };
        for values in ["dyadic", "outliers"] {
            products(&format!("2x{nbits}g8-70x{inputs}-b2-{values}-s{nbits}"));
        }
    }
}

#[test]
fn products_of_every_number_of_codebooks() {
    for codebooks in [1, 2, 3, 4, 5, 6, 7, 8, 15, 17] {
        for values in ["dyadic", "outliers"] {
            products(&format!("{codebooks}x4g8-9x88-b1-{values}-s{codebooks}"));
        }
    }
}

#[test]
fn products_of_every_group_shape() {
    for in_group in [1, 3, 4, 7, 8, 12, 16, 20, 24, 32, 48, 64] {
        for out_group in 1..=4 {
            let scheme = if out_group == 1 {
                format!("2x5g{in_group}")
            } else {
                format!("2x5g{in_group}o{out_group}")
            };
            let (out, inputs) = (5 * out_group, 6 * in_group);
            for values in ["dyadic", "outliers"] {
                products(&format!("{scheme}-{out}x{inputs}-b1-{values}-s{in_group}"));
            }
        }
    }
}

/// Sizes around the tile of 64 rows, the four rows of the direct form and the block of 16 look-ups.
#[test]
fn products_with_ragged_edges() {
    for out in [1, 3, 4, 5, 63, 64, 65, 129] {
        for in_groups in [1, 7, 8, 9, 17] {
            for values in ["dyadic", "outliers"] {
                products(&format!("2x8g8-{out}x{}-b3-{values}-s{out}", 8 * in_groups));
            }
        }
    }
}
