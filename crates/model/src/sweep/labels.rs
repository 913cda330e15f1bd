//! Labels for the Fisher: the data's own next tokens, or tokens drawn from the model.

use crate::ModelError;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use tch::{Kind, Tensor};

/// Returns numbers in [0, 1) for `positions` positions of each of `samples` samples, [b, t], on the CPU in f64.
///
/// Each depends on seed, sample number and position alone: not on shards, micro-batches or chunks.
pub(super) fn uniform(seed: u64, first_sample: u64, samples: u64, positions: i64) -> Tensor {
    const UNIT: f64 = 1.0 / (1u64 << 53) as f64;
    let numbers: Vec<f64> = (first_sample..first_sample + samples)
        .flat_map(|sample| {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            random.set_stream(sample);
            (0..positions).map(move |_| (random.next_u64() >> 11) as f64 * UNIT)
        })
        .collect();
    Tensor::from_slice(&numbers).view([samples as i64, positions])
}

/// Returns a token drawn from each row of probabilities, [n], by inverting its distribution function at `u_n`.
///
/// # Shapes
/// `p_nv`: [n, v], not negative; `u_n`: [n] in [0, 1), f64.
pub(super) fn draw(p_nv: &Tensor, u_n: &Tensor) -> Result<Tensor, ModelError> {
    let vocab = p_nv.size()[1];
    let sums_nv = p_nv.f_cumsum(1, Kind::Double)?;
    // The last sum is 1 but for rounding; scaled by it, no draw can fall beyond the vocabulary.
    let at_n1 = u_n.f_unsqueeze(1)?.f_mul(&sums_nv.f_narrow(1, vocab - 1, 1)?)?;
    let drawn = at_n1.f_searchsorted::<&Tensor>(&sums_nv, false, true, "right", None)?;
    Ok(drawn.f_squeeze_dim(1)?.f_clamp_max(vocab - 1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_numbers_do_not_depend_on_how_samples_are_cut() {
        let all = uniform(7, 3, 4, 5);
        assert!(all.narrow(0, 2, 2).equal(&uniform(7, 5, 2, 5)));
        assert!(all.narrow(1, 0, 2).equal(&uniform(7, 3, 4, 2)));
        assert!(!all.equal(&uniform(8, 3, 4, 5)));
    }

    #[test]
    fn draws_follow_the_probabilities_and_never_leave_the_vocabulary() {
        let p = Tensor::from_slice(&[0.0f32, 0.25, 0.0, 0.75, 0.0]).view([1, 5]);
        let n = 4000;
        let drawn = draw(&p.expand([n, 5], false), &uniform(1, 0, 1, n).view([n])).unwrap();
        let counts: Vec<i64> = (0..5).map(|v| drawn.eq(v).sum(Kind::Int64).int64_value(&[])).collect();
        assert_eq!((counts[0], counts[2], counts[4]), (0, 0, 0), "{counts:?}");
        assert!((counts[1] - 1000).abs() < 120, "{counts:?}");
        let edge = Tensor::from_slice(&[0.0f64, 1.0 - f64::EPSILON / 2.0]);
        let ends = draw(&p.expand([2, 5], false), &edge).unwrap();
        assert_eq!(Vec::<i64>::try_from(ends).unwrap(), [1, 3]);
    }
}
