//! A shot exists when its manifest exists. After that, what only the shot needed is deleted.

use super::{invalid, prepared, put_manifest};
use crate::error::RunError;
use crate::event::Event;
use crate::run::Run;
use service::keys;
use std::collections::BTreeSet;
use types::{Checkpoint, LayerReport, Sizes, Structure};

/// Writes the shot's manifest and journals its sizes.
#[tracing::instrument(skip_all, fields(run = %run.id(), shot = shot))]
pub(crate) async fn commit(run: &Run, shot: u32) -> Result<(), RunError> {
    let known = run.history(|h| h.shots.get(&shot).cloned().unwrap_or_default());
    if known.committed.is_none() {
        let checkpoint = run.history(|h| h.checkpoint_after(shot));
        let cut = known.cut.ok_or_else(|| invalid("journal", "a shot was committed before its cut was chosen"))?;
        let predicted = |layer: &types::LayerId| {
            let of = |b: &crate::event::BlockUpdated| {
                b.layers.iter().position(|l| l.layer == *layer).and_then(|i| b.predicted.get(i).copied())
            };
            let earlier = known.rounds.iter().flat_map(|r| &r.predicted).filter(|(of, _)| of == layer);
            known.updated.values().find_map(of).unwrap_or(0.0) + earlier.map(|(_, predicted)| predicted).sum::<f64>()
        };
        let model = prepared(run)?.model;
        let weights = |layer: &types::LayerId| {
            let described = model.blocks.iter().flat_map(|b| &b.layers).find(|l| l.layer == *layer);
            described.map_or(0, |l| l.rows * l.columns)
        };
        let before = run.history(|h| h.checkpoint_after(shot - 1));
        let zeros = |of: &Checkpoint, layer: &types::LayerId| of.layer(layer).map_or(0, |s| s.zeros);
        let masked = run.spec().structure.is_masked();
        let report = |l: LayerReport| {
            let (removed, left) = if masked {
                let now = zeros(&checkpoint, &l.layer);
                (now.saturating_sub(zeros(&before, &l.layer)), weights(&l.layer).saturating_sub(now))
            } else {
                (l.removed, checkpoint.layer(&l.layer).map_or(0, |s| (s.kept.len() + s.kept_rows.len()) as u64))
            };
            LayerReport { removed, left, predicted: predicted(&l.layer), ..l }
        };
        let layers: Vec<LayerReport> = cut.layers.into_iter().map(report).collect();
        let sizes = sizes_after(run, shot, &checkpoint, cut.freed_prunable)?;
        let key = keys::checkpoint(run.id(), shot, known.taken_back);
        put_manifest(run, &key, &checkpoint).await?;
        let predicted = layers.iter().map(|l| l.predicted).sum();
        run.record(Event::ShotCommitted { shot, checkpoint: key, sizes, layers, predicted }).await?;
    }
    Ok(())
}

fn sizes_after(run: &Run, shot: u32, checkpoint: &Checkpoint, freed_prunable: u64) -> Result<Sizes, RunError> {
    let model = prepared(run)?.model;
    match run.spec().structure {
        Structure::Coupled => {}
        Structure::RowColumn => {
            let before = run.history(|h| h.sizes(shot - 1)).unwrap_or(model.dense);
            return Ok(Sizes { prunable: before.prunable.saturating_sub(freed_prunable), ..before });
        }
        Structure::Element | Structure::NofM => {
            let zeros: u64 = checkpoint.layers.iter().map(|l| l.zeros).sum();
            return Ok(Sizes { prunable: model.dense.prunable.saturating_sub(zeros), ..model.dense });
        }
    }
    Ok(model.groups().fold(model.dense, |size, group| {
        let all = group.units * group.together;
        let left = checkpoint.layer(&group.layer).map_or(all, |s| s.units_left(all));
        size - group.freed_per_unit * u64::from(all - left)
    }))
}

/// Deletes the shot's factors, and weights that neither this checkpoint nor the one before it uses.
pub(crate) async fn clean(run: &Run, shot: u32) -> Result<(), RunError> {
    run.store().delete_prefix(&keys::all_weighers(run.id(), shot)).await?;
    if run.spec().keep_paths {
        return Ok(());
    }
    run.store().delete_prefix(&keys::all_factors(run.id(), shot)).await?;
    run.store().delete_prefix(&keys::all_running(run.id(), shot - 1)).await?;
    let used: BTreeSet<String> = [shot, shot - 1]
        .into_iter()
        .flat_map(|n| run.history(|h| h.checkpoint_after(n)).layers)
        .filter_map(|l| l.weights.map(|w| w.key))
        .collect();
    for old in 1..=shot {
        for key in run.store().list(&keys::all_weights(run.id(), old)).await? {
            if !used.contains(&key) {
                run.store().delete(&key).await?;
            }
        }
    }
    Ok(())
}
