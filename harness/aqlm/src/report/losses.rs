use std::collections::BTreeMap;

use maud::{Markup, html};

use super::chart::{Chart, Series};
use super::heat_map::heat_map;
use super::table::{Cell, figure, folded, not_recorded};
use super::words::number;
use aqlm_engine::LayerSummary;
use aqlm_engine::report::ReportedRun;
use aqlm_formats::Result;

/// A figure of a layer.
type OfLayer = fn(&LayerSummary) -> Option<f64>;

const ERROR: OfLayer = |layer| Some(layer.relative_layer_error);
const LIMIT: OfLayer = |layer| layer.limit_db;

/// Errors by layer and block, their distances from the limit, and heat maps of these.
pub(super) fn losses(runs: &[ReportedRun]) -> Result<Markup> {
    let known: Vec<(usize, &ReportedRun)> = with_blocks(runs);
    if known.is_empty() {
        return Ok(html! {
            section id="losses" {
                h2 { "Errors of layers and blocks" }
                (not_recorded("Errors of layers", "No run of aqlm quantize has a finished block."))
            }
        });
    }
    let by_layer = |title: &str, y: &str, figure: OfLayer, log_y: bool| -> Result<Markup> {
        let series = known.iter().map(|&(index, run)| {
            let layers = run.blocks.iter().flat_map(|block| &block.layers).enumerate();
            let points = layers.filter_map(|(at, layer)| Some((at as f64, figure(layer)?)));
            Series::line(&run.name, index, points.collect())
        });
        let chart = Chart {
            log_y,
            ..Chart::new(["layer, in the order of the model", y], series.collect())
        };
        Ok(super::table::figure(
            chart.svg()?,
            title,
            "Layers are too large for their limit.",
        ))
    };
    let title = "Error of each block's output after fine-tuning";
    let outputs = known.iter().map(|&(index, run)| {
        let points = run
            .blocks
            .iter()
            .map(|block| (block.block as f64, block.relative_output_error));
        Series::line(&run.name, index, points.collect())
    });
    let outputs = Chart {
        log_y: true,
        ..Chart::new(["block", "relative output error"], outputs.collect())
    };
    Ok(html! {
        section id="losses" {
            h2 { "Errors of layers and blocks" }
            (by_layer("Relative error of each layer before fine-tuning", "relative layer error", ERROR, true)?)
            (by_layer("Distance of each layer from the rate-distortion limit", "dB above the limit", LIMIT, false)?)
            (figure(outputs.svg()?, title, ""))
            (layer_table("layer-errors", "Relative errors of layers", &known, ERROR))
            (layer_table("layer-limits", "Distances from the limit in dB", &known, LIMIT))
            (block_table(&known))
        }
        section id="heat" {
            h2 { "Blocks and kinds of layers" }
            (heat_maps(&known)?)
        }
    })
}

fn with_blocks(runs: &[ReportedRun]) -> Vec<(usize, &ReportedRun)> {
    let known = runs.iter().enumerate();
    known.filter(|(_, run)| !run.blocks.is_empty()).collect()
}

/// A row for each layer, a column for each run.
fn layer_table(id: &str, summary: &str, runs: &[(usize, &ReportedRun)], figure: OfLayer) -> Markup {
    let mut headings = vec!["layer".to_owned()];
    headings.extend(runs.iter().map(|(_, run)| run.name.clone()));
    let mut names: Vec<&str> = Vec::new();
    let values: Vec<BTreeMap<&str, Option<f64>>> = runs
        .iter()
        .map(|(_, run)| {
            let layers = run.blocks.iter().flat_map(|block| &block.layers);
            layers.map(|layer| (layer.name.as_str(), figure(layer))).collect()
        })
        .collect();
    if let Some((_, longest)) = runs.iter().max_by_key(|(_, run)| run.blocks.len()) {
        let layers = longest.blocks.iter().flat_map(|block| &block.layers);
        names.extend(layers.map(|layer| layer.name.as_str()));
    }
    let rows: Vec<Vec<Cell>> = names
        .iter()
        .map(|&name| {
            let mut row = vec![Cell::text(name)];
            row.extend(
                values
                    .iter()
                    .map(|run| Cell::maybe(run.get(name).copied().flatten(), number)),
            );
            row
        })
        .collect();
    folded(id, summary, &headings, &rows)
}

