//! Merging in a store in memory, with a real compute thread.

use super::*;
use curvature::BlockFactors;
use model::tensor_file;
use service::ComputeThread;
use std::time::Duration;
use tch::{Device, Kind, Tensor};

/// Tokens of each shard.
const TOKENS: u64 = 40;

/// Everything of one test: one block's shards, a store, and one surgeon's merger.
struct World {
    of: BlockPass,
    store: Store,
    budget: Budget,
    merger: Merger,
}

impl World {
    fn new(shards: u32, memory: u64) -> Self {
        Self::restarted(shards, memory, Store::memory())
    }

    /// A surgeon that knows nothing but what is in the store.
    fn restarted(shards: u32, memory: u64, store: Store) -> Self {
        let of = BlockPass { run: RunId::new("r").unwrap(), shot: 1, pass: 2, shards, block: 6 };
        let budget = Budget::new(memory);
        let compute = ComputeThread::spawn("surgeon-test", 4).unwrap();
        let merger = Merger::new(store.clone(), compute, budget.clone());
        Self { of, store, budget, merger }
    }

    async fn keep(&self, number: u32, file: Bytes) -> Result<(), Error> {
        let bytes = file.len() as u64;
        let share = Some(self.budget.reserve(bytes).await?);
        let parts = vec![file.slice(..10), file.slice(10..)];
        self.merger.keep(&self.of, number, Came { parts, bytes, share }).await?;
        self.merger.catch_up(&self.of, bytes, &AtomicU64::new(0)).await
    }

    /// Lets every shard come that is not said to be stored.
    async fn finish(&self) {
        for number in 0..self.of.shards {
            if !self.store.exists(&self.of.own_key(number)).await.unwrap() {
                self.keep(number, file(number)).await.unwrap();
            }
        }
    }

    async fn put(&self, writes: &[(String, Option<Bytes>)]) {
        for (key, content) in writes {
            match content {
                Some(content) => self.store.put(key, content.clone()).await.unwrap(),
                None => self.store.delete(key).await.unwrap(),
            }
        }
    }

    /// What all shards add up to: the longest sum, then shards that were not merged.
    async fn total(&self) -> Bytes {
        let (first, mut total) = match self.of.longest(&self.store).await.unwrap() {
            Some((shards, sum)) => (shards, sum),
            None => (1, self.store.get(&self.of.own_key(0)).await.unwrap()),
        };
        for number in first..self.of.shards {
            let own = self.store.get(&self.of.own_key(number)).await.unwrap();
            assert!(!own.is_empty(), "shard {number} is in no sum");
            total = merged(vec![total], vec![own], &|| ()).unwrap();
        }
        total
    }

    /// Bytes in the store.
    async fn size(&self) -> u64 {
        let mut size = 0;
        for key in self.store.list(&keys::all_factors(&self.of.run, self.of.shot)).await.unwrap() {
            size += self.store.size(&key).await.unwrap().unwrap();
        }
        size
    }

    /// All that is left is one sum of all shards, and the word that each is stored.
    async fn assert_merged(&self, expected: &Bytes) {
        assert_eq!(self.of.sums(&self.store).await.unwrap(), [self.of.shards]);
        assert!(self.total().await == *expected, "other bits");
        assert_eq!(self.size().await, expected.len() as u64, "shards of their own are left");
        assert_eq!(self.budget.used(), 0);
    }
}

/// One shard's factors; sums of several depend on the order.
fn file(number: u32) -> Bytes {
    let scale = [1.0, 1e4, 1e-3][number as usize % 3];
    let value = |n: u32| ((n * 37 + number * 101) % 97) as f32 / 7.0 * scale;
    let values = |length| Tensor::from_slice(&(0..length).map(value).collect::<Vec<f32>>());
    encoded(&[("A:down".to_owned(), values(820)), ("G:down".to_owned(), values(6))], TOKENS)
}

fn encoded(tensors: &[(String, Tensor)], tokens: u64) -> Bytes {
    let metadata = BTreeMap::from([("tokens".to_owned(), tokens.to_string())]);
    Bytes::from(tensor_file::encode(tensors, &metadata).unwrap())
}

/// What shards added one after the other, unpacked as on the bench, are.
fn one_after_the_other(numbers: impl IntoIterator<Item = u32>) -> Bytes {
    let mut all = BlockFactors::new();
    for number in numbers {
        let (tensors, _) = tensor_file::decode(&file(number), Device::Cpu).unwrap();
        all.merge(&BlockFactors::unpack(TOKENS, tensors, Device::Cpu).unwrap()).unwrap();
    }
    encoded(&all.pack().unwrap(), all.tokens)
}

const ROOM: u64 = 1 << 20;

#[tokio::test]
async fn every_order_of_arrival_gives_the_bits_of_shard_order() {
    let expected = one_after_the_other(0..3);
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        // Room for everything, for one shard and nothing on top, for less than a shard.
        for memory in [ROOM, file(0).len() as u64 + 1024, 1024] {
            let world = World::new(3, memory);
            for number in order {
                world.keep(number, file(number)).await.unwrap();
            }
            world.assert_merged(&expected).await;
        }
    }
}

