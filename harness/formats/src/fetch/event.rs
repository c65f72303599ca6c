/// What is happening, for progress bars.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FetchEvent<'a> {
    /// a source is being tried
    Trying {
        /// which one, in words
        source: &'a str,
    },
    /// a source did not answer, and another may be tried
    Failed {
        /// which one, in words
        source: &'a str,
        /// why
        reason: &'a str,
    },
    /// bytes of a file have arrived
    Bytes {
        /// its name
        file: &'a str,
        /// so far
        done: u64,
        /// in all
        total: u64,
    },
    /// a GGUF file is being made into a Hugging Face folder
    Converting,
}

/// Tells of a source that did not answer, and says so in one line for the error.
pub(super) fn report(source: &str, reason: &str, observe: &mut dyn FnMut(FetchEvent<'_>)) -> String {
    observe(FetchEvent::Failed { source, reason });
    format!("{source}: {reason}")
}
