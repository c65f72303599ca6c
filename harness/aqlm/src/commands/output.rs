use aqlm_engine::Record;

/// Where results go: one JSON document, or text, on standard output. Messages and progress go to standard
/// error.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) json: bool,
}

impl Output {
    /// Prints the record or the text, as requested.
    pub(super) fn result<R: Clone + Into<Record>>(self, record: &R, text: impl FnOnce() -> String) {
        if self.json {
            println!("{}", record.clone().into().to_json());
        } else {
            print!("{}", text());
        }
    }
}
