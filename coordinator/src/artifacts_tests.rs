use super::upload::PART_BYTES;
use super::uploads::{FORGOTTEN, MAX_UNFINISHED};
use super::*;
use crate::runs::Deployment;
use bytes::Bytes;
use futures::Stream;
use proto::v1::artifact_service_client::ArtifactServiceClient;
use proto::v1::read_artifact_response::Part as Read;
use proto::v1::write_artifact_request::Part as Write;
use service::access::{Guard, TokenFile};
use service::listen::Plain;
use service::status::{is_transient, reason_of, retry_after, violations_of};
use service::transfer::{self, Chunk};
use service::transport::{Connector, MemoryNetwork};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use types::{RunId, RunSpec, Target};

const SMALL: UploadLimits = UploadLimits { artifact_bytes: 1000, unfinished_bytes: 1500 };

/// Returns bytes that differ from place to place.
fn file(bytes: usize) -> Bytes {
    (0..bytes).map(|n| (n.wrapping_mul(n) >> 3) as u8).collect::<Vec<_>>().into()
}

fn digest(file: &Bytes) -> String {
    blake3::hash(file).to_hex().to_string()
}

fn header(file: &Bytes, offset: usize) -> Write {
    let (bytes, offset) = (file.len() as u64, offset as u64);
    Write::Header(v1::WriteArtifactHeader { blake3: digest(file), bytes, offset })
}

fn chunk(file: &Bytes, range: std::ops::Range<usize>) -> Write {
    let payload = file.slice(range.clone());
    let crc32c = crc32c::crc32c(&payload);
    Write::Chunk(v1::ArtifactChunk { offset: range.start as u64, crc32c, payload })
}

/// Returns a file's chunks of so many bytes, from an offset on.
fn chunks(file: &Bytes, start: usize, size: usize) -> Vec<Write> {
    (start..file.len()).step_by(size).map(|at| chunk(file, at..file.len().min(at + size))).collect()
}

fn messages(parts: Vec<Write>) -> impl Stream<Item = Result<v1::WriteArtifactRequest, Status>> + Unpin + Send {
    stream::iter(parts.into_iter().map(|part| Ok(v1::WriteArtifactRequest { part: Some(part) })))
}

async fn write(uploads: &Uploads, parts: Vec<Write>) -> Result<v1::WriteArtifactResponse, Status> {
    uploads.write(messages(parts)).await
}

async fn received(uploads: &Uploads, file: &Bytes) -> usize {
    let answer = write(uploads, vec![header(file, 0)]).await.unwrap();
    usize::try_from(answer.received).unwrap()
}

fn uploads(store: &Store) -> Uploads {
    Uploads::new(store.clone(), UploadLimits::default())
}

async fn visible(store: &Store) -> Vec<String> {
    store.list(keys::ARTIFACTS).await.unwrap()
}

async fn artifacts(store: &Store) -> Artifacts {
    let coordinator = Coordinator::open(store.clone(), 1).await.unwrap();
    Artifacts::open(coordinator, UploadLimits::default(), CancellationToken::new()).await
}

async fn read(artifacts: &Artifacts, name: &str, offset: u64, length: u64) -> Result<(v1::Artifact, Vec<u8>), Status> {
    let request = v1::ReadArtifactRequest { name: name.into(), offset, length };
    let mut parts = artifacts.read_artifact(Request::new(request)).await?.into_inner();
    let Some(Read::Artifact(artifact)) = parts.next().await.unwrap()?.part else { panic!("no artifact comes first") };
    let (mut bytes, mut at) = (Vec::new(), offset);
    while let Some(part) = parts.next().await {
        let Some(Read::Chunk(chunk)) = part?.part else { panic!("a second artifact") };
        assert_eq!(chunk.offset, at);
        transfer::check(std::slice::from_ref(&chunk.payload), chunk.offset, chunk.crc32c, artifact.bytes).unwrap();
        at += chunk.payload.len() as u64;
        bytes.extend_from_slice(&chunk.payload);
    }
    Ok((artifact, bytes))
}

