//! Shards' factors become one sum as they come, in shard order: of each block the store holds little more than one shard's.
//!
//! A shard's own object says that its factors are stored; it is empty once they are in a sum. What comes before its turn
//! waits as an object of its own. Sums are objects of their own, one for each count of shards, so that a surgeon that is behind
//! never writes over what another has: [`order`] says what is written when, and why a kill between two writes does no harm.
//!
//! Nobody waits for memory while holding any, nor while holding a block's turn: what does not fit waits in the store.

mod order;

use crate::bench::merged;
use crate::error::Error;
use crate::pull::{Budget, Share};
use bytes::Bytes;
use order::{Change, Turn};
use service::{ComputeHandle, Store, StoreError, keys};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use types::RunId;

/// As many times the bytes of one shard's factors are in memory at most while they are added.
const HELD: u64 = 3;
/// How often a sum that was listed may be gone, for a longer one, before that is a fault of the store.
const TRIES: u32 = 8;

/// One block in one pass over a shot's samples: what becomes one sum.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BlockPass {
    /// The run.
    pub(crate) run: RunId,
    /// Its shot.
    pub(crate) shot: u32,
    /// Which pass over its samples.
    pub(crate) pass: u32,
    /// The pass's shards.
    pub(crate) shards: u32,
    /// The block.
    pub(crate) block: u32,
}

impl BlockPass {
    /// Returns the key of a shard's own object, by its number within the pass.
    pub(crate) fn own_key(&self, number: u32) -> String {
        keys::factors(&self.run, self.shot, self.pass * self.shards + number, self.block)
    }

    fn sum_key(&self, shards: u32) -> String {
        keys::merged(&self.run, self.shot, self.pass, self.block, shards)
    }

    /// Returns of how many first shards there are sums, rising.
    ///
    /// # Errors
    /// [`Error::Damaged`] when something else lies among them.
    async fn sums(&self, store: &Store) -> Result<Vec<u32>, Error> {
        if self.shards == 1 {
            return Ok(Vec::new()); // there is nothing to add to it
        }
        let keys = store.list(&keys::all_merged(&self.run, self.shot, self.pass, self.block)).await?;
        let count = |key: String| {
            let count = key.rsplit('/').next().and_then(|name| name.parse().ok());
            count.filter(|count| (1..=self.shards).contains(count)).ok_or_else(|| {
                let problem = format!("its name is no count of the {} shards", self.shards);
                Error::Damaged { key, problem }
            })
        };
        let mut sums = keys.into_iter().map(count).collect::<Result<Vec<u32>, _>>()?;
        sums.sort_unstable();
        Ok(sums)
    }

    /// Returns of how many first shards there is a sum; 0 when there is none.
    pub(crate) async fn merged(&self, store: &Store) -> Result<u32, Error> {
        Ok(order::longest(&self.sums(store).await?))
    }

    /// Returns the sum of most shards, and of how many it is.
    pub(crate) async fn longest(&self, store: &Store) -> Result<Option<(u32, Bytes)>, Error> {
        for _ in 1..TRIES {
            let longest = self.merged(store).await?;
            if longest == 0 {
                return Ok(None);
            }
            if let Some(sum) = present(store, &self.sum_key(longest)).await? {
                return Ok(Some((longest, sum)));
            }
        }
        let longest = self.merged(store).await?;
        Ok(Some((longest, store.get(&self.sum_key(longest)).await?)))
    }
}

/// One shard's factors of a block as they came, and their share of the budget.
#[derive(Debug)]
pub(crate) struct Came {
    /// The whole file, in parts.
    pub(crate) parts: Vec<Bytes>,
    /// How long it is.
    pub(crate) bytes: u64,
    /// Memory for it; none for what lies in a neighbour's.
    pub(crate) share: Option<Share>,
}

/// Adds shards as they come; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Merger {
    store: Store,
    /// The thread on which tensors live.
    compute: ComputeHandle,
    budget: Budget,
    /// Held by who changes a block's sum; by no other process, which the order of writes allows for.
    turns: Arc<Mutex<BTreeMap<BlockPass, Arc<tokio::sync::Mutex<()>>>>>,
}

impl Merger {
    /// Returns a merger that takes memory from `budget`.
    pub(crate) fn new(store: Store, compute: ComputeHandle, budget: Budget) -> Self {
        Self { store, compute, budget, turns: Arc::default() }
    }

