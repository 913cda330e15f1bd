//! Putting one block's factors together from chunks, and refusing what does not fit.
//!
//! Pure: no wire, no store. A half-received block survives a broken stream, so that the next one resumes at its end.

use bytes::Bytes;
use proto::bulk::Chunk;
use proto::v1::FactorHeader;
use service::transfer::{self, ChunkFault};

/// Largest file of one block that is accepted: the packed factors of a 70B block are 6 GiB.
const MAX_BLOCK_BYTES: u64 = 32 << 30;

/// What is wrong with a stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamFault {
    /// A payload with another checksum than its chunk says: damaged on the way.
    #[error("chunk at byte {offset} of block {block} has CRC32C {found:08x} instead of {expected:08x}")]
    Checksum {
        /// Which block.
        block: u32,
        /// Where.
        offset: u64,
        /// What the chunk says.
        expected: u32,
        /// What the payload gives.
        found: u32,
    },
    /// A whole file with another digest than its header says.
    #[error("factors of block {block} have BLAKE3 {found} instead of {expected}")]
    Digest {
        /// Which block.
        block: u32,
        /// What the header says.
        expected: String,
        /// What the bytes give.
        found: String,
    },
    /// Parts in an order or of a size that the contract does not allow.
    #[error("factor stream breaks its contract at block {block}: {problem}")]
    Contract {
        /// Which block.
        block: u32,
        /// How.
        problem: String,
    },
}

/// A block of which the first bytes are here.
#[derive(Debug)]
pub struct Partial {
    block: u32,
    bytes: u64,
    blake3: String,
    /// Payloads as they came: putting them side by side would copy every byte once more.
    received: Vec<Bytes>,
    offset: u64,
    /// Digest of what came; a block that never left this process needs none.
    hasher: Option<blake3::Hasher>,
}

impl Partial {
    /// Returns an empty block as its header announces it.
    pub fn begin(header: &FactorHeader) -> Result<Self, StreamFault> {
        if header.bytes == 0 || header.bytes > MAX_BLOCK_BYTES {
            let problem = format!("its header announces {} bytes, legal are 1 to {MAX_BLOCK_BYTES}", header.bytes);
            return Err(StreamFault::Contract { block: header.block, problem });
        }
        Ok(Self {
            block: header.block,
            bytes: header.bytes,
            blake3: header.blake3.clone(),
            received: Vec::new(),
            offset: 0,
            hasher: Some(blake3::Hasher::new()),
        })
    }

    /// Returns a block that is here already, as whoever computed it in this process has it.
    pub(crate) fn whole(block: u32, parts: Vec<Bytes>) -> Self {
        let bytes = parts.iter().map(|part| part.len() as u64).sum();
        Self { block, bytes, blake3: String::new(), received: parts, offset: bytes, hasher: None }
    }

    /// Returns the block's number.
    pub fn block(&self) -> u32 {
        self.block
    }

    /// Returns the number of bytes that are here.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns whether `header` announces the same bytes, so that the rest may follow what is here.
    pub fn continues(&self, header: &FactorHeader) -> bool {
        self.block == header.block && self.bytes == header.bytes && self.blake3 == header.blake3
    }

    /// Appends a chunk; returns whether the block is complete.
    ///
    /// # Errors
    /// Nothing of a refused chunk is kept.
    pub fn append(&mut self, chunk: Chunk) -> Result<bool, StreamFault> {
        if chunk.block != self.block || chunk.offset != self.offset() {
            let (block, offset) = (self.block, self.offset());
            return Err(self.contract(format!(
                "byte {} of block {} came where byte {offset} of block {block} was due",
                chunk.offset, chunk.block
            )));
        }
        let length = chunk.bytes();
        transfer::check(&chunk.payload, chunk.offset, chunk.crc32c, self.bytes).map_err(|fault| match fault {
            ChunkFault::Checksum { offset, expected, found } => {
                StreamFault::Checksum { block: self.block, offset, expected, found }
            }
            ChunkFault::Length { .. } => self.contract(fault.to_string()),
        })?;
        // What arrives takes memory, not what the header promises: a lying header costs none.
        if let Some(hasher) = &mut self.hasher {
            for piece in &chunk.payload {
                hasher.update(piece);
            }
        }
        self.offset += length;
        self.received.extend(chunk.payload);
        Ok(self.offset() == self.bytes)
    }