fn refused(status: &Status, reason: Reason) {
    assert_eq!(reason_of(status), Some(reason), "{status:?}");
}

#[tokio::test]
async fn an_upload_cut_after_any_chunk_goes_on_and_is_there_only_when_it_is_whole() {
    let file = file(4500);
    for cut in 0..5 {
        let store = Store::memory();
        let uploads = uploads(&store);
        let mut parts = chunks(&file, 0, 1000);
        parts.truncate(cut);
        parts.insert(0, header(&file, 0));
        let broken = stream::iter([Err(Status::unavailable("gone"))]);
        let lost = uploads.write(messages(parts).chain(broken)).await.unwrap_err();
        assert!(is_transient(&lost), "{lost:?}");
        assert_eq!(received(&uploads, &file).await, cut * 1000);
        assert_eq!(visible(&store).await, [""; 0]);
        let rest = [vec![header(&file, cut * 1000)], chunks(&file, cut * 1000, 700)].concat();
        let done = write(&uploads, rest).await.unwrap();
        assert_eq!((done.received, done.complete), (4500, true));
        assert_eq!(store.get(&done.name).await.unwrap(), file);
        assert_eq!(store.list(keys::UPLOADS).await.unwrap(), [""; 0], "nothing stays behind");
        let again = write(&uploads, vec![header(&file, 0)]).await.unwrap();
        assert!(again.complete, "what is there is answered at once");
    }
}

#[tokio::test]
async fn an_upload_outlasts_its_coordinator_but_for_the_last_part() {
    const MIB: usize = 1 << 20;
    let file = file(2 * PART_BYTES + MIB + 7);
    let digest = digest(&file);
    for cut in 1..=9 {
        let store = Store::memory();
        let mut parts = chunks(&file, 0, MIB);
        parts.truncate(cut);
        parts.insert(0, header(&file, 0));
        let before = write(&uploads(&store), parts).await.unwrap();
        assert_eq!(before.received, (cut * MIB) as u64);
        let next = uploads(&store);
        next.restore().await.unwrap();
        let at = received(&next, &file).await;
        assert!(at <= cut * MIB && at + PART_BYTES >= cut * MIB && at % PART_BYTES == 0, "{at} of {cut} MiB");
        assert_eq!(visible(&store).await, [""; 0]);
        let done = write(&next, [vec![header(&file, at)], chunks(&file, at, MIB)].concat()).await.unwrap();
        assert!(done.complete);
        assert_eq!(store.get(&keys::artifact(&digest)).await.unwrap(), file);
        assert_eq!(store.list(keys::UPLOADS).await.unwrap(), [""; 0]);
    }
}

#[tokio::test]
async fn of_what_two_coordinators_received_the_longer_is_gone_on_with() {
    const MIB: usize = 1 << 20;
    let (store, file) = (Store::memory(), file(3 * PART_BYTES));
    for mib in [5, 9, 6] {
        let parts = [vec![header(&file, 0)], chunks(&file, 0, MIB)[..mib].to_vec()].concat();
        write(&uploads(&store), parts).await.unwrap();
    }
    store.put("uploads/nonsense/0", "x".into()).await.unwrap();
    let next = uploads(&store);
    next.restore().await.unwrap();
    assert_eq!(received(&next, &file).await, 2 * PART_BYTES);
    assert_eq!(store.list(keys::UPLOADS).await.unwrap().len(), 2, "the others are removed");
}

#[tokio::test]
async fn a_damaged_chunk_is_refused_and_what_was_good_is_kept() {
    let (store, file) = (Store::memory(), file(3000));
    let uploads = uploads(&store);
    let Write::Chunk(good) = chunk(&file, 1000..2000) else { unreachable!("it is one") };
    let damaged = Write::Chunk(v1::ArtifactChunk { crc32c: good.crc32c ^ 1, ..good });
    let status = write(&uploads, vec![header(&file, 0), chunk(&file, 0..1000), damaged]).await.unwrap_err();
    refused(&status, Reason::DigestMismatch);
    assert_eq!(received(&uploads, &file).await, 1000);
    assert!(write(&uploads, [vec![header(&file, 1000)], chunks(&file, 1000, 1000)].concat()).await.unwrap().complete);
}

