//! One finished block, in memory or in a file.

use crate::spill::SpillFile;
use bytes::Bytes;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// One block's factors, a safetensors file.
#[derive(Debug)]
pub(crate) struct Factors {
    /// The block.
    pub(crate) block: u32,
    /// Its digest, hex.
    pub(crate) blake3: String,
    pub(super) content: Content,
}

/// Where the bytes are.
#[derive(Debug, Clone)]
pub(super) enum Content {
    Memory(Bytes),
    File(Arc<SpillFile>),
}

impl Factors {
    /// Returns how many bytes there are.
    pub(crate) fn bytes(&self) -> u64 {
        match &self.content {
            Content::Memory(bytes) => bytes.len() as u64,
            Content::File(file) => file.bytes(),
        }
    }

    /// Returns how many of them are not in memory.
    pub(crate) fn to_read(&self) -> u64 {
        if self.is_in_memory() { 0 } else { self.bytes() }
    }

    pub(super) fn is_in_memory(&self) -> bool {
        matches!(self.content, Content::Memory(_))
    }

    /// Returns some of the bytes; those in memory are not copied.
    pub(crate) async fn slice(&self, range: Range<u64>) -> io::Result<Bytes> {
        match &self.content {
            Content::Memory(bytes) => Ok(bytes.slice(range.start as usize..range.end as usize)),
            Content::File(file) => {
                let file = Arc::clone(file);
                blocking(move || file.read(range)).await
            }
        }
    }

    /// Returns all bytes, in parts; those in memory are not copied, those from a file are checked.
    pub(crate) async fn parts(&self) -> io::Result<Vec<Bytes>> {
        match &self.content {
            Content::Memory(bytes) => Ok(vec![bytes.clone()]),
            Content::File(file) => {
                let (file, blake3) = (Arc::clone(file), self.blake3.clone());
                blocking(move || file.read_all(&blake3)).await
            }
        }
    }
}

/// Reads where it holds up no messages.
async fn blocking<T: Send + 'static>(read: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
}

/// Returns the digest of a block, hex.
pub(super) fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}
