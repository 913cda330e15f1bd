//! One shard's factors: from the calibrator that sweeps it into the store.
//!
//! Everything that breaks is tried again from the plan; a block that was half received goes on where it broke. Nothing is
//! visible half-written, because an object of the store appears whole. At most one block of the shard is in memory, and the
//! blocks of all shards together, with what they are added to, stay under a budget of bytes.

mod neighbour;

use crate::error::Error;
use crate::merge::{BlockPass, Came, Merger};
use crate::metrics;
use crate::plan::{Plan, Source};
use crate::receive::{Partial, StreamFault};
use proto::bulk::ReceivedPart;
use proto::v1;
use proto::v1::calibrator_service_client::CalibratorServiceClient;
use service::Wire;
use service::bulk::FactorStream;
use service::keys;
use service::{Connector, Neighbour, RequestIds, Store};
use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use types::{Generation, RunId};

/// How long a call may take to answer.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a release may take: it is a courtesy.
const RELEASE: Duration = Duration::from_secs(2);
/// How long a stream may be silent before the plan is asked again: a sweep may well take longer for its first block.
const IDLE: Duration = Duration::from_mins(1);
/// Attempts without a new block before the task is failed.
const MAX_FAILURES: u32 = 20;
/// First and longest pause between attempts.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// Unit in which memory is budgeted, so that a semaphore can count any size.
const BUDGET_UNIT: u64 = 1 << 10;

/// Bytes of factors that may be in memory between stream and store.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    permits: Arc<Semaphore>,
    units: u32,
}

impl Budget {
    /// Returns a budget of so many bytes.
    pub(crate) fn new(bytes: u64) -> Self {
        let units = (bytes / BUDGET_UNIT).clamp(1, u64::from(u32::MAX >> 3)) as u32;
        Self { permits: Arc::new(Semaphore::new(units as usize)), units }
    }

    /// Waits until `bytes` more fit; a block larger than the whole budget waits until it is alone.
    pub(crate) async fn reserve(&self, bytes: u64) -> Result<Share, Error> {
        Arc::clone(&self.permits).acquire_many_owned(self.units(bytes)).await.map_err(|_| Error::Cancelled)
    }

    /// Returns a share of `bytes`, if they fit now.
    pub(crate) fn try_reserve(&self, bytes: u64) -> Option<Share> {
        Arc::clone(&self.permits).try_acquire_many_owned(self.units(bytes)).ok()
    }

    /// Makes a share one of `bytes` in all, if they fit now; says whether they did. Never waits: who has a share and waits
    /// for more could wait for another who does the same.
    pub(crate) fn try_grow(&self, share: &mut Option<Share>, bytes: u64) -> bool {
        let taken = share.as_ref().map_or(0, |share| share.num_permits() as u32);
        let more = self.units(bytes).saturating_sub(taken);
        let Ok(more) = Arc::clone(&self.permits).try_acquire_many_owned(more) else { return false };
        match share {
            Some(share) => share.merge(more),
            None => *share = Some(more),
        }
        true
    }

    /// Returns how many bytes it has in all.
    pub(crate) fn limit(&self) -> u64 {
        u64::from(self.units) * BUDGET_UNIT
    }

    /// Returns how many of them are taken.
    pub(crate) fn used(&self) -> u64 {
        u64::from(self.units).saturating_sub(self.permits.available_permits() as u64) * BUDGET_UNIT
    }

    fn units(&self, bytes: u64) -> u32 {
        bytes.div_ceil(BUDGET_UNIT).min(u64::from(self.units)) as u32
    }
}

/// Bytes of a budget; given back when dropped.
pub(crate) type Share = OwnedSemaphorePermit;

/// How a stream ended without a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// The calibrator has nothing more for us.
    Complete,
    /// Nothing came for a while. No fault: whether the calibrator lives is the coordinator's to know.
    Silent,
}

/// Which shard of what.
#[derive(Debug, Clone)]
pub(crate) struct ShardKey {
    /// The run.
    pub(crate) run: RunId,
    /// Its shot.
    pub(crate) shot: u32,
    /// The shard.
    pub(crate) shard: u32,
    /// How many shards, those of one pass over the shot's samples, become one sum as they come; 1 where each stays apart.
    pub(crate) of: u32,
}

