//! The colours of charts. `look.css` lists the same values for the dark page.

use plotters::style::RGBColor;

/// Colours that remain distinct with common colour blindness (Okabe and Ito), without their yellow, which is
/// too pale on white.
pub(super) const SERIES: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(107, 107, 107),
];

/// Text and axes.
pub(super) const INK: RGBColor = RGBColor(27, 27, 27);

/// Lines of the grid.
pub(super) const GRID: RGBColor = RGBColor(221, 221, 221);

/// Text on a dark cell, which is the same on both pages.
pub(super) const ON_DARK: RGBColor = RGBColor(255, 255, 254);

/// Text on a light cell, which is the same on both pages.
pub(super) const ON_LIGHT: RGBColor = RGBColor(1, 1, 1);

/// The colour of a share from 0 (light) to 1 (dark), in one hue whose lightness falls evenly.
pub(super) fn shade(share: f64) -> RGBColor {
    let share = share.clamp(0.0, 1.0);
    let between = |light: f64, dark: f64| (light + share * (dark - light)).round() as u8;
    RGBColor(between(238.0, 4.0), between(243.0, 52.0), between(248.0, 106.0))
}

/// The colour of text on [`shade`]: the one of the higher contrast.
pub(super) fn on_shade(share: f64) -> RGBColor {
    if share > 0.62 { ON_DARK } else { ON_LIGHT }
}
