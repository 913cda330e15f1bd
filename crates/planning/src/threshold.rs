//! One cut for the whole model: merges the layers' removal paths into a prefix length per layer; [`radix`] finds the
//! threshold on the costs of single weights.
//!
//! Does not know how costs were computed, nor what a unit looks like in a tensor. The problem and what holds
//! afterwards are stated in the crate's README.

pub mod radix;
mod row_column;
mod uniform;
mod units;

pub use uniform::uniform;

use crate::PlanningError;
use serde::{Deserialize, Serialize};
use types::{LayerId, PathStep, UnitKind};

/// One layer's removal path, with what a cut must respect.
#[derive(Debug, Clone, Copy)]
pub struct LayerPath<'a> {
    /// The layer where the cost arises.
    pub layer: &'a LayerId,
    /// Kind of its units (`Row` or `Column` where the path mixes both).
    pub kind: UnitKind,
    /// Units before the cut, counted as the steps count them (query heads: of all kv groups together).
    pub units_left: u32,
    /// Units after the cut are a multiple of this, unless the layer stays as it is.
    pub quantum: u32,
    /// Steps come in rounds of this many, which go together (query heads: the number of kv groups; otherwise 1).
    pub round: u32,
    /// What each step frees, in the target's measure; `None`: what the step itself says.
    pub freed_per_unit: Option<u64>,
    /// The removals, in order; as many as the layer may lose.
    pub steps: &'a [PathStep],
}

/// What the layers' steps are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ranking {
    /// Cost per freed weight along the lower convex hull of each path.
    CostPerWeight,
    /// Cost alone: one τ, the paper's rule for rows and columns that were scored independently.
    Cost,
}

/// The decision.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Cut {
    /// Length of each path's prefix that goes, in the order in which the paths were given.
    pub steps: Vec<u32>,
    /// What that frees, in the target's measure.
    pub freed: u64,
    /// Sum of the costs of what goes, nats per token.
    pub predicted: f64,
    /// The key at which the merge stopped: nats per token and freed weight, or nats per token under [`Ranking::Cost`].
    /// `None` when nothing goes or the shape is uniform.
    pub threshold: Option<f64>,
}

/// Returns the cut that lets each layer find its own width: steps go in the order of their key over the whole model
/// (ties: the layer given first) until `to_free` is reached.
///
/// # Errors
/// [`PlanningError::Infeasible`] when all paths together free less, [`PlanningError::InvalidPath`] for a path that
/// cannot be one.
pub fn per_layer(paths: &[LayerPath], to_free: u64, ranking: Ranking) -> Result<Cut, PlanningError> {
    let points = paths.iter().map(allowed_points).collect::<Result<Vec<_>, _>>()?;
    check_feasible(points.iter().map(|p| p[p.len() - 1].freed), to_free)?;
    Ok(take(&points, &in_order(&points, ranking), to_free))
}

/// Some steps of one path that go together.
#[derive(Debug, Clone, PartialEq)]
pub struct Stretch {
    /// Which path, by its place among those given.
    pub path: usize,
    /// Which of its steps.
    pub steps: std::ops::Range<u32>,
    /// What has been freed when they are gone, with all that went before, in the target's measure.
    pub freed: u64,
    /// Sum of the costs of what has gone by then, nats per token.
    pub predicted: f64,
}

/// Returns everything that may go in the order in which [`per_layer`] takes it.
///
/// # Errors
/// As for [`per_layer`].
pub fn removal_order(paths: &[LayerPath], ranking: Ranking) -> Result<Vec<Stretch>, PlanningError> {
    let points = paths.iter().map(allowed_points).collect::<Result<Vec<_>, _>>()?;
    let (mut freed, mut predicted) = (0_u64, 0.0);
    let stretches = in_order(&points, ranking).into_iter().map(|segment| {
        let of = |at: usize| points[segment.path][at];
        let (from, to) = (of(segment.start), of(segment.end));
        freed = freed.saturating_add(to.freed - from.freed);
        predicted += to.cost - from.cost;
        Stretch { path: segment.path, steps: from.steps..to.steps, freed, predicted }
    });
    Ok(stretches.collect())
}

