//! What can go wrong with models, text and tensors. Every message says what, where, and what to do.

use std::io;
use std::path::{Path, PathBuf};
use tch::TchError;

/// A failure of this crate, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file or folder that could not be read or written: check path, permissions and space.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried: `read`, `map`, `write`, ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A tensor file elsewhere that could not be read: try again.
    #[error("cannot read {file} from where the model lies")]
    Remote {
        /// The file.
        file: String,
        /// What the other side, or the network, said.
        source: io::Error,
    },
    /// A path that is no model folder: point to another one.
    #[error("{} is not a model folder: {reason}", path.display())]
    NotAModel {
        /// What was given.
        path: PathBuf,
        /// What is missing, and what is expected.
        reason: String,
    },
    /// A config.json that contradicts itself or lacks something.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The config file.
        path: PathBuf,
        /// Which key, what it holds and what it should hold.
        reason: String,
    },
    /// A model that this program does not handle.
    #[error("{}: {reason}", path.display())]
    Unsupported {
        /// The config file or folder.
        path: PathBuf,
        /// What is not supported, and what is.
        reason: String,
    },
    /// A broken tensor file or index: fetch it again.
    #[error("{file}: {reason}; the file is damaged or incomplete, fetch it again")]
    TensorFile {
        /// The file, or what the bytes were meant to be.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor that the config asks for and no file holds.
    #[error("{}: tensor '{tensor}' {shape:?} is missing; the files do not belong to this config.json or are incomplete", path.display())]
    MissingTensor {
        /// The model folder.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape that the config asks for.
        shape: Vec<i64>,
    },
    /// A tensor of another shape than the config asks for.
    #[error("{}: tensor '{tensor}' has shape {found:?} where config.json asks for {expected:?}; the files do not belong together", path.display())]
    TensorShape {
        /// The file that holds it.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What the config asks for.
        expected: Vec<i64>,
        /// What the file holds.
        found: Vec<i64>,
    },
    /// A weight that the family does not know; the pruned model would lose it.
    #[error("{}: tensor '{tensor}' is no part of a {family} model; it would be lost, so this checkpoint is refused", path.display())]
    UnexpectedTensor {
        /// The file that holds it.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The family that the config names.
        family: &'static str,
    },
    /// A pruned state that does not fit the model it is laid over: a bug or files of another model.
    #[error("layer {layer}: {reason}; the pruned weights belong to another model or run")]
    Overlay {
        /// The layer.
        layer: String,
        /// What does not fit.
        reason: String,
    },
    /// A value of another shape than a function takes: a bug in the caller.
    #[error("{what} has shape {found:?}, expected {expected}")]
    Shape {
        /// The value.
        what: &'static str,
        /// What it should be, in shape letters.
        expected: String,
        /// What it is.
        found: Vec<i64>,
    },
    /// A failed tensor operation. See [`ModelError::is_out_of_memory`].
    #[error("tensor operation failed: {what}")]
    Torch {
        /// What was being computed.
        what: String,
        /// Libtorch's message.
        source: TchError,
    },
    /// A device that is not there or that libtorch cannot use.
    #[error("{0}")]
    Device(String),
    /// A tokenizer or chat template that is missing or broken: complete the model folder.
    #[error("{}: {reason}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Text that cannot be used: mend the file or name another one.
    #[error("{}: {reason}", path.display())]
    Data {
        /// The file or folder, as it was given.
        path: PathBuf,
        /// What is wrong, where in the file, and what to do.
        reason: String,
    },
    /// Less text than was asked for: add text or ask for less.
    #[error("the text has {found} tokens where {needed} are needed; {remedy}")]
    TooLittleText {
        /// Tokens there are.
        found: u64,
        /// Tokens there have to be.
        needed: u64,
        /// What to do.
        remedy: String,
    },
    /// A number that is infinite or no number: the model or its number format is at fault.
    #[error("{what} is not finite")]
    NotFinite {
        /// Which number, of which layer or segment.
        what: String,
    },
    /// The sweep's observer could not go on; its own error is the source.
    #[error("cannot take what the sweep saw of block {block}")]
    Observer {
        /// Number of the block.
        block: u32,
        /// The observer's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A layer that was to be observed and is not in its block: a bug in the caller.
    #[error("block {block} has no layer '{layer}' to observe")]
    UnknownLayer {
        /// Number of the block.
        block: u32,
        /// The layer.
        layer: String,
    },
    /// An output folder that is there already: name another one or move it away.
    #[error("{} exists already and is left as it is; name another output or move it away", path.display())]
    OutputExists {
        /// The folder.
        path: PathBuf,
    },
    /// A written model that, read back, computes something else: it has been removed.
    #[error("the model written for {} was read back and its logits differ by {difference:e} where {allowed:e} is allowed; nothing was left there", path.display())]
    Unfaithful {
        /// The output folder that was not made.
        path: PathBuf,
        /// Largest absolute difference of a logit.
        difference: f64,
        /// Largest allowed.
        allowed: f64,
    },
    /// A written layer that breaks its pattern: a bug, so the folder has been removed.
    #[error(
        "layer {layer}: {broken} windows keep more weights than the pattern {pattern} lets them; nothing was left there"
    )]
    Pattern {
        /// The layer.
        layer: String,
        /// n:m.
        pattern: String,
        /// Windows that keep too many.
        broken: u64,
    },
    /// The caller asked for an end; nothing is wrong.
    #[error("stopped on request")]
    Stopped,
}

impl ModelError {
    /// Returns a closure that makes a failed operation on `path` an error.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// Returns a closure that makes a failed tensor operation an error that names `what`.
    pub(crate) fn torch(what: impl Into<String>) -> impl FnOnce(TchError) -> Self {
        let what = what.into();
        move |source| Self::Torch { what, source }
    }

    /// Returns whether a file could not be written because its disk, or the user's share of it, is full.
    pub fn is_storage_full(&self) -> bool {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded, io::ErrorKind::FileTooLarge];
        matches!(self, Self::Io { source, .. } if full.contains(&source.kind()))
    }

    /// Returns whether less work at once might succeed.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Torch { source, .. }
            if ["out of memory", "can't allocate memory", "alloc_cpu"].iter().any(|text| source.to_string().to_lowercase().contains(text)))
    }
}

/// Lets `?` turn a bare tensor error into ours where the operation needs no name.
impl From<TchError> for ModelError {
    fn from(source: TchError) -> Self {
        Self::Torch { what: "tensor arithmetic".to_owned(), source }
    }
}
