//! What other sizes than the chosen one were predicted to cost, for the report.

use super::prepared;
use crate::error::RunError;
use crate::event::{CostCurve, LayerCurve};
use crate::run::Run;
use planning::curve::{per_layer_curve, single_items_curve, thinned, uniform_curve};
use planning::threshold::{LayerPath, Stretch};
use std::collections::BTreeMap;
use types::{CostHistogram, LayerState, ModelDescription, RemovalPath, Shape};

/// Points of the whole model's curve.
const MODEL_POINTS: usize = 200;
/// Points of a layer's curve.
const LAYER_POINTS: usize = 24;

/// Returns the curves of a shot's paths, for cuts of this shape; `before`: the size when it begins.
pub(super) fn curve(
    run: &Run,
    (shot, shape): (u32, Shape),
    (paths, layers, order): (&[RemovalPath], &[LayerPath<'_>], &[Stretch]),
    before: u64,
) -> Result<CostCurve, RunError> {
    let model = if shape.is_uniform() {
        uniform_curve(layers, MODEL_POINTS).map_err(|source| RunError::Cut { shot, source })?
    } else {
        per_layer_curve(order, MODEL_POINTS)
    };
    let model = model.iter().map(|point| (before.saturating_sub(point.freed), rounded(point.predicted)));
    let described = prepared(run)?.model;
    let of_layer = |(path, layer): (&RemovalPath, &LayerPath<'_>)| {
        let (all, left) = units(run, shot, &described, (path, layer));
        LayerCurve { layer: path.layer.clone(), points: layer_points(layer, all, left) }
    };
    Ok(CostCurve { model: model.collect(), layers: paths.iter().zip(layers).map(of_layer).collect() })
}

/// Returns the curves of a round of single weights, or windows of them: what each would cost alone, cheapest first.
pub(super) fn of_elements(
    run: &Run,
    histograms: &[CostHistogram],
    weights_an_item: u64,
) -> Result<CostCurve, RunError> {
    let dense = prepared(run)?.model.dense.prunable;
    let mut all: BTreeMap<u16, u64> = BTreeMap::new();
    for (digit, items) in histograms.iter().flat_map(|h| &h.bins) {
        *all.entry(*digit).or_default() += items;
    }
    let left = |items: u64| dense.saturating_sub(items * weights_an_item);
    let model = few(&single_items_curve(all), MODEL_POINTS).into_iter().map(|(gone, cost)| (left(gone), rounded(cost)));
    let of_layer = |histogram: &CostHistogram| {
        let items: u64 = histogram.bins.iter().map(|(_, items)| items).sum();
        let share = |gone: u64| rounded(gone as f64 / items.max(1) as f64);
        let points = few(&single_items_curve(histogram.bins.iter().copied()), LAYER_POINTS).into_iter();
        let points = points.map(|(gone, cost)| (share(gone), rounded(cost))).collect();
        LayerCurve { layer: histogram.layer.clone(), points }
    };
    Ok(CostCurve { model: model.collect(), layers: histograms.iter().map(of_layer).collect() })
}

/// Returns a part of a curve's points.
fn few(points: &[(u64, f64)], most: usize) -> Vec<(u64, f64)> {
    let positions: Vec<u64> = points.iter().map(|(gone, _)| *gone).collect();
    thinned(&positions, most).into_iter().map(|at| points[at]).collect()
}

/// Returns how many units a layer had in the original model and has before the shot.
fn units(run: &Run, shot: u32, model: &ModelDescription, (path, layer): (&RemovalPath, &LayerPath<'_>)) -> (u64, u64) {
    let all = model.units_of(&path.layer).unwrap_or(0);
    if model.groups().any(|g| g.layer == path.layer) {
        return (all, u64::from(layer.units_left));
    }
    let kept = |state: &LayerState| (state.kept.len() + state.kept_rows.len()) as u64;
    (all, run.history(|h| h.layer_after(shot - 1, &path.layer).map_or(all, kept)))
}

fn layer_points(layer: &LayerPath<'_>, all: u64, left: u64) -> Vec<(f64, f64)> {
    let costs = layer.steps.iter().scan(0.0, |sum, step| {
        *sum += step.cost;
        Some(*sum)
    });
    let sums: Vec<f64> = std::iter::once(0.0).chain(costs).collect();
    let positions: Vec<u64> = (0..sums.len() as u64).collect();
    let share = |gone: u64| rounded((all.saturating_sub(left) + gone) as f64 / all.max(1) as f64);
    thinned(&positions, LAYER_POINTS).into_iter().map(|at| (share(at as u64), rounded(sums[at]))).collect()
}

/// Returns a number to six digits: a picture needs no more, and the journal holds many.
fn rounded(number: f64) -> f64 {
    format!("{number:.5e}").parse().unwrap_or(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{LayerId, PathStep, Unit, UnitKind};

    #[test]
    fn a_layer_s_curve_begins_where_the_shot_does_and_is_short() {
        let id = LayerId::new("layer").unwrap();
        let unit = Unit { kind: UnitKind::FfnChannel, index: 0 };
        let steps = [PathStep { unit, cost: 1.0 / 3.0, freed: 1 }; 60];
        let layer = LayerPath {
            layer: &id,
            kind: UnitKind::FfnChannel,
            units_left: 80,
            quantum: 1,
            round: 1,
            freed_per_unit: None,
            steps: &steps,
        };
        let points = layer_points(&layer, 100, 80);
        assert!(points.len() <= LAYER_POINTS);
        assert_eq!((points[0], points[points.len() - 1]), ((0.2, 0.0), (0.8, 20.0)));
        assert_eq!(rounded(1.0 / 3.0).to_string(), "0.333333");
    }
}