    /// Returns the whole file, in parts.
    ///
    /// # Errors
    /// [`StreamFault::Digest`] when it is not what the header announced.
    pub fn finish(self) -> Result<Vec<Bytes>, StreamFault> {
        let Some(hasher) = self.hasher else { return Ok(self.received) };
        let found = hasher.finalize().to_hex().to_string();
        // The digest of nothing is a digest, too.
        if found == self.blake3 && self.offset == self.bytes {
            Ok(self.received)
        } else {
            Err(StreamFault::Digest { block: self.block, expected: self.blake3, found })
        }
    }

    fn contract(&self, problem: String) -> StreamFault {
        StreamFault::Contract { block: self.block, problem }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &[u8] = b"factors of a block";

    fn header(bytes: u64) -> FactorHeader {
        FactorHeader { block: 3, bytes, blake3: blake3::hash(FILE).to_hex().to_string() }
    }

    fn chunk(offset: usize, payload: &'static [u8]) -> Chunk {
        let crc32c = crc32c::crc32c(payload);
        Chunk { block: 3, offset: offset as u64, crc32c, payload: vec![Bytes::from_static(payload)] }
    }

    #[test]
    fn a_block_is_whole_only_with_every_byte_in_order() {
        let mut partial = Partial::begin(&header(FILE.len() as u64)).unwrap();
        assert_eq!(partial.append(chunk(0, &FILE[..7])), Ok(false));
        assert!(matches!(partial.append(chunk(0, &FILE[..7])), Err(StreamFault::Contract { .. })));
        assert!(matches!(partial.append(chunk(8, &FILE[8..])), Err(StreamFault::Contract { .. })));
        assert!(matches!(
            partial.append(Chunk { block: 4, ..chunk(7, &FILE[7..]) }),
            Err(StreamFault::Contract { .. })
        ));
        assert_eq!(partial.append(chunk(7, &FILE[7..])), Ok(true));
        assert_eq!(partial.finish().unwrap().concat(), FILE);
    }

    #[test]
    fn a_damaged_chunk_leaves_what_was_good() {
        let mut partial = Partial::begin(&header(FILE.len() as u64)).unwrap();
        partial.append(chunk(0, &FILE[..7])).unwrap();
        let damaged = Chunk { payload: vec![Bytes::from_static(b"fictions")], ..chunk(7, &FILE[7..15]) };
        assert!(matches!(partial.append(damaged), Err(StreamFault::Checksum { block: 3, offset: 7, .. })));
        assert_eq!(partial.offset(), 7);
        assert!(partial.continues(&header(FILE.len() as u64)));
        assert_eq!(partial.append(chunk(7, &FILE[7..])), Ok(true));
        assert!(partial.finish().is_ok());
    }

    #[test]
    fn a_file_with_another_digest_is_refused() {
        let mut partial = Partial::begin(&header(4)).unwrap();
        assert_eq!(partial.append(chunk(0, b"fact")), Ok(true));
        assert!(matches!(partial.finish(), Err(StreamFault::Digest { block: 3, .. })));
    }

    #[test]
    fn a_part_with_the_digest_of_the_whole_is_refused() {
        let nothing = FactorHeader { block: 3, bytes: 4, blake3: blake3::hash(b"").to_hex().to_string() };
        assert!(Partial::begin(&nothing).unwrap().finish().is_err());
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        assert!(Partial::begin(&header(0)).is_err());
        assert!(Partial::begin(&header(u64::MAX)).is_err());
        let mut partial = Partial::begin(&header(4)).unwrap();
        assert!(matches!(partial.append(chunk(0, FILE)), Err(StreamFault::Contract { .. })));
        assert!(matches!(partial.append(chunk(0, b"")), Err(StreamFault::Contract { .. })));
    }
}
