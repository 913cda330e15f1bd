//! One shard's factors from the calibrator of this process: handed over as they lie there, without stream, checksum or copy.
//!
//! What it has and when, and when it may forget it, is as over a network.

use super::{Desk, Ended, IDLE, Puller, RELEASE, Receiving};
use crate::error::Error;
use crate::metrics;
use crate::receive::{Partial, StreamFault};
use service::{LocalBlock, Neighbour, SweepKey};
use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::atomic::Ordering;
use tonic::Status;
use types::Generation;

impl Puller {
    /// Takes blocks until the neighbour has none of the missing ones; every one goes to the store and is released.
    ///
    /// Cancel-safe, as [`Puller::pull`].
    pub(super) async fn take(
        &self,
        neighbour: &Neighbour,
        generation: Generation,
        missing: &mut BTreeSet<u32>,
        desk: &mut Desk,
    ) -> Result<Ended, Error> {
        let sweep = SweepKey { run: self.key.run.clone(), shot: self.key.shot, shard: self.key.shard, generation };
        let mut moved = pin!(self.moved(&neighbour.endpoint, generation));
        while !missing.is_empty() {
            let next = tokio::select! {
                biased; // what is ready is taken
                next = tokio::time::timeout(IDLE, neighbour.factors.next(&sweep, missing)) => next,
                () = &mut moved => return Ok(Ended::Silent),
            };
            let Ok(next) = next else { return Ok(Ended::Silent) };
            let Some(found) = next.map_err(refused)? else { break };
            desk.block = Some(found.block);
            self.hand_over(neighbour, &sweep, found, missing).await?;
        }
        Ok(Ended::Complete)
    }

    /// Puts one block into the store as it is, and has the neighbour forget it.
    async fn hand_over(
        &self,
        neighbour: &Neighbour,
        sweep: &SweepKey,
        LocalBlock { block, to_read }: LocalBlock,
        missing: &mut BTreeSet<u32>,
    ) -> Result<(), Error> {
        if !missing.contains(&block) {
            return Err(StreamFault::Contract { block, problem: "it was not asked for".to_owned() }.into());
        }
        // What lies in memory there takes none of ours.
        let share = if to_read == 0 { None } else { Some(self.budget.reserve(to_read).await?) };
        let parts = neighbour.factors.read(sweep, block).await.map_err(refused)?;
        let partial = Partial::whole(block, parts);
        let bytes = partial.offset();
        self.received.fetch_add(bytes, Ordering::Relaxed);
        metrics::received(bytes);
        self.keep(Receiving { partial, share }).await?;
        tracing::debug!(shard = sweep.shard, block, bytes, "factors taken from the calibrator of this process");
        // Before it is announced: whoever hears that all is stored may end this.
        if let Ok(Err(status)) = tokio::time::timeout(RELEASE, neighbour.factors.release(sweep, block)).await {
            tracing::debug!(shard = sweep.shard, block, error = status.message(), "factors were not released");
        }
        self.catch_up(block, bytes).await?;
        self.announce(block, missing).await
    }
}

fn refused(status: Status) -> Error {
    Error::Calibrator(Box::new(status))
}
