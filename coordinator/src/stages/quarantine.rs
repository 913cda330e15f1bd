//! Samples without a finite loss or gradient: their shard is left out of its shot, if the run allows that.
//!
//! The rule: *what depends on which shards count is given out only when no shard can fall out any more.* As long as one can, its
//! blocks' sums are gathered and nothing is computed from them ([`gathered`]); then every task says which shards do not count,
//! and surgeons pass over these, whatever of them lies in the store. So nothing that was computed is ever taken back, and
//! every object of the store has one content, whoever writes it however late. Runs that leave nothing out (the default)
//! fail instead of quarantining, so that their blocks are scored while earlier ones are still swept.
//!
//! A shard that is found in a later pass of a power iteration is left out of the sums of all passes from then on. What weighs the
//! tokens of that pass was found with it, and stays: a power iteration may start anywhere.

use super::calibrate::shard_count;
use crate::error::RunError;
use crate::event::{Event, ShardQuarantined};
use crate::run::Run;
use crate::tasks::TaskFailure;
use futures::future::try_join_all;
use planning::assignment::ShardPlan;
use planning::quarantine::{self, Verdict};
use proto::v1;
use proto::v1::task::Work;
use tokio::sync::Mutex;

/// Lets the shards of one pass be quarantined one after the other: each decision counts those before.
pub(super) struct Quarantine<'a> {
    run: &'a Run,
    shot: u32,
    pass: u32,
    shards: u32,
    /// Number of the shot's first sample.
    first_sample: u64,
    deciding: Mutex<()>,
}

impl<'a> Quarantine<'a> {
    /// Returns that of a pass over so many shards of a shot.
    pub(super) fn new(run: &'a Run, (shot, pass): (u32, u32), (shards, first_sample): (u32, u64)) -> Self {
        Self { run, shot, pass, shards, first_sample, deciding: Mutex::new(()) }
    }

    /// Leaves a shard out after its sweep has failed for good, or fails the run.
    pub(super) async fn leave_out(&self, number: u32, plan: &ShardPlan, failure: TaskFailure) -> Result<(), RunError> {
        let _one_at_a_time = self.deciding.lock().await;
        let (run, shot) = (self.run, self.shot);
        let shard = ShardQuarantined {
            shot,
            pass: self.pass,
            shard: number % self.shards,
            shards: self.shards,
            first_sample: self.first_sample + plan.first_sample,
            samples: plan.samples,
            reason: failure.message.clone(),
        };
        let mut all = run.history(|h| h.shots.get(&shot).map(|s| s.quarantined.clone())).unwrap_or_default();
        all.insert(shard.shard, shard.clone());
        let (samples, allowed) = (run.spec().samples, run.spec().max_poison_fraction);
        let poisoned = all.values().map(|q| q.samples).sum();
        if let Verdict::Fail { needed } = quarantine::judge(allowed, samples, poisoned) {
            let which = left_out(all.values());
            return Err(RunError::Poisoned { failure, poisoned, samples, which, allowed, remedy: remedy(needed) });
        }
        let (first_sample, samples, reason) = (shard.first_sample, shard.samples, shard.reason.clone());
        run.record(Event::ShardQuarantined(shard)).await?;
        tracing::warn!(run = %run.id(), shot, shard = number, first_sample, samples, reason, "shard quarantined");
        run.pool().quarantine(run.id().as_str(), shot, number);
        Ok(())
    }
}

fn remedy(needed: Option<f64>) -> String {
    let look = "look at these samples and at --dtype";
    match needed {
        Some(needed) => format!("{look}, or leave them out with --max-poison-fraction {needed}"),
        None => format!("{look}; nothing would be left without them, or more --shards would leave out less with each"),
    }
}

/// Returns which samples shards hold, as people write it: `samples 3, 8 to 15`.
pub(crate) fn left_out<'a>(shards: impl Iterator<Item = &'a ShardQuarantined>) -> String {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for shard in shards {
        let (first, end) = (shard.first_sample, shard.first_sample + shard.samples);
        match ranges.last_mut() {
            Some((_, last)) if *last == first => *last = end,
            _ => ranges.push((first, end)),
        }
    }
    let words = ranges.iter().map(|(first, end)| match end - first {
        1 => first.to_string(),
        _ => format!("{first} to {}", end - 1),
    });
    format!("samples {}", words.collect::<Vec<_>>().join(", "))
}

/// Returns the shards of a shot that do not count, rising.
pub(super) fn quarantined(run: &Run, shot: u32) -> Vec<u32> {
    run.history(|h| h.shots.get(&shot).map(|s| s.quarantined.keys().copied().collect())).unwrap_or_default()
}

/// Waits until no shard of a pass can fall out any more; until then has the sums of `blocks` brought into the store, as
/// `gather_only` says. Returns at once where shards never fall out.
pub(super) async fn gathered(
    run: &Run,
    (shot, pass): (u32, u32),
    blocks: &[u32],
    gather_only: impl Fn(u32) -> Work,
) -> Result<(), RunError> {
    if run.spec().max_poison_fraction == 0.0 || is_settled(run, shot, pass)? {
        return Ok(());
    }
    let works = blocks.iter().map(|block| gather_only(*block)).collect();
    let submitted = run.submit(shot, v1::WorkerRole::Surgeon, works);
    try_join_all(submitted.into_iter().map(|task| run.settle(task))).await?;
    let mut changed = run.watch(); // before the look, or a change in between would be missed
    while !is_settled(run, shot, pass)? {
        changed.changed().await.map_err(|_| RunError::Stopped)?;
    }
    Ok(())
}

/// Says whether each shard of a pass is swept or quarantined.
fn is_settled(run: &Run, shot: u32, pass: u32) -> Result<bool, RunError> {
    let count = shard_count(run)?;
    Ok(run.history(|h| {
        let Some(known) = h.shots.get(&shot) else { return false };
        let settled = |s| known.quarantined.contains_key(&s) || known.shards.contains_key(&(pass * count + s));
        (0..count).all(settled)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_named_together() {
        let shard = |first_sample, samples| ShardQuarantined {
            shot: 1,
            pass: 0,
            shard: 0,
            shards: 9,
            first_sample,
            samples,
            reason: String::new(),
        };
        let named = |shards: &[ShardQuarantined]| left_out(shards.iter());
        assert_eq!(named(&[shard(3, 1)]), "samples 3");
        assert_eq!(named(&[shard(3, 1), shard(8, 4), shard(12, 4)]), "samples 3, 8 to 15");
    }

    #[test]
    fn the_flag_that_would_do_is_named() {
        assert!(remedy(Some(0.125)).ends_with("--max-poison-fraction 0.125"));
        assert!(remedy(None).contains("--shards"));
    }
}
