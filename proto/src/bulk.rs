//! `StreamFactors` as bytes, without a copy of what it carries: what is plain gRPC to everybody else is put together and taken
//! apart by hand here, because generated code copies every payload once more on either side.
//!
//! Pure: no connection, no checksum. Readers take fields in any order and skip those that they do not know, as generated ones do.

mod pieces;

use crate::MAX_MESSAGE_BYTES;
use crate::v1::stream_factors_response::Part;
use crate::v1::{FactorChunk, FactorHeader, StreamFactorsResponse};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use pieces::Pieces;
use prost::Message;
use prost::encoding::encode_varint;

/// Bytes before each message: whether it is compressed, and how long it is.
const PREFIX_BYTES: usize = 5;
/// Longest head of a chunk: the prefix and all fields but the payload.
const HEAD_BYTES: usize = 64;

/// Numbers of fields in the contract.
mod field {
    /// Of `StreamFactorsResponse`.
    pub(super) const HEADER: u64 = 1;
    pub(super) const CHUNK: u64 = 2;
    /// Of `FactorChunk`.
    pub(super) const BLOCK: u64 = 1;
    pub(super) const OFFSET: u64 = 2;
    pub(super) const CRC32C: u64 = 3;
    pub(super) const PAYLOAD: u64 = 4;
}

/// How a field's value is written.
mod kind {
    pub(super) const VARINT: u64 = 0;
    pub(super) const EIGHT_BYTES: u64 = 1;
    pub(super) const COUNTED: u64 = 2;
    pub(super) const FOUR_BYTES: u64 = 5;
}

/// Why bytes are no message of a factor stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A message longer than any that is sent.
    #[error("a message of {0} bytes is announced, legal are {MAX_MESSAGE_BYTES}")]
    TooLong(usize),
    /// A message in an encoding that was not asked for.
    #[error("a message is marked as compressed, which was not asked for")]
    Compressed,
    /// Fields that are none.
    #[error("a message is no StreamFactorsResponse: {0}")]
    Fields(String),
    /// The stream ended in the middle of a message.
    #[error("the stream ends {0} bytes into a message")]
    CutOff(usize),
}

/// A chunk as it came: its payload in as many pieces as the network made of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chunk {
    /// Which block.
    pub block: u32,
    /// Where in its file.
    pub offset: u64,
    /// Checksum of the payload.
    pub crc32c: u32,
    /// Some bytes of the file.
    pub payload: Vec<Bytes>,
}

impl Chunk {
    /// Returns the length of the payload.
    pub fn bytes(&self) -> u64 {
        self.payload.iter().map(|piece| piece.len() as u64).sum()
    }
}

impl From<FactorChunk> for Chunk {
    fn from(chunk: FactorChunk) -> Self {
        let FactorChunk { block, offset, crc32c, payload } = chunk;
        Self { block, offset, crc32c, payload: vec![payload] }
    }
}

/// One message as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReceivedPart {
    /// A block begins.
    Header(FactorHeader),
    /// Some of its bytes.
    Chunk(Chunk),
    /// A message without a part that we know.
    Unknown,
}

/// Returns a message as it is sent: everything up to the payload, and the payload itself; a header has none.
pub fn encode(part: Part) -> (Bytes, Option<Bytes>) {
    match part {
        Part::Header(header) => {
            let message = StreamFactorsResponse { part: Some(Part::Header(header)) };
            let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + message.encoded_len());
            put_prefix(message.encoded_len(), &mut bytes);
            bytes.put(message.encode_to_vec().as_slice());
            (bytes.freeze(), None)
        }
        Part::Chunk(chunk) => (head(&chunk), Some(chunk.payload)),
    }
}

