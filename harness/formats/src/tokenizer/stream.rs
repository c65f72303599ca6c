use super::Tokenizer;
use crate::Result;

/// Text of a growing sequence of tokens, returned in pieces that never split a character.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// first token decoded; decoders treat the start of a text specially, so some context is kept before new
    /// tokens
    context: usize,
    /// tokens whose text was returned
    printed: usize,
}

impl<'a> TextStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self {
            tokenizer,
            ids: Vec::new(),
            context: 0,
            printed: 0,
        }
    }

    /// Adds a token and returns the text that is now final; empty while a character is incomplete.
    ///
    /// # Errors
    /// `Tokenizer` when the decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let before = self
            .tokenizer
            .decode(&self.ids[self.context..self.printed], true)?;
        let now = self.tokenizer.decode(&self.ids[self.context..], true)?;
        // decoders write U+FFFD while the bytes of a character are incomplete
        if now.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        let piece = added(&before, &now).to_owned();
        if now.len() > before.len() {
            self.context = self.printed;
            self.printed = self.ids.len();
        }
        Ok(piece)
    }

    /// The remaining text, with incomplete characters as U+FFFD.
    ///
    /// # Errors
    /// `Tokenizer` when the decoder fails.
    pub fn finish(self) -> Result<String> {
        let before = self
            .tokenizer
            .decode(&self.ids[self.context..self.printed], true)?;
        let now = self.tokenizer.decode(&self.ids[self.context..], true)?;
        Ok(added(&before, &now).to_owned())
    }
}

/// The text that `now` adds to the already printed `before`. A decoder may change earlier text, for example
/// by removing the space before a comma. Printed text cannot be taken back, so the result is then the text
/// after the common prefix.
fn added<'a>(before: &str, now: &'a str) -> &'a str {
    let same: usize = before
        .chars()
        .zip(now.chars())
        .take_while(|(a, b)| a == b)
        .map(|(a, _)| a.len_utf8())
        .sum();
    &now[same..]
}

#[cfg(test)]
mod tests {
    use super::added;

    #[test]
    fn nothing_new_is_lost_when_a_decoder_changes_its_mind() {
        assert_eq!(added("Once", "Once upon"), " upon");
        assert_eq!(added("Once", "Once"), "");
        assert_eq!(added("I do n", "I don't"), "n't");
        assert_eq!(added("caf\u{e8}", "caf\u{e9}!"), "\u{e9}!");
    }
}
