//! One source file that contains all of its mutants, each behind a switch.
//!
//! `a + b` with the mutants 7 (`a - b`) and 8 (`a * b`) becomes
//! ```text
//! (if crate::mutant::none(7, 8) { a + b } else if crate::mutant::is(7) { a - b } else { a * b })
//! ```
//! where the first `a` and `b` contain their own mutants and the others do not, because only one mutant is
//! active.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::Range;

use anyhow::{Context as _, Result};
use syn::spanned::Spanned as _;
use syn::visit::Visit;

use crate::list::{Mutant, Place, Span};

/// Contents of `src/mutant.rs` in an instrumented crate.
pub(crate) const SWITCH: &str = include_str!("switch.rs.txt");

/// One position with its mutants.
#[derive(Debug)]
struct Site {
    /// Byte range of the source that the site replaces.
    range: Range<usize>,
    form: Form,
    /// Numbers of the mutants, and the text that replaces the original.
    alternatives: Vec<(u32, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Form {
    /// Statements before a function's first one that return something else.
    Body,
    /// A match arm without a guard: at the end of its pattern, the guard that deletes the arm.
    Arm,
    /// A match arm that already has a guard.
    GuardedArm,
    /// An expression that replaces another.
    Expression,
}

/// Positions in the instrumented source, in bytes.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    /// A mutant's own text.
    pub alternatives: Vec<(Range<usize>, u32)>,
    /// A whole site, and its mutants.
    pub sites: Vec<(Range<usize>, Vec<u32>)>,
}

/// The instrumented source.
#[derive(Debug)]
pub(crate) struct Instrumented {
    pub text: String,
    pub layout: Layout,
    /// Mutants that the text contains.
    pub switched: BTreeSet<u32>,
}

/// Inserts `mutants` (of one file) into its source.
///
/// Mutants in constants, types and patterns are omitted, because a switch cannot be placed there.
pub(crate) fn instrument(source: &str, mutants: &[&Mutant]) -> Result<Instrumented> {
    let file = syn::parse_file(source).context("the source does not parse")?;
    let lines = Lines::new(source);
    let mut by_place: BTreeMap<(&str, Place), Vec<&Mutant>> = BTreeMap::new();
    for &mutant in mutants {
        by_place
            .entry((&mutant.genre, mutant.span.start))
            .or_default()
            .push(mutant);
    }
    let mut finder = Finder {
        source,
        lines: &lines,
        by_place: &by_place,
        sites: Vec::new(),
    };
    finder.visit_file(&file);
    let mut sites = finder.sites;
    // Outer sites before inner ones. At the same position a body's switch comes first, then the longest site.
    sites.sort_by_key(|s| {
        (
            s.range.start,
            s.form != Form::Body,
            std::cmp::Reverse(s.range.end),
            s.form,
        )
    });

    let mut out = Instrumented {
        text: String::with_capacity(source.len() * 4),
        layout: Layout::default(),
        switched: sites
            .iter()
            .flat_map(|s| s.alternatives.iter().map(|a| a.0))
            .collect(),
    };
    write(source, &sites, 0..source.len(), &mut out);
    Ok(out)
}

/// Writes the bytes `range` of the source with the sites inside it.
fn write(source: &str, sites: &[Site], range: Range<usize>, out: &mut Instrumented) {
    let mut at = range.start;
    let mut rest = sites;
    while let Some((site, after)) = rest.split_first() {
        let inside = if site.form == Form::Body {
            0
        } else {
            after
                .iter()
                .take_while(|s| s.range.start < site.range.end || s.range == site.range)
                .count()
        };
        let (inside, after) = after.split_at(inside);
        rest = after;
        out.text.push_str(&source[at..site.range.start]);
        at = site.range.end;

        let begin = out.text.len();
        let ids: Vec<_> = site.alternatives.iter().map(|a| a.0).collect();
        let none = ids
            .iter()
            .map(|id| format!("crate::mutant::none({id})"))
            .collect::<Vec<_>>()
            .join(" && ");
        match site.form {
            Form::Body => {
                let _ = write!(out.text, "if {none} {{}}");
                for (id, text) in &site.alternatives {
                    let _ = write!(out.text, " else if crate::mutant::is({id}) {{ return ");
                    alternative(text, *id, out);
                    out.text.push_str("; }");
                }
                out.text.push('\n');
            }
            Form::Arm => {
                let _ = write!(out.text, " if {none}");
            }
            Form::GuardedArm => {
                let _ = write!(out.text, "{none} && (");
                write(source, inside, site.range.clone(), out);
                out.text.push(')');
            }
            Form::Expression => {
                let _ = write!(out.text, "(if {none} {{ ");
                write(source, inside, site.range.clone(), out);
                out.text.push_str(" }");
                for (id, text) in &site.alternatives {
                    let _ = write!(out.text, " else if crate::mutant::is({id}) {{ ");
                    alternative(text, *id, out);
                    out.text.push_str(" }");
                }
                out.text.push_str(" else { unreachable!() })");
            }
        }
        out.layout.sites.push((begin..out.text.len(), ids));
    }
    out.text.push_str(&source[at..range.end]);
}

fn alternative(text: &str, id: u32, out: &mut Instrumented) {
    let begin = out.text.len();
    out.text.push_str(text);
    out.layout.alternatives.push((begin..out.text.len(), id));
}

/// Byte offsets of the lines of a text.
struct Lines<'a> {
    source: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(source: &'a str) -> Self {
        let starts = std::iter::once(0)
            .chain(source.match_indices('\n').map(|(i, _)| i + 1))
            .collect();
        Self { source, starts }
    }