/// One more piece is in the store, or is not waited for any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Which block.
    pub(crate) block: u32,
    /// From which shard.
    pub(crate) shard: u32,
}

/// A failure and the block it hit.
#[derive(Debug)]
pub(crate) struct PullFailure {
    /// Which block.
    pub(crate) block: u32,
    /// What happened.
    pub(crate) error: Error,
}

/// What pulling a shard needs.
#[derive(Debug)]
pub(crate) struct Puller {
    /// Which shard.
    pub(crate) key: ShardKey,
    /// Where factors go.
    pub(crate) store: Store,
    /// Adds them to those of the shards before, if a pass has several.
    pub(crate) merger: Merger,
    /// How calibrators are reached.
    pub(crate) connector: Connector,
    /// Where they come from.
    pub(crate) plan: watch::Receiver<Plan>,
    /// Told of every piece.
    pub(crate) stored: mpsc::Sender<Stored>,
    /// Shared by all shards.
    pub(crate) budget: Budget,
    /// The calibrator of this process, from which nothing has to be streamed.
    pub(crate) neighbour: Option<Neighbour>,
    /// Counts the bytes that came or were added to others.
    pub(crate) received: Arc<AtomicU64>,
    /// Names of our mutations.
    pub(crate) ids: RequestIds,
}

/// A half-received block and its share of the budget, if it takes memory of ours.
#[derive(Debug)]
struct Receiving {
    partial: Partial,
    share: Option<Share>,
}

/// What a pull is at.
#[derive(Debug, Default)]
struct Desk {
    receiving: Option<Receiving>,
    /// The block that is being received or kept: the one that a failure hit.
    block: Option<u32>,
}

impl Puller {
    /// Brings all `missing` blocks into the store.
    ///
    /// Cancel-safe: what was stored stays, what was not is asked for again.
    pub(crate) async fn pull(mut self, mut missing: BTreeSet<u32>) -> Result<(), PullFailure> {
        let mut desk = Desk::default();
        let mut failures = 0;
        loop {
            // The plan first: what it calls stored was in the store before.
            let source = self.plan.borrow_and_update().source(self.key.shard);
            let before = missing.len();
            let result = match self.take_stored(&mut missing).await {
                Ok(()) if missing.is_empty() => return Ok(()),
                Ok(()) => self.advance(&source, &mut missing, &mut desk).await,
                Err(error) => Err(error),
            };
            let Some(&block) = missing.first() else { return Ok(()) };
            if missing.len() < before {
                failures = 0;
            }
            match result {
                Ok(()) => {}
                Err(error) if error.is_transient() && failures < MAX_FAILURES => {
                    failures += 1;
                    metrics::resumed();
                    if let Error::Stream(StreamFault::Checksum { .. } | StreamFault::Digest { .. }) = &error {
                        metrics::checksum_failed();
                    }
                    let shard = self.key.shard;
                    let error = service::status::chain(&error);
                    // One break is usual: a calibrator that stops, a run that pauses. A second one is not.
                    if failures == 1 {
                        tracing::info!(shard, error, "factors will be asked for again");
                    } else {
                        tracing::warn!(shard, failures, error, "factors will be asked for again");
                    }
                    self.pause(failures).await;
                }
                Err(error) => {
                    let block = desk.block.filter(|block| missing.contains(block)).unwrap_or(block);
                    return Err(PullFailure { block, error });
                }
            }
        }
    }

