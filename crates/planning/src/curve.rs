//! What every size would be predicted to cost, in few points: for people to look at. Does not choose one.

use crate::PlanningError;
use crate::threshold::{LayerPath, Stretch, uniform};

/// A size and what it is predicted to cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CurvePoint {
    /// What has been freed, in the target's measure.
    pub freed: u64,
    /// Sum of the costs of what has gone by then, nats per token.
    pub predicted: f64,
}

/// Returns the curve that cuts follow which let each layer find its own width, from nothing removed to all that may go, in
/// at most `most` points.
pub fn per_layer_curve(order: &[Stretch], most: usize) -> Vec<CurvePoint> {
    let origin = CurvePoint { freed: 0, predicted: 0.0 };
    let gone = order.iter().map(|s| CurvePoint { freed: s.freed, predicted: s.predicted });
    let all: Vec<_> = std::iter::once(origin).chain(gone).collect();
    let positions: Vec<u64> = all.iter().map(|point| point.freed).collect();
    thinned(&positions, most).into_iter().map(|at| all[at]).collect()
}

/// Returns the same for cuts that leave equal widths: the cheapest of them at `most` evenly spaced sizes.
///
/// # Errors
/// As for [`uniform`].
pub fn uniform_curve(paths: &[LayerPath], most: usize) -> Result<Vec<CurvePoint>, PlanningError> {
    // What may go at most is what a wish beyond it is refused with.
    let available = match uniform(paths, u64::MAX) {
        Ok(cut) => cut.freed,
        Err(PlanningError::Infeasible { available, .. }) => available,
        Err(error) => return Err(error),
    };
    let mut curve: Vec<CurvePoint> = Vec::new();
    for to_free in evenly(0, available, most) {
        let cut = uniform(paths, to_free)?;
        let farther = curve.last().is_none_or(|last| cut.freed > last.freed);
        if farther {
            curve.push(CurvePoint { freed: cut.freed, predicted: cut.predicted });
        }
    }
    Ok(curve)
}

/// Returns the curve of single items that go cheapest first, each at its own cost, from counts of the upper 16 bits of their
/// costs as f32 (`bins`, rising): (items gone, sum of their costs), one point after each bin, costs to within 0.4 %.
///
/// Costs of items that go together add up to this only as long as nothing that stays is updated for them.
pub fn single_items_curve(bins: impl IntoIterator<Item = (u16, u64)>) -> Vec<(u64, f64)> {
    // The middle of what begins with these bits; the first bin is of items that are gone, at cost 0.
    let cost = |digit: u16| if digit == 0 { 0.0 } else { f64::from(f32::from_bits((u32::from(digit) << 16) | 0x8000)) };
    let sums = bins.into_iter().scan((0, 0.0), |(gone, sum), (digit, items)| {
        (*gone, *sum) = (*gone + items, *sum + items as f64 * cost(digit));
        Some((*gone, *sum))
    });
    std::iter::once((0, 0.0)).chain(sums).collect()
}

/// Returns which of some `positions`, which never fall, stand for all of them: the first, the last, and between them the
/// first at or beyond each of evenly spaced ones; at most `most`, and all where there are no more.
pub fn thinned(positions: &[u64], most: usize) -> Vec<usize> {
    let (Some(first), Some(last)) = (positions.first(), positions.last()) else { return Vec::new() };
    let end = positions.len() - 1;
    if positions.len() <= most {
        return (0..=end).collect();
    }
    let mut kept: Vec<usize> =
        evenly(*first, *last, most).map(|wanted| positions.partition_point(|p| *p < wanted)).collect();
    // Of several points at the last position the last one counts: it has everything.
    if let Some(at) = kept.last_mut() {
        *at = end;
    }
    kept.dedup();
    kept
}

/// Returns `count` evenly spaced numbers from `first` to `last`.
fn evenly(first: u64, last: u64, count: usize) -> impl Iterator<Item = u64> {
    let (span, parts) = (u128::from(last - first), (count.max(2) - 1) as u128);
    (0..count as u128).map(move |k| first + (span * k / parts) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use types::{LayerId, PathStep, Unit, UnitKind};

    #[test]
    fn single_items_go_cheapest_first_at_their_own_cost() {
        let digit = |cost: f32| (cost.to_bits() >> 16) as u16;
        let curve = single_items_curve([(0, 5), (digit(0.5), 2), (digit(3.0), 1)]);
        let [start, gone, cheap, all] = curve.as_slice() else { panic!("{curve:?}") };
        assert_eq!((*start, *gone), ((0, 0.0), (5, 0.0)));
        assert!(cheap.0 == 7 && (cheap.1 / 1.0 - 1.0).abs() < 4e-3, "{cheap:?}");
        assert!(all.0 == 8 && (all.1 / 4.0 - 1.0).abs() < 4e-3, "{all:?}");
    }

    proptest! {
        #[test]
        fn few_points_stand_for_all(steps in prop::collection::vec(0_u64..50, 1..300), most in 2_usize..40) {
            let positions: Vec<u64> = steps.iter().scan(0, |sum, step| { *sum += step; Some(*sum) }).collect();
            let kept = thinned(&positions, most);
            prop_assert!(kept.len() <= most);
            prop_assert!(kept.is_sorted_by(|a, b| a < b), "{kept:?}");
            prop_assert_eq!((kept[0], kept[kept.len() - 1]), (0, positions.len() - 1));
            // No gap is wider than an even one, plus the widest between two of the points themselves.
            let span = positions[positions.len() - 1] - positions[0];
            let widest = steps.iter().max().unwrap() + span.div_ceil(most as u64 - 1) + 1;
            for pair in kept.windows(2).filter(|pair| pair[1] > pair[0] + 1) {
                prop_assert!(positions[pair[1]] - positions[pair[0]] <= widest, "{pair:?}");
            }
        }
    }

    #[test]
    fn short_lists_stay_as_they_are() {
        assert_eq!(thinned(&[], 5), Vec::<usize>::new());
        assert_eq!(thinned(&[3, 3, 9], 3), [0, 1, 2]);
        assert_eq!(thinned(&[0, 1, 2, 3, 4], 1), [4]);
        assert_eq!(thinned(&[7; 6], 3), [0, 5]);
        assert_eq!(thinned(&[0, u64::MAX - 1, u64::MAX], 2), [0, 2]);
    }

    #[test]
    fn both_curves_go_from_nothing_to_all_that_may_go() {
        let id = LayerId::new("layer").unwrap();
        let unit = |index| Unit { kind: UnitKind::FfnChannel, index };
        let steps: Vec<_> = (0..9_u32).map(|i| PathStep { unit: unit(i), cost: f64::from(i * i), freed: 10 }).collect();
        let path = LayerPath {
            layer: &id,
            kind: UnitKind::FfnChannel,
            units_left: 10,
            quantum: 1,
            round: 1,
            freed_per_unit: None,
            steps: &steps,
        };
        let paths = [path, path];
        let equal = uniform_curve(&paths, 5).unwrap();
        let order = crate::threshold::removal_order(&paths, crate::threshold::Ranking::CostPerWeight).unwrap();
        for curve in [equal, per_layer_curve(&order, 5)] {
            assert!(curve.len() <= 5, "{curve:?}");
            assert_eq!(curve[0], CurvePoint { freed: 0, predicted: 0.0 });
            assert_eq!(curve[curve.len() - 1], CurvePoint { freed: 180, predicted: 408.0 });
            assert!(curve.is_sorted_by(|a, b| a.freed < b.freed && a.predicted <= b.predicted), "{curve:?}");
        }
    }
}
