//! Names of objects in the store.

use crate::shelf::SweepKey;

/// Returns the key of one block's factors from one shard, where its surgeon puts them.
pub(crate) fn factors(key: &SweepKey, block: u32) -> String {
    format!("runs/{}/shots/{:04}/factors/{:04}/{block:04}", key.run, key.shot, key.shard)
}