#[tokio::test]
async fn what_has_another_digest_is_never_there_and_begins_anew() {
    for bytes in [3000, PART_BYTES + 3000] {
        let (store, file) = (Store::memory(), file(bytes));
        let uploads = uploads(&store);
        let mut other = file.to_vec();
        other[7] ^= 1;
        let lie = [vec![header(&file, 0)], chunks(&other.into(), 0, 1 << 20)].concat();
        refused(&write(&uploads, lie).await.unwrap_err(), Reason::DigestMismatch);
        assert_eq!(visible(&store).await, [""; 0]);
        assert_eq!(store.list(keys::UPLOADS).await.unwrap(), [""; 0]);
        assert_eq!(received(&uploads, &file).await, 0);
        assert!(write(&uploads, [vec![header(&file, 0)], chunks(&file, 0, 1 << 20)].concat()).await.unwrap().complete);
        assert_eq!(visible(&store).await, [keys::artifact(&digest(&file))]);
    }
}

#[tokio::test]
async fn uploads_that_break_the_contract_are_refused_by_field() {
    let file = file(3000);
    let bad_digest = v1::WriteArtifactHeader { blake3: "../../journal".into(), bytes: 1, offset: 0 };
    let empty = v1::WriteArtifactHeader { blake3: digest(&Bytes::new()), bytes: 0, offset: 0 };
    let beyond = Write::Chunk(v1::ArtifactChunk { offset: 2999, crc32c: 0, payload: file.slice(..10) });
    let nothing = Write::Chunk(v1::ArtifactChunk { offset: 0, crc32c: 0, payload: Bytes::new() });
    let cases = [
        (vec![], "part"),
        (vec![chunk(&file, 0..10)], "part"),
        (vec![header(&file, 0), header(&file, 0)], "part"),
        (vec![Write::Header(bad_digest)], "blake3"),
        (vec![Write::Header(empty)], "bytes"),
        (vec![header(&file, 0), chunk(&file, 10..20)], "chunk"),
        (vec![header(&file, 0), beyond], "chunk"),
        (vec![header(&file, 0), nothing], "chunk"),
    ];
    for (n, (parts, field)) in cases.into_iter().enumerate() {
        let store = Store::memory();
        let status = write(&uploads(&store), parts).await.unwrap_err();
        refused(&status, Reason::MessageInvalid);
        assert_eq!(violations_of(&status)[0].field, field, "case {n}: {status:?}");
        assert_eq!(store.list(keys::UPLOADS).await.unwrap(), [""; 0]);
    }
}

#[tokio::test]
async fn two_writers_of_one_artifact_help_each_other() {
    let (store, file) = (Store::memory(), file(10_000));
    let uploads = Arc::new(uploads(&store));
    let begin = || {
        let (sender, receiver) = mpsc::channel(1);
        let uploads = Arc::clone(&uploads);
        let writing = tokio::spawn(async move { uploads.write(ReceiverStream::new(receiver)).await });
        (sender, writing)
    };
    let send = async |sender: &mpsc::Sender<_>, part| {
        let _ = sender.send(Ok(v1::WriteArtifactRequest { part: Some(part) })).await; // it may have been answered
    };
    let ((quick, of_quick), (slow, of_slow)) = (begin(), begin());
    send(&quick, header(&file, 0)).await;
    send(&slow, header(&file, 0)).await;
    for (n, part) in chunks(&file, 0, 500).into_iter().enumerate() {
        send(&quick, part.clone()).await;
        if n % 3 == 0 {
            for late in chunks(&file, n / 3 * 700, 700).into_iter().take(1) {
                send(&slow, late).await;
            }
        }
    }
    for part in chunks(&file, 4900, 700) {
        send(&slow, part).await;
    }
    drop((quick, slow));
    assert!(of_quick.await.unwrap().unwrap().complete);
    assert!(of_slow.await.unwrap().unwrap().complete);
    assert_eq!(visible(&store).await, [keys::artifact(&digest(&file))]);
}

