//! A tensor file that lies elsewhere: its header is read when it is opened, its tensors when they are asked for.

use crate::ModelError;
use crate::tensor_file::{Header, TensorInfo};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use types::RemoteFiles;

/// What is read of a file first: the headers of most models are shorter.
const HEAD: u64 = 256 << 10;
/// What is read at a time when the whole file is wanted.
const PIECE: u64 = 64 << 20;

/// A safetensors file behind a network.
#[derive(Debug)]
pub(super) struct RemoteFile {
    /// The name it would have in the model folder.
    path: PathBuf,
    name: String,
    size: u64,
    files: Arc<dyn RemoteFiles>,
}

impl RemoteFile {
    /// Reads the header of `path`'s namesake and returns the file with the checked places of its tensors.
    pub(super) fn open(
        path: &Path,
        files: &Arc<dyn RemoteFiles>,
    ) -> Result<(Self, Vec<(String, TensorInfo)>), ModelError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let size = files.size(&name).ok_or_else(|| fault(path, gone()))?;
        let file = Self { path: path.to_owned(), name, size, files: Arc::clone(files) };
        let shown = path.display().to_string();
        let mut head = file.read(0..HEAD.min(size))?;
        let needed = Header::needed(&head, size, &shown)?;
        if needed > head.len() as u64 {
            head.extend(file.read(head.len() as u64..needed)?);
        }
        let tensors = Header::parse_head(&head, size as usize, &shown)?.tensors;
        Ok((file, tensors))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the bytes of a tensor; `range` comes from this file's own list.
    pub(super) fn bytes(&self, range: &Range<usize>) -> Result<Vec<u8>, ModelError> {
        self.read(range.start as u64..range.end as u64)
    }

    /// Begins to read a tensor before it is needed.
    pub(super) fn read_ahead(&self, range: &Range<usize>) {
        self.files.read_ahead(&self.name, range.start as u64..range.end as u64);
    }

    /// Shows the whole file to `each`, piece by piece.
    pub(super) fn each_piece(&self, mut each: impl FnMut(&[u8])) -> Result<(), ModelError> {
        let piece = |from: u64| from..(from + PIECE).min(self.size);
        let mut from = 0;
        while from < self.size {
            let next = piece(piece(from).end);
            if !next.is_empty() {
                self.files.read_ahead(&self.name, next);
            }
            each(&self.read(piece(from))?);
            from = piece(from).end;
        }
        Ok(())
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<u8>, ModelError> {
        let wanted = range.end - range.start;
        let bytes = self.files.read(&self.name, range).map_err(|e| fault(&self.path, e))?;
        if bytes.len() as u64 != wanted {
            let short = format!("{} bytes came instead of {wanted}", bytes.len());
            return Err(fault(&self.path, io::Error::new(io::ErrorKind::UnexpectedEof, short)));
        }
        Ok(bytes)
    }
}

fn fault(path: &Path, source: io::Error) -> ModelError {
    ModelError::Remote { file: path.display().to_string(), source }
}
