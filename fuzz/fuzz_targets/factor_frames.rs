//! The body of a factor stream, taken apart by hand: what is read of it does not depend on where the network cuts it, and is what
//! generated code reads.

#![no_main]

use bytes::{BufMut, Bytes, BytesMut};
use fuzz::plant;
use libfuzzer_sys::arbitrary::{self, Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use prost::Message;
use proto::bulk::{Chunk, Malformed, Reader, ReceivedPart, encode};
use proto::v1::stream_factors_response::Part;
use proto::v1::{FactorChunk, FactorHeader, StreamFactorsResponse};

/// What comes over the connection, and in pieces of which lengths, again and again.
#[derive(Debug, Arbitrary)]
struct Body {
    frames: Vec<Frame>,
    /// How many bytes never come.
    missing: u8,
    pieces: Vec<u8>,
}

#[derive(Debug, Arbitrary)]
enum Frame {
    Header {
        block: u32,
        bytes: u64,
        blake3: String,
    },
    Chunk {
        block: u32,
        offset: u64,
        crc32c: u32,
        payload: Vec<u8>,
    },
    /// Any bytes as a message.
    Message {
        bytes: Vec<u8>,
    },
    /// Any bytes at all.
    Bytes {
        bytes: Vec<u8>,
    },
}

/// All messages that were read, and how it ended.
type Read = (Vec<ReceivedPart>, Result<(), Malformed>);

fuzz_target!(init: plant(seeds), |body: Body| {
    let mut bytes = BytesMut::new();
    for frame in &body.frames {
        put(frame, &mut bytes);
    }
    bytes.truncate(bytes.len().saturating_sub(body.missing.into()));
    let bytes = bytes.freeze();
    let whole = read(bytes.clone(), &[]);
    assert_eq!(read(bytes.clone(), &body.pieces), whole);
    agrees_with_generated_code(&bytes, &whole);
    survives_being_sent(&whole.0);
});

fn put(frame: &Frame, bytes: &mut BytesMut) {
    let part = match frame {
        Frame::Header { block, bytes, blake3 } => {
            Part::Header(FactorHeader { block: *block, bytes: *bytes, blake3: blake3.clone() })
        }
        Frame::Chunk { block, offset, crc32c, payload } => Part::Chunk(FactorChunk {
            block: *block,
            offset: *offset,
            crc32c: *crc32c,
            payload: Bytes::copy_from_slice(payload),
        }),
        Frame::Message { bytes: message } => {
            bytes.put_u8(0);
            bytes.put_u32(message.len() as u32);
            return bytes.put(message.as_slice());
        }
        Frame::Bytes { bytes: any } => return bytes.put(any.as_slice()),
    };
    let (head, payload) = encode(part);
    bytes.put(head);
    bytes.put(payload.unwrap_or_default());
}

/// Reads a body that comes in pieces of these lengths; at once, if there are none.
fn read(mut body: Bytes, pieces: &[u8]) -> Read {
    let (mut reader, mut came) = (Reader::default(), Vec::new());
    let mut pieces = pieces.iter().cycle();
    while !body.is_empty() {
        let piece = pieces.next().map_or(body.len(), |&length| body.len().min(usize::from(length).max(1)));
        reader.push(body.split_to(piece));
        loop {
            match reader.message() {
                Ok(Some(message)) => came.push(in_one_piece(message)),
                Ok(None) => break,
                Err(malformed) => return (came, Err(malformed)),
            }
        }
    }
    (came, reader.finish())
}

fn in_one_piece(message: ReceivedPart) -> ReceivedPart {
    match message {
        ReceivedPart::Chunk(chunk) => {
            assert!(chunk.payload.len() <= 1.max(chunk.bytes() as usize), "no piece is empty");
            ReceivedPart::Chunk(Chunk { payload: vec![chunk.payload.concat().into()], ..chunk })
        }
        other => other,
    }
}

/// Generated code reads the same messages, up to the first that either refuses. Ours alone refuses groups, which proto3 cannot
/// write; ours alone passes over a known field that is written as another kind.
fn agrees_with_generated_code(mut body: &[u8], (messages, ended): &Read) {
    for message in messages {
        let length = u32::from_be_bytes(body[1..5].try_into().expect("four bytes")) as usize;
        let Ok(theirs) = StreamFactorsResponse::decode(&body[5..5 + length]) else { return };
        let theirs = match theirs.part {
            Some(Part::Header(header)) => ReceivedPart::Header(header),
            Some(Part::Chunk(chunk)) => ReceivedPart::Chunk(chunk.into()),
            None => ReceivedPart::Unknown,
        };
        assert_eq!(message, &theirs);
        body = &body[5 + length..];
    }
    if let Err(Malformed::Fields(problem)) = ended {
        let length = u32::from_be_bytes(body[1..5].try_into().expect("four bytes")) as usize;
        let theirs = StreamFactorsResponse::decode(&body[5..5 + length]);
        assert!(theirs.is_err() || problem.starts_with("wire type"), "{problem}, but it is {theirs:?}");
    }
}

fn survives_being_sent(messages: &[ReceivedPart]) {
    let sent = messages.iter().filter_map(|message| match message.clone() {
        ReceivedPart::Header(header) => Some(Part::Header(header)),
        ReceivedPart::Chunk(Chunk { block, offset, crc32c, payload }) => {
            Some(Part::Chunk(FactorChunk { block, offset, crc32c, payload: payload.concat().into() }))
        }
        ReceivedPart::Unknown => None,
    });
    let mut body = BytesMut::new();
    for part in sent {
        let (head, payload) = encode(part);
        body.put(head);
        body.put(payload.unwrap_or_default());
    }
    let (again, ended) = read(body.freeze(), &[]);
    assert_eq!(ended, Ok(()));
    let known = messages.iter().filter(|message| **message != ReceivedPart::Unknown);
    assert!(again.iter().eq(known), "{again:?} is not what was sent");
}

/// Returns bytes that make bodies of a few frames; libFuzzer learns the rest.
fn seeds() -> Vec<Vec<u8>> {
    let ramp = |step: u8| (0..=u8::MAX).map(|n| n.wrapping_mul(step)).collect::<Vec<u8>>();
    let all: Vec<_> = [1, 3, 7, 11, 37].map(ramp).into();
    all.into_iter().filter(|bytes| Body::arbitrary(&mut Unstructured::new(bytes)).is_ok()).collect()
}
