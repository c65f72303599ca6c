use maud::{Markup, html};

/// A cell of a table.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cell {
    text: String,
    /// what sorting compares; `None` compares texts
    key: Option<f64>,
    missing: bool,
    /// whether the cell stands out
    marked: bool,
    /// the whole text, where only its beginning is shown
    whole: Option<String>,
}

/// Longest text of a cell of [`Cell::shortened`]; hashes are longer.
const LONGEST: usize = 40;

impl Cell {
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            key: None,
            missing: false,
            marked: false,
            whole: None,
        }
    }

    /// A text of which a pointer shows the rest if it is long.
    pub(super) fn shortened(text: &str) -> Self {
        if text.chars().count() <= LONGEST {
            return Self::text(text);
        }
        let beginning: String = text.chars().take(LONGEST / 2).collect();
        Self {
            whole: Some(text.to_owned()),
            ..Self::text(format!("{beginning}…"))
        }
    }

    /// A number, and how it is printed.
    pub(super) fn number(value: f64, text: impl Into<String>) -> Self {
        Self {
            key: Some(value),
            ..Self::text(text)
        }
    }

    /// What a run does not record.
    pub(super) fn missing() -> Self {
        Self {
            missing: true,
            ..Self::text("not recorded")
        }
    }

    /// What does not exist in a run, such as a setting of another method.
    pub(super) fn absent() -> Self {
        Self {
            missing: true,
            ..Self::text("–")
        }
    }

    /// A number, if it is recorded.
    pub(super) fn maybe(value: Option<f64>, print: impl Fn(f64) -> String) -> Self {
        value.map_or_else(Self::missing, |value| Self::number(value, print(value)))
    }

    /// The cell, standing out if `marked`.
    pub(super) fn marked(self, marked: bool) -> Self {
        Self { marked, ..self }
    }

    fn markup(&self) -> Markup {
        let class = match (self.missing, self.marked, self.key) {
            (true, ..) => Some("missing"),
            (_, true, _) => Some("marked"),
            (_, _, Some(_)) => Some("number"),
            _ => None,
        };
        html! { td class=[class] data-key=[self.key] title=[&self.whole] { (self.text) } }
    }
}

/// A table that a click on a heading sorts. `id` is unique on the page.
pub(super) fn table(id: &str, headings: &[String], rows: &[Vec<Cell>]) -> Markup {
    html! {
        div.scroll {
            table id=(id) {
                thead { tr {
                    @for heading in headings {
                        th scope="col" { button type="button" { (heading) } }
                    }
                } }
                tbody {
                    @for row in rows {
                        tr { @for cell in row { (cell.markup()) } }
                    }
                }
            }
        }
    }
}

/// A table that is shown on request.
pub(super) fn folded(id: &str, summary: &str, headings: &[String], rows: &[Vec<Cell>]) -> Markup {
    html! {
        details id={ (id) "-fold" } {
            summary { (summary) }
            (table(id, headings, rows))
        }
    }
}

/// A chart, or the words that it is not recorded.
pub(super) fn figure(svg: Option<String>, title: &str, missing: &str) -> Markup {
    html! {
        @if let Some(svg) = svg {
            figure {
                figcaption { (title) }
                div role="img" aria-label=(title) { (maud::PreEscaped(svg)) }
            }
        } @else {
            (not_recorded(title, missing))
        }
    }
}

/// A visible gap.
pub(super) fn not_recorded(what: &str, why: &str) -> Markup {
    html! { p.missing { (what) ": not recorded. " (why) } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_and_kept_whole_beside() {
        let page = table("t", &["a".into()], &[vec![Cell::shortened(&"5".repeat(64))]]).into_string();
        assert!(page.contains(&format!("title=\"{}\"", "5".repeat(64))), "{page}");
        assert!(page.contains(&format!(">{}…</td>", "5".repeat(20))), "{page}");
        assert_eq!(Cell::shortened("short"), Cell::text("short"));
    }

    #[test]
    fn cells_are_escaped_and_numbers_keep_their_value_for_sorting() {
        let cells = vec![
            Cell::text("<b>"),
            Cell::number(0.5, "0.50"),
            Cell::maybe(None, |_| String::new()),
        ];
        let page = table("t", &["a&b".into()], &[cells]).into_string();
        assert!(
            page.contains("a&amp;b") && page.contains("<td>&lt;b&gt;</td>"),
            "{page}"
        );
        assert!(
            page.contains("<td class=\"number\" data-key=\"0.5\">0.50</td>"),
            "{page}"
        );
        assert!(page.contains("<td class=\"missing\">not recorded</td>"), "{page}");
    }
}
