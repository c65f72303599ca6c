use crate::tables::{OfficialModel, PaperRow, Recipe, official_models, tables};
use aqlm_formats::Result;

/// Indices of the points that no other point beats, by the first coordinate. A point is beaten by one that is
/// at most as large in both coordinates and smaller in one. Points with a number that is not finite are left
/// out.
pub fn front(points: &[(f64, f64)]) -> Vec<usize> {
    let finite = |&at: &usize| points[at].0.is_finite() && points[at].1.is_finite();
    let mut order: Vec<usize> = (0..points.len()).filter(finite).collect();
    order.sort_by(|&a, &b| {
        let ((ax, ay), (bx, by)) = (points[a], points[b]);
        ax.total_cmp(&bx).then(ay.total_cmp(&by))
    });
    let mut best = f64::INFINITY;
    order.retain(|&at| {
        let better = points[at].1 < best;
        best = best.min(points[at].1);
        better
    });
    order
}

/// A quantized model of the paper, or of the official code.
#[derive(Debug, Clone, PartialEq)]
pub struct PaperPoint {
    /// its name in golden/paper/models.json
    pub model: String,
    /// the method; a star marks end-to-end fine-tuning
    pub method: String,
    /// average bits
    pub bits: f64,
    /// the column of the perplexity
    pub column: String,
    /// perplexity
    pub perplexity: f64,
    /// ln(perplexity / perplexity of the dense model in the same table)
    pub ln_ratio: f64,
    /// where the figure stands
    pub source: String,
}

/// Every perplexity of AQLM in the paper's tables whose table has the dense model, each model, method and
/// bits once; then those that the official code reached.
///
/// # Errors
/// `Internal` for a golden/paper that does not parse.
pub fn paper_points() -> Result<Vec<PaperPoint>> {
    let mut points: Vec<PaperPoint> = Vec::new();
    for table in tables()? {
        for column in ["wikitext2", "c4"] {
            let figure = |row: &PaperRow| row.figures.get(column).map(|figure| figure.value());
            for row in &table.rows {
                let dense = table
                    .rows
                    .iter()
                    .find(|dense| dense.model == row.model && dense.recipe == Some(Recipe::Dense));
                let (Some(bits), Some(perplexity), Some(dense)) =
                    (row.bits, figure(row), dense.and_then(figure))
                else {
                    continue;
                };
                if !row.method.starts_with("AQLM") {
                    continue;
                }
                let seen = |point: &PaperPoint| {
                    (&point.model, &point.method, point.bits, point.column.as_str())
                        == (&row.model, &row.method, bits, column)
                };
                if points.iter().any(seen) {
                    continue;
                }
                points.push(PaperPoint {
                    model: row.model.clone(),
                    method: row.method.clone(),
                    bits,
                    column: column.into(),
                    perplexity,
                    ln_ratio: (perplexity / dense).ln(),
                    source: row.source.words(),
                });
            }
        }
    }
    let official = official_models()?;
    for model in &official {
        for (column, &perplexity) in &model.figures {
            let is_dense = |dense: &&OfficialModel| {
                dense.scheme.is_none() && (&dense.model, dense.ctx) == (&model.model, model.ctx)
            };
            let dense = official
                .iter()
                .find(is_dense)
                .and_then(|dense| dense.figures.get(column));
            if let (Some(_), Some(bits), Some(dense)) = (model.scheme, model.bits, dense) {
                points.push(PaperPoint {
                    model: model.model.clone(),
                    method: "official code".into(),
                    bits,
                    column: column.clone(),
                    perplexity,
                    ln_ratio: (perplexity / dense).ln(),
                    source: model.source.clone(),
                });
            }
        }
    }
    Ok(points)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_is_what_no_point_beats() {
        let points = [
            (2.0, 5.0),
            (1.0, 9.0),
            (2.0, 6.0),
            (3.0, 5.0),
            (4.0, 2.0),
            (5.0, f64::NAN),
        ];
        assert_eq!(front(&points), [1, 0, 4]);
        assert!(front(&[]).is_empty());
    }

    #[test]
    fn the_papers_first_row_is_among_its_points() {
        let points = paper_points().unwrap();
        let point = points
            .iter()
            .find(|point| point.model == "llama-2-7b" && point.bits == 2.02 && point.column == "wikitext2")
            .unwrap();
        assert_eq!((point.method.as_str(), point.perplexity), ("AQLM", 6.59));
        assert!((point.ln_ratio - (6.59_f64 / 5.12).ln()).abs() < 1e-12);
        assert!(points.iter().all(|point| point.bits < 5.0));
    }
}
