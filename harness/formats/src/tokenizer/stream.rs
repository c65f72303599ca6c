use super::Tokenizer;
use crate::Result;

/// Text of a growing sequence of tokens, in pieces that never split a character.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// first token decoded: decoders treat the start of a text in their own way, so some context stays in
    /// front
    context: usize,
    /// tokens whose text was handed out
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

    /// Adds a token and returns the text that is certain now; empty while a character is incomplete.
    ///
    /// # Errors
    /// `Tokenizer` when the decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let before = self
            .tokenizer
            .decode(&self.ids[self.context..self.printed], true)?;
        let now = self.tokenizer.decode(&self.ids[self.context..], true)?;
        // decoders put U+FFFD where the bytes of a character are still incomplete
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

    /// Whatever is left at the end, incomplete characters as U+FFFD.
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

/// What a longer text adds to a shorter one that was printed. A decoder may change what lies before, as one
/// that removes the space before a comma does; then it is the text behind what both begin with, because what
/// is printed cannot be taken back.
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
