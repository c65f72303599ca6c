//! Checks every vector computed by peers, if `../shared` exists beside the repository; waived otherwise.

use std::path::{Path, PathBuf};

use aqlm_check::{CheckReport, Outcome, VectorOptions, check_vectors};
use aqlm_engine::backends::BackendKind;

fn shared(path: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("AQLM_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
        PathBuf::from,
    );
    let path = folder.join(path);
    if path.exists() {
        Some(path)
    } else {
        eprintln!("waived: {} is not here", path.display());
        None
    }
}

fn check(path: &Path, models: Vec<PathBuf>) -> CheckReport {
    let options = VectorOptions {
        backend: BackendKind::Reference,
        op: None,
        case: None,
        models,
    };
    check_vectors(path, &options, &mut |_| {}).expect("vectors are readable")
}

fn assert_holds(report: &CheckReport) {
    let failed: Vec<_> = report
        .rows
        .iter()
        .filter(|row| row.outcome == Outcome::Fail)
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(report.holds(), "nothing passed: {:#?}", report.rows);
}

#[test]
fn operations_agree_with_the_official_engine() {
    let Some(path) = shared("peer/ops") else { return };
    let report = check(&path, vec![]);
    assert_holds(&report);
    assert_eq!(report.unsupported, 0);
}

#[test]
fn official_checkpoints_give_their_logits() {
    let Some(path) = shared("peer/aqlm-hf") else {
        return;
    };
    let report = check(&path, vec![]);
    assert_holds(&report);
    assert_eq!(report.waived, 0);
}

#[test]
fn models_agree_with_transformers() {
    let (Some(path), Some(models)) = (shared("peer/models"), shared("models")) else {
        return;
    };
    // its name says the text, too
    let smollm2 = models.join("smollm2-135m");
    let mut given = vec![models];
    if smollm2.exists() {
        given.push(format!("smollm2-135m-wikitext2={}", smollm2.display()).into());
    }
    assert_holds(&check(&path, given));
}