#[tokio::test]
async fn killed_between_any_two_writes_nothing_is_lost_or_doubled() {
    let expected = one_after_the_other(0..3);
    let of = World::new(3, ROOM).of;
    let sum = |shards| (of.sum_key(shards), Some(one_after_the_other(0..shards)));
    let mark = |number| (of.own_key(number), Some(Bytes::new()));
    let dropped = |shards| (of.sum_key(shards), None);
    let merging = [sum(1), mark(0), sum(2), mark(1), dropped(1), sum(3), mark(2), dropped(2)];
    let waiting = |number| (of.own_key(number), Some(file(number)));
    for before in [vec![], vec![waiting(1)], vec![waiting(2), waiting(1)], vec![waiting(2)], vec![waiting(0)]] {
        for made in 0..=merging.len() {
            let world = World::new(3, ROOM);
            world.put(&before).await;
            world.put(&merging[..made]).await;
            World::restarted(3, ROOM, world.store.clone()).finish().await;
            assert!(world.total().await == expected, "{} shards waited, {made} writes were made", before.len());
        }
    }
}

#[tokio::test]
async fn a_shard_that_comes_again_is_not_added_again() {
    let world = World::new(2, ROOM);
    for number in [0, 0, 1, 1, 0] {
        world.keep(number, file(number)).await.unwrap();
    }
    world.assert_merged(&one_after_the_other(0..2)).await;
}

#[tokio::test]
async fn a_surgeon_that_is_behind_spoils_nothing() {
    let world = World::new(4, ROOM);
    for number in 0..3 {
        world.keep(number, file(number)).await.unwrap();
    }
    // Decided when only shard 0 was merged, written now; and a shard that was merged, whole once more.
    let late = [
        (world.of.sum_key(2), Some(one_after_the_other(0..2))),
        (world.of.own_key(1), Some(file(1))),
        (world.of.sum_key(1), None),
    ];
    world.put(&late).await;
    assert_eq!(world.of.merged(&world.store).await.unwrap(), 3);
    world.keep(3, file(3)).await.unwrap();
    assert!(world.total().await == one_after_the_other(0..4));
    assert_eq!(world.of.sums(&world.store).await.unwrap(), [4]);
}

#[tokio::test]
async fn the_store_holds_one_sum_and_what_waits_for_its_turn() {
    let world = World::new(8, ROOM);
    let one = one_after_the_other(0..8).len() as u64;
    for (come, number) in [1, 0, 2, 5, 4, 3, 7, 6].into_iter().enumerate() {
        world.keep(number, file(number)).await.unwrap();
        let sum = world.of.merged(&world.store).await.unwrap();
        let waiting = come as u64 + 1 - u64::from(sum);
        assert!(world.size().await <= one * (waiting + 1), "after shard {number}");
    }
    world.assert_merged(&one_after_the_other(0..8)).await;
}

#[tokio::test]
async fn shards_that_come_together_wait_for_memory_without_a_deadlock() {
    let one = file(0).len() as u64;
    for memory in [1024, one, 2 * one, 3 * one, 5 * one, ROOM] {
        let world = World::new(6, memory);
        let all = futures::future::join_all((0..6).rev().map(|number| world.keep(number, file(number))));
        let kept = tokio::time::timeout(Duration::from_mins(1), all).await.expect("nobody waits for ever");
        kept.into_iter().for_each(Result::unwrap);
        assert!(world.total().await == one_after_the_other(0..6), "with {memory} bytes");
        assert_eq!(world.budget.used(), 0);
    }
}

#[tokio::test]
async fn what_does_not_fit_fails_and_leaves_the_sum_as_it_was() {
    let other_size = encoded(&[("A:down".to_owned(), Tensor::zeros([6], (Kind::Float, Device::Cpu)))], TOKENS);
    let no_factor = encoded(&[("A:down".to_owned(), Tensor::zeros([4], (Kind::Float, Device::Cpu)))], TOKENS);
    for bad in [file(1).slice(..2000), other_size, no_factor] {
        let world = World::new(3, ROOM);
        world.keep(0, file(0)).await.unwrap();
        let error = world.keep(1, bad).await.unwrap_err();
        assert!(matches!(error, Error::Model(_) | Error::Curvature(_)) && !error.is_transient(), "{error}");
        assert!(!world.store.exists(&world.of.own_key(1)).await.unwrap());
        assert_eq!(world.of.longest(&world.store).await.unwrap(), Some((1, file(0))));
        assert_eq!(world.budget.used(), 0);
        world.finish().await;
        world.assert_merged(&one_after_the_other(0..3)).await;
    }
}

#[tokio::test]
async fn a_sum_of_more_shards_than_there_are_is_damage() {
    let world = World::new(2, ROOM);
    world.put(&[(world.of.sum_key(3), Some(file(0)))]).await;
    let error = world.keep(0, file(0)).await.unwrap_err();
    assert!(matches!(&error, Error::Damaged { key, .. } if *key == world.of.sum_key(3)), "{error}");
}