    /// Keeps a shard's factors: in the sum if it is their turn and there is room to add them, as an object of their own if
    /// not. `number` counts within the pass.
    ///
    /// Cancel-safe: they are kept, or will be asked for again.
    pub(crate) async fn keep(&self, of: &BlockPass, number: u32, came: Came) -> Result<(), Error> {
        let Came { parts, bytes, mut share } = came;
        let turn = self.turn_of(of);
        let _turn = turn.lock().await;
        let sums = of.sums(&self.store).await?;
        match order::turn(&sums, number) {
            Turn::Over => return self.make(of, order::marked(&sums, number), &[]).await,
            Turn::Now if sums.is_empty() => return self.make(of, order::lengthened(&sums), &parts).await,
            Turn::Now if self.budget.try_grow(&mut share, bytes * HELD) => {
                // It may be gone for a longer one of another surgeon. Then an object of its own is right, too.
                if let Some(before) = present(&self.store, &of.sum_key(number)).await? {
                    let sum = self.add(vec![before], parts).await?;
                    return self.make(of, order::lengthened(&sums), &sum).await;
                }
            }
            Turn::Now | Turn::Later => {}
        }
        Ok(self.store.put_parts(&of.own_key(number), parts).await?)
    }

    /// Adds the shards that wait in the store and whose turn it is; `bytes` is how long a shard's factors are. Every step is
    /// counted in `moved`, as a sign that something happens.
    ///
    /// Cancel-safe: what was added stays so.
    pub(crate) async fn catch_up(&self, of: &BlockPass, bytes: u64, moved: &AtomicU64) -> Result<(), Error> {
        // Asked before there is room for it: mostly nothing waits.
        let next = of.merged(&self.store).await?;
        if next == of.shards || self.store.size(&of.own_key(next)).await?.unwrap_or(0) == 0 {
            return Ok(());
        }
        let _share = self.budget.reserve(bytes * HELD).await?;
        let turn = self.turn_of(of);
        let _turn = turn.lock().await;
        let mut last = None;
        loop {
            let sums = of.sums(&self.store).await?;
            let next = order::longest(&sums);
            if next == of.shards {
                return Ok(());
            }
            let before = match last.take() {
                Some((shards, sum)) if shards == next => sum,
                _ if next == 0 => Vec::new(),
                _ => match present(&self.store, &of.sum_key(next)).await? {
                    Some(sum) => vec![sum],
                    None => return Ok(()), // another surgeon is at it
                },
            };
            let Some(shard) = present(&self.store, &of.own_key(next)).await?.filter(|own| !own.is_empty()) else {
                return Ok(());
            };
            moved.fetch_add(shard.len() as u64, Ordering::Relaxed);
            let sum = self.add(before, vec![shard]).await?;
            self.make(of, order::lengthened(&sums), &sum).await?;
            moved.fetch_add(1, Ordering::Relaxed);
            last = Some((next + 1, sum));
        }
    }

    /// Makes changes one after the other; `sum` is what a new sum is.
    async fn make(&self, of: &BlockPass, changes: Vec<Change>, sum: &[Bytes]) -> Result<(), Error> {
        for change in changes {
            match change {
                Change::Sum(shards) => self.store.put_parts(&of.sum_key(shards), sum.to_vec()).await?,
                Change::Mark(number) => self.store.put(&of.own_key(number), Bytes::new()).await?,
                Change::Drop(shards) => self.store.delete(&of.sum_key(shards)).await?,
            }
        }
        Ok(())
    }

    /// Returns a sum and one more shard, added on the compute thread; nothing and a shard is that shard as it came.
    async fn add(&self, sum: Vec<Bytes>, shard: Vec<Bytes>) -> Result<Vec<Bytes>, Error> {
        if sum.is_empty() {
            return Ok(shard);
        }
        let compute = self.compute.clone();
        let added = self.compute.run(move || merged(sum, shard, &|| compute.touch())).await??;
        Ok(vec![added])
    }

    fn turn_of(&self, of: &BlockPass) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1); // the others nobody holds or waits for
        Arc::clone(turns.entry(of.clone()).or_default())
    }
}

/// Returns the content of an object, if it is there.
async fn present(store: &Store, key: &str) -> Result<Option<Bytes>, Error> {
    match store.get(key).await {
        Err(StoreError::NotFound { .. }) => Ok(None),
        found => Ok(Some(found?)),
    }
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
