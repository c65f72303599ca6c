//! What the program prints of an error: the error, and the option of its own that helps.

use aqlm_formats::Error;

/// Settings that libraries refuse by their names, the options that set them, and what helps besides.
const OPTIONS: [(&str, &str, &str); 13] = [
    ("temperature", "--temperature", ""),
    ("top_p", "--top-p", ""),
    ("memory", "--memory", "; --backend cpu has a bound"),
    ("gpus", "--gpus", ""),
    ("teacher", "--teacher", ""),
    ("case", "--case", ""),
    ("ctx", "--ctx", ""),
    ("windows", "--windows", ""),
    ("save_base", "--save-base", ""),
    ("runs", "--runs", ""),
    ("rate", "--rate", ""),
    ("tasks", "--tasks", ""),
    ("bos", "--bos", ""),
];

/// One line for the user. Libraries know no options, so their settings become options here.
pub(super) fn refusal(error: &Error) -> String {
    match error {
        Error::Argument {
            what,
            expected,
            found,
        } => {
            let option = OPTIONS.iter().find(|(setting, ..)| setting == what);
            let (name, advice) = option.map_or((what.as_str(), ""), |&(_, option, advice)| (option, advice));
            format!("{name}: expected {expected}, found {found}{advice}")
        }
        Error::Degenerate { .. } => format!("{error}; --allow-degenerate accepts that"),
        Error::RunExists { .. } => format!("{error}; --resume continues it"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_become_options_and_other_words_stay() {
        let refused = |what: &str| refusal(&Error::argument(what, "1 or more", "0"));
        assert_eq!(refused("top_p"), "--top-p: expected 1 or more, found 0");
        assert_eq!(refused("--beam"), "--beam: expected 1 or more, found 0");
        assert_eq!(refused("prompt"), "prompt: expected 1 or more, found 0");
    }

    #[test]
    fn the_option_that_helps_is_named() {
        let error = Error::RunExists {
            path: "runs/a".into(),
        };
        let text = "runs/a: it holds a run of this same command; --resume continues it";
        assert_eq!(refusal(&error), text);
    }
}