fn block_table(runs: &[(usize, &ReportedRun)]) -> Markup {
    let headings = [
        "run",
        "block",
        "relative output error",
        "loss before fine-tuning",
        "loss after",
        "kept epoch",
        "seconds",
    ];
    let mut rows = Vec::new();
    for (_, run) in runs {
        for block in &run.blocks {
            let tuned = block.finetune.as_ref();
            rows.push(vec![
                Cell::text(&run.name),
                Cell::number(block.block as f64, block.block.to_string()),
                Cell::number(block.relative_output_error, number(block.relative_output_error)),
                tuned.map_or_else(
                    || Cell::text("not tuned"),
                    |tuned| Cell::number(tuned.loss_before, number(tuned.loss_before)),
                ),
                tuned.map_or_else(
                    || Cell::text("not tuned"),
                    |tuned| Cell::number(tuned.loss_after, number(tuned.loss_after)),
                ),
                tuned.map_or_else(
                    || Cell::text("not tuned"),
                    |tuned| Cell::number(tuned.best_epoch as f64, tuned.best_epoch.to_string()),
                ),
                Cell::number(block.seconds, number(block.seconds)),
            ]);
        }
    }
    folded(
        "blocks",
        "Blocks and their fine-tuning",
        &headings.map(str::to_owned),
        &rows,
    )
}

/// A heat map of each run, all in one scale.
fn heat_maps(runs: &[(usize, &ReportedRun)]) -> Result<Markup> {
    let has_limit = |run: &ReportedRun| {
        let mut layers = run.blocks.iter().flat_map(|block| &block.layers);
        layers.all(|layer| layer.limit_db.is_some())
    };
    let limits = runs.iter().all(|(_, run)| has_limit(run));
    let (figure, what) = if limits {
        (LIMIT, "distance from the rate-distortion limit in dB")
    } else {
        (ERROR, "relative layer error")
    };
    let values = || {
        let layers = runs
            .iter()
            .flat_map(|(_, run)| &run.blocks)
            .flat_map(|block| &block.layers);
        layers.filter_map(figure).filter(|value| value.is_finite())
    };
    let scale = [
        values().fold(f64::INFINITY, f64::min),
        values().fold(f64::NEG_INFINITY, f64::max),
    ];
    let mut maps = Vec::new();
    for (_, run) in runs {
        let mut kinds: Vec<String> = Vec::new();
        for layer in run.blocks.iter().flat_map(|block| &block.layers) {
            let kind = kind(&layer.name);
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        let rows: Vec<Vec<Option<f64>>> = run
            .blocks
            .iter()
            .map(|block| {
                let of = |wanted: &String| block.layers.iter().find(|layer| kind(&layer.name) == *wanted);
                kinds.iter().map(|kind| of(kind).and_then(figure)).collect()
            })
            .collect();
        maps.push((&run.name, heat_map(&kinds, &rows, scale)?));
    }
    Ok(html! {
        p.note {
            "Rows are blocks, columns kinds of layers: " (what) ", from " (number(scale[0])) " (light) to "
            (number(scale[1])) " (dark), the same scale for all runs."
        }
        div.multiples {
            @for (name, svg) in maps {
                figure {
                    figcaption { (name) }
                    div role="img" aria-label={ "Heat map of " (name) } { (maud::PreEscaped(svg)) }
                }
            }
        }
    })
}

/// The part of a layer's name behind its block and module: `q_proj`, or `experts.3.w1`.
fn kind(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let block = parts.iter().position(|part| part.parse::<usize>().is_ok());
    // The number of the block and the module that follows it go.
    let kept = block.map_or(&parts[..], |block| parts.get(block + 2..).unwrap_or_default());
    kept.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_a_layer_is_its_name_inside_of_its_module() {
        let names = [
            ("model.layers.0.self_attn.q_proj", "q_proj"),
            ("model.layers.31.mlp.down_proj", "down_proj"),
            ("model.layers.3.block_sparse_moe.experts.7.w1", "experts.7.w1"),
            ("lm_head", "lm_head"),
        ];
        for (name, expected) in names {
            assert_eq!(kind(name), expected);
        }
    }
}
