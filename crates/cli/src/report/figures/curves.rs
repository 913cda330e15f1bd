//! Cost curves: what every size was predicted to cost, and where the cut lies on them.

use super::super::plot::{ACCENT, About, Axes, INK, MARK, MUTED, Plot, Unit, chart, dashes, dots, label, line, stroke};
use super::super::units::Left;
use super::range;
use crate::error::CliError;
use crate::text::nats;
use coordinator::event::{CutChosen, History, LayerCurve};
use plotters::style::Color as _;

/// The cut lies at this part of the picture's height.
const CUT_HEIGHT: f64 = 0.4;
/// Names of the pictures of single layers, by kind.
const LAYER_IDS: [&str; 8] = ["kind-1", "kind-2", "kind-3", "kind-4", "kind-5", "kind-6", "kind-7", "kind-8"];

/// The whole model's curve in one shot: on from where the shots before it have come to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ModelCosts {
    pub(crate) shot: u32,
    /// (size left as a share of the dense model's, predicted rise since the dense model).
    pub(crate) points: Vec<(f64, f64)>,
    /// Where it was cut.
    pub(crate) cut: (f64, f64),
}

/// A layer's curve in the last shot.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LayerCosts {
    pub(crate) block: u32,
    pub(crate) kind: String,
    /// (share of the units removed, predicted rise since the shot began).
    pub(crate) points: Vec<(f64, f64)>,
    pub(crate) cut: (f64, f64),
}

/// Returns the whole model's curve of every shot that has one.
pub(crate) fn model_costs(history: &History) -> Vec<ModelCosts> {
    let (Some(spec), Some(dense)) = (&history.spec, history.sizes(0)) else { return Vec::new() };
    let all = dense.measured_by(&spec.target).max(1) as f64;
    let (mut before, mut costs) = (0.0, Vec::new());
    for (shot, known) in &history.shots {
        let (Some(cut), Some(committed)) = (&known.cut, &known.committed) else { continue };
        let here = cut.predicted.unwrap_or(committed.predicted);
        if let Some(curve) = &cut.curve {
            // A curve of single weights begins with those that earlier rounds took.
            let before = before + known.rounds.iter().flat_map(|r| &r.predicted).map(|(_, rise)| rise).sum::<f64>();
            let points: Vec<(f64, f64)> =
                curve.model.iter().map(|(left, rise)| (*left as f64 / all, before + rise)).collect();
            let left = committed.sizes.measured_by(&spec.target) as f64 / all;
            // What they cost together, after the update, lies elsewhere: the cut was chosen by what each costs alone.
            let rise = cut.predicted.map_or_else(|| falling(&points, left), |predicted| before + predicted);
            costs.push(ModelCosts { shot: *shot, points, cut: (left, rise) });
        }
        before += here;
    }
    costs
}

/// Returns the curves of the last shot's layers.
pub(crate) fn layer_costs(history: &History, left: &[Left]) -> Vec<LayerCosts> {
    let last = history.shots.get(&history.shots_done()).and_then(|s| s.cut.as_ref());
    let Some((cut, curve)) = last.and_then(|cut| cut.curve.as_ref().map(|curve| (cut, curve))) else {
        return Vec::new();
    };
    let of = |curve: &LayerCurve| {
        let layer = left.iter().find(|l| l.layer == curve.layer)?;
        let gone = share_at_the_cut(history, cut, curve, layer)?;
        let points = curve.points.clone();
        Some(LayerCosts { block: layer.block, kind: layer.kind.clone(), cut: (gone, at(&points, gone)), points })
    };
    curve.layers.iter().filter_map(of).collect()
}

/// Returns the share of the original units that is gone after the cut.
fn share_at_the_cut(history: &History, cut: &CutChosen, curve: &LayerCurve, layer: &Left) -> Option<f64> {
    let of_layer = cut.cuts.iter().find(|c| c.layer == curve.layer)?;
    let steps = of_layer.steps;
    if let Some(elements) = of_layer.elements {
        let window = history.spec.as_ref()?.pattern.map_or(1, |pattern| u64::from(pattern.m));
        let layers = history.prepared.as_ref()?.model.blocks.iter().flat_map(|b| &b.layers);
        let items = layers.filter(|l| l.layer == layer.layer).map(|l| l.rows * (l.columns / window)).sum::<u64>();
        return Some(elements.items as f64 / items.max(1) as f64);
    }
    let units = history.prepared.as_ref()?.model.units_of(&layer.layer)?;
    Some(curve.points.first()?.0 + f64::from(steps) / units.max(1) as f64)
}

/// Returns the curve's height at `x`, between its points.
pub(crate) fn at(points: &[(f64, f64)], x: f64) -> f64 {
    let next = points.partition_point(|p| p.0 < x);
    match (next.checked_sub(1).and_then(|i| points.get(i)), points.get(next)) {
        (Some(a), Some(b)) if b.0 > a.0 => a.1 + (b.1 - a.1) * (x - a.0) / (b.0 - a.0),
        (Some(end), None) | (_, Some(end)) => end.1,
        (None, None) => 0.0,
    }
}

/// Returns the height at `x` of a curve that runs from right to left.
fn falling(points: &[(f64, f64)], x: f64) -> f64 {
    at(&points.iter().rev().copied().collect::<Vec<_>>(), x)
}

