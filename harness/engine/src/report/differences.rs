use serde_json::Value;

use super::read::ReportedRun;

/// One setting, or fact about the environment, of several runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// dotted name, as in `settings.layer.beam`
    pub name: String,
    /// the value in each run; `None` where a run does not record it
    pub values: Vec<Option<String>>,
}

impl Setting {
    /// Whether the runs that record the setting disagree, or only some record it.
    pub fn differs(&self) -> bool {
        self.values.windows(2).any(|pair| pair[0] != pair[1])
    }
}

/// Everything that the runs' `run.json` say, by field, in the order of the first run that has the field.
pub fn settings(runs: &[ReportedRun]) -> Vec<Setting> {
    let mut settings: Vec<Setting> = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        let mut fields = Vec::new();
        if let Some(description) = &run.description {
            flatten("", description, &mut fields);
        }
        for (name, value) in fields {
            let at = settings.iter().position(|setting| setting.name == name);
            let at = at.unwrap_or_else(|| {
                settings.push(Setting {
                    name,
                    values: vec![None; runs.len()],
                });
                settings.len() - 1
            });
            settings[at].values[index] = Some(value);
        }
    }
    settings
}

/// The leaves of a JSON value, with dotted names. A list is a leaf: its words in one line.
fn flatten(name: &str, value: &Value, out: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                let name = if name.is_empty() {
                    field.clone()
                } else {
                    format!("{name}.{field}")
                };
                flatten(&name, value, out);
            }
        }
        Value::Array(values) => {
            let words: Vec<String> = values.iter().map(leaf).collect();
            out.push((name.into(), words.join(" ")));
        }
        value => out.push((name.into(), leaf(value))),
    }
}

fn leaf(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_stand_side_by_side_and_differ_where_they_do() {
        let run = |description| ReportedRun {
            description,
            ..ReportedRun::empty("a".into())
        };
        let runs = [
            run(Some(
                json!({"command": ["aqlm", "x"], "settings": {"beam": 1, "seed": 0}}),
            )),
            run(Some(
                json!({"command": ["aqlm", "x"], "settings": {"beam": 4, "lr": 0.5, "seed": 0}}),
            )),
            run(None),
        ];
        let found = settings(&runs[..2]);
        let differing: Vec<&str> = found
            .iter()
            .filter(|setting| setting.differs())
            .map(|setting| setting.name.as_str())
            .collect();
        assert_eq!(differing, ["settings.beam", "settings.lr"]);
        assert_eq!(found[0].values, [Some("aqlm x".into()), Some("aqlm x".into())]);
        let lr = found
            .iter()
            .find(|setting| setting.name == "settings.lr")
            .unwrap();
        assert_eq!(lr.values, [None, Some("0.5".into())]);
        assert!(settings(&runs).iter().all(Setting::differs));
    }
}
