//! Against generated code, both ways.

use super::*;
use proptest::prelude::*;

/// A whole message, as generated code writes it.
fn generated(part: Option<Part>) -> Bytes {
    let message = StreamFactorsResponse { part };
    let mut bytes = BytesMut::new();
    put_prefix(message.encoded_len(), &mut bytes);
    message.encode(&mut bytes).unwrap();
    bytes.freeze()
}

fn chunk_of(payload: Vec<u8>) -> FactorChunk {
    FactorChunk { block: 31, offset: 5 << 40, crc32c: 0xdead_beef, payload: Bytes::from(payload) }
}

fn joined(part: Part) -> Bytes {
    let (head, payload) = encode(part);
    [head, payload.unwrap_or_default()].concat().into()
}

fn header() -> FactorHeader {
    FactorHeader { block: 7, bytes: 1 << 33, blake3: "ab".repeat(32) }
}

#[test]
fn what_is_sent_is_what_generated_code_sends() {
    assert_eq!(joined(Part::Header(header())), generated(Some(Part::Header(header()))));
    for length in [1, 127, 128, 70_000, crate::CHUNK_BYTES] {
        let chunk = chunk_of(vec![7; length]);
        assert_eq!(joined(Part::Chunk(chunk.clone())), generated(Some(Part::Chunk(chunk))));
    }
    let first = FactorChunk { payload: Bytes::from_static(b"x"), ..FactorChunk::default() };
    assert_eq!(joined(Part::Chunk(first.clone())), generated(Some(Part::Chunk(first))));
}

#[test]
fn a_payload_is_sent_and_received_without_a_copy() {
    let chunk = chunk_of(vec![9; 1000]);
    let sent = chunk.payload.as_ptr();
    let (head, payload) = encode(Part::Chunk(chunk));
    let mut reader = Reader::default();
    reader.push(head);
    reader.push(payload.unwrap());
    let Some(ReceivedPart::Chunk(came)) = reader.message().unwrap() else { panic!("no chunk came") };
    assert_eq!(came.payload.iter().map(|piece| piece.as_ptr()).collect::<Vec<_>>(), [sent]);
}

proptest! {
    #[test]
    fn messages_come_whole_however_the_network_cuts_them(
        payload in prop::collection::vec(any::<u8>(), 0..300),
        cuts in prop::collection::vec(1..40_usize, 1..60),
    ) {
        let chunk = chunk_of(payload);
        let all = [
            generated(Some(Part::Header(header()))),
            generated(Some(Part::Chunk(chunk.clone()))),
            generated(None),
            generated(Some(Part::Chunk(chunk.clone()))),
        ];
        let (mut rest, mut cuts) = (Bytes::from(all.concat()), cuts.into_iter().cycle());
        let (mut reader, mut came) = (Reader::default(), Vec::new());
        while !rest.is_empty() {
            let cut = cuts.next().unwrap_or(1).min(rest.len());
            reader.push(rest.split_to(cut));
            while let Some(message) = reader.message().unwrap() {
                came.push(match message {
                    ReceivedPart::Chunk(chunk) => ReceivedPart::Chunk(in_one_piece(chunk)),
                    other => other,
                });
            }
        }
        prop_assert_eq!(reader.finish(), Ok(()));
        let whole = ReceivedPart::Chunk(chunk.into());
        prop_assert_eq!(came, vec![ReceivedPart::Header(header()), whole.clone(), ReceivedPart::Unknown, whole]);
    }

    #[test]
    fn any_bytes_are_what_generated_code_takes_them_for_or_refused(bytes in fields()) {
        // But for groups, which proto3 cannot write.
        if let Ok(theirs) = StreamFactorsResponse::decode(bytes.as_slice()) {
            let ours = read_one(&bytes);
            let groups = matches!(&ours, Err(Malformed::Fields(problem)) if problem.starts_with("wire type"));
            prop_assert!(groups || ours == Ok(Some(as_received(theirs.clone()))), "{:?} but {:?}", theirs, ours);
        }
    }
}