    /// Takes one step from the source: waits for it, or streams from it until the stream ends.
    async fn advance(&mut self, source: &Source, missing: &mut BTreeSet<u32>, desk: &mut Desk) -> Result<(), Error> {
        match source {
            Source::Waiting => self.plan.changed().await.map_err(|_| Error::Cancelled),
            // Nothing of it is waited for; which shards count the tasks say that compute with them.
            Source::Quarantined => {
                for block in missing.clone() {
                    self.announce(block, missing).await?;
                }
                Ok(())
            }
            Source::Stored => {
                Err(Error::FactorsGone { shard: self.key.shard, blocks: missing.iter().copied().collect() })
            }
            Source::Running { endpoint, generation } => {
                let before = missing.len();
                let ended = match self.neighbour.as_ref().filter(|neighbour| neighbour.endpoint == *endpoint) {
                    Some(neighbour) => {
                        desk.receiving = None; // the rest of another calibrator's is not to be had here
                        self.take(neighbour, *generation, missing, desk).await
                    }
                    None => self.stream(endpoint, *generation, missing, desk).await,
                };
                match ended? {
                    Ended::Complete if missing.len() == before => {
                        Err(Error::NothingCame { endpoint: endpoint.clone() })
                    }
                    Ended::Complete | Ended::Silent => Ok(()),
                }
            }
        }
    }

    /// Forgets the blocks that are in the store and announces them.
    async fn take_stored(&self, missing: &mut BTreeSet<u32>) -> Result<(), Error> {
        for block in missing.clone() {
            let key = keys::factors(&self.key.run, self.key.shot, self.key.shard, block);
            if self.store.exists(&key).await? {
                self.announce(block, missing).await?;
            }
        }
        Ok(())
    }

    async fn announce(&self, block: u32, missing: &mut BTreeSet<u32>) -> Result<(), Error> {
        missing.remove(&block);
        self.stored.send(Stored { block, shard: self.key.shard }).await.map_err(|_| Error::Cancelled)
    }

    /// Reads one stream to its end; every block that is whole goes to the store and is released.
    async fn stream(
        &self,
        endpoint: &str,
        generation: Generation,
        missing: &mut BTreeSet<u32>,
        desk: &mut Desk,
    ) -> Result<Ended, Error> {
        let bulk = self.connector.bulk_channel(endpoint)?;
        let mut control = CalibratorServiceClient::new(self.connector.channel(endpoint)?);
        // Who has lost the shard has nothing more for us, and may be cut off without our connection showing it.
        let mut moved = pin!(self.moved(endpoint, generation));
        let mut stream = tokio::select! {
            opened = self.open(bulk, generation, missing, desk.receiving.as_ref()) => opened?,
            () = &mut moved => return Ok(Ended::Silent),
        };
        loop {
            // A call's deadline ends with the response head; the body needs its own.
            let message = tokio::select! {
                biased; // what has come is taken
                message = tokio::time::timeout(IDLE, stream.message()) => message,
                () = &mut moved => return Ok(Ended::Silent),
            };
            let Ok(message) = message else { return Ok(Ended::Silent) };
            match message.map_err(|s| Error::Calibrator(Box::new(s)))? {
                None => return Ok(Ended::Complete),
                Some(ReceivedPart::Unknown) => {}
                Some(ReceivedPart::Header(header)) => self.begin(&header, missing, desk).await?,
                Some(ReceivedPart::Chunk(chunk)) => {
                    let Some(open) = desk.receiving.as_mut() else {
                        let problem = "a chunk came before a header".to_owned();
                        return Err(StreamFault::Contract { block: chunk.block, problem }.into());
                    };
                    let (block, bytes) = (chunk.block, chunk.bytes());
                    let whole = open.partial.append(chunk)?;
                    self.received.fetch_add(bytes, Ordering::Relaxed);
                    metrics::received(bytes);
                    if let Some(received) = desk.receiving.take_if(|_| whole) {
                        let bytes = received.partial.offset();
                        self.keep(received).await?;
                        // Before it is announced: whoever hears that all is stored may end this.
                        self.release(&mut control, generation, block).await;
                        self.catch_up(block, bytes).await?;
                        self.announce(block, missing).await?;
                        desk.block = None;
                    }
                }
            }
        }
    }

    /// Returns once the shard's factors come from elsewhere.
    async fn moved(&self, endpoint: &str, generation: Generation) {
        let (mut plan, shard) = (self.plan.clone(), self.key.shard);
        let present = Source::Running { endpoint: endpoint.to_owned(), generation };
        if plan.wait_for(|plan| plan.source(shard) != present).await.is_err() {
            std::future::pending::<()>().await; // nobody follows the plan any more: whoever pulls is about to be dropped
        }
    }

