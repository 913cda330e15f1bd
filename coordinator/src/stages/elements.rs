//! Stage 3 for single weights: costs stay with their surgeons; two counts of their digits give one exact threshold. A shot
//! may choose them in several rounds.

use super::calibrate::shard_count;
use super::curve;
use super::quarantine::quarantined;
use super::score::{each_block, rounds_done};
use super::{bad_message, check_damping, invalid, load_json, prepared, put_manifest, size_before, wrong_result};
use crate::error::RunError;
use crate::event::{BlockRefined, BlockUpdated, CutChosen, Event, History, RoundDone};
use crate::run::Run;
use planning::schedule;
use planning::threshold::radix::{self, Bin, Histogram};
use proto::v1;
use proto::v1::complete_task_request::Result as TaskResult;
use proto::v1::task::Work;
use service::keys;
use types::{CostHistogram, ElementCut, LayerCut, LayerReport, ObjectRef};

/// Has the costs near the threshold counted more closely: the second count of the radix select. Nothing for units.
#[tracing::instrument(skip_all, fields(run = %run.id(), shot = shot))]
pub(crate) async fn refine(run: &Run, shot: u32) -> Result<(), RunError> {
    let known = run.history(|h| h.shots.get(&shot).cloned().unwrap_or_default());
    if !run.spec().structure.is_masked() || known.cut.is_some() {
        return Ok(());
    }
    let first = load(run, known.scored.values().map(|b| &b.scores)).await?;
    let (bin, _) = first_digit(run, shot, limit(run, shot)?, &first)?;
    let checkpoint = run.history(|h| h.cut_from(shot));
    let shards = shard_count(run)?;
    let blocks: Vec<u32> = known.scored.keys().rev().copied().filter(|b| !known.refined.contains_key(b)).collect();
    let (digit, round) = (u32::from(bin.digit), rounds_done(run, shot));
    let quarantined = quarantined(run, shot);
    let work = |block: &u32| v1::RefineTask {
        block: *block,
        checkpoint: checkpoint.clone(),
        shards,
        digit,
        round,
        quarantined: quarantined.clone(),
    };
    let works = blocks.iter().map(|block| Work::Refine(work(block)));
    each_block(run, (shot, round), v1::Stage::Allocate, &blocks, works.collect(), |block, result, _| {
        let TaskResult::Refine(r) = result else { return Err(wrong_result("refine")) };
        let bad = bad_message("result of refine");
        let histograms = proto::convert::required("histograms", r.histograms).map_err(&bad)?;
        let histograms = histograms.try_into().map_err(&bad)?;
        Ok(Event::BlockRefined(BlockRefined { shot, block, histograms, seconds: r.compute_seconds }))
    })
    .await
}

/// Returns the decision of the shot: in each layer the items that cost less than the threshold, and its share of the ties.
pub(super) async fn choose(run: &Run, shot: u32) -> Result<CutChosen, RunError> {
    let known = run.history(|h| h.shots.get(&shot).cloned().unwrap_or_default());
    let first = load(run, known.scored.values().map(|b| &b.scores)).await?;
    let second = load(run, known.refined.values().map(|b| &b.histograms)).await?;
    if !first.iter().map(|h| &h.layer).eq(second.iter().map(|h| &h.layer)) {
        return Err(invalid("histograms", "the second count is of other layers than the first"));
    }
    let limit = limit(run, shot)?;
    let (bin, items) = first_digit(run, shot, limit, &first)?;
    let cut = |source| RunError::Cut { shot, source };
    let threshold = radix::second_round(bin, &merged(shot, &second)?, items).map_err(cut)?;
    let low = (threshold.bits & 0xFFFF) as u16;
    let ties: Vec<u64> = second.iter().map(|h| count(h, |digit| digit == low)).collect();
    let shares = radix::share_ties(&ties, threshold.ties);
    let cuts: Vec<LayerCut> = (first.iter().zip(&second))
        .zip(shares)
        .map(|((upper, lower), ties)| {
            let below = count(upper, |digit| digit < bin.digit) + count(lower, |digit| digit < low);
            let elements = ElementCut { bits: threshold.bits, ties, items: below + ties };
            LayerCut { layer: upper.layer.clone(), steps: 0, elements: Some(elements) }
        })
        .collect();
    let layers = first.iter().map(|h| LayerReport {
        layer: h.layer.clone(),
        removed: 0,
        left: 0,
        predicted: 0.0,
        damping: h.damping,
    });
    let layers: Vec<LayerReport> = layers.collect();
    let (damped_layers, largest_damping) = check_damping(run, layers.iter().map(|l| l.damping))?;
    Ok(CutChosen {
        shot,
        cuts,
        threshold: Some(f64::from(threshold.cost()) / weights_an_item(run) as f64),
        predicted: None,
        predicted_other_shape: None,
        shape: None,
        freed_prunable: size_before(run, shot)?.prunable.saturating_sub(limit),
        damped_layers,
        largest_damping,
        layers,
        curve: Some(curve::of_elements(run, &first, weights_an_item(run))?),
    })
}