/// Anything, or parts in any number and order, some of them without all fields.
fn fields() -> impl Strategy<Value = Vec<u8>> {
    let header =
        (any::<u32>(), 0..3_u64).prop_map(|(block, bytes)| FactorHeader { block, bytes, blake3: String::new() });
    let chunk =
        (any::<bool>(), any::<u64>(), prop::collection::vec(any::<u8>(), 0..4)).prop_map(|(block, offset, payload)| {
            FactorChunk { block: block.into(), offset, crc32c: 0, payload: payload.into() }
        });
    let part = prop_oneof![header.prop_map(Part::Header), chunk.prop_map(Part::Chunk)];
    let message = part.prop_map(|part| StreamFactorsResponse { part: Some(part) }.encode_to_vec());
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        prop::collection::vec(message, 0..4).prop_map(|messages| messages.concat()),
    ]
}

fn read_one(message: &[u8]) -> Result<Option<ReceivedPart>, Malformed> {
    let mut body = BytesMut::new();
    put_prefix(message.len(), &mut body);
    body.put(message);
    let mut reader = Reader::default();
    reader.push(body.freeze());
    let part = reader.message()?;
    Ok(part.map(|part| match part {
        ReceivedPart::Chunk(chunk) => ReceivedPart::Chunk(in_one_piece(chunk)),
        other => other,
    }))
}

fn in_one_piece(chunk: Chunk) -> Chunk {
    let Chunk { block, offset, crc32c, payload } = chunk;
    Chunk { block, offset, crc32c, payload: vec![payload.concat().into()] }
}

fn as_received(message: StreamFactorsResponse) -> ReceivedPart {
    match message.part {
        Some(Part::Header(header)) => ReceivedPart::Header(header),
        Some(Part::Chunk(chunk)) => ReceivedPart::Chunk(chunk.into()),
        None => ReceivedPart::Unknown,
    }
}

#[test]
fn fields_of_later_versions_are_skipped() {
    let mut fields = chunk_of(vec![1, 2, 3]).encode_to_vec();
    for (key, value) in [
        (10 << 3, vec![150, 1]),
        ((11 << 3) | 1, vec![0; 8]),
        ((12 << 3) | 2, vec![2, 8, 8]),
        ((13 << 3) | 5, vec![0; 4]),
    ] {
        encode_varint(key, &mut fields);
        fields.extend(value);
    }
    let mut message = Vec::new();
    put_key(field::CHUNK, &mut message);
    encode_varint(fields.len() as u64, &mut message);
    message.extend(fields);
    assert_eq!(read_one(&message), Ok(Some(ReceivedPart::Chunk(chunk_of(vec![1, 2, 3]).into()))));
}

#[test]
fn what_is_too_long_compressed_or_cut_off_is_refused() {
    let read = |bytes: &'static [u8]| {
        let mut reader = Reader::default();
        reader.push(Bytes::from_static(bytes));
        (reader.message(), reader.finish())
    };
    assert_eq!(read(&[1, 0, 0, 0, 0]).0, Err(Malformed::Compressed));
    assert_eq!(read(&[0, 0xff, 0, 0, 0]).0, Err(Malformed::TooLong(0xff00_0000)));
    assert_eq!(read(&[0, 0, 0]), (Ok(None), Err(Malformed::CutOff(3))));
    assert_eq!(read(&[0, 0, 0, 0, 9, 1]), (Ok(None), Err(Malformed::CutOff(1))));
    assert_eq!(read(&[0, 0, 0, 0, 9]), (Ok(None), Err(Malformed::CutOff(0))));
    assert!(matches!(read(&[0, 0, 0, 0, 2, 0x12, 0xff]).0, Err(Malformed::Fields(_))));
}

#[test]
fn a_chunk_in_crumbs_is_put_together_so_that_its_pieces_take_no_more_than_its_bytes() {
    let chunk = chunk_of((0..5000).map(|n| n as u8).collect());
    let all = generated(Some(Part::Chunk(chunk.clone())));
    let mut reader = Reader::default();
    for at in 0..all.len() {
        reader.push(all.slice(at..=at));
    }
    assert_eq!(reader.message(), Ok(Some(ReceivedPart::Chunk(chunk.into()))));
}