/// Returns the stretches of all paths in the order of their key.
fn in_order(points: &[Vec<Point>], ranking: Ranking) -> Vec<Segment> {
    let mut segments = Vec::new();
    for (path, layer_points) in points.iter().enumerate() {
        match ranking {
            Ranking::CostPerWeight => units::segments(path, layer_points, &mut segments),
            Ranking::Cost => row_column::segments(path, layer_points, &mut segments),
        }
    }
    // Keys never fall along a path and the sort is stable, so the segments of one path stay in order.
    segments.sort_by(|a, b| a.key.total_cmp(&b.key).then(a.path.cmp(&b.path)));
    segments
}

/// A prefix at which a path may be cut, with its sums.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Point {
    steps: u32,
    freed: u64,
    cost: f64,
    /// Largest cost of a single step in the prefix.
    highest: f64,
}

impl Point {
    const ORIGIN: Self = Self { steps: 0, freed: 0, cost: 0.0, highest: f64::NEG_INFINITY };
}

/// A stretch of one path whose points all have the same key.
#[derive(Debug, Clone, Copy)]
struct Segment {
    path: usize,
    key: f64,
    /// Indices of its first and last point.
    start: usize,
    end: usize,
}

/// Returns the prefixes at which the path may be cut, from the empty one on; freed amounts never fall.
fn allowed_points(path: &LayerPath) -> Result<Vec<Point>, PlanningError> {
    let invalid = |problem| PlanningError::InvalidPath { layer: path.layer.clone(), problem };
    if path.quantum == 0 || path.round == 0 {
        return Err(invalid("quantum and round must be at least 1"));
    }
    if path.steps.len() > path.units_left as usize {
        return Err(invalid("it has more steps than there are units"));
    }
    let mut sums = Point::ORIGIN;
    let mut points = vec![sums];
    for step in path.steps {
        let freed = sums.freed.checked_add(path.freed_per_unit.unwrap_or(step.freed));
        sums = Point {
            steps: sums.steps + 1,
            freed: freed.ok_or_else(|| invalid("the freed amounts overflow"))?,
            cost: sums.cost + step.cost,
            highest: sums.highest.max(step.cost),
        };
        if !step.cost.is_finite() || !sums.cost.is_finite() {
            return Err(invalid("a cost is not finite"));
        }
        let left = path.units_left - sums.steps;
        if left.is_multiple_of(path.quantum) && sums.steps.is_multiple_of(path.round) {
            points.push(sums);
        }
    }
    Ok(points)
}

/// Refuses a wish that the largest freed amounts of all paths (or kinds) do not cover.
fn check_feasible(largest: impl Iterator<Item = u64>, asked: u64) -> Result<(), PlanningError> {
    let available = largest.fold(0, u64::saturating_add);
    if available < asked { Err(PlanningError::Infeasible { asked, available }) } else { Ok(()) }
}

/// Returns the cut after walking the segments in order; the last is followed only as far as needed.
fn take(points: &[Vec<Point>], segments: &[Segment], to_free: u64) -> Cut {
    let mut reached = vec![0; points.len()];
    let mut freed = 0_u64;
    let mut threshold = None;
    for segment in segments {
        if freed >= to_free {
            break;
        }
        let along = &points[segment.path][segment.start..=segment.end];
        let enough = along[0].freed.saturating_add(to_free - freed);
        let stop = along.partition_point(|p| p.freed < enough).min(along.len() - 1);
        freed = freed.saturating_add(along[stop].freed - along[0].freed);
        reached[segment.path] = segment.start + stop;
        threshold = Some(segment.key);
    }
    let ends = || points.iter().zip(&reached).map(|(layer, at)| layer[*at]);
    Cut { steps: ends().map(|p| p.steps).collect(), freed, predicted: ends().map(|p| p.cost).sum(), threshold }
}
