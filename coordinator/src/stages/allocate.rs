//! Stage 3, the only barrier: the paths of all layers become one cut per layer.

use super::adapt::{Goal, goal};
use super::finish::waypoint;
use super::{check_damping, curve, elements, invalid, load_json, prepared, size_before, units_left};
use crate::error::RunError;
use crate::event::{CutChosen, Event, History};
use crate::run::Run;
use planning::shape::{Offer, choose as choose_shape};
use planning::threshold::{self, Cut, LayerPath, Ranking, Stretch};
use planning::{PlanningError, schedule};
use proto::v1;
use serde::Serialize;
use service::keys;
use types::{
    LayerCut, LayerId, LayerReport, RemovalPath, Scoring, Shape, ShapeChoice, Structure, Unit, UnitGroup, UnitKind,
};

/// Chooses the cut for the shot's budget and makes it durable.
#[tracing::instrument(skip_all, fields(run = %run.id(), shot = shot))]
pub(crate) async fn allocate(run: &Run, shot: u32) -> Result<(), RunError> {
    let known = run.history(|h| h.shots.get(&shot).cloned().unwrap_or_default());
    if known.cut.is_some() {
        return Ok(());
    }
    run.set_stage(shot, v1::Stage::Allocate, 0, 1);
    let chosen =
        if run.spec().structure.is_masked() { elements::choose(run, shot).await? } else { choose(run, shot).await? };
    run.record(Event::CutChosen(chosen)).await?;
    run.set_stage(shot, v1::Stage::Allocate, 1, 1);
    Ok(())
}

/// Returns the cut of the layers' paths.
async fn choose(run: &Run, shot: u32) -> Result<CutChosen, RunError> {
    let known = run.history(|h| h.shots.get(&shot).cloned().unwrap_or_default());
    let mut paths: Vec<RemovalPath> = Vec::new();
    for scored in known.scored.values() {
        paths.extend(load_json::<Vec<RemovalPath>>(run, &scored.scores).await?);
    }
    let target = run.spec().target;
    let before = size_before(run, shot)?.measured_by(&target);
    let limit = match known.limit {
        History::UNDECIDED => adapted(run, shot, &paths, before).await?,
        limit => limit,
    };
    let to_free = before.saturating_sub(limit);
    let written = run.history(|h| h.is_last(shot)) || waypoint(run, shot)?.is_some();
    let layers = layer_paths(run, (shot, written), &paths)?;
    let Shaped { cut, shape, other, choice } =
        shaped(run, &layers, before, to_free).map_err(|source| RunError::Cut { shot, source })?;
    let order = threshold::removal_order(&layers, ranking(run)).map_err(|source| RunError::Cut { shot, source })?;
    if run.spec().keep_paths {
        put_removal_order(run, shot, &paths, (&order, before)).await?;
    }
    let curve = Some(curve::curve(run, (shot, shape), (&paths, &layers, &order), before)?);
    Ok(CutChosen { shape: choice, predicted_other_shape: other, curve, ..chosen(run, shot, &paths, &cut)? })
}

/// A cut in the run's shape.
struct Shaped {
    cut: Cut,
    shape: Shape,
    /// What the other shape would cost.
    other: Option<f64>,
    /// Why this shape, where it was yet to be chosen.
    choice: Option<ShapeChoice>,
}

