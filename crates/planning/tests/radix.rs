//! The radix select against sorting, whatever the costs, the layers and the workers.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use planning::PlanningError;
use planning::threshold::radix::{
    BINS, Bin, ElementThreshold, Histogram, Round, digit, first_round, second_round, share_ties,
};
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

fn counted(costs: &[f32], round: Round, prefix: Option<u16>) -> Histogram {
    let mut histogram = Histogram::new();
    for &cost in costs.iter().filter(|cost| prefix.is_none_or(|prefix| digit(**cost, Round::First) == prefix)) {
        histogram.add(digit(cost, round), 1).unwrap();
    }
    histogram
}

/// Adds up what each worker adds up over its layers, sent as bytes.
fn merged(layers: &[(usize, Vec<f32>)], round: Round, prefix: Option<u16>) -> Histogram {
    let mut all = Histogram::new();
    for worker in 0..4 {
        let mut own = Histogram::new();
        for (_, costs) in layers.iter().filter(|layer| layer.0 == worker) {
            own.merge(&counted(costs, round, prefix)).unwrap();
        }
        all.merge(&Histogram::decode(&own.encode()).unwrap()).unwrap();
    }
    all
}

fn select(layers: &[(usize, Vec<f32>)], to_remove: u64) -> (ElementThreshold, Vec<(usize, usize)>) {
    let bin = first_round(&merged(layers, Round::First, None), to_remove).unwrap();
    let threshold = second_round(bin, &merged(layers, Round::Second, Some(bin.digit)), to_remove).unwrap();
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
        prop_assert_eq!(threshold.below + threshold.ties, to_remove as u64);
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
    fn the_bytes_of_a_histogram_read_back_and_no_others_do(
        filled in prop::collection::vec((any::<u16>(), 1_u64..u64::MAX / 64), 0..50), cut in any::<prop::sample::Index>(),
    ) {
        let mut histogram = Histogram::new();
        for (digit, count) in filled {
            histogram.add(digit, count).unwrap();
        }
        let bytes = histogram.encode();
        let read = Histogram::decode(&bytes).unwrap();
        prop_assert_eq!(&read, &histogram);
        prop_assert_eq!(Histogram::from_counts(read.counts().to_vec()).unwrap(), histogram);
        if !bytes.is_empty() {
            // A shorter text is another histogram or none; whatever can be read is written the same again.
            let shorter = &bytes[..cut.index(bytes.len())];
            if let Ok(read) = Histogram::decode(shorter) {
                prop_assert_eq!(read.encode(), shorter);
            }
        }
    }

    #[test]
    fn bytes_that_can_be_read_are_those_that_would_be_written(bytes in prop::collection::vec(any::<u8>(), 0..12)) {
        if let Ok(read) = Histogram::decode(&bytes) {
            prop_assert_eq!(read.encode(), bytes);
        }
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
    let digits: Vec<_> = costs.iter().map(|cost| (digit(*cost, Round::First), digit(*cost, Round::Second))).collect();
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
    let text = |bytes: &[u8]| Histogram::decode(bytes).unwrap_err().to_string();
    assert!(text(&[0x80]).contains("ends within"));
    assert!(text(&[0, 0]).contains("empty bin"));
    assert!(text(&[0, 0x81, 0]).contains("longer form"));
    assert!(text(&[0x80, 0x80, 4, 1]).contains("beyond the last"));
    assert!(text(&[0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 2]).contains("above 64 bits"));
    let mut full = Histogram::new();
    full.add(0, u64::MAX).unwrap();
    assert!(full.add(1, 1).unwrap_err().to_string().contains("total"));
    assert!(first.merge(&full).unwrap_err().to_string().contains("total"));
    assert!(Histogram::from_counts(vec![1; BINS - 1]).is_err());
}
