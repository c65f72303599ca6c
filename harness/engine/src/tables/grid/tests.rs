use super::super::paper::table;
use super::*;

/// A grid for the embedded model on a table about Llama 2 7B.
fn grid(id: &str, extra: &str) -> Grid {
    let text = format!(
        r#"{{"table": "{id}", "model": "tiny-stories-4m", "path": "tiny-stories-4m", "backend": "cpu",
            "preset": "official", "calibration": "calibration.jsonl", "seqlen": 64, "scheme": "2x6g8",
            "evaluations": {{"stories": {{"data": "eval.jsonl", "ctx": 64, "arguments": ["--windows", "4"]}}}}
            {extra}}}"#
    );
    serde_json::from_str(&text).unwrap()
}

fn cells(grid: &Grid) -> Result<Vec<Cell>> {
    grid.cells(&table(&grid.table)?, Path::new("out"))
}

#[test]
fn a_model_without_rows_takes_those_of_the_first_model() {
    let all = cells(&grid("7", "")).unwrap();
    let names: Vec<&str> = all.iter().map(|cell| cell.name.as_str()).collect();
    assert_eq!(names, ["nothing", "norms", "codebooks-scales", "all"]);
    let lines: Vec<String> = all
        .iter()
        .map(|cell| shell(&cell.commands[0], &Path::new("out").join(&cell.name)))
        .collect();
    assert_eq!(
        lines[0],
        "aqlm quantize tiny-stories-4m --scheme 2x6g8 --calib calibration.jsonl --out out/nothing --backend cpu \
         --preset official --seqlen 64 --sequences 2048 --seed 0 --finetune none --json"
    );
    assert!(
        lines[1].contains("--finetune block --finetune-tune norms "),
        "{}",
        lines[1]
    );
    assert!(
        lines[2].contains("--finetune-tune codebooks,scales "),
        "{}",
        lines[2]
    );
    assert!(!lines[3].contains("--finetune-tune"), "{}", lines[3]);
    assert_eq!(
        shell(&all[0].commands[1], Path::new("out/nothing")),
        "aqlm eval out/nothing --data eval.jsonl --ctx 64 --backend cpu --windows 4 --json > \
         out/nothing/eval-stories.json"
    );
}

#[test]
fn a_models_own_rows_come_with_their_schemes_and_the_dense_model() {
    let table = table("4").unwrap();
    let seven = model("llama-2-7b").unwrap();
    let grid = Grid::proposed(&table, &seven, BackendKind::Cpu, Preset::Paper);
    let cells = grid.cells(&table, Path::new("out")).unwrap();
    let of = |name: &str| {
        let cell = cells.iter().find(|cell| cell.name == name).unwrap();
        cell.commands[0].arguments.join(" ")
    };
    let wide = of("7b-aqlm-e2e-2.29");
    assert!(
        wide.contains("--scheme 1x16g8 ") && wide.contains("--finetune end-to-end"),
        "{wide}"
    );
    assert!(wide.contains("--end-to-end-sequences 2048"), "{wide}");
    let first = super::super::paper::table("1").unwrap();
    let grid = Grid::proposed(&first, &seven, BackendKind::Cpu, Preset::Paper);
    let cells = grid.cells(&first, Path::new("out")).unwrap();
    assert_eq!(cells[0].name, "7b-fp16");
    assert!(cells[0].quantize.is_none());
    let outputs: Vec<_> = cells[0]
        .commands
        .iter()
        .map(|command| command.output.as_deref())
        .collect();
    assert_eq!(outputs, [Some("eval-c4.json"), Some("eval-wikitext2.json")]);
}

#[test]
fn seeds_make_a_cell_each_and_cells_override() {
    let extra = r#", "seeds": [0, 7], "sequences": 8, "arguments": ["--max-rounds", "1"],
        "cells": [{"row": "norms", "cell": "x", "scheme": "1x8g8", "sequences": 4, "end_to_end": true,
                   "tuned": [], "arguments": ["--beam", "2"]}, {"row": "all"}]"#;
    let all = cells(&grid("7", extra)).unwrap();
    let names: Vec<&str> = all.iter().map(|cell| cell.name.as_str()).collect();
    assert_eq!(names, ["x-s0", "x-s7", "all-s0", "all-s7"]);
    let first = all[1].commands[0].arguments.join(" ");
    for part in [
        "--scheme 1x8g8",
        "--sequences 4 --seed 7",
        "--finetune end-to-end --finetune-epochs 0 --end-to-end-sequences 4",
        "--max-rounds 1 --beam 2 --json",
    ] {
        assert!(first.contains(part), "{part}: {first}");
    }
    assert!(
        all[3].commands[0]
            .arguments
            .join(" ")
            .contains("--sequences 8 --seed 7")
    );
}

