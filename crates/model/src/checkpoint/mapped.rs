//! A tensor file in the address space: read where it lies, and let go of what has been read.

// Mapping a file is unsafe because another program could change it; see the SAFETY comments.
#![allow(unsafe_code)]

use super::locate::Format;
use super::pytorch;
use crate::ModelError;
use crate::tensor_file::{Header, TensorInfo};
use memmap2::{Advice, Mmap, UncheckedAdvice};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A mapped tensor file.
#[derive(Debug)]
pub(super) struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    /// Maps `path` and returns it with the checked places of its tensors.
    pub(super) fn open(path: &Path, format: Format) -> Result<(Self, Vec<(String, TensorInfo)>), ModelError> {
        let file = File::open(path).map_err(ModelError::io("read", path))?;
        // SAFETY: the map is private and read only. That nobody cuts the file while a run uses it is a stated
        // condition for model folders; bytes that change are caught by no reader, mapped or not.
        let map = unsafe { Mmap::map(&file) }.map_err(ModelError::io("map", path))?;
        let tensors = match format {
            Format::Safetensors => Header::parse(&map, &path.display().to_string())?.tensors,
            Format::PyTorch => pytorch::tensors(&map, path)?,
        };
        Ok((Self { path: path.to_owned(), map }, tensors))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the bytes of a tensor; `range` comes from this file's own list.
    pub(super) fn bytes(&self, range: &Range<usize>) -> &[u8] {
        &self.map[range.clone()]
    }

    /// Asks for the pages of a tensor before they are needed.
    pub(super) fn read_ahead(&self, range: &Range<usize>) {
        if let Err(error) = self.map.advise_range(Advice::WillNeed, range.start, range.len()) {
            tracing::debug!(%error, "a model file is not read ahead");
        }
    }

    /// Gives the pages of a tensor back, so that reading a model does not keep a second copy of it resident.
    pub(super) fn release(&self, range: &Range<usize>) {
        // SAFETY: the map is file-backed, private and never written, so dropped pages come back from the file unchanged.
        let advised = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
        if let Err(error) = advised {
            tracing::debug!(%error, "pages of a model file stay resident");
        }
    }
}
