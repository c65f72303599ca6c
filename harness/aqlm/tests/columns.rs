//! Comments and documents are at most 110 columns wide; rustfmt wraps code but not comments.
//!
//! Tables and code inside a document are exempt, as is a line that consists of one long word, such as a link.

use std::path::{Path, PathBuf};

/// Maximum number of characters per line, equal to the number in rustfmt.toml.
const COLUMNS: usize = 110;

/// Line numbers, from 1, of a source's comment-only lines that are too wide.
fn wide_comments(source: &str) -> Vec<usize> {
    let is_comment = |line: &str| {
        let text = line.trim_start();
        text.starts_with("//") && text.split_whitespace().count() > 2
    };
    numbered(source)
        .filter(|(_, line)| is_comment(line) && line.chars().count() > COLUMNS)
        .map(|(number, _)| number)
        .collect()
}

/// Line numbers, from 1, of a Markdown document's prose lines that are too wide.
fn wide_prose(document: &str) -> Vec<usize> {
    let mut is_code = false;
    let mut found = Vec::new();
    for (number, line) in numbered(document) {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        } else if !is_code
            && !line.trim_start().starts_with('|')
            && line.split_whitespace().count() > 2
            && line.chars().count() > COLUMNS
        {
            found.push(number);
        }
    }
    found
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines())
}

/// Hand-written files, by extension.
fn files(folder: &Path, out: &mut Vec<PathBuf>) {
    const SKIPPED: [&str; 6] = ["target", ".git", ".carry", "runs", "models", "tiny-stories-4m"];
    const ENDINGS: [&str; 5] = ["rs", "cu", "cuh", "h", "md"];
    for entry in std::fs::read_dir(folder).expect("readable folder") {
        let path = entry.expect("readable entry").path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .expect("a UTF-8 name");
        if path.is_symlink() || SKIPPED.contains(&name) {
            continue;
        }
        if path.is_dir() {
            files(&path, out);
        } else if ENDINGS
            .iter()
            .any(|ending| path.extension().is_some_and(|found| found == *ending))
        {
            out.push(path);
        }
    }
}

#[test]
fn comments_and_documents_are_wrapped() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut all = Vec::new();
    files(&root, &mut all);
    assert!(
        all.len() > 300,
        "the test looks in the wrong place: {} files",
        all.len()
    );
    let mut found = Vec::new();
    for path in all {
        let text = std::fs::read_to_string(&path).expect("UTF-8 text");
        let is_document = path.extension().is_some_and(|ending| ending == "md");
        let wide = if is_document {
            wide_prose(&text)
        } else {
            wide_comments(&text)
        };
        found.extend(wide.iter().map(|line| format!("{}:{line}", path.display())));
    }
    assert!(
        found.is_empty(),
        "wider than {COLUMNS} columns:\n{}",
        found.join("\n")
    );
}

#[test]
fn wide_lines_are_found() {
    let wide = "word ".repeat(30);
    assert_eq!(
        wide_comments(&format!("// short\n    /// {wide}\nlet x = \"{wide}\";\n")),
        [2]
    );
    let table = format!("| {wide} |\n```\n{wide}\n```\n{wide}\n");
    assert_eq!(wide_prose(&table), [5]);
    assert!(wide_comments(&format!("// {}", "x".repeat(200))).is_empty());
}
