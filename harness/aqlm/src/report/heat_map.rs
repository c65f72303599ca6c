use plotters::prelude::{Color, IntoDrawingArea, Rectangle, SVGBackend, Text};
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::chart::{failed, font};
use super::colours::{on_shade, shade};
use aqlm_formats::Result;

const LEFT: i32 = 34;
const TOP: i32 = 22;
const CELL_WIDTH: i32 = 52;
/// Models with more blocks have lower cells, without numbers: the table has them.
const NUMBERED_BLOCKS: usize = 16;

/// Values by block (rows) and kind of layer (columns), from `low` (light) to `high` (dark). `None` leaves a
/// cell empty.
///
/// # Errors
/// `Internal` when plotters fails, which it does not on a text.
pub(super) fn heat_map(kinds: &[String], rows: &[Vec<Option<f64>>], [low, high]: [f64; 2]) -> Result<String> {
    let numbered = rows.len() <= NUMBERED_BLOCKS;
    let cell = if numbered { 22 } else { 9 };
    let size = (
        (LEFT + kinds.len() as i32 * CELL_WIDTH + 4) as u32,
        (TOP + rows.len() as i32 * cell + 4) as u32,
    );
    let centre = Pos::new(HPos::Center, VPos::Center);
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        for (column, kind) in kinds.iter().enumerate() {
            let x = LEFT + column as i32 * CELL_WIDTH + CELL_WIDTH / 2;
            let word = kind.strip_suffix("_proj").unwrap_or(kind).to_owned();
            root.draw(&Text::new(word, (x, TOP / 2), font(13).pos(centre)))
                .map_err(failed)?;
        }
        for (row, values) in rows.iter().enumerate() {
            let top = TOP + row as i32 * cell;
            let middle = top + cell / 2;
            if numbered || row % 8 == 0 {
                let style = font(13).pos(Pos::new(HPos::Right, VPos::Center));
                root.draw(&Text::new(row.to_string(), (LEFT - 6, middle), style))
                    .map_err(failed)?;
            }
            for (column, value) in values.iter().enumerate() {
                let Some(value) = value.filter(|value| value.is_finite()) else {
                    continue;
                };
                let share = if high > low {
                    (value - low) / (high - low)
                } else {
                    0.5
                };
                let left = LEFT + column as i32 * CELL_WIDTH;
                let corners = [(left, top), (left + CELL_WIDTH - 1, top + cell - 1)];
                root.draw(&Rectangle::new(corners, shade(share).filled()))
                    .map_err(failed)?;
                if numbered {
                    let ink = on_shade(share);
                    let style = font(12).color(&ink).pos(centre);
                    let place = (left + CELL_WIDTH / 2, middle);
                    root.draw(&Text::new(in_cell(value), place, style))
                        .map_err(failed)?;
                }
            }
        }
        root.present().map_err(failed)?;
    }
    Ok(text)
}

/// A number that fits a cell.
fn in_cell(value: f64) -> String {
    if value > 0.0 && value < 0.1 {
        format!("{value:.4}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_a_cell_and_the_largest_is_the_darkest() {
        let rows = [vec![Some(1.0), None], vec![Some(2.0), Some(f64::NAN)]];
        let svg = heat_map(&["q_proj".into(), "k_proj".into()], &rows, [1.0, 2.0]).unwrap();
        assert_eq!(svg.matches("<rect").count(), 2);
        assert!(svg.contains("#EEF3F8") && svg.contains("#04346A"), "{svg}");
        assert!(svg.contains(">\nq\n<"), "{svg}");
    }
}
