//! Bulk data in chunks, one stream at a time: cutting it up, checking what comes, and noticing who has fallen silent. For factors and
//! artifacts alike.
//!
//! Knows no message and keeps no bytes.

use bytes::Bytes;
use futures::{Stream, StreamExt};
use std::slice;
use std::time::Duration;
use tonic::Status;

/// How long a stream may be silent before it is given up.
pub const IDLE: Duration = Duration::from_mins(1);

/// What is wrong with a chunk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChunkFault {
    /// A payload with another checksum than its chunk says: damaged on the way.
    #[error("chunk at byte {offset} has CRC32C {found:08x} instead of {expected:08x}")]
    Checksum {
        /// Where.
        offset: u64,
        /// What the chunk says.
        expected: u32,
        /// What the payload gives.
        found: u32,
    },
    /// A chunk of no bytes, or of more than are left.
    #[error("a chunk of {length} bytes at byte {offset} of {bytes}")]
    Length {
        /// How long it is.
        length: u64,
        /// Where.
        offset: u64,
        /// How long the whole is.
        bytes: u64,
    },
}

/// Returns the CRC32C of bytes in pieces.
pub fn crc32c(pieces: &[Bytes]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    for piece in pieces {
        digest.update(piece);
    }
    digest.finalize() as u32
}

/// Checks a chunk of a whole of so many `bytes`, whose payload came in pieces: it is what its sender sent, and does not go beyond the
/// end.
pub fn check(payload: &[Bytes], offset: u64, expected: u32, bytes: u64) -> Result<(), ChunkFault> {
    let length = payload.iter().map(|piece| piece.len() as u64).sum();
    if length == 0 || offset > bytes || length > bytes - offset {
        return Err(ChunkFault::Length { length, offset, bytes });
    }
    let found = crc32c(payload);
    if found != expected {
        return Err(ChunkFault::Checksum { offset, expected, found });
    }
    Ok(())
}

/// One chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Its first byte's place in the whole.
    pub offset: u64,
    /// Checksum of the payload.
    pub crc32c: u32,
    /// At most [`proto::CHUNK_BYTES`].
    pub payload: Bytes,
}

/// Returns bytes in chunks, without a copy; `start`: their place in the whole.
pub fn chunks(bytes: &Bytes, start: u64) -> impl Iterator<Item = Chunk> + use<> {
    let bytes = bytes.clone();
    (0..bytes.len()).step_by(proto::CHUNK_BYTES).map(move |at| {
        let payload = bytes.slice(at..bytes.len().min(at + proto::CHUNK_BYTES));
        Chunk { offset: start + at as u64, crc32c: crc32c(slice::from_ref(&payload)), payload }
    })
}

/// Why a stream of messages ended before its end.
#[derive(Debug)]
pub enum Cut {
    /// Nothing came for [`IDLE`].
    Silent,
    /// The connection broke, or whoever sent gave up.
    Broken(Status),
}

/// Returns the next message of a stream; nothing at its end.
pub async fn next<T>(messages: &mut (impl Stream<Item = Result<T, Status>> + Unpin)) -> Result<Option<T>, Cut> {
    match tokio::time::timeout(IDLE, messages.next()).await {
        Err(_) => Err(Cut::Silent),
        Ok(message) => message.transpose().map_err(Cut::Broken),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_the_whole_and_pass_their_own_check() {
        let bytes = Bytes::from((0..proto::CHUNK_BYTES + 5).map(|n| n as u8).collect::<Vec<_>>());
        let whole = 7 + bytes.len() as u64;
        let cut: Vec<Chunk> = chunks(&bytes, 7).collect();
        assert_eq!(
            cut.iter().map(|c| (c.offset, c.payload.len())).collect::<Vec<_>>(),
            [(7, proto::CHUNK_BYTES), (7 + proto::CHUNK_BYTES as u64, 5)]
        );
        for Chunk { offset, crc32c, payload } in &cut {
            let payload = slice::from_ref(payload);
            assert_eq!(check(payload, *offset, *crc32c, whole), Ok(()));
            assert!(matches!(check(payload, *offset, crc32c ^ 1, whole), Err(ChunkFault::Checksum { .. })));
        }
        assert_eq!(chunks(&Bytes::new(), 0).count(), 0);
    }

    #[test]
    fn a_checksum_does_not_depend_on_the_pieces() {
        let (whole, empty) = (Bytes::from_static(b"123456789"), Bytes::new());
        let pieces = [whole.slice(..4), empty, whole.slice(4..)];
        assert_eq!((crc32c(&[whole]), crc32c(&pieces)), (0xe306_9283, 0xe306_9283));
    }

    #[test]
    fn lengths_that_lie_are_refused_before_anything_is_summed() {
        for (payload, offset) in [(&b""[..], 0), (b"abc", 2), (b"a", 4), (b"a", u64::MAX)] {
            let payload = [Bytes::from_static(payload)];
            assert!(matches!(check(&payload, offset, 0, 4), Err(ChunkFault::Length { .. })), "{offset}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_silent_is_told_from_who_has_ended() {
        let mut ended = futures::stream::iter([Ok(1), Err(Status::aborted("x"))]);
        assert_eq!(next(&mut ended).await.unwrap(), Some(1));
        assert!(matches!(next(&mut ended).await, Err(Cut::Broken(_))));
        assert_eq!(next(&mut ended).await.unwrap(), None::<i32>);
        let mut silent = futures::stream::pending::<Result<i32, Status>>();
        assert!(matches!(next(&mut silent).await, Err(Cut::Silent)));
    }
}
