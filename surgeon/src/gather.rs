//! All factors of some blocks: every shard is pulled at the same time, a block is ready when all its shards are stored or, where
//! one is quarantined, not waited for any more.

use crate::error::Error;
use crate::merge::Merger;
use crate::plan::{self, Plan};
use crate::pull::{Budget, PullFailure, Puller, ShardKey, Stored};
use proto::v1::worker_service_client::WorkerServiceClient;
use service::Wire;
use service::{Connector, Neighbour, RequestIds, Store};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::Instrument;
use types::{RunId, RunSpec};

/// What gathering needs; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Gatherer {
    /// Where factors go.
    pub(crate) store: Store,
    /// Adds shards as they come.
    pub(crate) merger: Merger,
    /// How calibrators are reached.
    pub(crate) connector: Connector,
    /// The coordinator.
    pub(crate) coordinator: WorkerServiceClient<Wire>,
    /// Shared by all that is gathered.
    pub(crate) budget: Budget,
    /// The calibrator of this process.
    pub(crate) neighbour: Option<Neighbour>,
    /// Names of our mutations.
    pub(crate) ids: RequestIds,
}

/// What is gathered together: one pass over a shot's samples.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PassOfShot {
    /// The run.
    pub(crate) run: RunId,
    /// Its shot.
    pub(crate) number: u32,
    /// Which pass over its samples.
    pub(crate) pass: u32,
    /// Its shards.
    pub(crate) shards: u32,
    /// Whether they become one sum as they come.
    pub(crate) merging: Merging,
}

/// When shards of a pass are added to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Merging {
    /// As they come, in their order.
    AsTheyCome,
    /// When they are laid out: until then one may be found not to count, and a sum could not be undone.
    WhenSettled,
}

impl Merging {
    /// Returns that of a run.
    pub(crate) fn of(spec: &RunSpec) -> Self {
        if spec.max_poison_fraction > 0.0 { Self::WhenSettled } else { Self::AsTheyCome }
    }
}

impl PassOfShot {
    /// Returns the numbers of the pass's shards: each pass counts on where the one before ended.
    pub(crate) fn numbers(&self) -> Range<u32> {
        let first = self.pass * self.shards;
        first..first + self.shards
    }
}

/// A gathering under way. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Gathering {
    stored: mpsc::Receiver<Stored>,
    /// Pulls, and the plan's follower: that one ends only when it fails.
    tasks: JoinSet<Result<(), PullFailure>>,
    missing: BTreeMap<u32, BTreeSet<u32>>,
    received: Arc<AtomicU64>,
}

/// What happened in a gathering.
#[derive(Debug)]
pub(crate) enum Event {
    /// One more shard of this block is stored; so many are, of all.
    Progress {
        /// Which block.
        block: u32,
        /// Shards that are still missing.
        missing: usize,
    },
    /// It cannot go on.
    Failed(PullFailure),
    /// All shards of all blocks are stored.
    Done,
}

impl Gatherer {
    /// Begins to bring the blocks of a shot into the store.
    pub(crate) fn start(&self, shot: &PassOfShot, blocks: &BTreeSet<u32>) -> Gathering {
        let (plan_sender, plan) = watch::channel(Plan::default());
        let (sender, stored) = mpsc::channel(64);
        let received = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        let span = tracing::Span::current();
        let of = match shot.merging {
            Merging::AsTheyCome => shot.shards,
            Merging::WhenSettled => 1,
        };
        for shard in shot.numbers() {
            let puller = Puller {
                key: ShardKey { run: shot.run.clone(), shot: shot.number, shard, of },
                store: self.store.clone(),
                merger: self.merger.clone(),
                connector: self.connector.clone(),
                plan: plan.clone(),
                stored: sender.clone(),
                budget: self.budget.clone(),
                neighbour: self.neighbour.clone(),
                received: Arc::clone(&received),
                ids: self.ids.clone(),
            };
            tasks.spawn(puller.pull(blocks.clone()).instrument(span.clone()));
        }
        let (client, run, number) = (self.coordinator.clone(), shot.run.clone(), shot.number);
        let first = blocks.first().copied().unwrap_or_default();
        let follow = async move {
            let error = plan::follow(&client, &run, number, &plan_sender).await;
            Err(PullFailure { block: first, error })
        };
        tasks.spawn(follow.instrument(span));
        let missing = blocks.iter().map(|b| (*b, shot.numbers().collect())).collect();
        Gathering { stored, tasks, missing, received }
    }
}

impl Gathering {
    /// Returns how many bytes came so far, or were added to others: what grows while something happens.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Returns the next thing that happens.
    ///
    /// Cancel-safe.
    pub(crate) async fn next(&mut self) -> Event {
        loop {
            if self.missing.values().all(BTreeSet::is_empty) {
                return Event::Done;
            }
            tokio::select! {
                biased;
                Some(Stored { block, shard }) = self.stored.recv() => {
                    if let Some(shards) = self.missing.get_mut(&block) && shards.remove(&shard) {
                        return Event::Progress { block, missing: shards.len() };
                    }
                }
                Some(ended) = self.tasks.join_next() => match ended {
                    Ok(Ok(())) => {}
                    Ok(Err(failure)) => return Event::Failed(failure),
                    Err(error) => return Event::Failed(self.lost(&error.to_string())),
                },
                else => return Event::Failed(self.lost("every task ended before all was stored")),
            }
        }
    }

    /// Returns the failure that a bug is.
    fn lost(&self, what: &str) -> PullFailure {
        let block = self.missing.iter().find(|(_, shards)| !shards.is_empty()).map_or(0, |(block, _)| *block);
        PullFailure { block, error: Error::Bug(format!("gathering ended: {what}")) }
    }
}

#[cfg(test)]
#[path = "gather_tests.rs"]
mod tests;