#[tokio::test]
async fn whoever_goes_on_with_what_has_ended_is_told_how_and_begins_nothing() {
    for deleted in [false, true] {
        let (store, file) = (Store::memory(), file(2000));
        // With room for one.
        let limits = UploadLimits { unfinished_bytes: 2000, ..UploadLimits::default() };
        let uploads = Arc::new(Uploads::new(store.clone(), limits));
        let (sender, receiver) = mpsc::channel(8);
        let slow = Arc::clone(&uploads);
        let slow = tokio::spawn(async move { slow.write(ReceiverStream::new(receiver)).await });
        let send = async |part| sender.send(Ok(v1::WriteArtifactRequest { part: Some(part) })).await.unwrap();
        send(header(&file, 0)).await;
        send(chunk(&file, 0..500)).await;
        // One that has not sent a chunk yet.
        let (late, receiver) = mpsc::channel(8);
        let later = Arc::clone(&uploads);
        let later = tokio::spawn(async move { later.write(ReceiverStream::new(receiver)).await });
        late.send(Ok(v1::WriteArtifactRequest { part: Some(header(&file, 0)) })).await.unwrap();
        while received(&uploads, &file).await == 0 {
            tokio::task::yield_now().await;
        }
        if deleted {
            uploads.remove(&digest(&file)).await.unwrap();
        } else {
            let rest = [vec![header(&file, 500)], chunks(&file, 500, 500)].concat();
            assert!(write(&uploads, rest).await.unwrap().complete);
        }
        send(chunk(&file, 500..1000)).await;
        let answer = slow.await.unwrap().unwrap();
        assert_eq!((answer.received, answer.complete), if deleted { (0, false) } else { (2000, true) });
        if !deleted {
            late.send(Ok(v1::WriteArtifactRequest { part: Some(chunk(&file, 0..500)) })).await.unwrap();
            assert!(later.await.unwrap().unwrap().complete);
        }
        assert_eq!(store.list(keys::UPLOADS).await.unwrap(), [""; 0], "no part of a new upload");
        let other = file.slice(..1999);
        let begun = write(&uploads, vec![header(&other, 0), chunk(&other, 0..500)]).await;
        assert_eq!(begun.unwrap().received, 500, "nothing takes room any more");
    }
}

#[tokio::test]
async fn limits_say_what_passes_and_what_never_will() {
    let store = Store::memory();
    let uploads = Uploads::new(store.clone(), SMALL);
    let status = write(&uploads, vec![header(&file(1001), 0)]).await.unwrap_err();
    refused(&status, Reason::ArtifactTooLarge);
    assert!(!is_transient(&status));

    let (first, second) = (file(900), file(800));
    write(&uploads, vec![header(&first, 0), chunk(&first, 0..100)]).await.unwrap();
    assert_eq!(received(&uploads, &second).await, 0, "asking takes no room");
    let status = write(&uploads, vec![header(&second, 0), chunk(&second, 0..100)]).await.unwrap_err();
    refused(&status, Reason::TransfersFull);
    assert!(retry_after(&status).is_some());
    write(&uploads, vec![header(&first, 100), chunk(&first, 100..900)]).await.unwrap();
    assert!(write(&uploads, [vec![header(&second, 0)], chunks(&second, 0, 100)].concat()).await.unwrap().complete);
}

