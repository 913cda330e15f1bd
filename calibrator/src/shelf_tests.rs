use super::*;
use std::sync::atomic::{AtomicBool, Ordering};

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
