//! A calibrator and a surgeon in one process: factors go from the one's shelf into the other's store as they lie there,
//! without a message, a checksum or a copy.
//!
//! Neither knows the other; both know this. What paces them is what paces them over a network: a block is forgotten when it
//! is released, and it is released when it is in the store.

use bytes::Bytes;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;
use tonic::Status;
use types::{Generation, RunId};

/// One attempt at sweeping one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SweepKey {
    /// The run.
    pub run: RunId,
    /// Its shot.
    pub shot: u32,
    /// The shard.
    pub shard: u32,
    /// The attempt.
    pub generation: Generation,
}

impl SweepKey {
    /// Returns whether both are attempts at the same work.
    pub fn same_work(&self, other: &Self) -> bool {
        self.run == other.run && self.shot == other.shot && self.shard == other.shard
    }
}

/// A finished block that waits to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalBlock {
    /// Which.
    pub block: u32,
    /// Bytes of memory that reading it takes: none for one that lies in memory.
    pub to_read: u64,
}

/// Factors of a calibrator in this process. It refuses as its service would over a network, with the same reasons.
#[tonic::async_trait]
pub trait LocalFactors: Debug + Send + Sync {
    /// Returns the first ready block of `asked`, waiting for it; `None` when none of them is to come any more.
    ///
    /// Cancel-safe: it changes nothing.
    async fn next(&self, sweep: &SweepKey, asked: &BTreeSet<u32>) -> Result<Option<LocalBlock>, Status>;

    /// Returns the bytes of a ready block, in parts; those in memory are not copied.
    async fn read(&self, sweep: &SweepKey, block: u32) -> Result<Vec<Bytes>, Status>;

    /// Forgets a block that is in the store. Doing it again changes nothing.
    async fn release(&self, sweep: &SweepKey, block: u32) -> Result<(), Status>;
}

/// The calibrator beside a surgeon.
#[derive(Debug, Clone)]
pub struct Neighbour {
    /// Where the others reach it: factors that are said to be there are here.
    pub endpoint: String,
    /// What it has.
    pub factors: Arc<dyn LocalFactors>,
}