#[tokio::test(start_paused = true)]
async fn abandoned_uploads_are_forgotten_after_an_hour_and_make_room() {
    let store = Store::memory();
    let uploads = uploads(&store);
    let files: Vec<Bytes> = (0..=MAX_UNFINISHED).map(|n| file(1000 + n)).collect();
    let (last, begun) = files.split_last().unwrap();
    for file in begun {
        write(&uploads, vec![header(file, 0), chunk(file, 0..100)]).await.unwrap();
    }
    let refusal = write(&uploads, vec![header(last, 0), chunk(last, 0..100)]).await.unwrap_err();
    refused(&refusal, Reason::TransfersFull);
    tokio::time::advance(FORGOTTEN.saturating_sub(Duration::from_secs(1))).await;
    write(&uploads, vec![header(&files[0], 100), chunk(&files[0], 100..200)]).await.unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    write(&uploads, vec![header(last, 0), chunk(last, 0..100)]).await.unwrap();
    assert_eq!(received(&uploads, &files[0]).await, 200, "the one that was gone on with is kept");
    assert_eq!(received(&uploads, &files[1]).await, 0);
}

#[tokio::test(start_paused = true)]
async fn whoever_falls_silent_is_let_go_and_may_go_on_later() {
    let (store, file) = (Store::memory(), file(3000));
    let uploads = uploads(&store);
    let silent = messages(vec![header(&file, 0), chunk(&file, 0..1000)]).chain(stream::pending());
    let status = uploads.write(silent).await.unwrap_err();
    assert!(is_transient(&status), "{status:?}");
    assert_eq!(received(&uploads, &file).await, 1000);

    store.put("artifacts/long", Bytes::from(vec![0; 20 << 20])).await.unwrap();
    let artifacts = artifacts(&store).await;
    let long = store.entry("artifacts/long").await.unwrap().unwrap();
    let turn = artifacts.transfer().unwrap();
    let stop = CancellationToken::new();
    let parts = read::parts(store.clone(), long, 0..20 << 20, turn, stop);
    tokio::time::sleep(transfer::IDLE * 2).await;
    let last = parts.collect::<Vec<_>>().await.pop().unwrap();
    refused(&last.unwrap_err(), Reason::PeerUnavailable);
    assert_eq!(artifacts.transfers.available_permits(), MAX_TRANSFERS);
}

#[tokio::test]
async fn any_range_is_read_across_chunks_and_pieces() {
    let (store, file) = (Store::memory(), file((9 << 20) + 3));
    let artifacts = artifacts(&store).await;
    let done = write(&artifacts.uploads, [vec![header(&file, 0)], chunks(&file, 0, 1 << 20)].concat()).await.unwrap();
    let (mib, all) = (1 << 20, file.len() as u64);
    let ranges =
        [(0, 0), (0, 1), (mib - 1, 2), (4 * mib - 1, 2), (3 * mib + 5, 3 * mib), (all - 1, 9), (all, 0), (1, all)];
    for (offset, length) in ranges {
        let (artifact, bytes) = read(&artifacts, &done.name, offset, length).await.unwrap();
        assert_eq!((artifact.bytes, artifact.blake3.as_str()), (all, digest(&file).as_str()));
        let end = if length == 0 { all } else { all.min(offset + length) };
        assert!(bytes == file.slice(offset as usize..end as usize), "{length} bytes from {offset}");
    }
    let beyond = read(&artifacts, &done.name, all + 1, 0).await.unwrap_err();
    assert_eq!(violations_of(&beyond)[0].field, "offset");
    let absent = read(&artifacts, &artifact_name(&"0".repeat(64)), 0, 0).await.unwrap_err();
    refused(&absent, Reason::ObjectNotFound);
}

