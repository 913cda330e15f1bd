//! Names of objects in the store.

use types::RunId;

/// Returns the folder of a run's journal.
pub(crate) fn journal(run: &RunId) -> String {
    format!("runs/{run}/journal")
}

/// Returns the key of one journal record.
pub(crate) fn record(run: &RunId, sequence: u64) -> String {
    format!("runs/{run}/journal/{sequence:010}")
}

/// Returns the folder of one shot.
pub(crate) fn shot(run: &RunId, shot: u32) -> String {
    format!("runs/{run}/shots/{shot:04}")
}

/// Returns the folder of a shot's factors.
pub(crate) fn factors(run: &RunId, n: u32) -> String {
    format!("{}/factors", shot(run, n))
}

/// Returns the folder of a shot's new weights.
pub(crate) fn weights(run: &RunId, n: u32) -> String {
    format!("{}/weights", shot(run, n))
}

/// Returns the key of a shot's manifest.
pub(crate) fn checkpoint(run: &RunId, n: u32) -> String {
    format!("{}/checkpoint", shot(run, n))
}
