//! Names of objects in the store: the one place that knows how a run's folder looks, for all three services.
//!
//! ```text
//! runs/{run}/journal/{sequence}                              a journal record
//! runs/{run}/shots/{shot}/factors/{shard}/{block}            a block's factor sums over one shard; empty once they are merged; of a
//!                                                            quarantined one, some blocks at most
//! runs/{run}/shots/{shot}/factors/merged/{pass}/{block}/{shards}
//!                                                            their sum over the first so many shards of a pass
//! runs/{run}/shots/{shot}/weighers/{pass}/{block}            what weighs tokens in that pass of a power iteration
//! runs/{run}/shots/{shot}/scores/{round}/{block}-{blake3}    the removal paths of a block's layers, or histograms of costs
//! runs/{run}/shots/{shot}/refined/{round}/{block}-{blake3}   histograms of the costs near the threshold
//! runs/{run}/shots/{shot}/running/{block}                    a block's factor sums over this shot and, fading, earlier ones
//! runs/{run}/shots/{shot}/weights/{blake3}                   new weights of one layer
//! runs/{run}/shots/{shot}/removal_order.jsonl                units in the order of their cost, if paths are kept
//! runs/{run}/shots/{shot}/rounds/{round}                     the manifest after a round that is not the shot's last
//! runs/{run}/shots/{shot}/checkpoint                         the shot's manifest, written last
//! runs/{run}/shots/{shot}/corrected                          its manifest after a correction
//! artifacts/{blake3}                                         what callers brought, whole
//! uploads/{blake3}-{bytes}-{nonce}/{offset}                  a part of what they have not brought whole yet
//! ```

use types::RunId;

/// The folder of what callers brought.
pub const ARTIFACTS: &str = "artifacts";
/// The folder of all runs.
pub const RUNS: &str = "runs";
/// The folder of what callers have not brought whole yet.
pub const UPLOADS: &str = "uploads";

/// Returns the key of what callers brought, by its digest.
pub fn artifact(blake3: &str) -> String {
    format!("{ARTIFACTS}/{blake3}")
}

/// Says whether a run's key is of something that callers may read: results, and sums of factors. Everything else is how services
/// work with each other, the journal above all.
pub fn is_result(key: &str) -> bool {
    let mut parts = key.split('/');
    let [Some(RUNS), Some(run), Some("shots"), Some(shot)] = std::array::from_fn(|_| parts.next()) else {
        return false;
    };
    let rest: Vec<&str> = parts.collect();
    let is_shown = match *rest.as_slice() {
        ["removal_order.jsonl"] => true,
        [manifest] => ["checkpoint", "corrected"].iter().any(|name| is_manifest(manifest, name)),
        ["rounds" | "running", number] => is_number(number),
        ["weights", blake3] => is_digest(blake3),
        ["scores", round, name] => is_number(round) && is_of_block(name),
        ["factors", "merged", pass, block, shards] => [pass, block, shards].into_iter().all(is_number),
        _ => false,
    };
    is_shown && is_number(shot) && RunId::new(run).is_ok()
}

/// Returns the digest that a key ends with, if what lies there is named by its digest.
pub fn digest(key: &str) -> Option<&str> {
    let (folder, name) = key.rsplit_once('/')?;
    let (name, by_digest) = match folder.split('/').nth(4) {
        Some("scores" | "refined") => (name.rsplit_once('-')?.1, true),
        kind => (name, folder == ARTIFACTS || kind == Some("weights")),
    };
    (by_digest && is_digest(name)).then_some(name)
}

/// Says whether a name is a block's, with the digest of what is said of it; before there were runs without it.
fn is_of_block(name: &str) -> bool {
    let (block, blake3) = name.split_once('-').map_or((name, None), |(block, blake3)| (block, Some(blake3)));
    is_number(block) && blake3.is_none_or(is_digest)
}

fn is_manifest(name: &str, kind: &str) -> bool {
    name.strip_prefix(kind).is_some_and(|rest| rest.is_empty() || rest.strip_prefix('-').is_some_and(is_number))
}

fn is_number(text: &str) -> bool {
    (1..=10).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
}

/// Says whether a text is a BLAKE3 digest as keys have it.
pub fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
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

/// Returns the key of one block's removal paths, or of its histograms of costs. The digest is part of the key: what a late attempt
/// found out never takes the place of what the journal names.
pub fn scores(run: &RunId, number: u32, round: u32, block: u32, blake3: &str) -> String {
    format!("{}/scores/{round:04}/{block:04}-{blake3}", shot(run, number))
}

/// Returns the key of one block's histograms of the costs near the threshold, see [`scores`].
pub fn refined(run: &RunId, number: u32, round: u32, block: u32, blake3: &str) -> String {
    format!("{}/refined/{round:04}/{block:04}-{blake3}", shot(run, number))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_run_found_is_shown_and_how_it_works_is_hidden() {
        let run = RunId::new("r-1").unwrap();
        let blake3 = "0a".repeat(32);
        let shown = [
            checkpoint(&run, 1, 0),
            checkpoint(&run, 1, 2),
            corrected(&run, 1, 0),
            round(&run, 1, 3),
            weights(&run, 1, &blake3),
            removal_order(&run, 1),
            scores(&run, 1, 0, 7, &blake3),
            "runs/r-1/shots/0001/scores/0000/0007".to_owned(),
            merged(&run, 1, 0, 7, 2),
            running(&run, 1, 7),
        ];
        for key in shown {
            assert!(is_result(&key), "{key}");
        }
        let hidden = [
            record(&run, 1),
            journal(&run),
            super::run(&run),
            factors(&run, 1, 0, 7),
            weighers(&run, 1, 1, 7),
            refined(&run, 1, 0, 7, &blake3),
            artifact(&blake3),
            "runs/r-1/shots/0001/scores/0000/0007-x".to_owned(),
            format!("{}/x", checkpoint(&run, 1, 0)),
            checkpoint(&run, 1, 0) + "#1",
            "runs/r-1/shots/0001/weights/..".to_owned(),
            "runs/../shots/0001/checkpoint".to_owned(),
            "runs/r-1/shots/0001/../../journal/0000000001".to_owned(),
            String::new(),
        ];
        for key in hidden {
            assert!(!is_result(&key), "{key}");
        }
        assert_eq!(digest(&weights(&run, 1, &blake3)), Some(blake3.as_str()));
        assert_eq!(digest(&artifact(&blake3)), Some(blake3.as_str()));
        assert_eq!(digest(&scores(&run, 1, 0, 7, &blake3)), Some(blake3.as_str()));
        assert_eq!(digest("runs/r-1/shots/0001/scores/0000/0007"), None);
        assert_eq!(digest(&checkpoint(&run, 1, 0)), None);
    }
}
