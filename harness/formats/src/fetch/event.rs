/// Progress, for progress bars.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FetchEvent<'a> {
    /// a source is being tried
    Trying {
        /// the source, in words
        source: &'a str,
    },
    /// a source did not answer; another may be tried
    Failed {
        /// the source, in words
        source: &'a str,
        /// why
        reason: &'a str,
    },
    /// bytes of a file have arrived
    Bytes {
        /// its name
        file: &'a str,
        /// bytes so far
        done: u64,
        /// bytes in total
        total: u64,
    },
    /// a GGUF file is being converted to a Hugging Face folder
    Converting,
}

/// Reports a source that did not answer, and returns one line about it for the error.
pub(super) fn report(source: &str, reason: &str, observe: &mut dyn FnMut(FetchEvent<'_>)) -> String {
    observe(FetchEvent::Failed { source, reason });
    format!("{source}: {reason}")
}
