//! Stage 3, the only barrier: the paths of all layers become one cut per layer.

use super::{invalid, prepared, units_left};
use crate::error::RunError;
use crate::event::{CutChosen, Event};
use crate::run::Run;
use planning::threshold::{self, Cut, LayerPath, Ranking};
use proto::v1;
use types::{DampingStep, LayerCut, LayerReport, RemovalPath, Scoring, Shape, Structure, UnitGroup, UnitKind};

/// Chooses the cut for the shot's budget and makes it durable.
pub(crate) async fn allocate(run: &Run, shot: u32) -> Result<(), RunError> {
    let known = run.history(|h| h.shots.get(&shot).cloned().unwrap_or_default());
    if known.cut.is_some() {
        return Ok(());
    }
    run.set_stage(shot, v1::Stage::Allocate, 0, 1);
    let mut paths = Vec::new();
    for scored in known.scored.values() {
        paths.extend(load(run, &scored.paths).await?);
    }
    let target = run.spec().target;
    let before = run.history(|h| h.sizes(shot - 1)).ok_or_else(|| invalid("journal", "the last shot has no size"))?;
    let to_free = before.measured_by(&target).saturating_sub(known.limit);
    let layers = layer_paths(run, shot, &paths)?;
    let asked = run.spec().shape;
    let cut = solve(run, asked, &layers, to_free).map_err(|source| RunError::Cut { shot, source })?;
    let other = match asked {
        Shape::Uniform => Some(Shape::PerLayer),
        Shape::PerLayer if run.spec().structure == Structure::Coupled => Some(Shape::Uniform),
        Shape::PerLayer => None,
    };
    // Only for the report: the other shape need not be possible (unequal widths, too coarse a quantum).
    let other = other.and_then(|shape| solve(run, shape, &layers, to_free).ok()).map(|cut| cut.predicted);
    let chosen = chosen(run, shot, &paths, &cut, other)?;
    run.record(Event::CutChosen(chosen)).await?;
    run.set_stage(shot, v1::Stage::Allocate, 1, 1);
    Ok(())
}

async fn load(run: &Run, object: &types::ObjectRef) -> Result<Vec<RemovalPath>, RunError> {
    let bytes = run.store().get(&object.key).await?;
    if blake3::hash(&bytes).to_hex().as_str() != object.blake3 {
        return Err(invalid(format!("object '{}'", object.key), "its BLAKE3 is not the one in the journal"));
    }
    serde_json::from_slice(&bytes).map_err(|e| invalid(format!("object '{}'", object.key), e.to_string()))
}

fn solve(run: &Run, shape: Shape, layers: &[LayerPath<'_>], to_free: u64) -> Result<Cut, planning::PlanningError> {
    let spec = run.spec();
    let paper = spec.structure == Structure::RowColumn && spec.scoring == Scoring::Independent;
    let ranking = if paper { Ranking::Cost } else { Ranking::CostPerWeight };
    match shape {
        Shape::Uniform => threshold::uniform(layers, to_free),
        Shape::PerLayer => threshold::per_layer(layers, to_free, ranking),
    }
}

/// Returns the paths with what a cut of them must respect.
fn layer_paths<'a>(run: &Run, shot: u32, paths: &'a [RemovalPath]) -> Result<Vec<LayerPath<'a>>, RunError> {
    let model = prepared(run)?.model;
    let group = |path: &RemovalPath| model.groups().find(|g| g.layer == path.layer).cloned();
    Ok(paths
        .iter()
        .map(|path| match group(path) {
            Some(group) => unit_path(run, shot, path, &group),
            None => row_column_path(path),
        })
        .collect())
}

fn unit_path<'a>(run: &Run, shot: u32, path: &'a RemovalPath, group: &UnitGroup) -> LayerPath<'a> {
    let spec = run.spec();
    let left = units_left(run, shot - 1, group);
    // Widths are rounded in the last shot only: between shots nothing needs to load anywhere.
    let rounded = group.kind == UnitKind::FfnChannel && shot == spec.shots;
    let longest = left.saturating_sub(group.must_keep(spec.multiple_of)) as usize;
    LayerPath {
        layer: &path.layer,
        kind: group.kind,
        units_left: left,
        quantum: if rounded { spec.multiple_of } else { 1 },
        round: group.together,
        freed_per_unit: Some(group.freed_per_unit.measured_by(&spec.target)),
        steps: &path.steps[..path.steps.len().min(longest)],
    }
}

fn row_column_path(path: &RemovalPath) -> LayerPath<'_> {
    LayerPath {
        layer: &path.layer,
        kind: UnitKind::Row,
        units_left: u32::MAX,
        quantum: 1,
        round: 1,
        freed_per_unit: None,
        steps: &path.steps,
    }
}

fn chosen(
    run: &Run,
    shot: u32,
    paths: &[RemovalPath],
    cut: &Cut,
    predicted_other_shape: Option<f64>,
) -> Result<CutChosen, RunError> {
    let prefix = |path: &'_ RemovalPath, steps: u32| path.steps[..steps as usize].iter().map(|s| s.freed).sum::<u64>();
    let steps: Vec<DampingStep> = paths.iter().flat_map(|p| [p.damping.a, p.damping.g]).flatten().collect();
    let damped_layers =
        paths.iter().filter(|p| [p.damping.a, p.damping.g].iter().flatten().any(|d| d.raised > 0)).count();
    let chosen = CutChosen {
        shot,
        cuts: paths.iter().zip(&cut.steps).map(|(p, n)| LayerCut { layer: p.layer.clone(), steps: *n }).collect(),
        threshold: cut.threshold,
        predicted: cut.predicted,
        predicted_other_shape,
        freed_prunable: paths.iter().zip(&cut.steps).map(|(p, n)| prefix(p, *n)).sum(),
        damped_layers: u32::try_from(damped_layers).unwrap_or(u32::MAX),
        largest_damping: steps.iter().map(|d| d.lambda).fold(0.0, f64::max),
        layers: paths
            .iter()
            .zip(&cut.steps)
            .map(|(p, n)| LayerReport {
                layer: p.layer.clone(),
                removed: *n,
                left: 0,
                predicted: 0.0,
                damping: p.damping,
            })
            .collect(),
    };
    let allowed = run.spec().max_damped_layers;
    if chosen.damped_layers > allowed {
        return Err(RunError::Damped { layers: chosen.damped_layers, largest: chosen.largest_damping, allowed });
    }
    Ok(chosen)
}