#[tokio::test]
async fn no_name_reaches_what_is_not_an_artifact() {
    let store = Store::memory();
    let run = RunId::new("r-1").unwrap();
    for key in [keys::record(&run, 1), keys::factors(&run, 1, 0, 0), "uploads/x/0".into(), keys::checkpoint(&run, 1, 0)]
    {
        store.put(&key, "secret".into()).await.unwrap();
    }
    let artifacts = artifacts(&store).await;
    let names = [
        "",
        "artifacts",
        "artifacts/..",
        "artifacts/../runs/r-1/journal/0000000001",
        "runs/r-1",
        "runs/r-1/journal/0000000001",
        "runs/r-1/shots/0001/../../journal/0000000001",
        "runs/r-1/shots/0001/factors/0000/0000",
        "uploads/x/0",
        "/etc/passwd",
        "runs/r-1/shots/0001/checkpoint#1",
    ];
    for name in names {
        refused(&read(&artifacts, name, 0, 0).await.unwrap_err(), Reason::MessageInvalid);
        let request = v1::StatArtifactsRequest { names: vec![name.into()], ..v1::StatArtifactsRequest::default() };
        refused(&artifacts.stat_artifacts(Request::new(request)).await.unwrap_err(), Reason::MessageInvalid);
        let request = v1::DeleteArtifactRequest { name: name.into(), ..v1::DeleteArtifactRequest::default() };
        refused(&artifacts.delete_artifact(Request::new(request)).await.unwrap_err(), Reason::MessageInvalid);
    }
    let delete =
        v1::DeleteArtifactRequest { name: keys::checkpoint(&run, 1, 0), ..v1::DeleteArtifactRequest::default() };
    refused(&artifacts.delete_artifact(Request::new(delete)).await.unwrap_err(), Reason::MessageInvalid);
    for prefix in ["uploads", "..", "runs/../uploads", "/"] {
        let request = v1::StatArtifactsRequest { prefix: prefix.into(), ..v1::StatArtifactsRequest::default() };
        let answer = artifacts.stat_artifacts(Request::new(request)).await;
        if prefix != "/" {
            refused(&answer.unwrap_err(), Reason::MessageInvalid);
        }
    }
    let all = artifacts.stat_artifacts(Request::new(v1::StatArtifactsRequest::default())).await.unwrap().into_inner();
    let listed: Vec<&str> = all.artifacts.iter().map(|a| a.name.as_str()).collect();
    assert_eq!(listed, [keys::checkpoint(&run, 1, 0)]);
}

#[tokio::test]
async fn pages_name_every_artifact_once_in_order() {
    let store = Store::memory();
    let run = RunId::new("r-1").unwrap();
    let mut names: Vec<String> = (0..5).map(|n| keys::artifact(&digest(&file(n + 1)))).collect();
    names.extend((1..5).map(|shot| keys::checkpoint(&run, shot, 0)));
    names.sort_unstable();
    for name in &names {
        store.put(name, name.clone().into()).await.unwrap();
    }
    let artifacts = artifacts(&store).await;
    let list = async |prefix: &str, page_size| {
        let (mut found, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = v1::StatArtifactsRequest { names: vec![], prefix: prefix.into(), page_size, page_token };
            let page = artifacts.stat_artifacts(Request::new(request)).await.unwrap().into_inner();
            assert!(page.artifacts.iter().all(|a| a.bytes == a.name.len() as u64 && a.write_time.is_some()));
            found.extend(page.artifacts.into_iter().map(|a| a.name));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return found;
            }
        }
    };
    for size in [0, 1, 3, 9] {
        assert_eq!(list("", size).await, names);
        assert_eq!(list("artifacts/", size).await, names[..5]);
        assert_eq!(list("runs/r-1", size).await, names[5..]);
    }
    assert_eq!(list("runs/r-1/shots/0002", 1).await, names[6..7]);
    let absent = keys::artifact(&"0".repeat(64));
    let asked = vec![names[6].clone(), absent, names[0].clone(), names[6].clone()];
    let request = v1::StatArtifactsRequest { names: asked, ..v1::StatArtifactsRequest::default() };
    let found = artifacts.stat_artifacts(Request::new(request)).await.unwrap().into_inner().artifacts;
    let found: Vec<String> = found.into_iter().map(|a| a.name).collect();
    assert_eq!(found, [names[0].clone(), names[6].clone()], "what is not there is absent");
}

