//! Names of objects in the store.

use types::RunId;

fn shot(run: &RunId, shot: u32) -> String {
    format!("runs/{run}/shots/{shot:04}")
}

/// Returns the key of one block's factors from one shard.
pub(crate) fn factors(run: &RunId, n: u32, shard: u32, block: u32) -> String {
    format!("{}/factors/{shard:04}/{block:04}", shot(run, n))
}

/// Returns the key of one block's removal paths.
pub(crate) fn paths(run: &RunId, n: u32, block: u32) -> String {
    format!("{}/paths/{block:04}", shot(run, n))
}

/// Returns the key of new weights by their digest.
pub(crate) fn weights(run: &RunId, n: u32, blake3: &str) -> String {
    format!("{}/weights/{blake3}", shot(run, n))
}