/// Returns the cut in the run's shape, which is chosen now if that is still open.
fn shaped(run: &Run, layers: &[LayerPath<'_>], before: u64, to_free: u64) -> Result<Shaped, PlanningError> {
    let asked = run.history(History::shape);
    if run.spec().structure != Structure::Coupled {
        let cut = solve(run, asked, layers, to_free)?;
        return Ok(Shaped { cut, shape: asked, other: None, choice: None });
    }
    let (uniform, own) = (solve(run, Shape::Uniform, layers, to_free), solve(run, Shape::PerLayer, layers, to_free));
    let choice = (asked == Shape::Auto).then(|| choice(run, before, &uniform, own.as_ref().ok())).flatten();
    let shape = choice.as_ref().map_or(asked, |choice| choice.shape);
    // The other is only for the report: it need not be possible (unequal widths, too coarse a quantum).
    let (cut, other) = if shape.is_uniform() { (uniform?, own) } else { (own?, uniform) };
    Ok(Shaped { cut, shape, other: other.ok().map(|cut| cut.predicted), choice })
}

/// Returns what a shape of `auto` comes to; `None` where no widths reach the size, which is an error of its own.
fn choice(run: &Run, before: u64, uniform: &Result<Cut, PlanningError>, own: Option<&Cut>) -> Option<ShapeChoice> {
    let offer = |cut: &Cut| Offer { predicted: cut.predicted, left: before.saturating_sub(cut.freed) };
    let refused = run.history(|h| h.prepared.as_ref().map(|p| p.model.own_widths_refused.clone())).unwrap_or_default();
    let obstacle = Some(refused.as_str()).filter(|reason| !reason.is_empty());
    Some(choose_shape(uniform.as_ref().ok().map(offer), offer(own?), obstacle))
}

/// Decides and records how far an adaptive shot goes: to its goal if that is within the bound, otherwise as far as the bound.
async fn adapted(run: &Run, shot: u32, paths: &[RemovalPath], before: u64) -> Result<u64, RunError> {
    let Goal { limit: goal, forced, may_free } = goal(run, shot, before)?;
    let failed = |source| RunError::Cut { shot, source };
    let (shape, bound, to_goal) = (run.history(History::shape), run.spec().max_rise, before.saturating_sub(goal));
    let limit = match solve(run, shape, &layer_paths(run, (shot, true), paths)?, to_goal) {
        Ok(cut) if forced || (to_goal <= may_free && cut.predicted <= bound) => goal,
        Err(error) if forced => return Err(failed(error)),
        _ => {
            // Short of the goal: that is reached with rounded widths, by a later shot.
            let layers = layer_paths(run, (shot, false), paths)?;
            let short_of_it = to_goal.saturating_sub(1).min(may_free).max(1);
            let step = schedule::largest_step(short_of_it, bound, |to_free| solve(run, shape, &layers, to_free));
            before.saturating_sub(step.map_err(failed)?.freed).max(goal + 1)
        }
    };
    run.record(Event::ShotOpened { shot, limit }).await?;
    Ok(limit)
}

fn solve(run: &Run, shape: Shape, layers: &[LayerPath<'_>], to_free: u64) -> Result<Cut, PlanningError> {
    if shape.is_uniform() {
        threshold::uniform(layers, to_free)
    } else {
        threshold::per_layer(layers, to_free, ranking(run))
    }
}

fn ranking(run: &Run) -> Ranking {
    let paper = run.spec().structure == Structure::RowColumn && run.spec().scoring == Scoring::Independent;
    if paper { Ranking::Cost } else { Ranking::CostPerWeight }
}

/// A line of the removal order: units of one layer that go together.
#[derive(Serialize)]
struct Leaving<'a> {
    layer: &'a LayerId,
    units: Vec<Unit>,
    /// Size that is left when they have gone, in the target's measure.
    left: u64,
    /// Predicted rise of the loss by all that have gone by then, nats per token.
    predicted: f64,
}

/// Writes down in which order a per-layer cut takes the units, as JSON lines, beside the paths that are kept.
async fn put_removal_order(
    run: &Run,
    shot: u32,
    paths: &[RemovalPath],
    (order, before): (&[Stretch], u64),
) -> Result<(), RunError> {
    let mut lines = Vec::new();
    for stretch in order {
        let path = &paths[stretch.path];
        let steps = &path.steps[stretch.steps.start as usize..stretch.steps.end as usize];
        let units = steps.iter().map(|step| step.unit).collect();
        let left = before.saturating_sub(stretch.freed);
        let line = Leaving { layer: &path.layer, units, left, predicted: stretch.predicted };
        serde_json::to_writer(&mut lines, &line).map_err(|e| invalid("removal order", e.to_string()))?;
        lines.push(b'\n');
    }
    Ok(run.store().put(&keys::removal_order(run.id(), shot), lines.into()).await?)
}

/// Returns the paths with what a cut of them must respect.
/// `written`: whether the shot ends with a model that is written.
fn layer_paths<'a>(
    run: &Run,
    (shot, written): (u32, bool),
    paths: &'a [RemovalPath],
) -> Result<Vec<LayerPath<'a>>, RunError> {
    let model = prepared(run)?.model;
    let group = |path: &RemovalPath| model.groups().find(|g| g.layer == path.layer).cloned();
    Ok(paths
        .iter()
        .map(|path| match group(path) {
            Some(group) => unit_path(run, (shot, written), path, &group),
            None => row_column_path(path),
        })
        .collect())
}

fn unit_path<'a>(run: &Run, (shot, written): (u32, bool), path: &'a RemovalPath, group: &UnitGroup) -> LayerPath<'a> {
    let spec = run.spec();
    let left = units_left(run, shot - 1, group);
    // Widths are rounded only where a model is written: between shots nothing needs to load anywhere.
    let rounded = group.kind == UnitKind::FfnChannel && written;
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

fn chosen(run: &Run, shot: u32, paths: &[RemovalPath], cut: &Cut) -> Result<CutChosen, RunError> {
    let prefix = |path: &'_ RemovalPath, steps: u32| path.steps[..steps as usize].iter().map(|s| s.freed).sum::<u64>();
    let (damped_layers, largest_damping) = check_damping(run, paths.iter().map(|p| p.damping))?;
    Ok(CutChosen {
        shot,
        cuts: paths
            .iter()
            .zip(&cut.steps)
            .map(|(p, n)| LayerCut { layer: p.layer.clone(), steps: *n, elements: None })
            .collect(),
        threshold: cut.threshold,
        predicted: Some(cut.predicted),
        predicted_other_shape: None,
        shape: None,
        freed_prunable: paths.iter().zip(&cut.steps).map(|(p, n)| prefix(p, *n)).sum(),
        damped_layers,
        largest_damping,
        layers: paths
            .iter()
            .zip(&cut.steps)
            .map(|(p, n)| LayerReport {
                layer: p.layer.clone(),
                removed: u64::from(*n),
                left: 0,
                predicted: 0.0,
                damping: p.damping,
            })
            .collect(),
        curve: None,
    })
}
