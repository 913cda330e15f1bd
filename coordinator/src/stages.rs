//! The stages of a run. Each one: ask the journal, give out what is missing, make results durable.

mod allocate;
mod calibrate;
mod commit;
mod finish;
mod prepare;
mod score;

pub(crate) use allocate::allocate;
pub(crate) use calibrate::calibrate;
pub use calibrate::shard_plan;
pub(crate) use commit::commit;
pub(crate) use finish::{evaluate, materialise};
pub(crate) use prepare::{open, prepare};
pub(crate) use score::{score, update};

use crate::error::RunError;
use crate::event::Prepared;
use crate::run::Run;
use proto::InvalidMessage;
use types::UnitGroup;

/// Returns what Prepare found.
fn prepared(run: &Run) -> Result<Prepared, RunError> {
    run.history(|h| h.prepared.clone()).ok_or_else(|| invalid("journal", "a stage ran before the run was prepared"))
}

/// Returns how many units of a group are left after `shot`.
fn units_left(run: &Run, shot: u32, group: &UnitGroup) -> u32 {
    let all = group.units * group.together;
    let state = run.history(|h| h.checkpoint_after(shot).layer(&group.layer).cloned());
    state.map_or(all, |s| u32::try_from(s.kept.len()).unwrap_or(u32::MAX))
}

fn invalid(what: impl Into<String>, problem: impl Into<String>) -> RunError {
    RunError::Invalid { what: what.into(), problem: problem.into() }
}

/// Returns the error for a worker's message that does not parse.
fn bad_message(what: &str) -> impl Fn(InvalidMessage) -> RunError {
    let what = what.to_owned();
    move |e| invalid(what.clone(), e.to_string())
}

/// Returns the error for a result of the wrong kind.
fn wrong_result(what: &str) -> RunError {
    invalid(format!("result of {what}"), "it is the result of another stage")
}
