use std::fmt::Debug;
use std::ops::Range;

use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::{
    Cartesian2d, ChartBuilder, ChartContext, Color, DashedLineSeries, DrawingArea, IntoDrawingArea, IntoFont,
    IntoLogRange, LineSeries, PathElement, SVGBackend, Text, TextStyle,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{RGBColor, ShapeStyle};

use super::colours::{GRID, INK};
use super::marker::Marker;
use super::words::{number, short};
use aqlm_formats::{Error, Result};

/// Width of a chart with its legend, in pixels.
pub(super) const WIDTH: u32 = 1100;
const HEIGHT: u32 = 380;
/// Width of the legend.
const LEGEND: u32 = 270;
/// Height of a line of the legend.
const LINE: i32 = 17;

/// A named set of points.
#[derive(Debug, Clone)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) marker: Marker,
    /// (x, y); those that are not finite are left out
    pub(super) points: Vec<(f64, f64)>,
    /// standard errors of the ys; empty without
    pub(super) errors: Vec<f64>,
    /// whether a line joins the points
    pub(super) joined: bool,
    /// whether each point has a marker
    pub(super) marked: bool,
}

impl Series {
    /// Marked points, without a line.
    pub(super) fn points(name: &str, index: usize, points: Vec<(f64, f64)>) -> Self {
        Self {
            name: name.to_owned(),
            marker: Marker::of(index),
            points,
            errors: Vec::new(),
            joined: false,
            marked: true,
        }
    }

    /// Marked points on a line.
    pub(super) fn line(name: &str, index: usize, points: Vec<(f64, f64)>) -> Self {
        Self {
            joined: true,
            ..Self::points(name, index, points)
        }
    }
}

/// A chart with two axes and a legend.
#[derive(Debug, Clone)]
pub(super) struct Chart {
    pub(super) x: String,
    pub(super) y: String,
    pub(super) log_y: bool,
    pub(super) series: Vec<Series>,
    /// a line through points, in the colour of text: name and points
    pub(super) front: Option<(String, Vec<(f64, f64)>)>,
    /// a dashed line across: name and y; a level far from all points is only named
    pub(super) level: Option<(String, f64)>,
}

impl Chart {
    pub(super) fn new([x, y]: [&str; 2], series: Vec<Series>) -> Self {
        Self {
            x: x.into(),
            y: y.into(),
            log_y: false,
            series,
            front: None,
            level: None,
        }
    }

    /// The chart as SVG; `None` without any point that can be drawn.
    ///
    /// # Errors
    /// `Internal` when plotters fails, which it does not on a text.
    pub(super) fn svg(&self) -> Result<Option<String>> {
        let drawn = |&(x, y): &(f64, f64)| x.is_finite() && y.is_finite() && (!self.log_y || y > 0.0);
        let points = || {
            self.series
                .iter()
                .flat_map(|series| &series.points)
                .copied()
                .filter(drawn)
        };
        let Some(x) = around(points().map(|(x, _)| x), false) else {
            return Ok(None);
        };
        let Some(mut y) = around(points().map(|(_, y)| y), self.log_y) else {
            return Ok(None);
        };
        let mut level = self.level.clone();
        if let Some((name, at)) = &mut level {
            let with_level = around(points().map(|(_, y)| y).chain([*at]), self.log_y);
            match with_level.filter(|wide| drawn(&(0.0, *at)) && self.extent(wide) <= 2.0 * self.extent(&y)) {
                Some(wide) => y = wide,
                None => *name = format!("{name}: {}, not drawn", number(*at)),
            }
        }
        let rows = self.series.len() + usize::from(self.front.is_some()) + usize::from(level.is_some());
        let height = HEIGHT.max(rows as u32 * LINE as u32 + 30);
        let mut text = String::new();
        {
            let root = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
            let (plot, legend) = root.split_horizontally(WIDTH - LEGEND);
            let mut builder = ChartBuilder::on(&plot);
            builder
                .margin(10)
                .margin_right(16)
                .x_label_area_size(44)
                .y_label_area_size(64);
            if self.log_y {
                let chart = builder.build_cartesian_2d(x, y.log_scale()).map_err(failed)?;
                self.fill(chart, &drawn, level.as_ref())?;
            } else {
                let chart = builder.build_cartesian_2d(x, y).map_err(failed)?;
                self.fill(chart, &drawn, level.as_ref())?;
            }
            self.legend(&legend, level.as_ref())?;
            root.present().map_err(failed)?;
        }
        Ok(Some(text))
    }

    /// How far a range of y reaches on the paper.
    fn extent(&self, range: &Range<f64>) -> f64 {
        if self.log_y {
            (range.end / range.start).ln()
        } else {
            range.end - range.start
        }
    }

