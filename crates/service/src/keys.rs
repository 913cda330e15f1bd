//! Names of objects in the store: the one place that knows how a run's folder looks, for all three services.
//!
//! ```text
//! runs/{run}/journal/{sequence}                              a journal record
//! runs/{run}/shots/{shot}/factors/{shard}/{block}            a block's factor sums over one shard; empty once they are merged; of a
//!                                                            quarantined one, some blocks at most
//! runs/{run}/shots/{shot}/factors/merged/{pass}/{block}/{shards}
//!                                                            their sum over the first so many shards of a pass
//! runs/{run}/shots/{shot}/weighers/{pass}/{block}            what weighs tokens in that pass of a power iteration
//! runs/{run}/shots/{shot}/scores/{round}/{block}             the removal paths of a block's layers, or histograms of costs
//! runs/{run}/shots/{shot}/refined/{round}/{block}            histograms of the costs near the threshold
//! runs/{run}/shots/{shot}/running/{block}                    a block's factor sums over this shot and, fading, earlier ones
//! runs/{run}/shots/{shot}/weights/{blake3}                   new weights of one layer
//! runs/{run}/shots/{shot}/removal_order.jsonl                units in the order of their cost, if paths are kept
//! runs/{run}/shots/{shot}/rounds/{round}                     the manifest after a round that is not the shot's last
//! runs/{run}/shots/{shot}/checkpoint                         the shot's manifest, written last
//! runs/{run}/shots/{shot}/corrected                          its manifest after a correction
//! artifacts/{blake3}                                         what a caller brought
//! ```

use types::RunId;

/// Returns the key of what a caller brought, by its digest.
pub fn artifact(blake3: &str) -> String {
    format!("artifacts/{blake3}")
}

/// Returns the folder of a run.
pub fn run(run: &RunId) -> String {
    format!("runs/{run}")
}

/// Returns the folder of a run's journal.
pub fn journal(run: &RunId) -> String {
    format!("runs/{run}/journal")
}

/// Returns the key of one journal record.
pub fn record(run: &RunId, sequence: u64) -> String {
    format!("{}/{sequence:010}", journal(run))
}

/// Returns the folder of one shot.
fn shot(run: &RunId, number: u32) -> String {
    format!("runs/{run}/shots/{number:04}")
}

/// Returns the folder of a shot's factors.
pub fn all_factors(run: &RunId, number: u32) -> String {
    format!("{}/factors", shot(run, number))
}

/// Returns the key of one block's factors from one shard.
pub fn factors(run: &RunId, number: u32, shard: u32, block: u32) -> String {
    format!("{}/{shard:04}/{block:04}", all_factors(run, number))
}

/// Returns the folder of the sums over the first shards of one pass, of one block.
pub fn all_merged(run: &RunId, number: u32, pass: u32, block: u32) -> String {
    format!("{}/merged/{pass:04}/{block:04}", all_factors(run, number))
}

/// Returns the key of the sum over the first `shards` shards of one pass, of one block. The count is part of the key: who is
/// behind never writes over what is further.
pub fn merged(run: &RunId, number: u32, pass: u32, block: u32, shards: u32) -> String {
    format!("{}/{shards:05}", all_merged(run, number, pass, block))
}

/// Returns the folder of what weighs tokens in a shot's later passes.
pub fn all_weighers(run: &RunId, number: u32) -> String {
    format!("{}/weighers", shot(run, number))
}

/// Returns the key of what weighs tokens in one block in a later pass.
pub fn weighers(run: &RunId, number: u32, pass: u32, block: u32) -> String {
    format!("{}/{pass:04}/{block:04}", all_weighers(run, number))
}

/// Returns the key of one block's removal paths, or of its histograms of costs.
pub fn scores(run: &RunId, number: u32, round: u32, block: u32) -> String {
    format!("{}/scores/{round:04}/{block:04}", shot(run, number))
}

/// Returns the key of one block's histograms of the costs near the threshold.
pub fn refined(run: &RunId, number: u32, round: u32, block: u32) -> String {
    format!("{}/refined/{round:04}/{block:04}", shot(run, number))
}

/// Returns the folder of a shot's running factors.
pub fn all_running(run: &RunId, number: u32) -> String {
    format!("{}/running", shot(run, number))
}

/// Returns the key of one block's factors over this shot and earlier ones.
pub fn running(run: &RunId, number: u32, block: u32) -> String {
    format!("{}/{block:04}", all_running(run, number))
}

/// Returns the folder of a shot's new weights.
pub fn all_weights(run: &RunId, number: u32) -> String {
    format!("{}/weights", shot(run, number))
}

/// Returns the key of new weights by their digest.
pub fn weights(run: &RunId, number: u32, blake3: &str) -> String {
    format!("{}/{blake3}", all_weights(run, number))
}

/// Returns the key of a shot's manifest after its correction; `attempt` counts how often the shot was taken back.
pub fn corrected(run: &RunId, number: u32, attempt: u32) -> String {
    format!("{}/corrected{}", shot(run, number), again(attempt))
}

/// Returns the key of the manifest after one of a shot's rounds.
pub fn round(run: &RunId, number: u32, round: u32) -> String {
    format!("{}/rounds/{round:04}", shot(run, number))
}

/// Returns what tells a manifest from the one of an earlier attempt: workers know weights by their manifest's key.
fn again(attempt: u32) -> String {
    if attempt == 0 { String::new() } else { format!("-{attempt}") }
}

/// Returns the key of the order in which units leave, kept with the paths.
pub fn removal_order(run: &RunId, number: u32) -> String {
    format!("{}/removal_order.jsonl", shot(run, number))
}

/// Returns the key of a shot's manifest; `attempt` counts how often the shot was taken back.
pub fn checkpoint(run: &RunId, number: u32, attempt: u32) -> String {
    format!("{}/checkpoint{}", shot(run, number), again(attempt))
}
