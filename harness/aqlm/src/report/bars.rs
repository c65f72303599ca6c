use plotters::prelude::{Color, IntoDrawingArea, Rectangle, SVGBackend, Text};
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::chart::{WIDTH, failed, font, middle_left};
use super::colours::{ON_DARK, ON_LIGHT, SERIES};
use super::words::{duration, short};
use aqlm_formats::Result;

const BAR: i32 = 22;
const NAMES: i32 = 230;
const TOP: i32 = 34;
/// Narrower pieces have no text; the table has it.
const NARROW: i32 = 52;

/// Stacked bars, one of each run, in seconds: name and pieces in the order of `pieces`.
///
/// # Errors
/// `Internal` when plotters fails, which it does not on a text.
pub(super) fn stacked(pieces: &[&str], bars: &[(String, Vec<f64>)]) -> Result<Option<String>> {
    let longest = bars
        .iter()
        .map(|(_, seconds)| seconds.iter().sum::<f64>())
        .fold(0.0, f64::max);
    if longest <= 0.0 {
        return Ok(None);
    }
    let height = TOP + bars.len() as i32 * (BAR + 6) + 6;
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (WIDTH, height as u32)).into_drawing_area();
        let step = WIDTH as i32 / pieces.len().max(1) as i32;
        for (at, piece) in pieces.iter().enumerate() {
            let x = 6 + at as i32 * step;
            let swatch = [(x, 8), (x + 14, 22)];
            root.draw(&Rectangle::new(swatch, colour(at).filled()))
                .map_err(failed)?;
            root.draw(&Text::new(*piece, (x + 20, 15), middle_left(14)))
                .map_err(failed)?;
        }
        let scale = f64::from(WIDTH as i32 - NAMES - 90) / longest;
        for (row, (name, seconds)) in bars.iter().enumerate() {
            let top = TOP + row as i32 * (BAR + 6);
            let middle = top + BAR / 2;
            root.draw(&Text::new(short(name, 29), (6, middle), middle_left(14)))
                .map_err(failed)?;
            let mut sum = 0.0;
            for (at, &piece) in seconds.iter().enumerate() {
                let left = NAMES + (sum * scale).round() as i32;
                sum += piece;
                let right = NAMES + (sum * scale).round() as i32;
                // A pixel between pieces tells neighbours of equal lightness apart.
                if right - left < 2 {
                    continue;
                }
                let corners = [(left, top), (right - 1, top + BAR)];
                root.draw(&Rectangle::new(corners, colour(at).filled()))
                    .map_err(failed)?;
                if right - left >= NARROW {
                    let centre = Pos::new(HPos::Center, VPos::Center);
                    let ink = if at == 0 || at == 6 { ON_DARK } else { ON_LIGHT };
                    let style = font(12).color(&ink).pos(centre);
                    let place = (i32::midpoint(left, right), middle);
                    root.draw(&Text::new(duration(piece), place, style))
                        .map_err(failed)?;
                }
            }
            let end = NAMES + (sum * scale).round() as i32 + 6;
            root.draw(&Text::new(duration(sum), (end, middle), middle_left(13)))
                .map_err(failed)?;
        }
        root.present().map_err(failed)?;
    }
    Ok(Some(text))
}

fn colour(at: usize) -> plotters::style::RGBColor {
    SERIES[at % SERIES.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_a_bar_as_long_as_its_time() {
        let bars = [("one".to_owned(), vec![30.0, 0.0, 10.0])];
        let svg = stacked(&["a", "b", "c"], &bars).unwrap().unwrap();
        // three swatches and two pieces
        assert_eq!(svg.matches("<rect").count(), 5);
        let width = |bar: usize| -> f64 {
            let rest = svg.split("<rect").nth(bar).unwrap();
            let width = rest.split("width=\"").nth(1).unwrap().split('"').next().unwrap();
            width.parse().unwrap()
        };
        assert!(
            (width(4) / width(5) - 3.0).abs() < 0.05,
            "{} {}",
            width(4),
            width(5)
        );
        assert_eq!(stacked(&["a"], &[("one".into(), vec![0.0])]).unwrap(), None);
    }
}
