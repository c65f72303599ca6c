use std::collections::BTreeMap;
use std::path::Path;

use crate::runs::records::{EvalRecord, TableModel};
use aqlm_formats::{Error, Result};

/// The one dense model of all runs, each with its folder; `None` without runs.
///
/// # Errors
/// `Argument` for runs of different models, with what differs.
pub(crate) fn one_model<'a>(
    mut runs: impl Iterator<Item = (&'a Path, &'a TableModel)>,
) -> Result<Option<TableModel>> {
    let Some((first, of_first)) = runs.next() else {
        return Ok(None);
    };
    let mut model = of_first.clone();
    for (path, run) in runs {
        let differs = |what: &str, mine: &str, theirs: &str| {
            Error::argument(
                "runs",
                &format!("runs of one model, as {} with {what} {mine}", first.display()),
                format!("{} with {what} {theirs}", path.display()),
            )
        };
        let hashes = model.sha256.as_ref().zip(run.sha256.as_ref());
        if let Some((mine, theirs)) = hashes.filter(|(mine, theirs)| mine != theirs) {
            return Err(differs("model_sha256", mine, theirs));
        }
        if let (Some(mine), Some(theirs)) = (&model.name, &run.name) {
            if mine != theirs {
                return Err(differs("model", mine, theirs));
            }
        } else if hashes.is_none() && model.path != run.path {
            return Err(differs("model", &model.path, &run.path));
        }
        model.name = model.name.or_else(|| run.name.clone());
        model.sha256 = model.sha256.or_else(|| run.sha256.clone());
    }
    Ok(Some(model))
}

/// Checks that perplexities of one column are over equal windows of equal texts.
///
/// # Errors
/// `Argument` with what differs.
pub(crate) fn one_protocol<'a>(
    runs: impl Iterator<Item = (&'a Path, &'a BTreeMap<String, EvalRecord>)>,
) -> Result<()> {
    let mut first: BTreeMap<&str, (&Path, &EvalRecord)> = BTreeMap::new();
    for (path, evaluations) in runs {
        for (column, record) in evaluations {
            let (other, seen) = *first.entry(column).or_insert((path, record));
            let facts = |record: &EvalRecord| {
                [
                    ("protocol", record.protocol.name().to_owned()),
                    ("ctx", record.ctx.to_string()),
                    ("tokens", record.tokens.to_string()),
                ]
            };
            for ((what, mine), (_, theirs)) in facts(seen).into_iter().zip(facts(record)) {
                if mine != theirs {
                    return Err(Error::argument(
                        "runs",
                        &format!(
                            "equal evaluations of {column}, as {} with {what} {mine}",
                            other.display()
                        ),
                        format!("{} with {what} {theirs}", path.display()),
                    ));
                }
            }
        }
    }
    Ok(())
}
