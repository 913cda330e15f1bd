//! A tensor file, wherever it lies.

use super::locate::Format;
use super::mapped::MappedFile;
use super::remote::RemoteFile;
use crate::ModelError;
use crate::tensor_file::TensorInfo;
use std::borrow::Cow;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use types::ModelPlace;

/// A tensor file in the address space or behind a network.
#[derive(Debug)]
pub(super) enum StoredFile {
    Mapped(MappedFile),
    Remote(RemoteFile),
}

impl StoredFile {
    /// Opens `path` of a place and returns it with the checked places of its tensors.
    pub(super) fn open(
        place: &ModelPlace,
        path: &Path,
        format: Format,
    ) -> Result<(Self, Vec<(String, TensorInfo)>), ModelError> {
        match &place.tensors {
            None => MappedFile::open(path, format).map(|(file, tensors)| (Self::Mapped(file), tensors)),
            Some(files) => RemoteFile::open(path, files).map(|(file, tensors)| (Self::Remote(file), tensors)),
        }
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Mapped(file) => file.path(),
            Self::Remote(file) => file.path(),
        }
    }

    /// Returns the bytes of a tensor; `range` comes from this file's own list.
    pub(super) fn bytes(&self, range: &Range<usize>) -> Result<Cow<'_, [u8]>, ModelError> {
        match self {
            Self::Mapped(file) => Ok(Cow::Borrowed(file.bytes(range))),
            Self::Remote(file) => file.bytes(range).map(Cow::Owned),
        }
    }

    /// Asks for a tensor before it is needed.
    pub(super) fn read_ahead(&self, range: &Range<usize>) {
        match self {
            Self::Mapped(file) => file.read_ahead(range),
            Self::Remote(file) => file.read_ahead(range),
        }
    }

    /// Lets go of a tensor that was read.
    pub(super) fn release(&self, range: &Range<usize>) {
        match self {
            Self::Mapped(file) => file.release(range),
            Self::Remote(_) => {} // nothing of it is kept
        }
    }

    /// Adds length and content to a digest.
    pub(super) fn hash_into(&self, hasher: &mut blake3::Hasher) -> Result<(), ModelError> {
        match self {
            Self::Mapped(file) => hash_file(file.path(), hasher),
            Self::Remote(file) => {
                hasher.update(&file.size().to_le_bytes());
                file.each_piece(|piece| {
                    hasher.update(piece);
                })
            }
        }
    }
}

/// Adds a file's length and content to a digest.
pub(super) fn hash_file(path: &Path, hasher: &mut blake3::Hasher) -> Result<(), ModelError> {
    let file = File::open(path).map_err(ModelError::io("read", path))?;
    let length = file.metadata().map_err(ModelError::io("read", path))?.len();
    hasher.update(&length.to_le_bytes());
    hasher.update_reader(file).map(drop).map_err(ModelError::io("read", path))
}
