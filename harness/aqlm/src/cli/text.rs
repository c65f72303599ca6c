use std::path::Path;

use aqlm_formats::texts::{TextFormat, TokenStream};
use aqlm_formats::tokenizer::Tokenizer;
use aqlm_formats::{Error, Result};
use clap::ValueEnum;

use crate::commands::fetch::text_file;

/// How texts are read.
#[derive(Debug, clap::Args)]
pub(super) struct TextArgs {
    /// Format of a text whose name does not tell it, such as - for standard input
    #[arg(long, value_enum, value_name = "FORMAT")]
    text_format: Option<TextFormatName>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TextFormatName {
    /// one stream of UTF-8
    Txt,
    /// an object with a "text" in every line
    Jsonl,
    /// a column "text"
    Parquet,
}

impl TextArgs {
    /// The stated format.
    pub(super) fn stated(&self) -> Option<TextFormat> {
        self.text_format.map(|format| match format {
            TextFormatName::Txt => TextFormat::Text,
            TextFormatName::Jsonl => TextFormat::JsonLines,
            TextFormatName::Parquet => TextFormat::Parquet,
        })
    }

    /// Refuses a stated format that no text needs: it would be ignored.
    pub(super) fn check_needed(&self, paths: &[&Path]) -> Result<()> {
        let told = paths.iter().all(|path| TextFormat::of(path).is_some());
        if self.text_format.is_some() && told {
            return Err(Error::argument(
                "--text-format",
                "a text whose name does not tell its format",
                paths[0].display().to_string(),
            ));
        }
        Ok(())
    }

    /// Reads a text, or a data set by its name.
    pub(super) fn load(&self, path: &Path, tokenizer: &Tokenizer) -> Result<TokenStream> {
        TokenStream::load_as(&text_file(path)?, self.stated(), tokenizer)
    }
}
