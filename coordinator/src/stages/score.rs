//! Stages 2 and 4: the removal paths of every block, and their cut carried out; before them, what power iteration needs
//! between its passes. All are one task a block.

use super::calibrate::shard_count;
use super::quarantine::{gathered, quarantined};
use super::{bad_message, invalid, prepared, wrong_result};
use crate::error::RunError;
use crate::event::{BlockScored, BlockUpdated, BlockWeighed, Event};
use crate::run::Run;
use futures::future::try_join_all;
use proto::v1;
use proto::v1::complete_task_request::Result as TaskResult;
use proto::v1::task::Work;
use std::sync::atomic::{AtomicU64, Ordering};

/// Has what weighs the tokens of the pass after `pass` computed for every block.
pub(super) async fn weigh(run: &Run, shot: u32, pass: u32) -> Result<(), RunError> {
    let known = run.history(|h| h.shots.get(&shot).cloned().unwrap_or_default());
    let checkpoint = run.history(|h| h.checkpoint(shot - 1));
    let shards = shard_count(run)?;
    let blocks = blocks_without(run, |b| known.weighed.contains_key(&(pass, b)) || known.scored.contains_key(&b))?;
    let work = |block: u32| v1::WeighTask { block, checkpoint: checkpoint.clone(), shards, pass, ..Default::default() };
    gathered(run, (shot, pass), &blocks, |block| Work::Weigh(v1::WeighTask { gather_only: true, ..work(block) }))
        .await?;
    let quarantined = quarantined(run, shot);
    let works =
        blocks.iter().map(|block| Work::Weigh(v1::WeighTask { quarantined: quarantined.clone(), ..work(*block) }));
    each_block(run, (shot, pass), v1::Stage::Score, &blocks, works.collect(), |block, result, _| {
        let TaskResult::Weigh(r) = result else { return Err(wrong_result("weigh")) };
        Ok(Event::BlockWeighed(BlockWeighed { shot, pass, block, seconds: r.compute_seconds }))
    })
    .await
}

/// Has every block's removal paths computed, the last block first: its factors come first.
#[tracing::instrument(skip_all, fields(run = %run.id(), shot = shot))]
pub(crate) async fn score(run: &Run, shot: u32) -> Result<(), RunError> {
    let scored = run.history(|h| h.shots.get(&shot).map(|s| s.scored.clone()).unwrap_or_default());
    let checkpoint = run.history(|h| h.cut_from(shot));
    let shards = shard_count(run)?;
    let blocks = blocks_without(run, |b| scored.contains_key(&b))?;
    let round = rounds_done(run, shot);
    let work =
        |block: u32| v1::ScoreTask { block, checkpoint: checkpoint.clone(), shards, round, ..Default::default() };
    let gather_only = |block| Work::Score(v1::ScoreTask { gather_only: true, ..work(block) });
    gathered(run, (shot, run.spec().passes()), &blocks, gather_only).await?;
    let quarantined = quarantined(run, shot);
    let works =
        blocks.iter().map(|block| Work::Score(v1::ScoreTask { quarantined: quarantined.clone(), ..work(*block) }));
    each_block(
        run,
        (shot, run.spec().passes() + round),
        v1::Stage::Score,
        &blocks,
        works.collect(),
        |block, result, _| {
            let TaskResult::Score(r) = result else { return Err(wrong_result("score")) };
            let bad = bad_message("result of score");
            let scores = proto::convert::required("scores", r.scores).map_err(&bad)?.try_into().map_err(&bad)?;
            Ok(Event::BlockScored(BlockScored {
                shot,
                block,
                scores,
                seconds: r.compute_seconds,
                peak_memory: r.peak_memory_bytes,
            }))
        },
    )
    .await
}

/// Has the cut carried out in every block.
#[tracing::instrument(skip_all, fields(run = %run.id(), shot = shot))]
pub(crate) async fn update(run: &Run, shot: u32) -> Result<(), RunError> {
    let known = run.history(|h| h.shots.get(&shot).cloned().unwrap_or_default());
    if known.cut.is_none() {
        return Err(invalid("journal", "an update ran before the cut was chosen"));
    }
    let checkpoint = run.history(|h| h.cut_from(shot));
    let shards = shard_count(run)?;
    let blocks = blocks_without(run, |b| known.updated.contains_key(&b))?;
    let quarantined = quarantined(run, shot);
    let mut works = Vec::with_capacity(blocks.len());
    for block in &blocks {
        let scored = known.scored.get(block);
        let scored = scored.ok_or_else(|| invalid("journal", format!("block {block} was cut before it was scored")))?;
        works.push(Work::Update(v1::UpdateTask {
            block: *block,
            checkpoint: checkpoint.clone(),
            shards,
            scores: scored.scores.key.clone(),
            quarantined: quarantined.clone(),
        }));
    }
    each_block(run, (shot, rounds_done(run, shot)), v1::Stage::Update, &blocks, works, |block, result, _| {
        let TaskResult::Update(r) = result else { return Err(wrong_result("update")) };
        let bad = bad_message("result of update");
        let layers: Vec<types::LayerState> =
            r.layers.into_iter().map(TryInto::try_into).collect::<Result<_, _>>().map_err(&bad)?;
        if layers.len() != r.predicted.len() || r.predicted.iter().any(|p| !p.is_finite()) {
            return Err(invalid("result of update", "predicted rises must be finite, one a layer"));
        }
        Ok(Event::BlockUpdated(BlockUpdated {
            shot,
            block,
            layers,
            predicted: r.predicted,
            seconds: r.compute_seconds,
            peak_memory: r.peak_memory_bytes,
        }))
    })
    .await
}

fn blocks_without(run: &Run, done: impl Fn(u32) -> bool) -> Result<Vec<u32>, RunError> {
    Ok(prepared(run)?.model.blocks.iter().rev().map(|b| b.block).filter(|b| !done(*b)).collect())
}

/// Returns how many of the shot's rounds are done.
pub(super) fn rounds_done(run: &Run, shot: u32) -> u32 {
    run.history(|h| h.shots.get(&shot).map_or(0, |s| s.rounds.len() as u32))
}

/// Gives out one task a block and counts them as they finish; `times_before`: how often that was done before in this
/// stage.
pub(super) async fn each_block(
    run: &Run,
    (shot, times_before): (u32, u32),
    stage: v1::Stage,
    blocks: &[u32],
    works: Vec<Work>,
    to_event: impl Fn(u32, TaskResult, f64) -> Result<Event, RunError>,
) -> Result<(), RunError> {
    let all = prepared(run)?.model.blocks.len() as u64;
    let passes = if stage == v1::Stage::Score { run.spec().passes() } else { 0 };
    let total = all * u64::from(passes + run.spec().rounds);
    let done = AtomicU64::new(all * u64::from(times_before + 1) - blocks.len() as u64);
    run.set_stage(shot, stage, done.load(Ordering::Relaxed), total);
    let submitted = run.submit(shot, v1::WorkerRole::Surgeon, works);
    let to_event = &to_event;
    let done = &done;
    let finished = submitted.into_iter().zip(blocks).map(|(task, block)| async move {
        run.finish(task, |result, seconds| to_event(*block, result, seconds)).await?;
        run.set_stage(shot, stage, done.fetch_add(1, Ordering::Relaxed) + 1, total);
        Ok(())
    });
    try_join_all(finished).await.map(drop)
}
