//! The stream over the in-memory transport, from a shelf filled by hand.

use super::*;
use crate::by_hand::ByHand;
use crate::spill::Spill;
use bytes::Bytes;
use proto::v1::calibrator_service_client::CalibratorServiceClient;
use service::Wire;
use service::{Connector, MemoryNetwork, Peers, Reason, Server, status};
use types::RunId;

fn key(generation: u64) -> SweepKey {
    SweepKey { run: RunId::new("r").unwrap(), shot: 1, shard: 0, generation: Generation(generation) }
}

fn request(blocks: &[u32]) -> v1::StreamFactorsRequest {
    v1::StreamFactorsRequest { run: "r".into(), shot: 1, generation: 2, blocks: blocks.to_vec(), ..Default::default() }
}

fn release(block: u32) -> v1::ReleaseFactorsRequest {
    v1::ReleaseFactorsRequest { run: "r".into(), shot: 1, generation: 2, block, ..Default::default() }
}

/// A file longer than two chunks, different for each block.
fn file(block: u32) -> Bytes {
    (0..2 * proto::CHUNK_BYTES as u32 + 1000).map(|n| (n.wrapping_mul(31) ^ block) as u8).collect()
}

fn served(shelf: &Arc<Shelf>, stop: &CancellationToken) -> CalibratorServiceClient<Wire> {
    let network = MemoryNetwork::new();
    let incoming = network.listen("calibrator").unwrap();
    let worker = WorkerId::new("w").unwrap();
    let grpc = Grpc { shelf: Arc::clone(shelf), worker, device: "cpu".into(), stop: stop.clone(), standalone: None };
    let server = Server::new(Peers::SameProcess).add_service(ByHand::new(grpc));
    tokio::spawn(server.serve(incoming, stop.clone(), Duration::from_secs(1)));
    let channel = Connector::new(network).bulk_channel("memory://calibrator").unwrap();
    CalibratorServiceClient::new(channel).max_decoding_message_size(proto::MAX_MESSAGE_BYTES)
}

/// Reads one block: its header and the bytes that came, every checksum checked.
async fn block(stream: &mut tonic::Streaming<v1::StreamFactorsResponse>) -> Option<(v1::FactorHeader, u64, Vec<u8>)> {
    let Some(Part::Header(header)) = stream.message().await.unwrap()?.part else { panic!("a chunk came first") };
    let (mut first, mut bytes) = (None, Vec::new());
    while first.unwrap_or_default() + (bytes.len() as u64) < header.bytes {
        let Some(Part::Chunk(chunk)) = stream.message().await.unwrap().unwrap().part else {
            panic!("a header came early")
        };
        assert_eq!(chunk.block, header.block);
        assert_eq!(chunk.offset, *first.get_or_insert(chunk.offset) + bytes.len() as u64);
        assert_eq!(chunk.crc32c, crc32c::crc32c(&chunk.payload));
        assert!(chunk.payload.len() <= proto::CHUNK_BYTES);
        bytes.extend_from_slice(&chunk.payload);
    }
    Some((header, first.unwrap(), bytes))
}

#[tokio::test]
async fn blocks_stream_as_they_become_ready_and_the_stream_ends_after_the_last() {
    let (shelf, stop) = (Arc::new(Shelf::new()), CancellationToken::new());
    let mut client = served(&shelf, &stop);
    let _open = shelf.open(key(2), &[5, 6, 7]);
    let mut stream = client.stream_factors(request(&[6, 7])).await.unwrap().into_inner();
    for number in [7, 6] {
        shelf.put(&key(2), number, file(number)).unwrap();
        let (header, first, bytes) = block(&mut stream).await.unwrap();
        assert_eq!((header.block, first), (number, 0));
        assert_eq!(header.blake3, blake3::hash(&file(number)).to_hex().to_string());
        assert_eq!(bytes, file(number));
        client.release_factors(release(number)).await.unwrap();
    }
    assert!(stream.message().await.unwrap().is_none());
    let status = client.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.run.as_str(), status.shot, status.waiting_blocks), ("r", 1, vec![]));
}

