//! Traces of runs: one of the run, one of each of its shots, linked to it. Their contexts are in the journal, so that a
//! coordinator that takes a run over goes on with them.

use crate::error::{Consequence, RunError};
use crate::event::{Event, Trace};
use crate::run::{Run, now_ms};
use service::status::chain;
use service::telemetry::metrics::KeyValue;
use service::telemetry::trace::{self, Ended};
use std::time::{Duration, UNIX_EPOCH};

/// Stands for the run as a whole where a shot's number is wanted.
pub(crate) const WHOLE: u32 = 0;

/// Carries out a part of a run within its trace, and tells the shot's own span when it is over.
pub(crate) async fn traced(
    run: &Run,
    shot: u32,
    part: impl Future<Output = Result<(), RunError>>,
) -> Result<(), RunError> {
    let Some(own) = begun(run, shot).await? else { return part.await };
    let before = run.sequence();
    let result = trace::within(&own.context, part).await;
    // A coordinator that takes over walks through shots that are over; those were told.
    if shot != WHOLE && run.sequence() > before {
        match &result {
            Ok(()) => tell(run, shot, &own, Ended::Well),
            Err(error) if error.consequence() == Consequence::Fail => {
                tell(run, shot, &own, Ended::Badly(&chain(error)));
            }
            Err(_) => {} // somebody goes on with it
        }
    }
    result
}

/// Tells the span of a run that has ended.
pub(crate) fn tell_run(run: &Run, ended: Ended<'_>) {
    if let Some(own) = run.history(|h| h.traces.get(&WHOLE).cloned()) {
        tell(run, WHOLE, &own, ended);
    }
}

/// Returns the trace of a shot, which begins now if it has not; `None` while nobody wants traces.
async fn begun(run: &Run, shot: u32) -> Result<Option<Trace>, RunError> {
    if let Some(known) = run.history(|h| h.traces.get(&shot).cloned()) {
        return Ok(Some(known));
    }
    let context = trace::new_root();
    if context.is_empty() {
        return Ok(None);
    }
    let own = Trace { context, began_ms: now_ms() };
    run.record(Event::Traced { shot, trace: own.clone() }).await?;
    Ok(Some(own))
}

fn tell(run: &Run, shot: u32, own: &Trace, ended: Ended<'_>) {
    let of_run = run.history(|h| h.traces.get(&WHOLE).map(|t| t.context.clone())).unwrap_or_default();
    let id = KeyValue::new("run", run.id().to_string());
    let slot = run.slot().map(|slot| KeyValue::new("slot", i64::from(slot)));
    let (name, fields, links) = match shot {
        WHOLE => ("run", [Some(id), slot], vec![]),
        _ => ("shot", [Some(id), Some(KeyValue::new("shot", i64::from(shot)))], vec![of_run.as_str()]),
    };
    let began = UNIX_EPOCH + Duration::from_millis(own.began_ms);
    trace::tell(name, &own.context, began, &links, fields.into_iter().flatten().collect(), ended);
}
