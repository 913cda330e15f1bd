//! The `Score` tasks of one shot, or the `Weigh` tasks of one of its passes: gathered together, computed one block at a
//! time as blocks become ready.

use super::Handler;
use super::block::{Found, Scored};
use crate::error::Error;
use crate::gather::{Event, Gathering, PassOfShot};
use crate::job::Block;
use crate::pull::PullFailure;
use proto::v1;
use proto::v1::complete_task_request::Result as TaskResult;
use service::Lease;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tracing::{Instrument, Span};
use types::RunSpec;

/// After so long without a new byte the tasks are given back and leased anew, with whatever else has become free: the
/// sweep may wait for a block that nobody here was asked for.
const PATIENCE: Duration = Duration::from_mins(2);

/// What follows when a block's sums are gathered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// Nothing: which shards count is not settled yet.
    Stop,
    /// They are scored, or turned into what weighs the next pass.
    Compute,
}

/// One block whose sums are to be gathered.
#[derive(Debug)]
pub(super) struct BlockTask {
    /// Where it happens.
    pub(super) span: Span,
    /// Everything that can change a number.
    pub(super) spec: RunSpec,
    /// The block.
    pub(super) block: Block,
    /// What follows.
    pub(super) then: Then,
    /// The right to do it.
    pub(super) lease: Lease,
}

/// All leased blocks of one pass of a shot.
pub(super) struct BlockBatch<'a> {
    handler: &'a Handler,
    shot: PassOfShot,
    waiting: BTreeMap<u32, BlockTask>,
}

impl<'a> BlockBatch<'a> {
    /// Returns the batch of some tasks of one shot.
    pub(super) fn new(handler: &'a Handler, shot: PassOfShot, tasks: Vec<BlockTask>) -> Self {
        let waiting = tasks.into_iter().map(|task| (task.block.number, task)).collect();
        Self { handler, shot, waiting }
    }

    /// Gathers and scores; returns when every block is done, one cannot be gathered, nobody wants them or nothing comes.
    /// What is left is given back by the worker's loop.
    pub(super) async fn run(self) {
        let blocks: BTreeSet<u32> = self.waiting.keys().copied().collect();
        let leases: Vec<Lease> = self.waiting.values().map(|task| task.lease.clone()).collect();
        for block in &blocks {
            self.handler.board.note(&self.shot.run, self.shot.number, *block, (0, self.shot.shards));
        }
        let gathering = self.handler.gatherer.start(&self.shot, &blocks);
        // Room for all, so that gathering never waits for computing.
        let (sender, receiver) = mpsc::channel(blocks.len().max(1));
        let (handler, shot) = (self.handler, self.shot.clone());
        let gather = async {
            tokio::select! {
                () = self.gather(gathering, sender) => {}
                () = all_left(&leases) => {}
            }
        };
        tokio::join!(gather, compute(handler, &shot, receiver));
        handler.board.forget(&shot.run, shot.number, &blocks);
    }

    /// Hands blocks on as they become ready; fails the one that cannot be gathered.
    async fn gather(mut self, mut gathering: Gathering, ready: mpsc::Sender<BlockTask>) {
        let shards = self.shot.shards;
        let mut received = 0;
        loop {
            let Ok(event) = tokio::time::timeout(PATIENCE, gathering.next()).await else {
                if gathering.received() == received {
                    break;
                }
                received = gathering.received();
                continue;
            };
            match event {
                Event::Progress { block, missing } => {
                    let stored = shards - missing as u32;
                    self.handler.board.note(&self.shot.run, self.shot.number, block, (stored, shards));
                    if let Some(task) = self.waiting.get(&block) {
                        task.lease.progress(u64::from(stored), u64::from(shards) + 1);
                    }
                    if missing == 0
                        && let Some(task) = self.waiting.remove(&block)
                        && ready.send(task).await.is_err()
                    {
                        return;
                    }
                }
                Event::Failed(PullFailure { block, error }) => {
                    if let Some(task) = self.waiting.remove(&block) {
                        task.lease.report(Err(error.told()), Duration::ZERO).instrument(task.span).await;
                    }
                    return;
                }
                Event::Done => return,
            }
        }
        tracing::debug!(blocks = self.waiting.len(), "no factors came for a while; tasks are given back");
    }
}

/// Scores blocks as they come.
async fn compute(handler: &Handler, shot: &PassOfShot, mut ready: mpsc::Receiver<BlockTask>) {
    while let Some(task) = ready.recv().await {
        let BlockTask { span, spec, block, then, lease } = task;
        let start = Instant::now();
        let result = if lease.token().is_cancelled() {
            Err(Error::Cancelled)
        } else {
            let number = (shot.run.clone(), shot.number);
            let weighs = shot.pass < spec.passes();
            let found = async {
                match then {
                    Then::Stop if weighs => Ok(TaskResult::Weigh(v1::WeighResult::default())),
                    Then::Stop => Ok(TaskResult::Score(v1::ScoreResult::default())),
                    Then::Compute if weighs => {
                        let weighed = handler.blocks.weigh_block(&number, spec, (&block, shot.pass), lease.token());
                        weighed.await.map(TaskResult::Weigh)
                    }
                    Then::Compute => {
                        let scored = handler.blocks.score_block(&number, spec, &block, lease.token()).await?;
                        report(scored, &lease).await.map(TaskResult::Score)
                    }
                }
            };
            found.instrument(span.clone()).await
        };
        lease.report(result.map_err(|e| e.told()), start.elapsed()).instrument(span).await;
    }
}

/// Has the coordinator store what was found out about a block; returns the task's result.
pub(super) async fn report(scored: Scored, lease: &Lease) -> Result<v1::ScoreResult, Error> {
    let Scored { found, compute_seconds, peak_memory_bytes } = scored;
    let scores = match found {
        Found::Paths(paths) => lease.report_paths(paths).await?,
        Found::Histograms(histograms) => lease.report_histograms(histograms).await?,
    };
    Ok(v1::ScoreResult { scores: Some(scores), compute_seconds, peak_memory_bytes })
}

/// Waits until every lease is lost or the worker stops.
async fn all_left(leases: &[Lease]) {
    for lease in leases {
        lease.token().cancelled().await;
    }
}
