use std::collections::BTreeSet;
use std::path::Path;

use super::super::models::model;
use super::*;

/// Half a unit of the last printed decimal of a number.
fn rounding(printed: f64) -> f64 {
    let decimals = format!("{printed:?}")
        .split_once('.')
        .map_or(0, |(_, decimals)| decimals.len());
    0.5 * 10f64.powi(-(decimals as i32)) + 1e-9
}

const ZERO_SHOT: [&str; 5] = ["winogrande", "piqa", "hellaswag", "arc_easy", "arc_challenge"];

#[test]
fn every_file_of_the_folder_is_in_the_program() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/paper");
    let there: BTreeSet<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let mut here: BTreeSet<String> = TABLES.iter().map(|(name, _)| (*name).to_owned()).collect();
    here.extend(["columns.json", "models.json", "official.json"].map(str::to_owned));
    assert_eq!(there, here);
}

#[test]
fn tables_are_well_formed() {
    let known = columns().unwrap();
    let mut ids = BTreeSet::new();
    for table in tables().unwrap() {
        assert!(ids.insert(table.id.clone()), "two tables {}", table.id);
        let columns: BTreeSet<&String> = table.columns.iter().collect();
        assert_eq!(columns.len(), table.columns.len(), "{}", table.id);
        assert!(
            columns.iter().all(|column| known.contains_key(*column)),
            "{}",
            table.id
        );
        let mut rows = BTreeSet::new();
        for row in &table.rows {
            let place = format!("table {}, row {}", table.id, row.row);
            assert!(rows.insert(&row.row), "two of {place}");
            assert!(
                row.figures.keys().all(|column| columns.contains(column)),
                "{place}"
            );
            let source = &row.source;
            assert!(
                [&source.text, &source.table, &source.row]
                    .iter()
                    .all(|part| !part.is_empty()),
                "{place}: no source"
            );
            model(&row.model).unwrap();
            // a row of speeds has a device and the backend beside it
            assert_eq!(row.device.is_some(), row.backend.is_some(), "{place}");
            if let Some(Recipe::Quantize(recipe)) = &row.recipe {
                assert!(row.scheme.is_some(), "{place}: a recipe without a scheme");
                assert!(recipe.sequences > 0, "{place}");
                assert!(recipe.tuned.is_sorted(), "{place}");
            }
        }
    }
}

#[test]
fn every_figure_is_finite_and_positive() {
    let mut count = 0;
    for table in tables().unwrap() {
        for row in &table.rows {
            for (column, figure) in &row.figures {
                let place = format!("table {}, row {}, {column}", table.id, row.row);
                assert!(figure.value().is_finite() && figure.value() > 0.0, "{place}");
                if let PaperFigure::Mean { deviation, runs, .. } = figure {
                    assert!(deviation.is_finite() && *deviation >= 0.0 && *runs > 1, "{place}");
                }
                count += 1;
            }
            assert!(
                row.bits.is_none_or(|bits| (0.5..=16.0).contains(&bits)),
                "{}",
                row.row
            );
        }
    }
    assert!(count > 700, "{count} figures");
}

/// The bits that are printed must be those of the scheme, over all quantized layers of the model, to the last
/// printed decimal.
#[test]
fn printed_bits_follow_from_the_scheme() {
    let mut count = 0;
    for table in tables().unwrap() {
        for row in &table.rows {
            let (Some(scheme), Some(bits)) = (row.scheme, row.bits) else {
                continue;
            };
            let formula = model(&row.model).unwrap().bits_per_parameter(scheme);
            assert!(
                (formula - bits).abs() <= rounding(bits),
                "table {}, row {}: {scheme} has {formula}, printed {bits}",
                table.id,
                row.row
            );
            count += 1;
        }
    }
    assert!(count > 50, "{count} rows");
}

/// A wrong digit in a table of accuracies shows in the mean of its row. Five rows of the paper do not have
/// the mean of their cells; their notes say so.
#[test]
fn means_are_those_of_their_cells_where_no_note_says_otherwise() {
    let mut other = 0;
    for table in tables().unwrap() {
        for row in &table.rows {
            let Some(printed) = row.figures.get("average") else {
                continue;
            };
            let sum: f64 = ZERO_SHOT.iter().map(|column| row.figures[*column].value()).sum();
            let differs = (sum / 5.0 - printed.value()).abs() > 0.0101;
            let noted = row.notes.iter().any(|note| note.contains("average differs"));
            assert_eq!(differs, noted, "table {}, row {}", table.id, row.row);
            other += usize::from(differs);
        }
    }
    assert_eq!(other, 5);
}

#[test]
fn an_unknown_id_lists_the_known_ones() {
    let error = table("17").unwrap_err().to_string();
    assert!(
        error.starts_with("table: expected one of 1, 2, 3, ") && error.ends_with("found `17`"),
        "{error}"
    );
    assert!(error.contains("figure-4"), "{error}");
    let error = table("7").unwrap().row("norm").unwrap_err().to_string();
    assert_eq!(
        error,
        "row of table 7: expected one of nothing, norms, codebooks-scales, all, found `norm`"
    );
}

#[test]
fn headline_figures_stand_where_they_should() {
    let figure = |id: &str, row: &str, column: &str| {
        let table = table(id).unwrap();
        table.row(row).unwrap().figures[column]
    };
    assert_eq!(figure("1", "7b-aqlm-2.02", "wikitext2"), PaperFigure::One(6.59));
    assert_eq!(figure("4", "70b-aqlm-e2e-2.07", "c4"), PaperFigure::One(5.62));
    assert_eq!(figure("8", "128", "wikitext2").deviation(), Some(0.127));
    let source = table("1").unwrap().row("7b-fp16").unwrap().source.words();
    assert_eq!(source, "v4, Table 1, row 7B FP16 16");
}
