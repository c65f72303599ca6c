//! The steps that turn a field of a document into text. Strings behave as in Python, in which the tasks are
//! defined.

use serde::{Deserialize, Serialize};

/// One step from text to text. A task's data file names steps; there are no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// without white space at both ends
    Strip,
    /// the first letter large, all others small
    Capitalize,
    /// a full stop in place of WikiHow's mark ` [title]`
    Titles,
    /// without anything between [ and the next ] of the same line, and without both
    DropBrackets,
    /// one space for every two
    HalveSpaces,
    /// a space for every underscore
    SpacesForUnderscores,
    /// what stands before the first underscore
    BeforeBlank,
    /// what stands behind the first underscore
    AfterBlank,
    /// everything before the last space
    AllButLastWord,
    /// everything behind the last space
    LastWord,
}

impl Step {
    /// The changed text; `None` for a text without the underscore that the step needs.
    pub fn apply(self, text: &str) -> Option<String> {
        Some(match self {
            Self::Strip => text.trim_matches(is_python_space).to_owned(),
            Self::Capitalize => capitalized(text),
            Self::Titles => text.replace(" [title]", ". "),
            Self::DropBrackets => without_brackets(text),
            Self::HalveSpaces => text.replace("  ", " "),
            Self::SpacesForUnderscores => text.replace('_', " "),
            Self::BeforeBlank => text.split_once('_')?.0.to_owned(),
            Self::AfterBlank => text.split_once('_')?.1.to_owned(),
            Self::AllButLastWord => text.rsplit_once(' ').map_or("", |(before, _)| before).to_owned(),
            Self::LastWord => text.rsplit_once(' ').map_or(text, |(_, last)| last).to_owned(),
        })
    }
}

/// What Python's `str.isspace` and `str.strip` take for white space: Unicode's, and four separators of ASCII.
pub(super) fn is_python_space(letter: char) -> bool {
    letter.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&letter)
}

/// Python's `str.capitalize`. Of a first letter that becomes several, such as the ligature fi, only the first
/// stays large. Python's large forms of four digraphs, such as dz, differ in their second half.
fn capitalized(text: &str) -> String {
    let Some(first) = text.chars().next() else {
        return String::new();
    };
    let mut large = first.to_uppercase();
    let mut result: String = large.next().into_iter().collect();
    result.extend(large.flat_map(char::to_lowercase));
    // The small form of a sigma depends on the letters before it, so the whole text is lowered.
    let small = text.to_lowercase();
    let skipped: usize = first.to_lowercase().map(char::len_utf8).sum();
    result.push_str(&small[skipped..]);
    result
}

/// The text without the matches of Python's regular expression `\[.*?\]`.
fn without_brackets(text: &str) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some(open) = rest.find('[') {
        result.push_str(&rest[..open]);
        let inside = &rest[open + 1..];
        let end = inside
            .find([']', '\n'])
            .filter(|&end| inside[end..].starts_with(']'));
        if let Some(end) = end {
            rest = &inside[end + 1..];
        } else {
            result.push('[');
            rest = inside;
        }
    }
    result + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_do_what_python_does() {
        // The expected texts were computed by Python 3.11.
        let cases = [
            (Step::Strip, "\u{1f} \u{a0}a b\u{2003}\n", "a b"),
            (Step::Strip, "\u{200b}a\u{200b}", "\u{200b}a\u{200b}"),
            (Step::Capitalize, "he IS\u{a0}Ända", "He is\u{a0}ända"),
            (Step::Capitalize, "\u{df}A", "Ssa"),
            (Step::Capitalize, "\u{fb01}X", "Fix"),
            (Step::Capitalize, "\u{130}A", "\u{130}a"),
            (
                Step::Capitalize,
                "\u{3a3}\u{3a3} \u{3a3}",
                "\u{3a3}\u{3c2} \u{3c3}",
            ),
            (Step::Capitalize, "", ""),
            (
                Step::Titles,
                "How to [title] Do it. [title] x",
                "How to.  Do it..  x",
            ),
            (Step::DropBrackets, "a [b [c] d] [\n] [e]", "a  d] [\n] "),
            (Step::DropBrackets, "[[x\n[y]", "[[x\n"),
            (Step::HalveSpaces, "a  b   c    d", "a b  c  d"),
            (Step::SpacesForUnderscores, "high_school_x", "high school x"),
            (Step::BeforeBlank, "a _ b _ c", "a "),
            (Step::AfterBlank, "a _ b _ c", " b _ c"),
            (Step::AllButLastWord, "a b  c", "a b "),
            (Step::LastWord, "a b  c", "c"),
            (Step::AllButLastWord, "word", ""),
            (Step::LastWord, "word", "word"),
            (Step::LastWord, "word ", ""),
        ];
        for (step, text, expected) in cases {
            assert_eq!(
                step.apply(text).as_deref(),
                Some(expected),
                "{step:?} of {text:?}"
            );
        }
        assert_eq!(Step::BeforeBlank.apply("no blank"), None);
    }
}
