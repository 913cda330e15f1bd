//! Where a model lies: in a folder, with its tensor files there or elsewhere, and its changed layers in a store.

use crate::ObjectRef;
use std::fmt::Debug;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Tensor files that lie elsewhere (in a bucket) and are read in parts.
pub trait RemoteFiles: Debug + Send + Sync {
    /// Returns the bytes of a file, if it is there.
    fn size(&self, file: &str) -> Option<u64>;

    /// Returns bytes `range` of a file; blocks until they are here.
    ///
    /// # Errors
    /// What the other side said, also when the file is no longer the one that was listed.
    fn read(&self, file: &str, range: Range<u64>) -> io::Result<Vec<u8>>;

    /// Begins to read what will be asked for next. A hint: nothing fails here.
    fn read_ahead(&self, file: &str, range: Range<u64>);
}

/// Objects of a store that are read when they are needed.
pub trait RemoteObjects: Debug + Send + Sync {
    /// Returns an object that has the digest its reference says; blocks until it is here.
    ///
    /// # Errors
    /// What the store said, or that the object is damaged.
    fn read(&self, object: &ObjectRef) -> io::Result<Vec<u8>>;

    /// Begins to read what will be asked for next. A hint: nothing fails here.
    fn read_ahead(&self, object: &ObjectRef);
}

/// Where a model lies.
#[derive(Debug, Clone)]
pub struct ModelPlace {
    /// Folder with config and tokenizer, and with the tensor files unless they are elsewhere.
    pub folder: PathBuf,
    /// Where the tensor files are instead.
    pub tensors: Option<Arc<dyn RemoteFiles>>,
}

impl From<&Path> for ModelPlace {
    fn from(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), tensors: None }
    }
}