/// Returns a chunk's message up to its payload, which is the last field, so that it ends the message.
fn head(chunk: &FactorChunk) -> Bytes {
    let FactorChunk { block, offset, crc32c, .. } = *chunk;
    let mut fields = FactorChunk { block, offset, crc32c, payload: Bytes::new() }.encode_to_vec();
    put_key(field::PAYLOAD, &mut fields);
    encode_varint(chunk.payload.len() as u64, &mut fields);
    let mut outer = Vec::with_capacity(HEAD_BYTES);
    put_key(field::CHUNK, &mut outer);
    encode_varint((fields.len() + chunk.payload.len()) as u64, &mut outer);
    let mut bytes = BytesMut::with_capacity(HEAD_BYTES);
    put_prefix(outer.len() + fields.len() + chunk.payload.len(), &mut bytes);
    bytes.put(outer.as_slice());
    bytes.put(fields.as_slice());
    bytes.freeze()
}

fn put_prefix(message: usize, bytes: &mut BytesMut) {
    bytes.put_u8(0); // not compressed
    bytes.put_u32(message as u32);
}

/// Puts the key of a field whose value is counted.
fn put_key(field: u64, bytes: &mut Vec<u8>) {
    encode_varint((field << 3) | kind::COUNTED, bytes);
}

/// Takes a body apart into messages, as its bytes come.
#[derive(Debug, Default)]
pub struct Reader {
    came: Pieces,
    /// Length of the message that is coming; nothing before its prefix is whole.
    due: Option<usize>,
}

impl Reader {
    /// Takes bytes that came.
    pub fn push(&mut self, bytes: Bytes) {
        self.came.push(bytes);
    }

    /// Returns the next message, if it is whole.
    ///
    /// # Errors
    /// What came is no message; nothing that follows can be read.
    pub fn message(&mut self) -> Result<Option<ReceivedPart>, Malformed> {
        let due = match self.due {
            Some(due) => due,
            None if self.came.remaining() < PREFIX_BYTES => return Ok(None),
            None => {
                if self.came.get_u8() != 0 {
                    return Err(Malformed::Compressed);
                }
                let due = self.came.get_u32() as usize;
                if due > MAX_MESSAGE_BYTES {
                    return Err(Malformed::TooLong(due));
                }
                *self.due.insert(due)
            }
        };
        if self.came.remaining() < due {
            return Ok(None);
        }
        self.due = None;
        response(self.came.split(due)?).map(Some)
    }

    /// Says that nothing more comes.
    ///
    /// # Errors
    /// [`Malformed::CutOff`] when that is in the middle of a message.
    pub fn finish(&self) -> Result<(), Malformed> {
        match (self.came.remaining(), self.due) {
            (0, None) => Ok(()),
            (rest, _) => Err(Malformed::CutOff(rest)),
        }
    }
}

/// A part that comes twice is merged, and the last value of a field counts, as in every protobuf reader.
fn response(mut message: Pieces) -> Result<ReceivedPart, Malformed> {
    let mut came = ReceivedPart::Unknown;
    while message.has_remaining() {
        match message.key()? {
            (field::HEADER, kind::COUNTED) => {
                let mut header =
                    if let ReceivedPart::Header(earlier) = came { earlier } else { FactorHeader::default() };
                header.merge(message.counted()?).map_err(|e| Malformed::Fields(e.to_string()))?;
                came = ReceivedPart::Header(header);
            }
            (field::CHUNK, kind::COUNTED) => {
                let earlier = if let ReceivedPart::Chunk(earlier) = came { earlier } else { Chunk::default() };
                came = ReceivedPart::Chunk(merged(earlier, message.counted()?)?);
            }
            (_, kind) => message.skip(kind)?,
        }
    }
    Ok(came)
}

fn merged(mut chunk: Chunk, mut message: Pieces) -> Result<Chunk, Malformed> {
    while message.has_remaining() {
        match message.key()? {
            (field::BLOCK, kind::VARINT) => chunk.block = message.varint()? as u32,
            (field::OFFSET, kind::VARINT) => chunk.offset = message.varint()?,
            (field::CRC32C, kind::VARINT) => chunk.crc32c = message.varint()? as u32,
            (field::PAYLOAD, kind::COUNTED) => chunk.payload = message.counted()?.into_pieces(),
            (_, kind) => message.skip(kind)?,
        }
    }
    Ok(chunk)
}

#[cfg(test)]
#[path = "bulk_tests.rs"]
mod tests;
