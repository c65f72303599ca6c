use maud::{Markup, html};
use plotters::prelude::{Color, IntoDrawingArea, PathElement, SVGBackend};

use super::chart::{Chart, Series, failed};
use super::colours::GRID;
use super::marker::Marker;
use super::table::{Cell, figure, folded, not_recorded};
use super::words::number;
use aqlm_engine::report::{Codebooks, ReportedRun, SCATTER_CODEWORDS};
use aqlm_formats::Result;

/// Side of a scatter in pixels.
const SIDE: u32 = 300;

/// Usage of codewords, and where codewords lie.
pub(super) fn codebooks(runs: &[ReportedRun]) -> Result<Markup> {
    let known: Vec<(usize, &ReportedRun, &Codebooks)> = runs
        .iter()
        .enumerate()
        .filter_map(|(index, run)| Some((index, run, run.codebooks.as_ref()?)))
        .collect();
    if known.is_empty() {
        return Ok(html! {
            section id="codebooks" {
                h2 { "Codebooks" }
                (not_recorded("Codes", "No run has written its checkpoint."))
            }
        });
    }
    let usage = |index: usize, run: &ReportedRun, found: &Codebooks| {
        let shares = found.usage.iter().map(|layer| 100.0 * layer.entropy_share());
        let points = (0..).map(f64::from).zip(shares).collect();
        Series::line(&run.name, index, points)
    };
    let series = known
        .iter()
        .map(|&(index, run, found)| usage(index, run, found))
        .collect();
    let title = "Entropy of the codes of each layer, in percent of their bits";
    let chart = Chart::new(["layer, in the order of the model", "entropy in %"], series);
    let mut scatters = Vec::new();
    for &(_, run, found) in &known {
        scatters.push((run, found, scatter(found)?));
    }
    let without: Vec<&str> = runs
        .iter()
        .filter(|run| run.codebooks.is_none() && run.description.is_some())
        .map(|run| run.name.as_str())
        .collect();
    Ok(html! {
        section id="codebooks" {
            h2 { "Codebooks" }
            @if !without.is_empty() {
                p.missing { "Codes: not recorded by " (without.join(", ")) ", without a checkpoint." }
            }
            (figure(chart.svg()?, title, ""))
            (usage_table("entropies", "Entropy of codes in bits, mean of a layer's codebooks", &known, |layer| {
                layer.entropy_share() * f64::from(layer.nbits)
            }))
            (usage_table("dead", "Codewords that no group uses", &known, |layer| layer.dead() as f64))
        }
        section id="scatter" {
            h2 { "Codewords" }
            p.note {
                "Codewords of one layer along their first two principal axes, at most " (SCATTER_CODEWORDS)
                ", each codebook with its own marker. The percentage is the share of variance along both axes."
            }
            div.multiples {
                @for (run, found, svg) in scatters {
                    figure {
                        figcaption {
                            (run.name) br;
                            span.note {
                                (found.scatter_layer.trim_start_matches("model.layers.")) ", "
                                (format!("{:.0} %", 100.0 * found.scatter_share))
                            }
                        }
                        div role="img" aria-label={ "Codewords of " (run.name) } { (maud::PreEscaped(svg)) }
                    }
                }
            }
        }
    })
}

/// A row for each layer, a column for each run.
fn usage_table(
    id: &str,
    summary: &str,
    known: &[(usize, &ReportedRun, &Codebooks)],
    value: impl Fn(&aqlm_engine::report::LayerUsage) -> f64,
) -> Markup {
    let mut headings = vec!["layer".to_owned()];
    headings.extend(known.iter().map(|(_, run, _)| run.name.clone()));
    let layers = known
        .iter()
        .map(|(_, _, found)| &found.usage)
        .max_by_key(|usage| usage.len());
    let rows: Vec<Vec<Cell>> = layers
        .into_iter()
        .flatten()
        .map(|layer| {
            let mut row = vec![Cell::text(&layer.layer)];
            for (_, _, found) in known {
                let same = found.usage.iter().find(|other| other.layer == layer.layer);
                row.push(Cell::maybe(same.map(&value), number));
            }
            row
        })
        .collect();
    folded(id, summary, &headings, &rows)
}

/// Codewords in a square with its axes through the mean.
fn scatter(found: &Codebooks) -> Result<String> {
    let reach = found
        .scatter
        .iter()
        .flat_map(|word| [word.first.abs(), word.second.abs()])
        .fold(f64::MIN_POSITIVE, f64::max);
    let half = f64::from(SIDE) / 2.0;
    let pixel = |value: f64| (half + value / reach * (half - 8.0)).round() as i32;
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (SIDE, SIDE)).into_drawing_area();
        let (middle, end) = (half as i32, SIDE as i32);
        for line in [vec![(0, middle), (end, middle)], vec![(middle, 0), (middle, end)]] {
            root.draw(&PathElement::new(line, GRID.stroke_width(1)))
                .map_err(failed)?;
        }
        for word in &found.scatter {
            // The second axis points upwards.
            let place = (pixel(word.first), pixel(-word.second));
            root.draw(&Marker::of(word.codebook).at(place, 3.0, 0.7))
                .map_err(failed)?;
        }
        root.present().map_err(failed)?;
    }
    Ok(text)
}
