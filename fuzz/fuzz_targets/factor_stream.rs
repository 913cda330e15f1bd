//! A block's factors from headers and chunks in any order, with any damage: either exactly the announced bytes, or an error.

#![no_main]

use bytes::Bytes;
use fuzz::plant;
use libfuzzer_sys::arbitrary::{self, Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use proto::v1::{FactorChunk, FactorHeader};
use surgeon::Partial;

const BLOCK: u32 = 3;

/// A file, what its header says of it, and what comes over the stream.
#[derive(Debug, Arbitrary)]
struct Stream {
    file: Vec<u8>,
    /// Instead of the file's length.
    bytes: Option<u64>,
    /// How many bytes of the file the header's digest is of; all of them if there are fewer.
    digest_of: Option<usize>,
    steps: Vec<Step>,
}

#[derive(Debug, Arbitrary)]
enum Step {
    /// The next bytes of the file, as a calibrator sends them.
    Next { length: u8 },
    /// Bytes of the file from anywhere, with a checksum that fits.
    From { offset: u64, length: u8 },
    /// Anything, perhaps with a checksum that fits.
    Chunk { block: u32, offset: u64, payload: Vec<u8>, crc32c: Option<u32> },
    /// The due offset and block, but bytes that are not the file's.
    Damaged { payload: Vec<u8>, crc32c: Option<u32> },
    /// The stream broke; a header comes again.
    Header { bytes: u64, same_digest: bool },
}

fuzz_target!(init: plant(seeds), |stream: Stream| {
    let header = header(&stream);
    let announced = header.bytes;
    let Ok(mut partial) = Partial::begin(&header) else { return };
    assert!(announced > 0);
    let mut taken = Vec::new();
    for step in &stream.steps {
        if let Step::Header { bytes, same_digest } = step {
            let blake3 = if *same_digest { header.blake3.clone() } else { String::new() };
            let again = FactorHeader { block: BLOCK, bytes: *bytes, blake3 };
            assert_eq!(partial.continues(&again), again == header);
            continue;
        }
        let chunk = chunk(step, &stream.file, taken.len() as u64);
        let fits = chunk.block == BLOCK && chunk.offset == taken.len() as u64 && !chunk.payload.is_empty();
        let whole = crc32c::crc32c(&chunk.payload) == chunk.crc32c;
        match partial.append(chunk.clone().into()) {
            Ok(complete) => {
                assert!(fits && whole, "{chunk:?}");
                taken.extend_from_slice(&chunk.payload);
                assert!(taken.len() as u64 <= announced, "more than was announced");
                assert_eq!(complete, taken.len() as u64 == announced);
            }
            Err(_) => assert!(!fits || !whole || (taken.len() + chunk.payload.len()) as u64 > announced, "{chunk:?}"),
        }
        assert_eq!((partial.offset(), partial.block()), (taken.len() as u64, BLOCK));
    }
    let right = taken.len() as u64 == announced && blake3::hash(&taken).to_hex().as_str() == header.blake3;
    match partial.finish() {
        Ok(parts) => assert!(right && parts.concat() == taken, "{} bytes of {announced} were taken for a whole file", taken.len()),
        Err(_) => assert!(!right, "a whole file was refused"),
    }
});

fn header(stream: &Stream) -> FactorHeader {
    let digested = stream.digest_of.and_then(|length| stream.file.get(..length)).unwrap_or(&stream.file);
    let bytes = stream.bytes.unwrap_or(stream.file.len() as u64);
    FactorHeader { block: BLOCK, bytes, blake3: blake3::hash(digested).to_hex().to_string() }
}

fn chunk(step: &Step, file: &[u8], due: u64) -> FactorChunk {
    let of_file = |from: u64, length: u8| {
        let rest = usize::try_from(from).ok().and_then(|from| file.get(from..)).unwrap_or_default();
        rest[..rest.len().min(length.into())].to_vec()
    };
    let (block, offset, payload, crc32c) = match step {
        Step::Next { length } => (BLOCK, due, of_file(due, *length), None),
        Step::From { offset, length } => (BLOCK, *offset, of_file(*offset, *length), None),
        Step::Chunk { block, offset, payload, crc32c } => (*block, *offset, payload.clone(), *crc32c),
        Step::Damaged { payload, crc32c } => (BLOCK, due, payload.clone(), *crc32c),
        Step::Header { .. } => unreachable!("a header is no chunk"),
    };
    let crc32c = crc32c.unwrap_or_else(|| crc32c::crc32c(&payload));
    FactorChunk { block, offset, crc32c, payload: Bytes::from(payload) }
}

/// Returns bytes that make streams with a few steps; libFuzzer learns the rest.
fn seeds() -> Vec<Vec<u8>> {
    let ramp = |step: u8| (0..=u8::MAX).map(|n| n.wrapping_mul(step)).collect::<Vec<u8>>();
    let all: Vec<_> = [1, 3, 7, 11, 37].map(ramp).into();
    all.into_iter().filter(|bytes| Stream::arbitrary(&mut Unstructured::new(bytes)).is_ok()).collect()
}
