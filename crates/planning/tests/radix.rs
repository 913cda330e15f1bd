//! The radix select against sorting, whatever the costs, the layers and the workers.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use planning::PlanningError;
use planning::threshold::radix::{Bin, ElementThreshold, Histogram, first_round, second_round, share_ties};
use proptest::prelude::*;

/// Costs of which many are equal, in one bin, or far apart.
fn any_cost() -> impl Strategy<Value = f32> {
    prop_oneof![
        prop::sample::select(vec![0.0, f32::MIN_POSITIVE, 0.25, 0.25_f32.next_up(), 1.0, f32::MAX]),
        (0_u32..4).prop_map(|low| f32::from_bits(0x3F00_0000 + low)),
        (0_u32..0x7F80_0000).prop_map(f32::from_bits),
    ]
}

/// Layers with their costs in row-major order, and the worker that has each.
fn any_layers() -> impl Strategy<Value = Vec<(usize, Vec<f32>)>> {
    prop::collection::vec((0_usize..4, prop::collection::vec(any_cost(), 0..60)), 1..6)
}

/// Returns a cost's upper and lower 16 bits.
fn digits(cost: f32) -> (u16, u16) {
    ((cost.to_bits() >> 16) as u16, (cost.to_bits() & 0xFFFF) as u16)
}

/// Adds up, worker after worker, what each counts in its layers: upper digits, or the lower ones of costs that begin with
/// `prefix`.
fn merged(layers: &[(usize, Vec<f32>)], prefix: Option<u16>) -> Histogram {
    let mut all = Histogram::new();
    for worker in 0..4 {
        for cost in layers.iter().filter(|layer| layer.0 == worker).flat_map(|layer| &layer.1) {
            let (upper, lower) = digits(*cost);
            match prefix {
                None => all.add(upper, 1).unwrap(),
                Some(prefix) if prefix == upper => all.add(lower, 1).unwrap(),
                Some(_) => {}
            }
        }
    }
    all
}

fn select(layers: &[(usize, Vec<f32>)], to_remove: u64) -> (ElementThreshold, Vec<(usize, usize)>) {
    let bin = first_round(&merged(layers, None), to_remove).unwrap();
    let threshold = second_round(bin, &merged(layers, Some(bin.digit)), to_remove).unwrap();
    let ties: Vec<u64> =
        layers.iter().map(|(_, costs)| costs.iter().filter(|c| c.to_bits() == threshold.bits).count() as u64).collect();
    let mut removed = Vec::new();
    for (layer, ((_, costs), mut ties)) in layers.iter().zip(share_ties(&ties, threshold.ties)).enumerate() {
        for (position, cost) in costs.iter().enumerate() {
            let tied = cost.to_bits() == threshold.bits && ties > 0;
            ties -= u64::from(tied);
            if tied || cost.to_bits() < threshold.bits {
                removed.push((layer, position));
            }
        }
    }
    (threshold, removed)
}

proptest! {
    #[test]
    fn the_threshold_selects_what_sorting_selects(layers in any_layers(), percent in 0_u64..=100) {
        let mut sorted: Vec<(f32, usize, usize)> = Vec::new();
        for (layer, (_, costs)) in layers.iter().enumerate() {
            sorted.extend(costs.iter().enumerate().map(|(position, cost)| (*cost, layer, position)));
        }
        sorted.sort_by(|x, y| x.0.total_cmp(&y.0).then((x.1, x.2).cmp(&(y.1, y.2))));
        let to_remove = sorted.len() * percent as usize / 100;
        let mut expected: Vec<(usize, usize)> = sorted[..to_remove].iter().map(|x| (x.1, x.2)).collect();
        expected.sort_unstable();
        let (threshold, removed) = select(&layers, to_remove as u64);
        prop_assert_eq!(removed, expected);
        let below = sorted.iter().filter(|cost| cost.0.to_bits() < threshold.bits).count() as u64;
        prop_assert_eq!(below + threshold.ties, to_remove as u64);
        if to_remove > 0 {
            prop_assert_eq!(threshold.cost().to_bits(), sorted[to_remove - 1].0.to_bits());
        }
    }

    #[test]
    fn any_split_among_workers_gives_the_same_threshold(
        layers in any_layers(), owners in prop::collection::vec(0_usize..4, 6), percent in 0_u64..=100,
    ) {
        let count = layers.iter().map(|layer| layer.1.len() as u64).sum::<u64>();
        let elsewhere: Vec<_> = layers.iter().zip(owners).map(|((_, costs), owner)| (owner, costs.clone())).collect();
        let to_remove = count * percent / 100;
        prop_assert_eq!(select(&layers, to_remove), select(&elsewhere, to_remove));
    }

    #[test]
    fn ties_are_shared_in_the_order_of_the_layers(ties in prop::collection::vec(0_u64..9, 0..6), take in 0_u64..40) {
        let shares = share_ties(&ties, take);
        prop_assert_eq!(shares.iter().sum::<u64>(), take.min(ties.iter().sum()));
        prop_assert!(shares.iter().zip(&ties).all(|(share, ties)| share <= ties));
        let first_short = shares.iter().zip(&ties).position(|(share, ties)| share < ties).unwrap_or(ties.len());
        prop_assert!(shares.iter().skip(first_short + 1).all(|share| *share == 0));
    }
}

#[test]
fn digits_rise_with_the_cost() {
    let costs = [0.0, f32::from_bits(1), f32::MIN_POSITIVE, 1e-9, 1.0, 1.0_f32.next_up(), f32::MAX];
    let digits: Vec<_> = costs.iter().map(|cost| digits(*cost)).collect();
    assert!(digits.is_sorted_by(|x, y| x < y), "{digits:?}");
}

#[test]
fn what_does_not_fit_together_is_an_error_that_says_why() {
    let mut first = Histogram::new();
    first.add(7, 3).unwrap();
    assert_eq!(first_round(&first, 4), Err(PlanningError::Infeasible { asked: 4, available: 3 }));
    let bin = first_round(&first, 2).unwrap();
    assert_eq!(bin, Bin { digit: 7, below: 0, inside: 3 });
    for (counted, to_remove) in [(2, 2), (4, 2), (3, 4)] {
        let mut second = Histogram::new();
        second.add(0, counted).unwrap();
        let error = second_round(bin, &second, to_remove).unwrap_err().to_string();
        assert!(error.contains("does not continue"), "{error}");
    }
    let mut full = Histogram::new();
    full.add(0, u64::MAX).unwrap();
    assert!(full.add(1, 1).unwrap_err().to_string().contains("total"));
}