    fn fill<'a, Y>(
        &self,
        mut chart: ChartContext<'_, SVGBackend<'a>, Cartesian2d<RangedCoordf64, Y>>,
        drawn: &dyn Fn(&(f64, f64)) -> bool,
        level: Option<&(String, f64)>,
    ) -> Result<()>
    where
        Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        chart
            .configure_mesh()
            .light_line_style(INK.mix(0.0))
            .bold_line_style(GRID)
            .axis_style(INK)
            .label_style(font(14))
            .axis_desc_style(font(15))
            .x_desc(&*self.x)
            .y_desc(&*self.y)
            .x_label_formatter(&|x| number(*x))
            .y_label_formatter(&|y| number(*y))
            .draw()
            .map_err(failed)?;
        let across = chart.plotting_area().get_x_range();
        let up = chart.plotting_area().get_y_range();
        if let Some((_, y)) = level.filter(|(_, y)| up.contains(y)) {
            let ends = [(across.start, *y), (across.end, *y)];
            let line = DashedLineSeries::new(ends, 6, 4, ShapeStyle::from(INK).stroke_width(1));
            chart.draw_series(line).map_err(failed)?;
        }
        if let Some((_, points)) = &self.front {
            let line = LineSeries::new(
                points.iter().copied().filter(drawn),
                ShapeStyle::from(INK).stroke_width(1),
            );
            chart.draw_series(line).map_err(failed)?;
        }
        for series in &self.series {
            let colour: RGBColor = series.marker.colour;
            let points = || series.points.iter().copied().filter(drawn);
            if series.joined {
                let line = LineSeries::new(points(), ShapeStyle::from(colour.mix(0.8)).stroke_width(2));
                chart.draw_series(line).map_err(failed)?;
            }
            let bars = series
                .points
                .iter()
                .zip(&series.errors)
                .filter_map(|(&(x, y), &error)| {
                    let ends = [(x, y - error), (x, y + error)];
                    ends.iter()
                        .all(drawn)
                        .then(|| PathElement::new(ends.to_vec(), colour))
                });
            chart.draw_series(bars).map_err(failed)?;
            if series.marked {
                let markers = points().map(|point| series.marker.at(point, 4.5, 1.0));
                chart.draw_series(markers).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn legend(
        &self,
        area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
        level: Option<&(String, f64)>,
    ) -> Result<()> {
        let mut y = 20;
        let mut entry = |name: &str| -> Result<i32> {
            let text = Text::new(short(name, 34), (26, y), middle_left(14));
            area.draw(&text).map_err(failed)?;
            y += LINE;
            Ok(y - LINE)
        };
        for series in &self.series {
            let y = entry(&series.name)?;
            if series.joined {
                let line = PathElement::new(vec![(2, y), (20, y)], series.marker.colour.stroke_width(2));
                area.draw(&line).map_err(failed)?;
            }
            if series.marked {
                area.draw(&series.marker.at((11, y), 4.5, 1.0)).map_err(failed)?;
            }
        }
        if let Some((name, _)) = &self.front {
            let y = entry(name)?;
            area.draw(&PathElement::new(vec![(2, y), (20, y)], INK))
                .map_err(failed)?;
        }
        if let Some((name, _)) = level {
            let y = entry(name)?;
            for x in [2, 12] {
                area.draw(&PathElement::new(vec![(x, y), (x + 6, y)], INK))
                    .map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// A range around numbers, with a margin; `None` without numbers.
fn around(values: impl Iterator<Item = f64>, log: bool) -> Option<Range<f64>> {
    let scale = |value: f64| if log { value.log10() } else { value };
    let (low, high) = values
        .map(scale)
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
    if low > high {
        return None;
    }
    let margin = if high > low {
        0.05 * (high - low)
    } else if log {
        0.1
    } else {
        0.05 * high.abs().max(1.0)
    };
    let (low, high) = (low - margin, high + margin);
    Some(if log {
        10_f64.powf(low)..10_f64.powf(high)
    } else {
        low..high
    })
}

/// Text of a size in pixels, in the colour of text.
pub(super) fn font(size: u32) -> TextStyle<'static> {
    // The SVG backend divides sizes by 1.24.
    ("sans-serif", f64::from(size) * 1.24).into_font().color(&INK)
}

/// Text that starts at a point, at the height of its middle.
pub(super) fn middle_left(size: u32) -> TextStyle<'static> {
    font(size).pos(Pos::new(HPos::Left, VPos::Center))
}

/// The error of a drawing.
pub(super) fn failed(error: impl Debug) -> Error {
    Error::Internal(format!("a chart cannot be drawn: {error:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> Chart {
        Chart::new(["x", "y<"], vec![Series::line("a&b", 0, points)])
    }

    #[test]
    fn points_are_drawn_and_names_escaped() {
        let svg = chart(vec![(1.0, 2.0), (2.0, 4.0), (3.0, f64::NAN)])
            .svg()
            .unwrap()
            .unwrap();
        assert!(svg.contains("a&amp;b") && svg.contains("y&lt;"));
        // two markers and the legend's
        assert_eq!(svg.matches("<polygon").count(), 3);
    }

    #[test]
    fn nothing_to_draw_gives_no_chart() {
        assert_eq!(chart(Vec::new()).svg().unwrap(), None);
        assert_eq!(chart(vec![(1.0, f64::NAN)]).svg().unwrap(), None);
        let negative = Chart {
            log_y: true,
            ..chart(vec![(1.0, -1.0)])
        };
        assert_eq!(negative.svg().unwrap(), None);
    }

    #[test]
    fn a_single_point_has_room_on_both_scales() {
        for log_y in [false, true] {
            let chart = Chart {
                log_y,
                level: Some(("dense".into(), 5.0)),
                ..chart(vec![(2.0, 5.0)])
            };
            assert!(chart.svg().unwrap().is_some());
        }
    }
}