    fn byte(&self, place: Place) -> usize {
        let start = self
            .starts
            .get(place.line - 1)
            .copied()
            .unwrap_or(self.source.len());
        self.source[start..]
            .char_indices()
            .nth(place.column - 1)
            .map_or(self.source.len(), |(i, _)| start + i)
    }

    fn range(&self, span: Span) -> Range<usize> {
        self.byte(span.start)..self.byte(span.end)
    }
}

fn span(of: proc_macro2::Span) -> Span {
    let place = |at: proc_macro2::LineColumn| Place {
        line: at.line,
        column: at.column + 1,
    };
    Span {
        start: place(of.start()),
        end: place(of.end()),
    }
}

struct Finder<'a> {
    source: &'a str,
    lines: &'a Lines<'a>,
    by_place: &'a BTreeMap<(&'a str, Place), Vec<&'a Mutant>>,
    sites: Vec<Site>,
}

impl<'a> Finder<'a> {
    fn at(&self, genre: &'static str, of: proc_macro2::Span) -> &'a [&'a Mutant] {
        self.by_place
            .get(&(genre, span(of).start))
            .map_or(&[], Vec::as_slice)
    }

    /// The mutants of an expression, each with the text that replaces it.
    fn expression(&mut self, of: proc_macro2::Span, mutants: &[&Mutant], text: impl Fn(&Mutant) -> String) {
        self.site(self.lines.range(span(of)), Form::Expression, mutants, text);
    }

    fn site(
        &mut self,
        range: Range<usize>,
        form: Form,
        mutants: &[&Mutant],
        text: impl Fn(&Mutant) -> String,
    ) {
        if !mutants.is_empty() {
            self.sites.push(Site {
                range,
                form,
                alternatives: mutants.iter().map(|m| (m.id, text(m))).collect(),
            });
        }
    }

    /// The values returned instead of a body. `impl Trait` stands for a single type, which these values do
    /// not have.
    fn body(&mut self, block: &syn::Block) {
        let Some(first) = block.stmts.first() else { return };
        let mutants: Vec<_> = self
            .at("FnValue", first.span())
            .iter()
            .copied()
            .filter(|m| {
                !m.function
                    .as_ref()
                    .is_some_and(|f| f.return_type.contains("impl "))
            })
            .collect();
        let start = self.lines.byte(span(first.span()).start);
        self.site(start..start, Form::Body, &mutants, |m| m.replacement.clone());
    }
}

/// Whether a condition binds names: a `let`, or a chain with one.
fn binds(condition: &syn::Expr) -> bool {
    match condition {
        syn::Expr::Let(_) => true,
        syn::Expr::Binary(both) => binds(&both.left) || binds(&both.right),
        _ => false,
    }
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if item.sig.constness.is_none() {
            self.body(&item.block);
            self.visit_block(&item.block);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if item.sig.constness.is_none() {
            self.body(&item.block);
            self.visit_block(&item.block);
        }
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.body(block);
            self.visit_block(block);
        }
    }

    fn visit_expr_binary(&mut self, e: &'ast syn::ExprBinary) {
        // The `&&` of a chain of `let`s has no other form, and a switch would take its names out of scope.
        let mutants = if binds(&e.left) || binds(&e.right) {
            &[]
        } else {
            self.at("BinaryOperator", e.op.span())
        };
        let (whole, operator) = (
            self.lines.range(span(e.span())),
            self.lines.range(span(e.op.span())),
        );
        let source = self.source;
        self.expression(e.span(), mutants, |m| {
            format!(
                "{}{}{}",
                &source[whole.start..operator.start],
                m.replacement,
                &source[operator.end..whole.end]
            )
        });
        syn::visit::visit_expr_binary(self, e);
    }

    fn visit_expr_unary(&mut self, e: &'ast syn::ExprUnary) {
        let mutants = self.at("UnaryOperator", e.op.span());
        let operand = self.lines.range(span(e.expr.span()));
        let source = self.source;
        self.expression(e.span(), mutants, |_| source[operand.clone()].to_owned());
        syn::visit::visit_expr_unary(self, e);
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        let deleted = self.at("MatchArm", arm.span());
        if let Some((_, guard)) = &arm.guard {
            let range = self.lines.range(span(guard.span()));
            self.site(range, Form::GuardedArm, deleted, |_| String::new());
            let replaced = self.at("MatchArmGuard", guard.span());
            self.expression(guard.span(), replaced, |m| m.replacement.clone());
            self.visit_expr(guard);
        } else {
            let end = self.lines.range(span(arm.pat.span())).end;
            self.site(end..end, Form::Arm, deleted, |_| String::new());
        }
        self.visit_expr(&arm.body);
    }