/// Returns the picture of the whole model. `None` where no shot has a curve.
pub(crate) fn model_plot(costs: &[ModelCosts], measure: &str) -> Result<Option<Plot>, CliError> {
    let Some(last) = costs.last() else { return Ok(None) };
    let end = last.points.last().map_or(last.cut.1, |p| p.1);
    let top = if last.cut.1 > 0.0 { (last.cut.1 / CUT_HEIGHT).min(1.05 * end.max(last.cut.1)) } else { end };
    let shown: Vec<Vec<(f64, f64)>> = costs.iter().map(|c| below(&c.points, top)).collect();
    let (low, high) = range(shown.iter().flatten().map(|p| p.0).chain([last.cut.0]));
    let axes = Axes {
        x: (high, low),
        y: (0.0, top),
        x_label: measure,
        y_label: "predicted rise of the loss, nats per token",
        x_unit: Unit::Percent,
    };
    let (size, rise) = (100.0 * last.cut.0, nats(last.cut.1));
    let about = About {
        id: "model-cost",
        title: "What each size was predicted to cost".into(),
        description: format!(
            "The predicted rise of the loss grows as less is left. The cut: {size:.1} % left, {rise} nats per token."
        ),
    };
    let plot = chart(about, &axes, |chart| {
        for (points, cost) in shown.iter().zip(costs) {
            let style = if cost.shot == last.shot { stroke(ACCENT, 2) } else { stroke(MUTED.mix(0.8), 1) };
            line(chart, points, style)?;
        }
        dashes(chart, [(last.cut.0, 0.0), (last.cut.0, last.cut.1)], MARK)?;
        dashes(chart, [(high, last.cut.1), last.cut], MARK)?;
        let cuts: Vec<(f64, f64)> = costs.iter().map(|c| c.cut).collect();
        dots(chart, &cuts, 3, MARK)?;
        dots(chart, &[last.cut], 5, MARK)?;
        // Curves rise to the right: nothing runs through the upper left corner.
        let words = format!("cut: {size:.1} %, {rise} nats");
        label(chart, (high, top), (10, -10), &words, INK)
    })?;
    Ok(Some(plot))
}

/// Returns the part of a rising curve below `top`, up to where it meets it.
fn below(points: &[(f64, f64)], top: f64) -> Vec<(f64, f64)> {
    let inside = points.iter().take_while(|p| p.1 <= top).count();
    let mut shown = points[..inside].to_vec();
    if let (Some(a), Some(b)) = (shown.last().copied(), points.get(inside)) {
        let part = (top - a.1) / (b.1 - a.1);
        shown.push((a.0 + part * (b.0 - a.0), top));
    }
    shown
}

/// Returns a picture for each kind of group: one line a block.
pub(crate) fn layer_plots(costs: &[LayerCosts], kinds: &[String]) -> Result<Vec<Plot>, CliError> {
    let mut plots = Vec::new();
    for (kind, id) in kinds.iter().zip(LAYER_IDS) {
        let of_kind: Vec<&LayerCosts> = costs.iter().filter(|c| c.kind == *kind).collect();
        if !of_kind.is_empty() {
            plots.push(layer_plot(kind, id, &of_kind)?);
        }
    }
    Ok(plots)
}

fn layer_plot(kind: &str, id: &'static str, costs: &[&LayerCosts]) -> Result<Plot, CliError> {
    let (_, dearest) = range(costs.iter().map(|c| c.cut.1));
    let (_, end) = range(costs.iter().filter_map(|c| c.points.last()).map(|p| p.1));
    let top = if dearest > 0.0 { (dearest / CUT_HEIGHT).min(1.05 * end.max(dearest)) } else { end };
    let shown: Vec<Vec<(f64, f64)>> = costs.iter().map(|c| below(&c.points, top)).collect();
    let axes = Axes {
        x: range(shown.iter().flatten().map(|p| p.0)),
        y: (0.0, top),
        x_label: "share removed",
        y_label: "predicted rise of the loss, nats per token",
        x_unit: Unit::Percent,
    };
    let words = format!("A line for each of {} blocks, a dot where it was cut: {}.", costs.len(), ends(costs));
    let about = About { id, title: format!("{kind}, block by block"), description: words.clone() };
    let plot = chart(about, &axes, |chart| {
        for points in &shown {
            line(chart, points, stroke(ACCENT.mix(0.55), 1))?;
        }
        let cuts: Vec<(f64, f64)> = costs.iter().map(|c| c.cut).collect();
        dots(chart, &cuts, 3, MARK)
    })?;
    Ok(Plot { note: Some(words), ..plot })
}

/// Says which blocks lose least and most, or that all lose the same.
fn ends(costs: &[&LayerCosts]) -> String {
    let least = costs.iter().min_by(|a, b| a.cut.0.total_cmp(&b.cut.0));
    let most = costs.iter().max_by(|a, b| a.cut.0.total_cmp(&b.cut.0));
    let told = |cost: &LayerCosts| format!("{:.1} % of block {}", 100.0 * cost.cut.0, cost.block);
    match (least, most) {
        (Some(least), Some(most)) if least.cut.0 < most.cut.0 => format!("from {} to {}", told(least), told(most)),
        (Some(all), _) => format!("{:.1} % of each", 100.0 * all.cut.0),
        (None, _) => "nothing".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_shown_up_to_where_it_leaves_the_picture() {
        let points = [(1.0, 0.0), (0.8, 1.0), (0.6, 3.0)];
        assert_eq!(below(&points, 2.0), [(1.0, 0.0), (0.8, 1.0), (0.7, 2.0)]);
        assert_eq!(below(&points, 9.0), points);
        assert!(below(&[], 1.0).is_empty());
        assert!((falling(&points, 0.9) - 0.5).abs() < 1e-12);
        let rising = [(0.0, 0.0), (0.5, 1.0), (1.0, 5.0)];
        for (x, y) in [(-1.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.75, 3.0), (2.0, 5.0)] {
            assert!((at(&rising, x) - y).abs() < 1e-12, "{x}");
        }
    }
}
