//! Errors: of a file, an argument, a device, or of this project itself.

use std::path::{Path, PathBuf};

use aqlm_vocabulary::AqlmError;

/// Result type of all functions that read, write or run models.
pub type Result<T> = std::result::Result<T, Error>;

/// An error. Variants for bad input name the file, the field or tensor, what was expected and what was found.
/// The command line prints the message, with the option that helps, and exits with code 2.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused: for example, a file is absent or unreadable, or the disk is full.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// the file or folder
        path: PathBuf,
        /// the attempted action, as a verb: "read", "write"
        action: &'static str,
        /// the reason given
        source: std::io::Error,
    },
    /// A path that is not a model, text or tokenizer of a known kind.
    #[error("{path}: expected {expected}, found {found}")]
    Kind {
        /// the file or folder
        path: PathBuf,
        /// the supported kinds
        expected: String,
        /// what the path appears to be
        found: String,
    },
    /// A JSON file, or one line of a .jsonl file, does not parse.
    #[error("{path}, line {line}, column {column}: expected JSON, found {reason}")]
    Json {
        /// the file
        path: PathBuf,
        /// from 1
        line: usize,
        /// from 1
        column: usize,
        /// the parser's message
        reason: String,
    },
    /// A field of a configuration file or a file's metadata has a value that cannot be right.
    #[error("{path}: field `{field}`: expected {expected}, found {found}")]
    Field {
        /// the file
        path: PathBuf,
        /// dotted path of the field
        field: String,
        /// the allowed values
        expected: String,
        /// the value found, or "nothing"
        found: String,
    },
    /// A field is well-formed but requires arithmetic that this project does not implement.
    #[error("{path}: field `{field}` is not supported: expected {expected}, found {found}")]
    Unsupported {
        /// the file
        path: PathBuf,
        /// dotted path of the field
        field: String,
        /// what is implemented
        expected: String,
        /// the value in the file
        found: String,
    },
    /// A file ends before its header says it does.
    #[error("{path}: truncated: {what} needs {expected} bytes, found {found}")]
    Truncated {
        /// the file
        path: PathBuf,
        /// the part that is cut off
        what: String,
        /// bytes that part needs
        expected: u64,
        /// bytes found
        found: u64,
    },
    /// A safetensors or GGUF header that cannot be parsed.
    #[error("{path}: header: expected {expected}, found {found}")]
    Header {
        /// the file
        path: PathBuf,
        /// what the format requires
        expected: String,
        /// what was found
        found: String,
    },
    /// A tensor's bytes overlap another's, leave a gap, or have the wrong length for its shape.
    #[error("{path}: tensor `{tensor}`: expected {expected}, found bytes {begin}..{end}")]
    Offsets {
        /// the file
        path: PathBuf,
        /// the tensor's name
        tensor: String,
        /// what the format requires
        expected: String,
        /// first byte, counted from the end of the header
        begin: u64,
        /// one past its last byte
        end: u64,
    },
    /// A shard in the index is absent, or a shard in the folder is missing from the index.
    #[error("{index}: shard `{shard}`: {reason}")]
    Shard {
        /// the index file
        index: PathBuf,
        /// the shard's file name
        shard: String,
        /// what is wrong
        reason: String,
    },
    /// A tensor required by the configuration is missing.
    #[error("{path}: expected tensor `{tensor}`, found none of that name")]
    MissingTensor {
        /// the file or folder
        path: PathBuf,
        /// the tensor's name
        tensor: String,
    },
    /// A tensor exists that the configuration rules out, so one of the two must be wrong.
    #[error("{path}: tensor `{tensor}`: expected none, {reason}")]
    UnexpectedTensor {
        /// the file
        path: PathBuf,
        /// the tensor's name
        tensor: String,
        /// why the tensor should not exist
        reason: String,
    },
    /// A tensor's shape differs from the one implied by the configuration.
    #[error("{path}: tensor `{tensor}`: expected shape {expected:?}, found {found:?}")]
    TensorShape {
        /// the file
        path: PathBuf,
        /// the tensor's name
        tensor: String,
        /// the shape implied
        expected: Vec<usize>,
        /// the shape in the file
        found: Vec<usize>,
    },
    /// A tensor has a type that cannot represent its content.
    #[error("{path}: tensor `{tensor}`: expected type {expected}, found {found}")]
    TensorType {
        /// the file
        path: PathBuf,
        /// the tensor's name
        tensor: String,
        /// the allowed types
        expected: String,
        /// the type in the file
        found: String,
    },
    /// A weight is NaN or infinite, or would be in the type in which it is to be stored.
    #[error("{path}: tensor `{tensor}`: expected finite numbers, found {value} at element {element}")]
    NotFinite {
        /// the file
        path: PathBuf,
        /// the tensor's name
        tensor: String,
        /// flat index, row-major, of the first such element
        element: usize,
        /// NaN or an infinity
        value: f64,
    },
    /// A code is not a B-bit number.
    #[error("{path}: tensor `{tensor}`: expected codes in {low}..{high}, found {found} at element {element}")]
    CodeOutOfRange {
        /// the file
        path: PathBuf,
        /// the tensor's name
        tensor: String,
        /// flat index, row-major, of the first such element
        element: usize,
        /// smallest code stored as two's complement: -2^(B-1)
        low: i64,
        /// one past the largest: 2^(B-1)
        high: i64,
        /// the code found
        found: i64,
    },
    /// A block that the model does not have.
    #[error("{path}: expected a block in 0..{blocks}, found {block}")]
    Block {
        /// the model
        path: PathBuf,
        /// number of blocks
        blocks: usize,
        /// the requested block
        block: usize,
    },
    /// The tokenizer has ids beyond the last row of the embedding.
    #[error(
        "{path}: tokenizer: expected ids below the embedding's {rows} rows, found id {id} (token {token:?})"
    )]
    Vocabulary {
        /// the model
        path: PathBuf,
        /// number of rows of the embedding
        rows: usize,
        /// the largest id of the tokenizer
        id: u32,
        /// its text
        token: String,
    },
    /// A tokenizer cannot be read, or cannot encode or decode.
    #[error("{path}: tokenizer: {reason}")]
    Tokenizer {
        /// the file
        path: PathBuf,
        /// the tokenizer library's message
        reason: String,
    },
    /// A line of a data file violates its format.
    #[error("{path}, line {line}: expected {expected}, found {found}")]
    Line {
        /// the file
        path: PathBuf,
        /// from 1
        line: usize,
        /// what the format requires
        expected: String,
        /// what was found
        found: String,
    },
    /// A text has fewer tokens than requested.
    #[error("{path}: expected at least {expected} tokens ({what}), found {found}")]
    TooShort {
        /// the data file
        path: PathBuf,
        /// the purpose of the tokens, for example "128 sequences of 256"
        what: String,
        /// tokens requested
        expected: usize,
        /// tokens found
        found: usize,
    },
    /// An output already exists and may not be replaced.
    #[error("{path}: expected no {what} there, found one")]
    Exists {
        /// the folder
        path: PathBuf,
        /// what already exists
        what: String,
    },
    /// A quantized or dense layer does not fit its use.
    #[error("{layer}: {source}")]
    Layer {
        /// which layer, by its path in the checkpoint
        layer: String,
        /// what is wrong with it
        source: AqlmError,
    },
    /// No source has a model of this name.
    #[error("{name}: expected it from one of its sources, found none:\n{}", .tried.join("\n"))]
    Fetch {
        /// the requested name
        name: String,
        /// one line per source: its name, and why it failed
        tried: Vec<String>,
    },
    /// A downloaded file does not have the published size or digest.
    #[error("{path}: expected {what} {expected}, found {found}")]
    Digest {
        /// the file
        path: PathBuf,
        /// "size" or "sha256"
        what: &'static str,
        /// the published value
        expected: String,
        /// the value of the downloaded file
        found: String,
    },
    /// A scheme does not fit a layer of the model.
    #[error("{layer} {reason}")]
    Scheme {
        /// which layer, by its path in the block or the checkpoint
        layer: String,
        /// what is wrong, and what would fit
        reason: String,
    },
    /// A layer has fewer groups than a codebook has codewords, and degenerate layers are not allowed.
    #[error("{layer} [{out_features}, {in_features}]: {source}")]
    Degenerate {
        /// which layer, by its path in the block
        layer: String,
        /// its rows
        out_features: usize,
        /// its columns
        in_features: usize,
        /// the numbers
        source: AqlmError,
    },
    /// A folder already holds this run, and resuming was not requested.
    #[error("{path}: it holds a run of this same command")]
    RunExists {
        /// the folder
        path: PathBuf,
    },
    /// A folder cannot be used for a run.
    #[error("{path}: {reason}")]
    RunFolder {
        /// the folder
        path: PathBuf,
        /// why not
        reason: String,
    },
    /// Another of the processes that share this run cannot go on.
    #[error("{name}: {reason}")]
    Rank {
        /// which one: its rank, host and process
        name: String,
        /// why it cannot go on
        reason: String,
    },
    /// Training stopped because its loss was no longer finite.
    #[error(
        "epoch {epoch}, step {step}: expected a finite loss, found {loss}; first not finite: {layer}; {kept}"
    )]
    Diverged {
        /// epoch, from 1
        epoch: usize,
        /// step within the epoch, from 1
        step: usize,
        /// the loss
        loss: String,
        /// the first parameter or layer that is not finite
        layer: String,
        /// what remains of the run
        kept: String,
    },
    /// A caller's argument or a setting has an invalid value.
    #[error("{what}: expected {expected}, found {found}")]
    Argument {
        /// the argument or setting
        what: String,
        /// the allowed values
        expected: String,
        /// the value given
        found: String,
    },
    /// A GPU is present but cannot be used.
    #[error("GPU: {reason}")]
    Device {
        /// the message of the driver or a library
        reason: String,
    },
    /// An internal invariant does not hold: a bug in this project, whatever the input was.
    #[error("internal error: {0}")]
    Internal(String),
    /// An error of the quantizer.
    #[error(transparent)]
    Aqlm(AqlmError),
}

impl From<AqlmError> for Error {
    fn from(error: AqlmError) -> Self {
        match error {
            AqlmError::Device(reason) => Self::Device { reason },
            AqlmError::Argument {
                what,
                expected,
                found,
            } => Self::Argument {
                what,
                expected,
                found,
            },
            AqlmError::Internal(what) => Self::Internal(what),
            other => Self::Aqlm(other),
        }
    }
}

impl Error {
    /// An invalid argument or setting `what`.
    pub fn argument(what: &str, expected: &str, found: impl Into<String>) -> Self {
        Self::Argument {
            what: what.into(),
            expected: expected.into(),
            found: found.into(),
        }
    }

    /// For `map_err`: an operating-system error with the file and the action.
    pub fn io(path: impl AsRef<Path>, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, action, source }
    }

    /// For `map_err`: a JSON error with its file; `first_line` is the line at which the text begins, from 1.
    pub fn json(path: impl AsRef<Path>, first_line: usize) -> impl FnOnce(serde_json::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |error| Self::Json {
            path,
            line: first_line + error.line().max(1) - 1,
            column: error.column(),
            reason: error.to_string(),
        }
    }
}
