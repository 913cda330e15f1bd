//! A run that begins with the kept shots of another: whole shots down to the target, then that run's paths cut elsewhere.

use super::prepare::unchanged;
use super::prepared;
use crate::error::RunError;
use crate::event::{BlockScored, BlockWeighed, Event, History, ShardCalibrated, ShardQuarantined};
use crate::journal;
use crate::run::Run;
use service::keys;
use types::RunId;

/// Makes another run's shots this run's, if it asks for that; its factors get a second name, nothing is computed.
pub(crate) async fn inherit(run: &Run) -> Result<(), RunError> {
    let Some(from) = run.spec().paths_of.clone() else { return Ok(()) };
    if run.history(|h| h.inherited) {
        return Ok(());
    }
    let records = journal::replay(run.store(), &from).await?;
    let events: Vec<Event> = records.into_iter().map(|(_, event)| event).collect();
    let mut kept = History::default();
    for event in &events {
        kept.apply(event.clone());
    }
    let limit = run.spec().target.limit(&prepared(run)?.model.dense);
    let shot = check(run, &kept, limit).map_err(|problem| match problem {
        Problem::Error(error) => error,
        Problem::NotKept(problem) => RunError::NotKept { from: from.clone(), problem },
    })?;
    copy_factors(run, &from, shot).await?;
    // Limits are in the target's figure, which may be another than that run's.
    let target = run.spec().target;
    let size_after = |of: u32| kept.sizes(of).map_or(limit, |sizes| sizes.measured_by(&target));
    let limit_of = |of: u32| if of < shot { size_after(of) } else { limit };
    let events = events.into_iter().filter_map(|event| part(event, (shot, run.spec().rounds > 1), limit_of)).collect();
    run.record(Event::Inherited { from, events }).await
}

/// Why a run cannot begin with another.
enum Problem {
    NotKept(String),
    Error(RunError),
}

/// Returns the shot whose paths are to be cut at `limit`: the first that ends there or below, or the last.
fn check(run: &Run, kept: &History, limit: u64) -> Result<u32, Problem> {
    let not_kept = |problem: &str| Problem::NotKept(problem.to_owned());
    let spec = kept.spec.as_ref().ok_or_else(|| not_kept("the store has no such run"))?;
    if !spec.keep_paths {
        return Err(not_kept("it was run without --keep-paths"));
    }
    if !run.spec().continues(spec) {
        return Err(not_kept("this run differs from it in more than target and output"));
    }
    let before = kept.prepared.as_ref().ok_or_else(|| not_kept("it has no shot yet"))?;
    unchanged(before, &prepared(run).map_err(Problem::Error)?).map_err(Problem::Error)?;
    let of_target = |shot: u32| kept.sizes(shot).map(|sizes| sizes.measured_by(&run.spec().target));
    let done = kept.shots_done();
    let shot = (1..=done).find(|shot| of_target(*shot).is_some_and(|size| size <= limit)).unwrap_or(done);
    match shot {
        0 => Err(not_kept("it has no shot yet")),
        shot if of_target(shot - 1).is_some_and(|size| size <= limit) => {
            Err(not_kept("nothing has to go for that size"))
        }
        shot => Ok(shot),
    }
}

/// Gives the shot's factors a second name, under this run.
async fn copy_factors(run: &Run, from: &RunId, shot: u32) -> Result<(), RunError> {
    // Costs that are taken again are mixed with the shot before, if earlier shots count.
    let folders = [(keys::all_factors(from, shot), keys::all_factors(run.id(), shot))].into_iter();
    let running =
        (shot.saturating_sub(1)..=shot).map(|of| (keys::all_running(from, of), keys::all_running(run.id(), of)));
    for (old, new) in folders.chain(running) {
        for key in run.store().list(&old).await? {
            let name = key.strip_prefix(&old).unwrap_or(&key);
            run.store().copy(&key, &format!("{new}{name}")).await?;
        }
    }
    Ok(())
}

/// Returns what a run that goes as far as the paths of `shot` has of an event of the run it begins with; `limit` gives the
/// shots' limits.
fn part(event: Event, (shot, in_rounds): (u32, bool), limit: impl Fn(u32) -> u64) -> Option<Event> {
    match &event {
        Event::ShotOpened { shot: of, .. } if *of <= shot => Some(Event::ShotOpened { shot: *of, limit: limit(*of) }),
        // Of the shot that is cut elsewhere only what leads to its paths is the same; costs taken in rounds were replaced.
        Event::BlockScored(BlockScored { shot: of, .. }) if *of == shot && in_rounds => None,
        Event::ShardCalibrated(ShardCalibrated { shot: of, .. })
        | Event::ShardQuarantined(ShardQuarantined { shot: of, .. })
        | Event::BlockWeighed(BlockWeighed { shot: of, .. })
        | Event::BlockScored(BlockScored { shot: of, .. }) => (*of <= shot).then_some(event),
        Event::Materialised(_) => None,
        _ => event.shot().is_some_and(|of| of < shot).then_some(event),
    }
}
