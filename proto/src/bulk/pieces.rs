//! Bytes as they came, in pieces that are never put side by side.

use super::{Malformed, kind};
use bytes::{Buf, Bytes};
use prost::encoding::decode_varint;
use std::collections::VecDeque;

/// Pieces of a chunk that are kept as they came: a frame of 16 KiB each, and then some.
const MOST_PIECES: usize = 256;

/// Bytes in pieces, none of them empty.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    pieces: VecDeque<Bytes>,
    bytes: usize,
}

impl Pieces {
    pub(super) fn push(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        self.bytes += bytes.len();
        self.pieces.push_back(bytes);
    }

    /// Takes the first `count` bytes out.
    pub(super) fn split(&mut self, count: usize) -> Result<Self, Malformed> {
        if count > self.bytes {
            return Err(cut_short());
        }
        let mut taken = Self::default();
        while taken.bytes < count {
            let missing = count - taken.bytes;
            let piece = match self.pieces.front_mut() {
                Some(first) if first.len() > missing => first.split_to(missing),
                _ => self.pieces.pop_front().ok_or_else(cut_short)?,
            };
            self.bytes -= piece.len();
            taken.push(piece);
        }
        Ok(taken)
    }

    /// Returns the pieces; one copy where there are so many that they would take more memory than their bytes.
    pub(super) fn into_pieces(mut self) -> Vec<Bytes> {
        if self.pieces.len() > MOST_PIECES {
            return vec![self.copy_to_bytes(self.bytes)];
        }
        self.pieces.into()
    }

    pub(super) fn varint(&mut self) -> Result<u64, Malformed> {
        decode_varint(self).map_err(|e| Malformed::Fields(e.to_string()))
    }

    /// Takes a field's key: its number, and how its value is written.
    pub(super) fn key(&mut self) -> Result<(u64, u64), Malformed> {
        let key = self.varint()?;
        Ok((key >> 3, key & 7))
    }

    /// Takes a value that follows its length.
    pub(super) fn counted(&mut self) -> Result<Self, Malformed> {
        let count = self.varint()?;
        self.split(usize::try_from(count).map_err(|_| cut_short())?)
    }

    /// Takes a value that nobody wants.
    pub(super) fn skip(&mut self, kind: u64) -> Result<(), Malformed> {
        match kind {
            kind::VARINT => self.varint().map(drop),
            kind::EIGHT_BYTES => self.split(8).map(drop),
            kind::COUNTED => self.counted().map(drop),
            kind::FOUR_BYTES => self.split(4).map(drop),
            other => Err(Malformed::Fields(format!("wire type {other}"))),
        }
    }
}

fn cut_short() -> Malformed {
    Malformed::Fields("a field is longer than its message".to_owned())
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.bytes
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |first| first)
    }

    fn advance(&mut self, mut count: usize) {
        self.bytes -= count; // panics beyond the end, as every Buf does
        while count > 0 {
            let Some(first) = self.pieces.front_mut() else { return };
            if count < first.len() {
                first.advance(count);
                return;
            }
            count -= first.len();
            self.pieces.pop_front();
        }
    }
}
