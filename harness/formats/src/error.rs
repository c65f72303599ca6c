//! What can be wrong: with a file, an argument, a device, or with this project itself.

use std::path::{Path, PathBuf};

use aqlm_vocabulary::AqlmError;

/// Result of everything that reads, writes or runs models.
pub type Result<T> = std::result::Result<T, Error>;

/// What is wrong. Each variant of a bad input names the file, the field or tensor, what was expected and what
/// was found; the command line prints it, with the option that helps, and exits with code 2.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused: a file is absent, unreadable, or the disk is full.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// the file or folder
        path: PathBuf,
        /// what was tried, as a verb: "read", "write"
        action: &'static str,
        /// the reason given
        source: std::io::Error,
    },
    /// A path that is no model, no text or no tokenizer of a known kind.
    #[error("{path}: expected {expected}, found {found}")]
    Kind {
        /// the file or folder
        path: PathBuf,
        /// the kinds that are read
        expected: String,
        /// what it looks like
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
        /// the parser's words
        reason: String,
    },
    /// A field of a configuration file or a file's metadata has a value that cannot be right.
    #[error("{path}: field `{field}`: expected {expected}, found {found}")]
    Field {
        /// the file
        path: PathBuf,
        /// dotted path of the field
        field: String,
        /// the values allowed
        expected: String,
        /// the value there, or "nothing"
        found: String,
    },
    /// A field is well-formed but asks for arithmetic that this project does not implement.
    #[error("{path}: field `{field}` is not supported: expected {expected}, found {found}")]
    Unsupported {
        /// the file
        path: PathBuf,
        /// dotted path of the field
        field: String,
        /// what is implemented
        expected: String,
        /// what the file asks for
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
        /// bytes there are
        found: u64,
    },
    /// A safetensors or GGUF header that cannot be read at all.
    #[error("{path}: header: expected {expected}, found {found}")]
    Header {
        /// the file
        path: PathBuf,
        /// what the format demands
        expected: String,
        /// what is there
        found: String,
    },
    /// A tensor's bytes overlap another's, leave a gap, or have the wrong length for its shape.
    #[error("{path}: tensor `{tensor}`: expected {expected}, found bytes {begin}..{end}")]
    Offsets {
        /// the file
        path: PathBuf,
        /// its name
        tensor: String,
        /// what the format demands
        expected: String,
        /// first byte, counted from the end of the header
        begin: u64,
        /// one past its last byte
        end: u64,
    },
    /// A shard that the index names is absent, or a shard that is there is missing from the index.
    #[error("{index}: shard `{shard}`: {reason}")]
    Shard {
        /// the index file
        index: PathBuf,
        /// the shard's file name
        shard: String,
        /// what is wrong
        reason: String,
    },
    /// A tensor that the configuration asks for is not there.
    #[error("{path}: expected tensor `{tensor}`, found none of that name")]
    MissingTensor {
        /// the file or folder
        path: PathBuf,
        /// its name
        tensor: String,
    },
    /// A tensor that the configuration rules out is there, so that one of the two must be wrong.
    #[error("{path}: tensor `{tensor}`: expected none, {reason}")]
    UnexpectedTensor {
        /// the file
        path: PathBuf,
        /// its name
        tensor: String,
        /// why there should be none
        reason: String,
    },
    /// A tensor has another shape than the configuration implies.
    #[error("{path}: tensor `{tensor}`: expected shape {expected:?}, found {found:?}")]
    TensorShape {
        /// the file
        path: PathBuf,
        /// its name
        tensor: String,
        /// the shape implied
        expected: Vec<usize>,
        /// the shape in the file
        found: Vec<usize>,
    },
    /// A tensor has a type that cannot hold what it is for.
    #[error("{path}: tensor `{tensor}`: expected type {expected}, found {found}")]
    TensorType {
        /// the file
        path: PathBuf,
        /// its name
        tensor: String,
        /// the types allowed
        expected: String,
        /// the type in the file
        found: String,
    },
    /// A weight is NaN or infinite, or becomes so in the type it is to be stored in.
    #[error("{path}: tensor `{tensor}`: expected finite numbers, found {value} at element {element}")]
    NotFinite {
        /// the file
        path: PathBuf,
        /// its name
        tensor: String,
        /// flat index, row-major, of the first such element
        element: usize,
        /// NaN or an infinity
        value: f64,
    },
    /// A code is no B-bit number.
    #[error("{path}: tensor `{tensor}`: expected codes in {low}..{high}, found {found} at element {element}")]
    CodeOutOfRange {
        /// the file
        path: PathBuf,
        /// its name
        tensor: String,
        /// flat index, row-major, of the first such element
        element: usize,
        /// smallest code stored as two's complement: -2^(B-1)
        low: i64,
        /// one past the largest: 2^(B-1)
        high: i64,
        /// the code there
        found: i64,
    },
    /// A block that the model does not have.
    #[error("{path}: expected a block in 0..{blocks}, found {block}")]
    Block {
        /// the model
        path: PathBuf,
        /// how many it has
        blocks: usize,
        /// the one asked for
        block: usize,
    },
    /// The tokenizer has ids beyond the rows of the embedding.
    #[error(
        "{path}: tokenizer: expected ids below the embedding's {rows} rows, found id {id} (token {token:?})"
    )]
    Vocabulary {
        /// the model
        path: PathBuf,
        /// rows of the embedding
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
        /// the tokenizer library's words
        reason: String,
    },
    /// A line of a data file is not what its format demands.
    #[error("{path}, line {line}: expected {expected}, found {found}")]
    Line {
        /// the file
        path: PathBuf,
        /// from 1
        line: usize,
        /// what the format demands
        expected: String,
        /// what is there
        found: String,
    },
    /// A text has fewer tokens than were asked for.
    #[error("{path}: expected at least {expected} tokens ({what}), found {found}")]
    TooShort {
        /// the data file
        path: PathBuf,
        /// what they were needed for, for example "128 sequences of 256"
        what: String,
        /// tokens needed
        expected: usize,
        /// tokens there
        found: usize,
    },
    /// An output is already there and was not to be replaced.
    #[error("{path}: expected no {what} there, found one")]
    Exists {
        /// the folder
        path: PathBuf,
        /// what is in the way
        what: String,
    },
    /// A quantized or dense layer does not fit what it is to be used for.
    #[error("{layer}: {source}")]
    Layer {
        /// which layer, by its path in the checkpoint
        layer: String,
        /// what is wrong with it
        source: AqlmError,
    },
    /// Nothing of that name could be fetched.
    #[error("{name}: expected a model from one of its sources, found none:\n{}", .tried.join("\n"))]
    Fetch {
        /// the name asked for
        name: String,
        /// one line a source: which, and why not
        tried: Vec<String>,
    },
    /// A downloaded file is not the one that was meant.
    #[error("{path}: expected {what} {expected}, found {found}")]
    Digest {
        /// the file
        path: PathBuf,
        /// "size" or "sha256"
        what: &'static str,
        /// the published value
        expected: String,
        /// the value of what arrived
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
    /// A layer has fewer groups than a codebook has codewords, which was not to be accepted.
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
    /// A folder holds this same run, which was not to be continued.
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
    /// Training stopped because its loss was not a number any more.
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
        /// what is left of the run
        kept: String,
    },
    /// An argument of a caller, or a setting, has a value that cannot be used.
    #[error("{what}: expected {expected}, found {found}")]
    Argument {
        /// the argument or setting
        what: String,
        /// the values allowed
        expected: String,
        /// the value given
        found: String,
    },
    /// A GPU is there and cannot be used.
    #[error("GPU: {reason}")]
    Device {
        /// what the driver or a library said
        reason: String,
    },
    /// Something that this project promises itself does not hold: a bug here, whatever the input was.
    #[error("internal error: {0}")]
    Internal(String),
    /// The quantizer refused.
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
    /// An argument or setting `what` that cannot be used.
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

    /// For `map_err`: a JSON error with its file; `first_line` is the line that the text starts at, from 1.
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
