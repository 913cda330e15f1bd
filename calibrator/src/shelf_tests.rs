use super::*;
use service::LocalFactors;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use tempfile::TempDir;
use types::{Generation, RunId};

const SOON: Duration = Duration::from_millis(200);

fn key(generation: u64) -> SweepKey {
    SweepKey { run: RunId::new("r").unwrap(), shot: 1, shard: 0, generation: Generation(generation) }
}

fn set(blocks: &[u32]) -> BTreeSet<u32> {
    blocks.iter().copied().collect()
}

fn never() -> bool {
    false
}

async fn ready(shelf: &Shelf, asked: &[u32], sent: &[u32]) -> Option<u32> {
    match shelf.next(&key(1), &set(asked), &set(sent), SOON).await.unwrap() {
        Next::Ready(factors) => Some(factors.block),
        Next::Done => None,
    }
}

#[tokio::test]
async fn a_third_block_waits_until_one_is_released() {
    let shelf = Arc::new(Shelf::new());
    let order = Arc::new(Mutex::new(Vec::new()));
    let (there, made) = (Arc::clone(&shelf), Arc::clone(&order));
    let sweep = std::thread::spawn(move || {
        let _open = there.open(key(1), &[0, 1, 2]);
        for block in [2, 1, 0] {
            there.wait_for_room(&key(1), &never).unwrap();
            made.lock().unwrap().push(block);
            there.put(&key(1), block, Bytes::from_static(b"x")).unwrap();
        }
        there.wait_until_released(&key(1), &never).unwrap();
    });
    tokio::time::sleep(SOON).await;
    assert_eq!(*order.lock().unwrap(), [2, 1], "the third waits");
    assert_eq!(shelf.status().waiting, [2, 1]);
    // Any that is ready may go first, and a release may come twice.
    for block in [1, 1, 2] {
        shelf.release(&key(1), block, SOON).await.unwrap();
    }
    assert_eq!(ready(&shelf, &[0, 1, 2], &[]).await, Some(0));
    shelf.release(&key(1), 0, SOON).await.unwrap();
    sweep.join().unwrap();
    assert_eq!(*order.lock().unwrap(), [2, 1, 0]);
    assert!(shelf.status().sweep.is_none());
    // A repeated release, and a stream that comes too late, find the work done.
    shelf.release(&key(1), 2, SOON).await.unwrap();
    assert_eq!(ready(&shelf, &[0, 1, 2], &[]).await, None);
}

#[tokio::test]
async fn blocks_come_in_order_of_readiness_and_only_those_asked() {
    let shelf = Shelf::new();
    let _open = shelf.open(key(1), &[0, 1, 2, 3]);
    shelf.put(&key(1), 3, Bytes::from_static(b"3")).unwrap();
    shelf.put(&key(1), 2, Bytes::from_static(b"2")).unwrap();
    assert_eq!(ready(&shelf, &[1, 2, 3], &[]).await, Some(3));
    assert_eq!(ready(&shelf, &[1, 2], &[]).await, Some(2));
    assert_eq!(ready(&shelf, &[2, 3], &[2, 3]).await, None);
    // One that was never wanted is not waited for.
    assert_eq!(ready(&shelf, &[7], &[]).await, None);
    // One that is released is in the store: not waited for either.
    shelf.release(&key(1), 0, SOON).await.unwrap();
    assert_eq!(ready(&shelf, &[0], &[]).await, None);
    assert!(shelf.is_settled(&key(1), 0).unwrap() && !shelf.is_settled(&key(1), 1).unwrap());
}

#[tokio::test]
async fn a_block_released_before_it_is_ready_never_lies_on_the_shelf() {
    let shelf = Shelf::new();
    let _open = shelf.open(key(1), &[0]);
    shelf.release(&key(1), 0, SOON).await.unwrap();
    shelf.put(&key(1), 0, Bytes::from_static(b"x")).unwrap();
    assert!(shelf.status().waiting.is_empty());
    assert!(shelf.wait_until_released(&key(1), &never).is_ok());
}

#[tokio::test]
async fn an_older_generation_is_refused_and_a_newer_one_waited_for() {
    let shelf = Shelf::new();
    let _open = shelf.open(key(2), &[0]);
    let none = BTreeSet::new();
    let stale = shelf.next(&key(1), &set(&[0]), &none, SOON).await;
    assert!(matches!(stale, Err(Error::GenerationStale { asked: Generation(1), present: Generation(2) })));
    assert!(matches!(shelf.release(&key(1), 0, SOON).await, Err(Error::GenerationStale { .. })));
    assert!(matches!(shelf.next(&key(3), &set(&[0]), &none, SOON).await, Err(Error::NotSwept { .. })));
    assert!(matches!(shelf.put(&key(1), 0, Bytes::new()), Err(Error::GenerationStale { .. })));
}