    async fn open(
        &self,
        bulk: Wire,
        generation: Generation,
        missing: &BTreeSet<u32>,
        receiving: Option<&Receiving>,
    ) -> Result<FactorStream, Error> {
        let request = v1::StreamFactorsRequest {
            run: self.key.run.to_string(),
            shot: self.key.shot,
            shard: self.key.shard,
            generation: generation.0,
            blocks: missing.iter().copied().collect(),
            resume_block: receiving.map(|r| r.partial.block()),
            resume_offset: receiving.map_or(0, |r| r.partial.offset()),
        };
        match tokio::time::timeout(ANSWER, FactorStream::open(bulk, request)).await {
            Ok(answer) => answer.map_err(|s| Error::Calibrator(Box::new(s))),
            Err(_) => Err(Error::Silent { seconds: ANSWER.as_secs() }),
        }
    }

    /// Prepares for the block that a header announces, or goes on with what is here of it.
    async fn begin(&self, header: &v1::FactorHeader, missing: &BTreeSet<u32>, desk: &mut Desk) -> Result<(), Error> {
        if !missing.contains(&header.block) {
            let problem = "it was not asked for".to_owned();
            return Err(StreamFault::Contract { block: header.block, problem }.into());
        }
        if desk.receiving.as_ref().is_some_and(|r| r.partial.continues(header)) {
            return Ok(());
        }
        // Given back before more is asked for, or a budget of one block could wait for itself.
        desk.receiving = None;
        desk.block = Some(header.block);
        let partial = Partial::begin(header)?;
        desk.receiving = Some(Receiving { partial, share: Some(self.budget.reserve(header.bytes).await?) });
        Ok(())
    }

    /// Checks a whole block and puts it into the store, added to the shards before it if it is its turn.
    async fn keep(&self, whole: Receiving) -> Result<(), Error> {
        let Receiving { partial, share } = whole;
        let block = partial.block();
        let bytes = partial.offset();
        let parts = partial.finish()?;
        if self.key.of > 1 {
            let number = self.key.shard % self.key.of;
            self.merger.keep(&self.of_block(block), number, Came { parts, bytes, share }).await?;
        } else {
            let key = keys::factors(&self.key.run, self.key.shot, self.key.shard, block);
            self.store.put_parts(&key, parts).await?;
        }
        tracing::debug!(shard = self.key.shard, block, bytes, "factors stored");
        Ok(())
    }

    /// Adds what waits for this shard, if a pass has several.
    async fn catch_up(&self, block: u32, bytes: u64) -> Result<(), Error> {
        if self.key.of == 1 {
            return Ok(());
        }
        self.merger.catch_up(&self.of_block(block), bytes, &self.received).await
    }

    /// Returns what the shard's factors of a block are added to.
    fn of_block(&self, block: u32) -> BlockPass {
        let ShardKey { run, shot, shard, of } = self.key.clone();
        BlockPass { run, shot, pass: shard / of, shards: of, block }
    }

    /// Tells the calibrator that a block is stored. It also looks into the store itself, so a lost word does no harm.
    async fn release(&self, control: &mut CalibratorServiceClient<Wire>, generation: Generation, block: u32) {
        let request = v1::ReleaseFactorsRequest {
            request_id: self.ids.next(),
            run: self.key.run.to_string(),
            shot: self.key.shot,
            shard: self.key.shard,
            generation: generation.0,
            block,
        };
        if let Ok(Err(status)) = tokio::time::timeout(RELEASE, control.release_factors(request)).await {
            tracing::debug!(shard = self.key.shard, block, error = status.message(), "factors were not released");
        }
    }

    /// Waits before the next attempt, or until the plan changes.
    async fn pause(&mut self, failures: u32) {
        let longest = PAUSE.1.min(PAUSE.0 * 2_u32.saturating_pow(failures.min(16)));
        let pause = longest.mul_f64(rand::random_range(0.0..1.0));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = self.plan.changed() => {}
        }
    }
}
