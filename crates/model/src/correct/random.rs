//! Where A begins and which samples a step takes: functions of the seed alone, with no state in between.

use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::f64::consts::TAU;

/// First stream of the layers' numbers; sampled labels of the same seed use those from 0.
const LAYERS: u64 = 1 << 62;
/// First stream of the epochs' orders.
const EPOCHS: u64 = 1 << 63;

/// Returns `count` normally distributed numbers for the layer of that `number`.
pub(super) fn gaussian(seed: u64, number: u64, count: usize) -> Vec<f64> {
    const UNIT: f64 = 1.0 / (1u64 << 53) as f64;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(LAYERS + number);
    // In (0, 1]: its logarithm is finite.
    let mut uniform = || ((random.next_u64() >> 11) + 1) as f64 * UNIT;
    let pairs = (0..count.div_ceil(2)).flat_map(|_| {
        let (radius, angle) = ((-2.0 * uniform().ln()).sqrt(), TAU * uniform());
        [radius * angle.cos(), radius * angle.sin()]
    });
    pairs.take(count).collect()
}

/// Returns the `batch` samples of `step`: each epoch takes all `samples` in an order of its own.
pub(super) fn batch(seed: u64, step: u32, batch: usize, samples: usize) -> Vec<usize> {
    let first = u64::from(step) * batch as u64;
    let mut epoch = (u64::MAX, Vec::new());
    let mut taken = Vec::with_capacity(batch);
    for position in first..first + batch as u64 {
        let number = position / samples as u64;
        if epoch.0 != number {
            epoch = (number, order(seed, number, samples));
        }
        taken.push(epoch.1[(position % samples as u64) as usize]);
    }
    taken
}

fn order(seed: u64, epoch: u64, samples: usize) -> Vec<usize> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(EPOCHS + epoch);
    let mut order: Vec<usize> = (0..samples).collect();
    order.shuffle(&mut random);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_of_mean_zero_and_variance_one_and_differ_by_layer_and_seed() {
        let numbers = gaussian(3, 5, 20_001);
        let mean = numbers.iter().sum::<f64>() / 20_001.0;
        let variance = numbers.iter().map(|x| x * x).sum::<f64>() / 20_001.0;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.04, "{mean} {variance}");
        assert_eq!(gaussian(3, 5, 7)[..], numbers[..7]);
        assert!(gaussian(3, 6, 2) != numbers[..2] && gaussian(4, 5, 2) != numbers[..2]);
    }

    #[test]
    fn every_epoch_takes_every_sample_once_in_another_order() {
        let taken: Vec<usize> = (0..7).flat_map(|step| batch(1, step, 4, 14)).collect();
        let epochs: Vec<Vec<usize>> = taken.chunks(14).map(<[usize]>::to_vec).collect();
        for epoch in &epochs {
            let mut sorted = epoch.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..14).collect::<Vec<_>>());
        }
        assert_ne!(epochs[0], epochs[1]);
        assert_ne!(batch(2, 0, 4, 14), taken[..4]);
    }
}
