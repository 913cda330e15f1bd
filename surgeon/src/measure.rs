//! One shard's factors pulled as a surgeon does, without a coordinator: for `make bench-net`, which measures what the way from
//! a calibrator costs.

use crate::error::Error;
use crate::plan::{Plan, Source};
use crate::pull::{Budget, Puller, ShardKey};
use service::{Connector, RequestIds, Store};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{mpsc, watch};
use types::{Generation, RunId};

/// Brings so many blocks of shot 1, shard 0, generation 1 of run `run` from a calibrator into memory, and returns their bytes.
///
/// # Errors
/// The calibrator cannot be reached, or what it sends cannot be taken.
pub async fn pull_factors(connector: &Connector, endpoint: &str, run: RunId, blocks: u32) -> Result<u64, Error> {
    let source = Source::Running { endpoint: endpoint.to_owned(), generation: Generation(1) };
    let (_plan, plan) = watch::channel(Plan::of(0, source));
    let (stored, mut heard) = mpsc::channel(blocks.max(1) as usize);
    let received = Arc::new(AtomicU64::new(0));
    let store = Store::memory();
    let puller = Puller {
        key: ShardKey { run: run.clone(), shot: 1, shard: 0 },
        store: store.clone(),
        connector: connector.clone(),
        plan,
        stored,
        budget: Budget::new(crate::Options::RECEIVE_BYTES),
        received: Arc::clone(&received),
        ids: RequestIds::new("bench"),
    };
    // What was pulled is let go of at once: the way is measured, not the memory.
    let forget = async {
        while let Some(piece) = heard.recv().await {
            store.delete(&service::keys::factors(&run, 1, 0, piece.block)).await?;
        }
        Ok::<_, Error>(())
    };
    let pull = async { puller.pull((0..blocks).collect()).await.map_err(|failure| failure.error) };
    tokio::try_join!(pull, forget)?;
    Ok(received.load(Ordering::Relaxed))
}