    // A constant is evaluated before a switch could act; patterns and types contain only constants.
    fn visit_item_const(&mut self, _: &'ast syn::ItemConst) {}
    fn visit_impl_item_const(&mut self, _: &'ast syn::ImplItemConst) {}
    fn visit_trait_item_const(&mut self, _: &'ast syn::TraitItemConst) {}
    fn visit_item_static(&mut self, _: &'ast syn::ItemStatic) {}
    fn visit_expr_const(&mut self, _: &'ast syn::ExprConst) {}
    fn visit_type(&mut self, _: &'ast syn::Type) {}
    fn visit_generic_argument(&mut self, _: &'ast syn::GenericArgument) {}
    fn visit_pat(&mut self, _: &'ast syn::Pat) {}
    fn visit_expr_repeat(&mut self, e: &'ast syn::ExprRepeat) {
        self.visit_expr(&e.expr);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mutant(id: u32, genre: &str, replacement: &str, start: (usize, usize), end: (usize, usize)) -> Mutant {
        let place = |(line, column)| Place { line, column };
        Mutant {
            id,
            text: String::new(),
            file: "f.rs".to_owned(),
            function: None,
            genre: genre.to_owned(),
            name: format!("{id}"),
            replacement: replacement.to_owned(),
            span: Span {
                start: place(start),
                end: place(end),
            },
        }
    }

    fn instrumented(source: &str, mutants: &[Mutant]) -> Instrumented {
        let out = instrument(source, &mutants.iter().collect::<Vec<_>>()).expect("parses");
        syn::parse_file(&out.text).unwrap_or_else(|e| panic!("{e}: {}", out.text));
        for (range, id) in &out.layout.alternatives {
            assert!(out.switched.contains(id), "{id} at {range:?}");
        }
        out
    }

    #[test]
    fn nested_operators_keep_their_mutants_in_the_original_only() {
        let source = "fn f(a: f64, b: f64) -> f64 {\n    a * b + 1.0\n}\n";
        let out = instrumented(
            source,
            &[
                mutant(1, "BinaryOperator", "/", (2, 7), (2, 8)),
                mutant(2, "BinaryOperator", "-", (2, 11), (2, 12)),
                mutant(3, "FnValue", "0.0", (2, 5), (2, 16)),
            ],
        );
        assert_eq!(
            out.text,
            "fn f(a: f64, b: f64) -> f64 {\n    \
             if crate::mutant::none(3) {} else if crate::mutant::is(3) { return 0.0; }\n\
             (if crate::mutant::none(2) { \
             (if crate::mutant::none(1) { a * b } else if crate::mutant::is(1) { a / b } else { unreachable!() }) + 1.0 } \
             else if crate::mutant::is(2) { a * b - 1.0 } else { unreachable!() })\n}\n"
        );
        assert_eq!(out.switched, BTreeSet::from([1, 2, 3]));
    }

    #[test]
    fn arms_and_guards_switch() {
        let source = "fn f(n: u8) -> u8 {\n    match n {\n        1 => 2,\n        k if k > 3 => 4,\n        _ => 5,\n    }\n}\n";
        let out = instrumented(
            source,
            &[
                mutant(1, "MatchArm", "", (3, 9), (3, 16)),
                mutant(2, "MatchArm", "", (4, 9), (4, 24)),
                mutant(3, "MatchArmGuard", "true", (4, 14), (4, 19)),
                mutant(4, "BinaryOperator", "<", (4, 16), (4, 17)),
            ],
        );
        assert_eq!(out.switched.len(), 4);
        assert!(
            out.text.contains("1 if crate::mutant::none(1) => 2"),
            "{}",
            out.text
        );
        assert!(
            out.text.contains(
                "k if crate::mutant::none(2) && ((if crate::mutant::none(3) { (if crate::mutant::none(4)"
            ),
            "{}",
            out.text
        );
    }

    #[test]
    fn a_chain_of_lets_has_no_switch_and_its_conditions_do() {
        let source = "fn f(a: Option<u8>) -> bool {\n    if let Some(n) = a && n > 3 {\n        return true;\n    }\n    false\n}\n";
        let mutants = [
            mutant(1, "BinaryOperator", "||", (2, 24), (2, 26)),
            mutant(2, "BinaryOperator", "<", (2, 29), (2, 30)),
        ];
        let found = instrumented(source, &mutants);
        assert_eq!(found.switched, BTreeSet::from([2]));
        assert!(
            found.text.contains("if let Some(n) = a && (if "),
            "{}",
            found.text
        );
    }

    #[test]
    fn constants_have_no_switch() {
        let source = "const N: usize = 2 + 3;\nfn f() -> [u8; 1] {\n    [0; 3 - 2]\n}\n";
        let out = instrumented(
            source,
            &[
                mutant(1, "BinaryOperator", "-", (1, 20), (1, 21)),
                mutant(2, "BinaryOperator", "+", (3, 11), (3, 12)),
            ],
        );
        assert_eq!((out.text.as_str(), out.switched.len()), (source, 0));
    }
}
