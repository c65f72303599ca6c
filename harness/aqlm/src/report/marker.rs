use std::ops::Add;

use plotters::element::{EmptyElement, Polygon};
use plotters::prelude::{Color, SVGBackend};
use plotters::style::{RGBColor, ShapeStyle};

use super::colours::SERIES;

/// Shapes of markers, as outlines in half a marker's size around its middle.
const OUTLINES: [&[(f64, f64)]; 6] = [
    &[
        (-0.45, -1.0),
        (0.45, -1.0),
        (1.0, -0.45),
        (1.0, 0.45),
        (0.45, 1.0),
        (-0.45, 1.0),
        (-1.0, 0.45),
        (-1.0, -0.45),
    ],
    &[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    &[(0.0, -1.2), (1.1, 0.9), (-1.1, 0.9)],
    &[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)],
    &[(0.0, 1.2), (1.1, -0.9), (-1.1, -0.9)],
    &[
        (-0.4, -1.2),
        (0.4, -1.2),
        (0.4, -0.4),
        (1.2, -0.4),
        (1.2, 0.4),
        (0.4, 0.4),
        (0.4, 1.2),
        (-0.4, 1.2),
        (-0.4, 0.4),
        (-1.2, 0.4),
        (-1.2, -0.4),
        (-0.4, -0.4),
    ],
];

/// A place in pixels, relative to another.
type Pixels = (i32, i32);

/// An outline around a place of a chart.
type Outline<C, B> = <EmptyElement<C, B> as Add<Polygon<Pixels>>>::Output;

/// The look of a series: a colour and a shape, so that either tells series apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marker {
    pub(super) colour: RGBColor,
    shape: usize,
}

impl Marker {
    /// The look of the series with this index; all are distinct up to 42.
    pub(super) fn of(index: usize) -> Self {
        Self {
            colour: SERIES[index % SERIES.len()],
            shape: index % OUTLINES.len(),
        }
    }

    /// The marker at a place, `size` pixels from its middle to its edge.
    pub(super) fn at<'a, C>(self, place: C, size: f64, strength: f64) -> Outline<C, SVGBackend<'a>> {
        let style: ShapeStyle = self.colour.mix(strength).filled();
        let pixel = |at: f64| (at * size).round() as i32;
        let outline = OUTLINES[self.shape].iter();
        let points: Vec<Pixels> = outline.map(|&(x, y)| (pixel(x), pixel(y))).collect();
        EmptyElement::at(place) + Polygon::new(points, style)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forty_two_series_look_different() {
        let markers: Vec<Marker> = (0..42).map(Marker::of).collect();
        for (at, marker) in markers.iter().enumerate() {
            assert!(!markers[..at].contains(marker), "{at}");
        }
    }
}
