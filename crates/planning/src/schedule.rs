//! How the size goes down over the shots. Does not know what is removed.

use crate::PlanningError;
use crate::threshold::Cut;
use types::Schedule;

/// A shot's measured rise of the loss above this many times its bound is off.
const OFF: f64 = 2.0;
/// A shot is taken back at most this often: what is off then is not the length of the step.
const MOST_RETURNS: u32 = 3;

/// Returns whether a shot that was taken back so often before is to be taken back: the loss rose by more than twice what was
/// allowed to be predicted.
pub fn is_off(measured: f64, max_rise: f64, taken_back: u32) -> bool {
    taken_back < MOST_RETURNS && measured > OFF * max_rise
}

/// Returns the cut that frees most, up to `goal`, with a predicted rise within `bound`; if even the least does not stay
/// within it, the least. `cut` returns the cheapest that frees at least what it is given.
///
/// # Errors
/// Those of `cut`.
pub fn largest_step(
    goal: u64,
    bound: f64,
    cut: impl Fn(u64) -> Result<Cut, PlanningError>,
) -> Result<Cut, PlanningError> {
    let whole = cut(goal)?;
    if whole.predicted <= bound || goal <= 1 {
        return Ok(whole);
    }
    let mut best = cut(1)?;
    // Freeing `low` stays within the bound, or is the least; freeing `high` does not.
    let (mut low, mut high) = (best.freed.clamp(1, goal), goal);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        let found = cut(middle)?;
        if found.predicted <= bound {
            low = found.freed.clamp(middle, high - 1);
            best = found;
        } else {
            high = middle;
        }
    }
    Ok(best)
}

/// Returns the largest allowed size after each shot, in the target's measure.
///
/// Linear: `dense − (dense − target)·k/T`. Geometric: `dense·(target/dense)^(k/T)`, which removes the same fraction of
/// what is left in every shot. The last is exactly `target`; sizes fall strictly whenever there are at least as many
/// weights to remove as shots, otherwise they never rise. All are `target` when nothing has to go.
fn limits(dense: u64, target: u64, shots: u32, schedule: Schedule) -> Vec<u64> {
    if target >= dense {
        return vec![target; shots as usize];
    }
    let removed = dense - target;
    let strict = removed >= u64::from(shots);
    let mut previous = dense;
    (1..=shots)
        .map(|shot| {
            let wish = match schedule {
                Schedule::Linear | Schedule::Adaptive => linear(dense, removed, shot, shots),
                Schedule::Geometric => geometric(dense, target, shot, shots),
            };
            // Room for the shots to come: rounding must not let two of them share a size.
            let (lowest, highest) =
                if strict { (target + u64::from(shots - shot), previous - 1) } else { (target, previous) };
            previous = if shot == shots { target } else { wish.clamp(lowest, highest) };
            previous
        })
        .collect()
}

/// Returns the same with sizes on the way that must be met exactly: `waypoints` fall between `dense` and `target`.
///
/// Each stretch between two of them gets at least one shot, the others where most is left to do a shot: by weights removed
/// (linear) or by the logarithm of the ratio (geometric).
///
/// # Errors
/// [`PlanningError::TooFewShots`] when there are more stretches than shots.
pub fn limits_through(
    dense: u64,
    waypoints: &[u64],
    target: u64,
    shots: u32,
    schedule: Schedule,
) -> Result<Vec<u64>, PlanningError> {
    let ends: Vec<u64> = waypoints.iter().copied().chain([target]).collect();
    if ends.len() > shots as usize {
        return Err(PlanningError::TooFewShots { sizes: ends.len(), shots });
    }
    let starts = [dense].into_iter().chain(waypoints.iter().copied());
    let stretches: Vec<(u64, u64)> = starts.zip(ends).collect();
    let length = |(from, to): (u64, u64)| match schedule {
        Schedule::Linear | Schedule::Adaptive => from.saturating_sub(to) as f64,
        Schedule::Geometric => (from.max(1) as f64 / to.max(1) as f64).ln(),
    };
    let mut given = vec![1_u32; stretches.len()];
    for _ in stretches.len()..shots as usize {
        let share = |n: usize| length(stretches[n]) / f64::from(given[n]);
        let mut longest = 0;
        for n in 1..stretches.len() {
            if share(n) > share(longest) {
                longest = n;
            }
        }
        given[longest] += 1;
    }
    Ok(stretches.iter().zip(given).flat_map(|((from, to), shots)| limits(*from, *to, shots, schedule)).collect())
}

fn linear(dense: u64, removed: u64, shot: u32, shots: u32) -> u64 {
    dense - (u128::from(removed) * u128::from(shot) / u128::from(shots)) as u64
}

fn geometric(dense: u64, target: u64, shot: u32, shots: u32) -> u64 {
    let ratio = target.max(1) as f64 / dense as f64;
    (dense as f64 * ratio.powf(f64::from(shot) / f64::from(shots))).round() as u64
}