#[tokio::test]
async fn a_broken_stream_resumes_inside_its_block() {
    let (shelf, stop) = (Arc::new(Shelf::new()), CancellationToken::new());
    let mut client = served(&shelf, &stop);
    let _open = shelf.open(key(2), &[6, 7]);
    shelf.put(&key(2), 7, file(7)).unwrap();
    shelf.put(&key(2), 6, file(6)).unwrap();
    let offset = proto::CHUNK_BYTES as u64 + 17;
    let resumed = v1::StreamFactorsRequest { resume_block: Some(6), resume_offset: offset, ..request(&[6, 7]) };
    let mut stream = client.stream_factors(resumed).await.unwrap().into_inner();
    let (header, first, bytes) = block(&mut stream).await.unwrap();
    assert_eq!((header.block, first, bytes), (7, 0, file(7).to_vec()));
    let (header, first, bytes) = block(&mut stream).await.unwrap();
    assert_eq!((header.block, first), (6, offset));
    assert_eq!(bytes, file(6)[offset as usize..]);

    let behind = v1::StreamFactorsRequest { resume_block: Some(6), resume_offset: header.bytes, ..request(&[6]) };
    let error = client.stream_factors(behind).await.unwrap().into_inner().message().await.unwrap_err();
    assert_eq!(status::reason_of(&error), Some(Reason::MessageInvalid));
}

#[tokio::test]
async fn stale_and_bad_requests_are_refused_with_their_reason() {
    let (shelf, stop) = (Arc::new(Shelf::new()), CancellationToken::new());
    let mut client = served(&shelf, &stop);
    let _open = shelf.open(key(3), &[7]);
    let error = client.stream_factors(request(&[7])).await.unwrap().into_inner().message().await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Aborted);
    assert_eq!(status::reason_of(&error), Some(Reason::GenerationStale));
    let error = client.release_factors(release(7)).await.unwrap_err();
    assert_eq!(status::reason_of(&error), Some(Reason::GenerationStale));
    let bad = [
        v1::StreamFactorsRequest { run: "../r".into(), ..request(&[7]) },
        v1::StreamFactorsRequest { resume_block: Some(1), ..request(&[7]) },
        request(&[7, 7]),
    ];
    for bad in bad {
        let error = client.stream_factors(bad).await.unwrap_err();
        assert_eq!(status::reason_of(&error), Some(Reason::MessageInvalid), "{error}");
    }
}

#[tokio::test]
async fn an_open_stream_ends_when_the_calibrator_stops() {
    let (shelf, stop) = (Arc::new(Shelf::new()), CancellationToken::new());
    let mut client = served(&shelf, &stop);
    let _open = shelf.open(key(2), &[7]);
    let mut stream = client.stream_factors(request(&[7])).await.unwrap().into_inner();
    let waiting = tokio::spawn(async move { stream.message().await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    stop.cancel();
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unavailable);
}

#[tokio::test]
async fn spilled_blocks_stream_from_any_byte_as_those_in_memory_do() {
    let folder = tempfile::tempdir().unwrap();
    let spill = Spill::open(folder.path(), 1 << 30).unwrap();
    let (shelf, stop) = (Arc::new(Shelf::with_spill(spill)), CancellationToken::new());
    let mut client = served(&shelf, &stop);
    let _open = shelf.open(key(2), &[4, 5, 6, 7]);
    for number in [7, 6, 5, 4] {
        shelf.offer(&key(2), number, file(number), &|| false).unwrap();
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    let offset = proto::CHUNK_BYTES as u64 + 17;
    let resumed = v1::StreamFactorsRequest { resume_block: Some(5), resume_offset: offset, ..request(&[4, 5, 6, 7]) };
    let mut stream = client.stream_factors(resumed).await.unwrap().into_inner();
    for number in [7, 6, 5, 4] {
        let (header, first, bytes) = block(&mut stream).await.unwrap();
        assert_eq!((header.block, first), (number, if number == 5 { offset } else { 0 }));
        assert_eq!((header.bytes, bytes.as_slice()), (file(number).len() as u64, &file(number)[first as usize..]));
        assert_eq!(header.blake3, blake3::hash(&file(number)).to_hex().to_string());
        client.release_factors(release(number)).await.unwrap();
    }
    assert!(stream.message().await.unwrap().is_none());
    // The stream lets go of its last block a moment after it has sent it.
    for _ in 0..100 {
        if std::fs::read_dir(folder.path()).unwrap().count() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("released blocks still have files");
}
