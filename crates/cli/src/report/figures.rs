//! The pictures of one run. Each takes plain figures; none computes any.

mod curves;
mod heat;

pub(crate) use curves::{ModelCosts, layer_costs, layer_plots, model_costs, model_plot};
pub(crate) use heat::heat_map;

use super::plot::{ACCENT, About, Axes, INK, MARK, MUTED, Plot, Unit, chart, dashes, dots, label, line, stroke};
use crate::error::CliError;
use crate::text::nats;

/// Shots up to which every point has its number.
const NAMED_SHOTS: usize = 12;

/// One shot, as the pictures show it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ShotPoint {
    pub(crate) shot: u32,
    /// Share of the prunable weights that is left.
    pub(crate) size: f64,
    /// Held-out loss after it, nats per token.
    pub(crate) loss: Option<f64>,
    /// Predicted and measured rise of the loss.
    pub(crate) predicted: f64,
    pub(crate) measured: Option<f64>,
}

/// Returns held-out loss against size; `dense`: that of the model before. `None` without held-out data.
pub(crate) fn loss_plot(dense: Option<f64>, shots: &[ShotPoint]) -> Result<Option<Plot>, CliError> {
    let Some(dense) = dense else { return Ok(None) };
    let after = shots.iter().filter_map(|s| s.loss.map(|loss| (s.shot, (s.size, loss))));
    let named: Vec<(u32, (f64, f64))> = std::iter::once((0, (1.0, dense))).chain(after).collect();
    let points: Vec<(f64, f64)> = named.iter().map(|(_, point)| *point).collect();
    let (low, high) = range(points.iter().map(|p| p.1));
    let (smallest, _) = range(points.iter().map(|p| p.0));
    let margin = 0.12 * (high - low);
    let axes = Axes {
        x: (1.0 + 0.05 * (1.0 - smallest), smallest - 0.08 * (1.0 - smallest)),
        y: (low - margin, high + margin),
        x_label: "prunable weights left",
        y_label: "held-out loss, nats per token",
        x_unit: Unit::Percent,
    };
    let about = About {
        id: "loss",
        title: "Loss and size after each shot".into(),
        description: format!(
            "Held-out loss against the share of prunable weights left: from {dense:.4} nats per token of the dense model to {:.4} at {:.1} %.",
            points.last().map_or(dense, |p| p.1),
            100.0 * points.last().map_or(1.0, |p| p.0)
        ),
    };
    let plot = chart(about, &axes, |chart| {
        line(chart, &points, stroke(ACCENT, 2))?;
        dots(chart, &points, 4, ACCENT)?;
        for (at, (shot, point)) in named.iter().enumerate() {
            let words = if *shot == 0 { "dense".to_owned() } else { format!("shot {shot}") };
            let ends = at == 0 || at + 1 == named.len();
            // Beside the line that goes on to the right.
            let rises = points.get(1).is_some_and(|next| next.1 > dense);
            let away = if at > 0 { (-8, 8) } else { (8, if rises { -12 } else { 12 }) };
            if ends || named.len() <= NAMED_SHOTS {
                label(chart, *point, away, &words, if ends { INK } else { MUTED })?;
            }
        }
        Ok(())
    })?;
    Ok(Some(plot))
}

/// Returns measured against predicted rise of each shot. `None` without held-out data.
pub(crate) fn agreement_plot(shots: &[ShotPoint]) -> Result<Option<Plot>, CliError> {
    let both = |s: &ShotPoint| s.measured.map(|measured| (s.shot, (s.predicted, measured)));
    let named: Vec<(u32, (f64, f64))> = shots.iter().filter_map(both).collect();
    if named.is_empty() {
        return Ok(None);
    }
    let points: Vec<(f64, f64)> = named.iter().map(|(_, point)| *point).collect();
    let (low, high) = range(points.iter().flat_map(|p| [p.0, p.1, 0.0]));
    let (low, high) = (low - 0.05 * (high - low), high + 0.12 * (high - low));
    let axes = Axes {
        x: (low, high),
        y: (low, high),
        x_label: "predicted rise, nats per token",
        y_label: "measured rise, nats per token",
        x_unit: Unit::Plain,
    };
    let about = About {
        id: "agreement",
        title: "Predicted and measured rise of each shot".into(),
        description: named.iter().fold("On the dashed line both are equal.".to_owned(), |text, (shot, (p, m))| {
            format!("{text} Shot {shot}: predicted {}, measured {}.", nats(*p), nats(*m))
        }),
    };
    let plot = chart(about, &axes, |chart| {
        dashes(chart, [(low, low), (high, high)], MUTED)?;
        let near = low + 0.8 * (high - low);
        label(chart, (near, near), (-12, 6), "equal", MUTED)?;
        dots(chart, &points, 4, MARK)?;
        for (shot, point) in named.iter().filter(|_| named.len() <= NAMED_SHOTS) {
            let right = point.0 < low + 0.75 * (high - low);
            let away = if right { (9, -2) } else { (-9, -2) };
            label(chart, *point, away, &format!("shot {shot}"), INK)?;
        }
        Ok(())
    })?;
    Ok(Some(plot))
}

/// Returns the smallest and the largest of some numbers; (0, 1) if there are none.
fn range(numbers: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = numbers.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), n| (low.min(n), high.max(n)));
    if low > high { (0.0, 1.0) } else { (low, high) }
}
