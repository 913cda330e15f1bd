//! One line for each thing that is finished. Pure: an event and what was before it give a line.

use crate::text::{duration, grouped, percent, plural, short_count};
use coordinator::event::{Event, History, ShardQuarantined};
use types::{CorrectionReport, format_bytes};

/// Returns the line for an event, if it is worth one. `history` has the event already; `seconds` passed since what it
/// ends began.
pub(super) fn line(event: &Event, history: &History, seconds: f64) -> Option<String> {
    let shots = history.planned_shots().unwrap_or_default();
    let dense = history.prepared.as_ref().map(|p| p.model.dense).unwrap_or_default();
    match event {
        Event::Inherited { from, .. } => Some(format!("paths of run {from}: shot {shots} is cut at another size")),
        Event::Prepared(found) => {
            let (model, data) = (&found.model, &found.data);
            Some(format!(
                "model: {}, {}, {} parameters, {} of them prunable, {}; text: {}, {} tokens",
                model.family,
                plural(model.blocks.len() as u64, "block"),
                short_count(model.dense.parameters),
                short_count(model.dense.prunable),
                format_bytes(model.dense.bytes),
                plural(data.documents, "document"),
                grouped(data.tokens),
            ))
        }
        Event::Evaluated(done) => {
            let speed = if done.seconds > 0.0 { done.tokens as f64 / done.seconds } else { 0.0 };
            let (perplexity, speed) = (done.evaluation.perplexity, grouped(speed.round() as u64));
            if done.shot == 0 {
                return Some(format!("dense model: held-out perplexity {perplexity:.3}, {speed} tokens/s"));
            }
            let before = history.evaluations.get(&0).map_or(f64::NAN, |e| e.evaluation.perplexity);
            let ratio = perplexity / before;
            Some(format!(
                "shot {}/{shots}: held-out perplexity {perplexity:.3} (× {ratio:.3}), {speed} tokens/s",
                done.shot
            ))
        }
        Event::ShardCalibrated(done) => {
            let known = history.shots.get(&done.shot)?;
            let tokens: u64 = known.shards.values().map(|s| s.tokens).sum();
            let spec = history.spec.as_ref()?;
            let loss = if done.targets == 0 { f64::NAN } else { done.loss_sum / done.targets as f64 };
            Some(format!(
                "shot {}/{shots}: swept {} of {} tokens, loss {loss:.3}, last part in {}",
                done.shot,
                grouped(tokens),
                grouped(spec.samples * spec.seq_len * u64::from(spec.fisher_samples * (spec.passes() + 1))),
                duration(done.seconds.total)
            ))
        }
        Event::ShardQuarantined(gone) => Some(format!("shot {}/{shots}: {}", gone.shot, left_out(gone))),
        Event::ShotTakenBack { shot, measured, .. } => Some(format!(
            "shot {shot}/{shots}: held-out loss rose by {measured:.4} nats per token, too far: taken back, to be cut half \
             as deep"
        )),
        Event::CutChosen(cut) => Some(format!(
            "shot {}/{shots}: cut chosen{}{}{}",
            cut.shot,
            round(cut.shot, history),
            cut.predicted.map_or(String::new(), |p| format!(", predicted rise of the loss {p:.4} nats per token")),
            match cut.damped_layers {
                0 => String::new(),
                n => format!("; damping raised for {}, up to {}", plural(u64::from(n), "layer"), cut.largest_damping),
            }
        )),
        Event::ShotCommitted { shot, sizes, .. } => Some(format!(
            "shot {shot}/{shots}: {} of the prunable weights left, {} parameters, {}; took {}",
            percent(sizes.prunable, dense.prunable),
            short_count(sizes.parameters),
            format_bytes(sizes.bytes),
            duration(seconds)
        )),
        Event::ShotCorrected(done) => {
            let CorrectionReport { loss_before, loss_after, steps_done, steps_kept } = done.report;
            let kept = match steps_kept {
                0 => "not kept: it does not help".to_owned(),
                kept => format!("loss {loss_before:.3} to {loss_after:.3} after {}", plural(kept.into(), "step")),
            };
            Some(format!(
                "shot {}/{shots}: correction of {}, {kept}; took {}",
                done.shot,
                plural(steps_done.into(), "step"),
                duration(done.seconds)
            ))
        }
        Event::Materialised(done) => Some(format!(
            "written and read back: {} ({}), logits differ by {:.1e} at most",
            done.output,
            format_bytes(done.bytes),
            done.logit_difference
        )),
        Event::Created { .. }
        | Event::TakenOver { .. }
        | Event::Traced { .. }
        | Event::ShotOpened { .. }
        | Event::BlockWeighed(_)
        | Event::RoundDone(_)
        | Event::BlockScored(_)
        | Event::BlockRefined(_)
        | Event::BlockUpdated(_)
        | Event::Succeeded
        | Event::Failed { .. }
        | Event::Paused
        | Event::Cancelled => None,
    }
}

/// Returns which samples a quarantined shard takes along, and why.
fn left_out(gone: &ShardQuarantined) -> String {
    let last = gone.first_sample + gone.samples - 1;
    match gone.samples {
        1 => format!("sample {last} is left out: {}", gone.reason),
        _ => format!("samples {} to {last} are left out: {}", gone.first_sample, gone.reason),
    }
}

/// Returns which round of its shot a cut is of, if there are several.
fn round(shot: u32, history: &History) -> String {
    let rounds = history.spec.as_ref().map_or(1, |spec| spec.rounds);
    let done = history.shots.get(&shot).map_or(0, |s| s.rounds.len());
    if rounds > 1 { format!(" in round {} of {rounds}", done + 1) } else { String::new() }
}
