//! Single weights of one layer: their costs counted by digit, and the ones below the threshold removed.
//!
//! Costs are computed again from the same factors for each of the three steps: keeping them would cost the store as much as
//! the weights. That they come out the same is checked by their number.

use super::curved::Curved;
use crate::error::Error;
use pruning::{Updated, WindowCosts, histogram_counts, select_elements, window_costs};
use tch::Tensor;
use types::{CostHistogram, ElementCut, FactorDamping, RunSpec};

/// Which digit of the costs is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Digit {
    /// The upper 16 bits.
    First,
    /// The lower 16 bits, of the costs whose upper ones are these.
    Second(u16),
}

/// Costs of a layer's items: weights, or windows.
struct Items {
    costs: Tensor,
    windows: Option<WindowCosts>,
    damping: FactorDamping,
}

impl Items {
    fn new(problem: &Curved, spec: &RunSpec) -> Result<Self, Error> {
        let Some(pattern) = spec.pattern else {
            let found = problem.element_costs(spec.update)?;
            return Ok(Self { costs: found.costs_rc, windows: None, damping: found.damping });
        };
        let windows = window_costs(problem.costed()?, pattern, spec.update)?;
        Ok(Self { costs: windows.costs_rk.shallow_clone(), damping: windows.damping, windows: Some(windows) })
    }
}

/// Returns how often each digit occurs among the costs of a layer's items.
pub(super) fn histogram(problem: &Curved, spec: &RunSpec, digit: Digit) -> Result<CostHistogram, Error> {
    let items = Items::new(problem, spec)?;
    let prefix = match digit {
        Digit::First => None,
        Digit::Second(prefix) => Some(prefix),
    };
    let counts = histogram_counts(problem.layer(), &items.costs, prefix)?;
    let bins = (0..=u16::MAX).zip(counts).filter(|(_, items)| *items > 0).collect();
    Ok(CostHistogram { layer: problem.layer().clone(), bins, damping: items.damping })
}

/// Returns the layer without the items below the threshold, and how many of its weights are zero now.
pub(super) fn update(problem: &Curved, spec: &RunSpec, cut: ElementCut) -> Result<(Updated, u64), Error> {
    let items = Items::new(problem, spec)?;
    let chosen = select_elements(problem.layer(), &items.costs, cut.bits, cut.ties)?;
    let found = chosen.f_sum(tch::Kind::Int64)?.f_int64_value(&[])? as u64;
    if found != cut.items {
        let (layer, counted) = (problem.layer(), cut.items);
        return Err(Error::Bug(format!(
            "{found} items of {layer} lie below the threshold, {counted} were counted: costs differ between workers"
        )));
    }
    let removed = match &items.windows {
        Some(windows) => windows.removed(&chosen)?,
        None => chosen,
    };
    let new = problem.masked_update(&removed, spec)?;
    tracing::debug!(layer = %problem.layer(), zeros = new.removed, iterations = new.iterations, "weights removed");
    let updated = Updated { w_rc: new.w_rc, kept: Vec::new(), kept_rows: Vec::new(), predicted: new.predicted };
    Ok((updated, new.removed))
}
