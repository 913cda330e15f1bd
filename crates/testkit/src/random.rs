//! Seeded random matrices, independent of torch's global generator (tests run in threads).

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

/// Returns a tensor of values that are roughly normal with variance 1, f64 on the CPU.
pub fn random(shape: &[i64], seed: u64) -> Tensor {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let count: i64 = shape.iter().product();
    let values: Vec<f64> = (0..count).map(|_| (0..12).map(|_| uniform(&mut generator)).sum::<f64>() - 6.0).collect();
    Tensor::from_slice(&values).view(shape)
}

/// Returns a symmetric positive definite matrix `[n, n]` with strong correlations, f64 on the CPU.
pub fn random_spd(n: i64, seed: u64) -> Tensor {
    let samples = 2 * n + 4;
    let x_nc = random(&[samples, n], seed) + random(&[samples, 1], seed.wrapping_add(1_000_003));
    x_nc.tr().matmul(&x_nc) / samples as f64 + Tensor::eye(n, (Kind::Double, tch::Device::Cpu)) * 0.05
}

/// Returns a number in [0, 1) with 53 random bits.
fn uniform(generator: &mut ChaCha8Rng) -> f64 {
    use rand::Rng;
    (generator.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}
