//! The stages of a run. Each one: ask the journal, give out what is missing, make results durable.

mod adapt;
mod allocate;
mod calibrate;
mod commit;
mod correct;
mod curve;
mod elements;
mod finish;
mod inherit;
mod prepare;
mod quarantine;
mod score;

pub(crate) use adapt::take_back;
pub(crate) use allocate::allocate;
pub use calibrate::shard_plan;
pub(crate) use calibrate::{calibrate, iterate};
pub(crate) use commit::{clean, commit};
pub(crate) use correct::correct;
pub(crate) use elements::{next_round, refine};
pub(crate) use finish::{evaluate, materialise};
pub(crate) use inherit::inherit;
pub(crate) use prepare::{open, prepare};
pub(crate) use quarantine::left_out;
pub(crate) use score::{score, update};

use crate::error::RunError;
use crate::event::Prepared;
use crate::run::Run;
use bytes::Bytes;
use proto::InvalidMessage;
use types::{Checkpoint, FactorDamping, ObjectRef, Sizes, UnitGroup};

/// Returns what Prepare found.
fn prepared(run: &Run) -> Result<Prepared, RunError> {
    run.history(|h| h.prepared.clone()).ok_or_else(|| invalid("journal", "a stage ran before the run was prepared"))
}

/// Returns the size before `shot`.
fn size_before(run: &Run, shot: u32) -> Result<Sizes, RunError> {
    run.history(|h| h.sizes(shot - 1)).ok_or_else(|| invalid("journal", "the last shot has no size"))
}

/// Returns how many units of a group are left after `shot`.
fn units_left(run: &Run, shot: u32, group: &UnitGroup) -> u32 {
    let all = group.units * group.together;
    run.history(|h| h.layer_after(shot, &group.layer).map_or(all, |s| s.units_left(all)))
}

/// Returns what a surgeon put into the store, if it is what the journal says.
pub(crate) async fn load_json<T: serde::de::DeserializeOwned>(run: &Run, object: &ObjectRef) -> Result<T, RunError> {
    let bytes = run.store().get(&object.key).await?;
    if blake3::hash(&bytes).to_hex().as_str() != object.blake3 {
        return Err(invalid(format!("object '{}'", object.key), "its BLAKE3 is not the one in the journal"));
    }
    serde_json::from_slice(&bytes).map_err(|e| invalid(format!("object '{}'", object.key), e.to_string()))
}

/// Writes what a checkpoint consists of.
async fn put_manifest(run: &Run, key: &str, checkpoint: &Checkpoint) -> Result<(), RunError> {
    let manifest = serde_json::to_vec_pretty(checkpoint).map_err(|e| invalid("manifest", e.to_string()))?;
    Ok(run.store().put(key, Bytes::from(manifest)).await?)
}

/// Returns in how many layers damping was raised, and the largest used; fails beyond what the run allows.
fn check_damping(run: &Run, used: impl Iterator<Item = FactorDamping>) -> Result<(u32, f64), RunError> {
    let (mut layers, mut largest) = (0, 0.0_f64);
    for damping in used {
        let steps = [damping.a, damping.g].into_iter().flatten();
        layers += u32::from(steps.clone().any(|d| d.raised > 0));
        largest = steps.map(|d| d.lambda).fold(largest, f64::max);
    }
    let allowed = run.spec().max_damped_layers;
    if layers > allowed { Err(RunError::Damped { layers, largest, allowed }) } else { Ok((layers, largest)) }
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