#[tokio::test]
async fn a_stream_waits_for_a_sweep_that_has_yet_to_begin() {
    let shelf = Arc::new(Shelf::new());
    let (begun, waits) = (Arc::clone(&shelf), Arc::clone(&shelf));
    let waiting = tokio::spawn(async move { ready(&waits, &[0], &[]).await });
    tokio::time::sleep(SOON / 4).await;
    let _open = begun.open(key(1), &[0]);
    begun.put(&key(1), 0, Bytes::from_static(b"x")).unwrap();
    assert_eq!(waiting.await.unwrap(), Some(0));
}

#[test]
fn a_cancelled_sweep_stops_waiting() {
    let shelf = Shelf::new();
    let cancelled = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let open = shelf.open(key(1), &[0]);
        let waiting = scope.spawn(|| {
            let _open = open;
            shelf.wait_until_released(&key(1), &|| cancelled.load(Ordering::Relaxed))
        });
        std::thread::sleep(SOON / 4);
        cancelled.store(true, Ordering::Relaxed);
        assert!(matches!(waiting.join().unwrap(), Err(Error::Cancelled)));
    });
    assert!(shelf.status().sweep.is_none());
}

/// A shelf with a folder for so many bytes.
fn spilling(limit: u64) -> (Shelf, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (Shelf::with_spill(Spill::open(folder.path(), limit).unwrap()), folder)
}

