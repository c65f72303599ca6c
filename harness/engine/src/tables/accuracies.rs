use std::collections::BTreeMap;
use std::path::Path;

use crate::runs::records::{self, Record, TasksRecord};
use aqlm_formats::{Error, Result};

/// The record of `aqlm tasks` in a run folder.
const TASKS_FILE: &str = "tasks.json";

/// The tasks whose mean accuracy the paper's tables have.
const OF_MEAN: [&str; 5] = ["winogrande", "piqa", "hellaswag", "arc_easy", "arc_challenge"];

/// A folder's `tasks.json`, if it has one.
///
/// # Errors
/// `Field` for a record of another kind; those of reading it.
pub(crate) fn tasks_record(folder: &Path) -> Result<Option<TasksRecord>> {
    let path = folder.join(TASKS_FILE);
    if !path.is_file() {
        return Ok(None);
    }
    match records::read(&path)? {
        Record::Tasks(record) => Ok(Some(record)),
        other => Err(Error::Field {
            path,
            field: "record".into(),
            expected: "the record of aqlm tasks".into(),
            found: other.kind().into(),
        }),
    }
}

/// The accuracies in a folder's `tasks.json`, in percent, by column.
///
/// # Errors
/// `Field` for a record of another kind and for a figure that is not finite; those of reading it.
pub(super) fn accuracies(folder: &Path) -> Result<BTreeMap<String, f64>> {
    let Some(record) = tasks_record(folder)? else {
        return Ok(BTreeMap::new());
    };
    let path = folder.join(TASKS_FILE);
    let wrong = |field: String, expected: &str, found: String| Error::Field {
        path: path.clone(),
        field,
        expected: expected.into(),
        found,
    };
    let mut found = BTreeMap::new();
    for task in &record.tasks {
        let acc = task.metrics.iter().find(|figure| figure.metric == "acc");
        let value = acc.map_or(f64::NAN, |figure| 100.0 * figure.estimate.value);
        if !value.is_finite() || task.not_finite > 0 {
            return Err(wrong(
                format!("acc of {}", task.task),
                "a finite number",
                value.to_string(),
            ));
        }
        found.insert(task.task.clone(), value);
    }
    let of_mean: Option<Vec<f64>> = OF_MEAN.iter().map(|name| found.get(*name).copied()).collect();
    if let Some(values) = of_mean {
        found.insert("average".into(), values.iter().sum::<f64>() / values.len() as f64);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::BackendKind;
    use crate::protocol::Bos;
    use crate::runs::records::{Estimate, MetricFigure, TaskFigures, TasksRecord};

    fn record(tasks: &[(&str, f64)]) -> Record {
        let figures = |(task, value): &(&str, f64)| TaskFigures {
            task: (*task).into(),
            data: String::new(),
            shots: 0,
            documents: 10,
            cut: 0,
            not_finite: 0,
            metrics: vec![MetricFigure {
                metric: "acc".into(),
                estimate: Estimate {
                    value: *value,
                    error: 0.1,
                },
            }],
            groups: Vec::new(),
        };
        TasksRecord {
            model: String::new(),
            backend: BackendKind::Cpu,
            bos: Bos::Never,
            with_bos: false,
            positions: 512,
            seconds: 1.0,
            tasks: tasks.iter().map(figures).collect(),
        }
        .into()
    }

    #[test]
    fn accuracies_become_columns_in_percent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(TASKS_FILE);
        assert!(accuracies(folder.path()).unwrap().is_empty());
        let values = [0.5, 0.25, 0.5, 0.75, 0.5];
        let tasks: Vec<_> = OF_MEAN.into_iter().zip(values).collect();
        records::write(&path, &record(&tasks)).unwrap();
        let found = accuracies(folder.path()).unwrap();
        assert_eq!((found["piqa"], found["average"], found.len()), (25.0, 50.0, 6));
        records::write(&path, &record(&tasks[..4])).unwrap();
        assert!(!accuracies(folder.path()).unwrap().contains_key("average"));
        records::write(&path, &record(&[("piqa", f64::NAN)])).unwrap();
        let error = accuracies(folder.path()).unwrap_err().to_string();
        assert!(error.contains("acc of piqa"), "{error}");
    }
}
