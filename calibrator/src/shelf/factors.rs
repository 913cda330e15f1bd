//! One finished block, in memory or in a file.

use crate::spill::SpillFile;
use bytes::Bytes;
use service::transfer::{Chunk, chunks, crc32c};
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// One block's factors, a safetensors file.
#[derive(Debug)]
pub(crate) struct Factors {
    /// The block.
    pub(crate) block: u32,
    pub(crate) sums: Sums,
    pub(super) content: Content,
}

/// What its receiver checks a block by, found in one walk over its bytes: a second one would have to fetch them again.
#[derive(Debug, Clone)]
pub(crate) struct Sums {
    /// Digest of the whole, hex.
    pub(crate) blake3: String,
    /// CRC32C of each [`proto::CHUNK_BYTES`], in order; of the rest at the end.
    crc32c: Vec<u32>,
}

impl Sums {
    pub(super) fn of(bytes: &Bytes) -> Self {
        let mut hasher = blake3::Hasher::new();
        let sum = |chunk: Chunk| {
            hasher.update(&chunk.payload);
            chunk.crc32c
        };
        let crc32c = chunks(bytes, 0).map(sum).collect();
        Self { blake3: hasher.finalize().to_hex().to_string(), crc32c }
    }

    /// Returns the CRC32C of the chunk that begins at `offset`; computes it where others begin.
    pub(crate) fn of_chunk(&self, offset: u64, payload: &Bytes) -> u32 {
        let (at, within) = (offset / proto::CHUNK_BYTES as u64, offset % proto::CHUNK_BYTES as u64);
        let known = self.crc32c.get(at as usize).copied().filter(|_| within == 0);
        known.unwrap_or_else(|| crc32c(std::slice::from_ref(payload)))
    }
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
                let (file, blake3) = (Arc::clone(file), self.sums.blake3.clone());
                blocking(move || file.read_all(&blake3)).await
            }
        }
    }
}

/// Reads where it holds up no messages.
async fn blocking<T: Send + 'static>(read: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_the_bytes_wherever_a_chunk_begins() {
        let bytes = Bytes::from((0..2 * proto::CHUNK_BYTES + 9).map(|n| (n * 31) as u8).collect::<Vec<_>>());
        let sums = Sums::of(&bytes);
        assert_eq!(sums.blake3, blake3::hash(&bytes).to_hex().as_str());
        for offset in [0, proto::CHUNK_BYTES, 2 * proto::CHUNK_BYTES, 7, proto::CHUNK_BYTES + 1] {
            let chunk = bytes.slice(offset..bytes.len().min(offset + proto::CHUNK_BYTES));
            assert_eq!(sums.of_chunk(offset as u64, &chunk), ::crc32c::crc32c(&chunk), "{offset}");
        }
    }
}