fn files(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

/// A block of 1000 bytes of its own.
fn file(block: u32) -> Bytes {
    (0..1000_u32).map(|n| (n.wrapping_mul(31) ^ block) as u8).collect()
}

fn offer(shelf: &Shelf, block: u32) -> Duration {
    let waited = shelf.wait_for_room(&key(1), &never).unwrap();
    waited + shelf.offer(&key(1), block, file(block), &never).unwrap()
}

fn offer_all(shelf: &Shelf, blocks: &[u32]) {
    for block in blocks {
        offer(shelf, *block);
    }
}

async fn content(shelf: &Shelf, block: u32) -> Vec<u8> {
    shelf.waiting(&key(1), block).unwrap().parts().await.unwrap().concat()
}

#[tokio::test]
async fn with_a_folder_the_sweep_goes_on_and_blocks_keep_order_and_bytes() {
    let (shelf, folder) = spilling(1 << 20);
    let _open = shelf.open(key(1), &[0, 1, 2, 3, 4]);
    for block in [4, 3, 2, 1, 0] {
        assert!(offer(&shelf, block) < SOON, "nobody takes any, and nobody waits");
    }
    assert_eq!(shelf.status().waiting, [4, 3, 2, 1, 0]);
    assert_eq!(files(folder.path()), 3, "two are in memory");
    assert_eq!(shelf.waiting(&key(1), 4).unwrap().to_read(), 0);
    assert_eq!(shelf.waiting(&key(1), 2).unwrap().to_read(), 1000);
    for block in [4, 3, 2, 1, 0] {
        assert_eq!(ready(&shelf, &[0, 1, 2, 3, 4], &[]).await, Some(block));
        assert_eq!(content(&shelf, block).await, file(block));
        assert_eq!(shelf.waiting(&key(1), block).unwrap().sums.blake3, Sums::of(&file(block)).blake3);
        shelf.release(&key(1), block, SOON).await.unwrap();
    }
    assert_eq!(files(folder.path()), 0, "a release removes its file");
    assert!(shelf.wait_until_released(&key(1), &never).is_ok());
}

#[tokio::test]
async fn a_file_is_read_from_any_byte() {
    let (shelf, _folder) = spilling(1 << 20);
    let _open = shelf.open(key(1), &[0, 1, 2]);
    offer_all(&shelf, &[2, 1, 0]);
    let spilled = shelf.waiting(&key(1), 0).unwrap();
    assert_eq!(spilled.slice(617..1000).await.unwrap(), file(0).slice(617..));
    assert_eq!(spilled.bytes(), 1000);
}

#[tokio::test]
async fn a_full_folder_makes_the_sweep_wait_and_room_in_memory_lets_it_go_on() {
    let (shelf, folder) = spilling(1500);
    let shelf = Arc::new(shelf);
    let order = Arc::new(Mutex::new(Vec::new()));
    let (there, made) = (Arc::clone(&shelf), Arc::clone(&order));
    let sweep = std::thread::spawn(move || {
        let _open = there.open(key(1), &[0, 1, 2, 3]);
        for block in [3, 2, 1, 0] {
            offer(&there, block);
            made.lock().unwrap().push(block);
        }
        there.wait_until_released(&key(1), &never).unwrap();
    });
    tokio::time::sleep(SOON).await;
    assert_eq!(*order.lock().unwrap(), [3, 2, 1], "two in memory, one in the folder, the fourth waits");
    assert_eq!(files(folder.path()), 1);
    for block in [3, 2, 1, 0] {
        assert_eq!(ready(&shelf, &[0, 1, 2, 3], &[]).await, Some(block));
        shelf.release(&key(1), block, SOON).await.unwrap();
    }
    sweep.join().unwrap();
    assert_eq!(files(folder.path()), 0);
}

#[tokio::test]
async fn a_folder_that_fails_makes_the_sweep_wait_as_if_there_were_none() {
    let (shelf, folder) = spilling(1 << 20);
    let shelf = Arc::new(shelf);
    std::fs::remove_dir(folder.path()).unwrap();
    let there = Arc::clone(&shelf);
    let sweep = std::thread::spawn(move || {
        let _open = there.open(key(1), &[0, 1, 2]);
        let waits = [2, 1, 0].map(|block| offer(&there, block));
        there.wait_until_released(&key(1), &never).unwrap();
        waits
    });
    tokio::time::sleep(SOON).await;
    assert_eq!(shelf.status().waiting, [2, 1]);
    for block in [2, 1, 0] {
        assert_eq!(ready(&shelf, &[0, 1, 2], &[]).await, Some(block));
        assert_eq!(content(&shelf, block).await, file(block));
        shelf.release(&key(1), block, SOON).await.unwrap();
    }
    let waits = sweep.join().unwrap();
    assert!(waits[2] >= SOON / 2 && waits[1] < SOON, "{waits:?}");
}

#[tokio::test]
async fn a_file_that_cannot_be_read_back_ends_its_sweep_and_the_next_one_spills_nothing() {
    let (shelf, folder) = spilling(1 << 20);
    let open = shelf.open(key(1), &[0, 1, 2]);
    offer_all(&shelf, &[2, 1, 0]);
    let spilled = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let changed = [b"x".repeat(999), b"y".to_vec()].concat();
    std::fs::write(&spilled, changed).unwrap();
    let refused = LocalFactors::read(&shelf, &key(1), 0).await.unwrap_err();
    assert_eq!(service::status::reason_of(&refused), Some(service::Reason::PeerUnavailable), "{refused}");
    assert!(matches!(shelf.wait_until_released(&key(1), &never), Err(Error::SpillLost)));
    drop(open);
    assert_eq!(files(folder.path()), 0);

    let _open = shelf.open(key(1), &[0, 1, 2]);
    offer_all(&shelf, &[2, 1]);
    let asked = std::cell::Cell::new(0);
    let later = || asked.replace(asked.get() + 1) > 0;
    assert!(matches!(shelf.wait_for_room(&key(1), &later), Err(Error::Cancelled)), "it would wait");
    assert_eq!(files(folder.path()), 0);
}

#[tokio::test]
async fn a_sweep_that_ends_early_leaves_no_files() {
    let (shelf, folder) = spilling(1 << 20);
    let open = shelf.open(key(1), &[0, 1, 2, 3]);
    offer_all(&shelf, &[3, 2, 1, 0]);
    assert_eq!(files(folder.path()), 2);
    let held = shelf.waiting(&key(1), 0).unwrap();
    drop(open);
    assert_eq!(files(folder.path()), 1, "a stream is still at it");
    assert_eq!(held.parts().await.unwrap().concat(), file(0));
    drop(held);
    assert_eq!(files(folder.path()), 0);
}

#[test]
fn what_a_killed_process_left_is_removed_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let left = folder.path().join(format!("llm-surgeon-{}.factors", "0123456789abcdef".repeat(2)));
    let foreign = ["notes.txt", "llm-surgeon-0123.factors", "llm-surgeon-plan.factors"];
    let foreign = foreign.map(|name| folder.path().join(name));
    for path in foreign.iter().chain([&left]) {
        std::fs::write(path, "x").unwrap();
    }
    let living = Spill::open(folder.path(), 1 << 20).unwrap();
    assert!(!left.exists() && foreign.iter().all(|path| path.exists()));
    let written = living.write(b"of a process that lives", &never).unwrap().unwrap();
    Spill::open(folder.path(), 1 << 20).unwrap();
    assert_eq!(files(folder.path()), foreign.len() + 1, "it is locked");
    drop(written);
    assert_eq!(files(folder.path()), foreign.len());
}

#[tokio::test]
async fn the_surgeon_of_the_same_process_gets_the_very_bytes() {
    let shelf = Shelf::new();
    let _open = shelf.open(key(2), &[7]);
    let bytes = file(7);
    shelf.put(&key(2), 7, bytes.clone()).unwrap();
    let found = LocalFactors::next(&shelf, &key(2), &set(&[7])).await.unwrap().unwrap();
    assert_eq!((found.block, found.to_read), (7, 0));
    let parts = LocalFactors::read(&shelf, &key(2), 7).await.unwrap();
    assert_eq!(parts.iter().map(|part| part.as_ptr()).collect::<Vec<_>>(), [bytes.as_ptr()]);
    let stale = LocalFactors::next(&shelf, &key(1), &set(&[7])).await.unwrap_err();
    assert_eq!(stale.code(), tonic::Code::Aborted);
    LocalFactors::release(&shelf, &key(2), 7).await.unwrap();
    assert!(LocalFactors::next(&shelf, &key(2), &set(&[7])).await.unwrap().is_none());
}