/// Returns the largest size after one of a shot's rounds (from 0), each of which removes the same amount.
///
/// The last one's is `limit`.
pub fn round_limit(before: u64, limit: u64, round: u32, rounds: u32) -> u64 {
    let all = u128::from(before.saturating_sub(limit));
    let done = u128::from(round + 1).min(u128::from(rounds.max(1)));
    before - (all * done / u128::from(rounds.max(1))) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn linear_takes_equal_steps_and_geometric_equal_ratios() {
        assert_eq!(limits(1000, 600, 4, Schedule::Linear), [900, 800, 700, 600]);
        assert_eq!(limits(1_000_000, 62_500, 4, Schedule::Geometric), [500_000, 250_000, 125_000, 62_500]);
        assert_eq!(limits(10, 1, 9, Schedule::Geometric), [9, 8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(limits(100, 120, 3, Schedule::Linear), [120, 120, 120]);
        assert_eq!(limits(u64::MAX, 1, 2, Schedule::Linear), [u64::MAX - (u64::MAX - 1) / 2, 1]);
    }

    #[test]
    fn more_sizes_than_shots_are_refused() {
        assert_eq!(limits_through(100, &[90, 80], 70, 3, Schedule::Linear), Ok(vec![90, 80, 70]));
        assert_eq!(limits_through(100, &[90], 50, 4, Schedule::Linear), Ok(vec![90, 77, 64, 50]));
        assert!(limits_through(100, &[90, 80], 70, 2, Schedule::Linear).is_err());
    }

    #[test]
    fn a_shot_is_taken_back_three_times_at_most() {
        let off: Vec<u32> = (0..9).filter(|taken_back| is_off(1e9, 0.1, *taken_back)).collect();
        assert_eq!(off, [0, 1, 2]);
        assert!(!is_off(0.2, 0.1, 0) && is_off(0.21, 0.1, 0));
    }

    proptest! {
        #[test]
        fn the_largest_step_stays_within_the_bound_and_one_more_does_not(
            costs in prop::collection::vec((0.0..1.0_f64, 1_u64..9), 1..40), percent in 1_u64..=100, bound in 0.0..8.0_f64,
        ) {
            let all: u64 = costs.iter().map(|(_, freed)| freed).sum();
            let cut = |to_free: u64| {
                let mut cut = Cut::default();
                for (cost, freed) in &costs {
                    if cut.freed >= to_free {
                        break;
                    }
                    cut.freed += freed;
                    cut.predicted += cost;
                }
                Ok(cut)
            };
            let goal = (all * percent / 100).max(1);
            let step = largest_step(goal, bound, cut).unwrap();
            let (least, whole) = (cut(1).unwrap(), cut(goal).unwrap());
            prop_assert!(step.predicted <= bound || step == least || goal == 1);
            prop_assert!(step == whole || cut(step.freed + 1).unwrap().predicted > bound);
        }
        #[test]
        fn rounds_fall_evenly_to_the_limit(limit in 0_u64..1 << 50, more in 0_u64..1 << 50, rounds in 1_u32..64) {
            let before = limit + more;
            let after: Vec<u64> = (0..rounds).map(|round| round_limit(before, limit, round, rounds)).collect();
            prop_assert_eq!(*after.last().unwrap(), limit);
            let steps: Vec<u64> = [before].iter().chain(&after).zip(&after).map(|(from, to)| from - to).collect();
            prop_assert!(steps.iter().max().unwrap() - steps.iter().min().unwrap() <= 1, "{:?}", steps);
            prop_assert_eq!(round_limit(before, before + 1, 0, rounds), before);
        }
        #[test]
        fn every_size_on_the_way_is_met(
            sizes in prop::collection::btree_set(1_u64..1 << 40, 2..8),
            more in 0_u32..20,
            schedule in prop::sample::select(Schedule::ALL.to_vec()),
        ) {
            let sizes: Vec<u64> = sizes.into_iter().rev().collect();
            let (dense, target) = (sizes[0], sizes[sizes.len() - 1]);
            let waypoints = &sizes[1..sizes.len() - 1];
            let shots = sizes.len() as u32 - 1 + more;
            let limits = limits_through(dense, waypoints, target, shots, schedule).unwrap();
            prop_assert_eq!(limits.len(), shots as usize);
            prop_assert!(limits.is_sorted_by(|x, y| x >= y));
            prop_assert!(sizes[1..].iter().all(|size| limits.contains(size)));
            prop_assert_eq!(limits.last(), Some(&target));
        }

        #[test]
        fn sizes_fall_and_end_at_the_target(
            (dense, target) in prop_oneof![(1_u64..50, 0_u64..60), (1_u64..1 << 45, 0_u64..1 << 45)],
            shots in 1_u32..60,
            schedule in prop::sample::select(Schedule::ALL.to_vec()),
        ) {
            let sizes = limits(dense, target, shots, schedule);
            prop_assert_eq!(sizes.len(), shots as usize);
            prop_assert_eq!(sizes.last(), Some(&target));
            if target >= dense {
                prop_assert!(sizes.iter().all(|s| *s == target));
            } else if dense - target >= u64::from(shots) {
                prop_assert!(sizes[0] < dense);
                prop_assert!(sizes.windows(2).all(|w| w[1] < w[0]), "{:?}", sizes);
            } else {
                prop_assert!(sizes[0] <= dense);
                prop_assert!(sizes.windows(2).all(|w| w[1] <= w[0]), "{:?}", sizes);
            }
        }
    }
}
