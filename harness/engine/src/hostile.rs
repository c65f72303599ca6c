//! The journal reader as a function of bytes. Fuzzers call it and the readers of [`aqlm_formats::hostile`]
//! (docs/checking.md).

use aqlm_formats::hostile::Target;

use crate::finished_blocks;

/// The reader of this crate.
pub const JOURNAL: Target = Target {
    name: "journal",
    read: |bytes, folder| {
        if std::fs::write(folder.join("journal.jsonl"), bytes).is_ok() {
            _ = finished_blocks(folder);
        }
    },
    words: &[
        "\"block\":",
        "\"file\":",
        "\"sha256\":",
        "\"report\":",
        "\n",
        "{}",
    ],
    seeds: &[
        include_bytes!("../../tools/fuzz/seeds/journal/one.jsonl"),
        include_bytes!("../../tools/fuzz/seeds/journal/cut.jsonl"),
    ],
};
