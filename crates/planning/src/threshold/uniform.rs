//! The cut that leaves the same width in every block. Does not look at single layers' costs, only at their sums.

use super::{Cut, LayerPath, Point, allowed_points, check_feasible};
use crate::PlanningError;
use types::UnitKind;

/// Returns the cheapest cut with one prefix length for all FFN paths and one for all attention paths.
///
/// Tries every allowed attention prefix with the smallest FFN prefix that then frees enough; as costs are not negative,
/// no other pair is cheaper. Of equal costs, the pair that takes more from the FFN wins.
///
/// # Errors
/// As for [`super::per_layer`]; [`PlanningError::Unequal`] when paths of a kind begin with different widths;
/// [`PlanningError::NoUniformShape`] for rows, columns and elements and for two kinds of attention units in one model.
pub fn uniform(paths: &[LayerPath], to_free: u64) -> Result<Cut, PlanningError> {
    let ffn = totals(paths, Side::Ffn)?;
    let attention = totals(paths, Side::Attention)?;
    check_feasible([&ffn, &attention].map(|points| points[points.len() - 1].freed).into_iter(), to_free)?;
    let mut best: Option<(f64, Point, Point)> = None;
    for heads in &attention {
        let missing = to_free.saturating_sub(heads.freed);
        let Some(channels) = ffn.get(ffn.partition_point(|p| p.freed < missing)) else { continue };
        let cost = heads.cost + channels.cost;
        // Attention prefixes rise, so the first of equals takes the most from the FFN.
        if best.is_none_or(|(least, ..)| cost < least) {
            best = Some((cost, *heads, *channels));
        }
    }
    let Some((predicted, heads, channels)) = best else {
        unreachable!("both longest prefixes together free enough: checked above")
    };
    let prefix = |path: &LayerPath| if Side::Ffn.has(path.kind) { channels.steps } else { heads.steps };
    Ok(Cut {
        steps: paths.iter().map(prefix).collect(),
        freed: heads.freed.saturating_add(channels.freed),
        predicted,
        threshold: None,
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Ffn,
    Attention,
}

impl Side {
    fn has(self, kind: UnitKind) -> bool {
        (kind == UnitKind::FfnChannel) == (self == Self::Ffn)
    }
}

/// Returns the points of all paths of one side added up, or the empty prefix alone where there are none.
fn totals(paths: &[LayerPath], side: Side) -> Result<Vec<Point>, PlanningError> {
    let mut side_paths = paths.iter().filter(|p| side.has(p.kind));
    let Some(first) = side_paths.next() else { return Ok(vec![Point::ORIGIN]) };
    check_kind(first)?;
    let mut sums = allowed_points(first)?;
    for path in side_paths {
        check_kind(path)?;
        check_equal(first, path)?;
        let points = allowed_points(path)?;
        // A shorter path limits all: what one block must keep, every block keeps.
        sums.truncate(points.len());
        for (sum, point) in sums.iter_mut().zip(&points) {
            sum.freed = sum.freed.saturating_add(point.freed);
            sum.cost += point.cost;
        }
    }
    Ok(sums)
}

fn check_kind(path: &LayerPath) -> Result<(), PlanningError> {
    match path.kind {
        UnitKind::FfnChannel | UnitKind::KvGroup | UnitKind::QueryHead => Ok(()),
        UnitKind::Row | UnitKind::Column | UnitKind::Element | UnitKind::Whole => {
            Err(PlanningError::NoUniformShape { kind: path.kind, layer: path.layer.clone(), hint: "" })
        }
    }
}

fn check_equal(first: &LayerPath, path: &LayerPath) -> Result<(), PlanningError> {
    if path.kind != first.kind {
        let hint = ": attention is pruned by one kind of unit at a time";
        return Err(PlanningError::NoUniformShape { kind: path.kind, layer: path.layer.clone(), hint });
    }
    let what = match () {
        () if path.units_left != first.units_left => "units left",
        () if path.quantum != first.quantum => "quantum",
        () if path.round != first.round => "round",
        () => return Ok(()),
    };
    Err(PlanningError::Unequal { kind: path.kind, reference: first.layer.clone(), layer: path.layer.clone(), what })
}