#[tokio::test]
async fn an_artifact_is_deleted_unless_a_run_reads_it() {
    let (store, file) = (Store::memory(), file(3000));
    let artifacts = artifacts(&store).await;
    let address = format!("artifact:{}.txt", digest(&file));
    let spec = RunSpec::new("m", &address, "o", Target::Size(0.5));
    let early = check_data(&store, &spec).await.unwrap_err();
    refused(&early, Reason::SpecInvalid);
    assert_eq!(violations_of(&early)[0].field, "data[0]");

    let upload = || [vec![header(&file, 0)], chunks(&file, 0, 1000)].concat();
    let name = write(&artifacts.uploads, upload()).await.unwrap().name;
    check_data(&store, &spec).await.unwrap();
    let run = artifacts.coordinator.create("id", spec).await.unwrap();
    let delete = async || {
        let request = v1::DeleteArtifactRequest { request_id: "d".into(), name: name.clone() };
        artifacts.delete_artifact(Request::new(request)).await
    };
    refused(&delete().await.unwrap_err(), Reason::RunActive);
    artifacts.coordinator.cancel(&run).await.unwrap();
    delete().await.unwrap();
    delete().await.unwrap();
    assert_eq!(visible(&store).await, [""; 0]);
    refused(&read(&artifacts, &name, 0, 0).await.unwrap_err(), Reason::ObjectNotFound);

    write(&artifacts.uploads, upload()[..2].to_vec()).await.unwrap();
    assert_eq!(received(&artifacts.uploads, &file).await, 1000);
    delete().await.unwrap();
    assert_eq!(received(&artifacts.uploads, &file).await, 0);
}

#[tokio::test]
async fn a_store_that_lost_parts_is_told_and_the_upload_begins_anew() {
    let (store, file) = (Store::memory(), file(PART_BYTES + 3000));
    let uploads = uploads(&store);
    let parts = chunks(&file, 0, 1 << 20);
    write(&uploads, [vec![header(&file, 0)], parts[..4].to_vec(), vec![chunk(&file, 4 << 20..(4 << 20) + 5)]].concat())
        .await
        .unwrap();
    store.delete_prefix(keys::UPLOADS).await.unwrap();
    let lost =
        write(&uploads, [vec![header(&file, (4 << 20) + 5)], chunks(&file, (4 << 20) + 5, 1 << 20)].concat()).await;
    refused(&lost.unwrap_err(), Reason::ObjectNotFound);
    assert_eq!(received(&uploads, &file).await, 0);
    assert_eq!(visible(&store).await, [""; 0]);
}

#[test]
fn chunks_of_a_file_are_those_of_the_wire() {
    let file = file(3000);
    let cut: Vec<Chunk> = transfer::chunks(&file, 0).collect();
    let Write::Chunk(ours) = chunk(&file, 0..3000) else { unreachable!("it is one") };
    assert_eq!((cut[0].offset, cut[0].crc32c, &cut[0].payload), (ours.offset, ours.crc32c, &ours.payload));
}

#[tokio::test]
async fn artifacts_are_for_those_whom_the_public_service_lets_in() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "a token that nobody guesses".replace(' ', "-")).unwrap();
    let token = TokenFile::open(&path).unwrap();
    let (network, stop) = (MemoryNetwork::new(), CancellationToken::new());
    let coordinator = Coordinator::open(Store::memory(), 1).await.unwrap();
    let deployment = Deployment { public: Guard::new(false, Some(token.clone())), ..Deployment::same_process() };
    let serving = tokio::spawn(coordinator.serve(network.listen("c").unwrap(), deployment, None, stop.clone()));
    let ask = async |connector: Connector| {
        let mut client = ArtifactServiceClient::new(connector.bulk_channel("memory://c").unwrap());
        client.stat_artifacts(v1::StatArtifactsRequest::default()).await
    };
    refused(&ask(Connector::new(network.clone())).await.unwrap_err(), Reason::Unauthenticated);
    ask(Connector::new(network).between_hosts(None, Plain::Local, Some(token))).await.unwrap();
    stop.cancel();
    serving.await.unwrap().unwrap();
}