#[test]
fn what_cannot_be_run_is_refused_with_what_is_known() {
    let refused = |id: &str, extra: &str| cells(&grid(id, extra)).unwrap_err().to_string();
    let unknown = refused("7", r#", "cells": [{"row": "none"}]"#);
    assert!(
        unknown.contains("expected one of nothing, norms") && unknown.ends_with("`none`"),
        "{unknown}"
    );
    let other = refused("1", r#", "cells": [{"row": "7b-quip-sharp-2.02"}]"#);
    assert!(
        other.contains("one that this project can compute") && other.contains("QuIP#"),
        "{other}"
    );
    let twice = refused("7", r#", "cells": [{"row": "all"}, {"row": "all"}]"#);
    assert!(
        twice.ends_with("expected one of each name, found two of `all`"),
        "{twice}"
    );
    let wide = refused("7", r#", "cells": [{"row": "all", "scheme": "1x15g8"}]"#);
    assert!(
        wide.contains("fits tiny-stories-4m") && wide.contains("8192 groups"),
        "{wide}"
    );
    for name in ["../x", "", ".x", "checks", "a b"] {
        let bad = refused(
            "7",
            &format!(r#", "cells": [{{"row": "all", "cell": "{name}"}}]"#),
        );
        assert!(bad.starts_with("cell of the grid: expected a name"), "{bad}");
    }
    let mut column = grid("7", "");
    column.evaluations.insert(
        "story".into(),
        Evaluation {
            data: "d".into(),
            ctx: 2,
            arguments: Vec::new(),
        },
    );
    let error = cells(&column).unwrap_err().to_string();
    assert!(
        error.contains("found `story`") && error.contains("stories"),
        "{error}"
    );
    let elsewhere = grid("7", "")
        .cells(&table("8").unwrap(), Path::new("out"))
        .unwrap_err();
    assert!(elsewhere.to_string().contains("expected 8"), "{elsewhere}");
    let mut nobody = grid("7", "");
    nobody.model = "gpt".into();
    assert!(
        cells(&nobody)
            .unwrap_err()
            .to_string()
            .contains("one of llama-2-7b")
    );
}

#[test]
fn a_grid_is_read_back_and_damage_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("grid.json");
    let written = grid(
        "7",
        r#", "seeds": [1], "cells": [{"row": "all", "tuned": ["norms"]}]"#,
    );
    std::fs::write(&path, written.to_json()).unwrap();
    assert_eq!(Grid::read(&path).unwrap(), written);
    let damaged = |from: &str, to: &str| {
        std::fs::write(&path, written.to_json().replace(from, to)).unwrap();
        Grid::read(&path).unwrap_err().to_string()
    };
    let error = damaged("\"ctx\": 64", "\"ctx\": -1");
    assert!(error.contains("field `evaluations.stories.ctx`"), "{error}");
    let error = damaged("\"seqlen\"", "\"seq_len\"");
    assert!(error.contains("seq_len") && error.contains("seqlen"), "{error}");
    let error = damaged("\"2x6g8\"", "\"2x6\"");
    assert!(
        error.contains("field `scheme`") && error.contains("MxBgG"),
        "{error}"
    );
    let error = damaged("\"norms\"", "\"heads\"");
    assert!(error.contains("cells[0].tuned[0]"), "{error}");
    std::fs::write(&path, "{").unwrap();
    assert!(matches!(Grid::read(&path), Err(Error::Json { .. })));
}

#[test]
fn arguments_with_blanks_are_quoted() {
    let line = |argument: &str| quoted_line(&[argument.to_owned()]);
    assert_eq!(line("a/b-c_1,2.txt"), "aqlm a/b-c_1,2.txt");
    assert_eq!(line("my text"), "aqlm 'my text'");
    assert_eq!(line("it's"), "aqlm 'it'\\''s'");
    assert_eq!(line(""), "aqlm ''");
}
