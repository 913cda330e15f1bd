//! The adaptive schedule: how far a shot goes is decided by its own paths, and taken back if the held-out loss disagrees.

use super::{invalid, prepared};
use crate::error::RunError;
use crate::event::Event;
use crate::run::Run;
use planning::schedule;
use types::{Schedule, Target};

/// Where a shot may go.
pub(super) struct Goal {
    /// The next size at which a model is wanted, in the target's figure.
    pub(super) limit: u64,
    /// Whether it must get there, at whatever cost: no more shots are left than sizes.
    pub(super) forced: bool,
    /// The most it may free.
    pub(super) may_free: u64,
}

/// Returns where `shot` may go from a model of size `before`.
pub(super) fn goal(run: &Run, shot: u32, before: u64) -> Result<Goal, RunError> {
    let (spec, dense) = (run.spec(), prepared(run)?.model.dense);
    let target = spec.target.limit(&dense);
    let waypoints = spec.waypoints.iter().map(|w| Target::Size(*w).limit(&dense));
    let ahead: Vec<u64> = waypoints.filter(|w| *w < before).chain([target]).collect();
    let left = spec.shots.saturating_sub(shot) as usize + 1;
    let may_free = run.history(|h| h.shots.get(&shot).and_then(|s| s.may_free));
    Ok(Goal { limit: ahead[0], forced: left <= ahead.len(), may_free: may_free.unwrap_or(u64::MAX) })
}

/// Takes a shot back whose held-out loss rose too far; returns whether it did. Only under the adaptive schedule.
pub(crate) async fn take_back(run: &Run, shot: u32) -> Result<bool, RunError> {
    let spec = run.spec();
    if spec.schedule != Schedule::Adaptive {
        return Ok(false);
    }
    let (losses, sizes, taken_back) = run.history(|h| {
        let loss = |shot: u32| h.evaluations.get(&shot).map(|e| e.evaluation.loss);
        let size = |shot: u32| h.sizes(shot).map(|sizes| sizes.measured_by(&spec.target));
        let taken_back = h.shots.get(&shot).map_or(0, |s| s.taken_back);
        (loss(shot).zip(loss(shot - 1)), size(shot).zip(size(shot - 1)), taken_back)
    });
    let (after, before) = losses.ok_or_else(|| invalid("journal", "an adaptive shot has no held-out loss"))?;
    let (size, size_before) = sizes.ok_or_else(|| invalid("journal", "a committed shot has no size"))?;
    let measured = after - before;
    if goal(run, shot, size_before)?.forced || !schedule::is_off(measured, spec.max_rise, taken_back) {
        return Ok(false);
    }
    run.record(Event::ShotTakenBack { shot, measured, freed: size_before.saturating_sub(size) }).await?;
    Ok(true)
}
