use thiserror::Error;

/// Errors of numerical code, with the data that a caller needs to name the layer or file.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum AqlmError {
    /// A scheme's text or numbers are out of range.
    #[error("scheme `{scheme}`: {reason}")]
    Scheme {
        /// the text as given, or the scheme as printed
        scheme: String,
        /// what is wrong with it
        reason: String,
    },
    /// An array does not have the shape that the others imply.
    #[error("{what}: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// which array
        what: String,
        /// the required shape
        expected: Vec<usize>,
        /// the given shape
        found: Vec<usize>,
    },
    /// A weight matrix cannot be cut into groups of the scheme's size.
    #[error("{what}: {features} is not divisible by the group size {group}")]
    NotDivisible {
        /// `in_features` or `out_features`
        what: String,
        /// the number of features
        features: usize,
        /// the group size
        group: usize,
    },
    /// A code points past the end of its codebook.
    #[error("code {code} at {index:?} is outside 0..{codebook_size}")]
    CodeOutOfRange {
        /// the code
        code: u32,
        /// [out group, in group, codebook]
        index: [usize; 3],
        /// 2^B
        codebook_size: usize,
    },
    /// NaN or infinity where finite numbers are needed.
    #[error("{what}: value at {index:?} is {value}, expected finite numbers")]
    NotFinite {
        /// which array
        what: String,
        /// index of the first such value
        index: Vec<usize>,
        /// NaN or an infinity
        value: f64,
    },
    /// A codebook would have more codewords than the layer has groups to fill them with.
    #[error(
        "scheme {scheme} has {codebook_size} codewords a codebook, but the layer has only {groups} groups: \
         every group could have a codeword of its own"
    )]
    Degenerate {
        /// the scheme
        scheme: String,
        /// 2^B
        codebook_size: usize,
        /// out_groups x in_groups
        groups: usize,
    },
    /// A matrix that must be positive definite is not, even after damping.
    #[error("{what}: not positive definite at pivot {pivot}")]
    NotPositiveDefinite {
        /// which matrix
        what: String,
        /// index of the failing pivot
        pivot: usize,
    },
    /// A token without a row in the embedding or without a logit.
    #[error("token {token} at position {position} is outside the vocabulary of {vocab_size}")]
    TokenOutOfRange {
        /// the token
        token: u32,
        /// its index in the sequence
        position: usize,
        /// number of rows of the embedding
        vocab_size: usize,
    },
    /// A caller's argument or a setting has a value that is invalid for every backend.
    #[error("{what}: expected {expected}, found {found}")]
    Argument {
        /// which argument
        what: String,
        /// the allowed values
        expected: String,
        /// the given value
        found: String,
    },
    /// A device is present but reported an error or ran out of a resource.
    #[error("GPU: {0}")]
    Device(String),
    /// This backend, kernel or processor cannot do something that another could; the reason is in the
    /// message.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// An internal invariant does not hold: a bug in this project, whatever the input was.
    #[error("internal error: {0}")]
    Internal(String),
}

impl AqlmError {
    /// An [`AqlmError::Argument`].
    #[expect(
        clippy::needless_pass_by_value,
        reason = "numbers and texts are passed alike, without a borrow at every call"
    )]
    pub fn argument(what: impl Into<String>, expected: impl Into<String>, found: impl ToString) -> Self {
        Self::Argument {
            what: what.into(),
            expected: expected.into(),
            found: found.to_string(),
        }
    }
}

/// Result type of this project's numerical code.
pub type Result<T> = std::result::Result<T, AqlmError>;