/// Ends a round that is not the shot's last: what its cut has left is what the next one takes costs of, under the same
/// curvature. Returns whether there is a next one.
///
/// Each round solves from the weights that the one before has left. As they were the nearest ones (by F) without what was
/// removed by then, that is the solution from the shot's own weights, too.
pub(crate) async fn next_round(run: &Run, shot: u32) -> Result<bool, RunError> {
    let known = run.history(|h| h.shots.get(&shot).cloned().unwrap_or_default());
    let round = known.rounds.len() as u32;
    if known.committed.is_some() || round + 1 >= run.spec().rounds {
        return Ok(false);
    }
    let checkpoint = keys::round(run.id(), shot, round);
    put_manifest(run, &checkpoint, &run.history(|h| h.checkpoint_after(shot))).await?;
    let of_block = |b: &BlockUpdated| {
        b.layers.iter().map(|l| l.layer.clone()).zip(b.predicted.iter().copied()).collect::<Vec<_>>()
    };
    let predicted = known.updated.values().flat_map(of_block).collect();
    run.record(Event::RoundDone(RoundDone { shot, round, checkpoint, predicted })).await?;
    Ok(true)
}

/// Returns how many prunable weights the present round may leave.
fn limit(run: &Run, shot: u32) -> Result<u64, RunError> {
    let limit = run.history(|h| h.shots.get(&shot).map_or(History::UNDECIDED, |s| s.limit));
    Ok(schedule::round_limit(size_before(run, shot)?.prunable, limit, rounds_done(run, shot), run.spec().rounds))
}

/// Returns where the last item to go lies, and how many go: all that the dense model has more than the limit. Items
/// that went earlier are counted as well, with cost 0.
fn first_digit(run: &Run, shot: u32, limit: u64, first: &[CostHistogram]) -> Result<(Bin, u64), RunError> {
    let all = merged(shot, first)?;
    let surplus = prepared(run)?.model.dense.prunable.saturating_sub(limit);
    let items = surplus.div_ceil(weights_an_item(run)).min(all.total());
    let bin = radix::first_round(&all, items).map_err(|source| RunError::Cut { shot, source })?;
    Ok((bin, items))
}

/// Returns how many weights go with one item: 1, or m − n for a window.
fn weights_an_item(run: &Run) -> u64 {
    run.spec().pattern.map_or(1, |p| u64::from(p.m - p.n))
}

async fn load(run: &Run, objects: impl Iterator<Item = &ObjectRef>) -> Result<Vec<CostHistogram>, RunError> {
    let mut all = Vec::new();
    for object in objects {
        all.extend(load_json::<Vec<CostHistogram>>(run, object).await?);
    }
    Ok(all)
}

fn merged(shot: u32, histograms: &[CostHistogram]) -> Result<Histogram, RunError> {
    let mut sum = Histogram::new();
    for (digit, items) in histograms.iter().flat_map(|h| &h.bins) {
        sum.add(*digit, *items).map_err(|source| RunError::Cut { shot, source })?;
    }
    Ok(sum)
}

/// Returns the items in the bins that are `wanted`.
fn count(histogram: &CostHistogram, wanted: impl Fn(u16) -> bool) -> u64 {
    histogram.bins.iter().filter(|(digit, _)| wanted(*digit)).map(|(_, items)| items).sum()
}
