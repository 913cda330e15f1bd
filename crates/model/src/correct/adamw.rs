//! `AdamW` on one flat tensor, its learning rate over the steps, and clipping. Does not know what the numbers are.

use crate::ModelError;
use std::f64::consts::PI;
use tch::{Kind, Tensor};

/// β₁: how much of the mean of gradients is kept from one step to the next.
const BETA_1: f64 = 0.9;
/// β₂: the same for the mean of their squares.
const BETA_2: f64 = 0.999;
/// Keeps the division finite.
const EPS: f64 = 1e-8;
/// Largest norm of a gradient, all numbers together.
const LARGEST_NORM: f64 = 1.0;

/// Adam with decoupled weight decay.
#[derive(Debug)]
pub(super) struct AdamW {
    /// Running mean of the gradient, [p].
    mean_p: Tensor,
    /// Running mean of its square, [p].
    square_p: Tensor,
    steps: i32,
    weight_decay: f64,
}

impl AdamW {
    /// Returns the optimiser of `numbers_p` before its first step.
    pub(super) fn new(numbers_p: &Tensor, weight_decay: f64) -> Result<Self, ModelError> {
        let zeros = || numbers_p.f_zeros_like().map_err(ModelError::torch("moments of the optimiser"));
        Ok(Self { mean_p: zeros()?, square_p: zeros()?, steps: 0, weight_decay })
    }

    /// Moves `numbers_p` against the gradient: θ ← (1 − η λ) θ − η m̂ / (√v̂ + ε), where m̂ = m / (1 − β₁ᵗ) and
    /// v̂ = v / (1 − β₂ᵗ) for the running means m and v.
    pub(super) fn step(&mut self, numbers_p: &mut Tensor, gradient_p: &Tensor, rate: f64) -> Result<(), ModelError> {
        self.steps += 1;
        let _ = self.mean_p.f_lerp_(gradient_p, 1.0 - BETA_1)?;
        let _ = self.square_p.f_lerp_(&gradient_p.f_square()?, 1.0 - BETA_2)?;
        let mut below_p = self.square_p.f_div_scalar(1.0 - BETA_2.powi(self.steps))?.f_sqrt_()?.f_add_scalar_(EPS)?;
        let _ = below_p.f_mul_scalar_(-(1.0 - BETA_1.powi(self.steps)) / rate)?;
        let _ = numbers_p.f_mul_scalar_(1.0 - rate * self.weight_decay)?.f_addcdiv_(&self.mean_p, &below_p)?;
        Ok(())
    }
}

/// Returns the gradient, made as short as [`LARGEST_NORM`] if it is longer.
///
/// # Errors
/// [`ModelError::NotFinite`].
pub(super) fn clip(mut gradient_p: Tensor) -> Result<Tensor, ModelError> {
    let norm = gradient_p.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?.sqrt();
    if !norm.is_finite() {
        return Err(ModelError::NotFinite { what: "the gradient of A and B".to_owned() });
    }
    if norm > LARGEST_NORM {
        let _ = gradient_p.f_mul_scalar_(LARGEST_NORM / norm)?;
    }
    Ok(gradient_p)
}

/// Returns the learning rate of `step`, counted from 0: up to `largest` over the first tenth, then half a cosine down.
pub(super) fn learning_rate(largest: f64, step: u32, steps: u32) -> f64 {
    let rising = steps.div_ceil(10);
    if step < rising {
        return largest * f64::from(step + 1) / f64::from(rising);
    }
    let gone = f64::from(step - rising) / f64::from(steps - rising);
    largest * 0.5 * (1.0 + (PI * gone).cos())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;
    use tch::nn::{self, OptimizerConfig};

    #[test]
    fn steps_are_those_of_libtorch() {
        for weight_decay in [0.0, 0.1] {
            let store = nn::VarStore::new(Device::Cpu);
            let theirs = store.root().var_copy("x", &Tensor::from_slice(&[1.0f32, -2.0, 0.5]));
            let mut optimizer = nn::adamw(0.9, 0.999, weight_decay).build(&store, 0.1).unwrap();
            let mut ours = theirs.detach().copy();
            let mut adamw = AdamW::new(&ours, weight_decay).unwrap();
            for step in 1..6 {
                let rate = 0.1 / f64::from(step);
                optimizer.set_lr(rate);
                let weights = Tensor::from_slice(&[1.0f32, 3.0, -0.01]) * f64::from(step);
                let loss = |x: &Tensor| (x.square() * &weights).sum(Kind::Float);
                let x = ours.detach().set_requires_grad(true);
                let gradient = Tensor::run_backward(&[loss(&x)], &[&x], false, false).remove(0);
                adamw.step(&mut ours, &gradient, rate).unwrap();
                optimizer.backward_step(&loss(&theirs));
                let difference = (&ours - &theirs).abs().max().double_value(&[]);
                assert!(difference < 1e-6, "step {step}: {difference}");
            }
        }
    }

    #[test]
    fn the_learning_rate_rises_over_a_tenth_and_falls_to_almost_nothing() {
        let rates: Vec<f64> = (0..40).map(|step| learning_rate(2.0, step, 40)).collect();
        assert_eq!(rates[..5], [0.5, 1.0, 1.5, 2.0, 2.0]);
        assert!(rates[4..].windows(2).all(|pair| pair[1] < pair[0]), "{rates:?}");
        assert!(rates[39] > 0.0 && rates[39] < 0.01);
        assert_eq!(learning_rate(2.0, 0, 1).to_bits(), 2.0f64.to_bits());
    }

    #[test]
    fn long_gradients_become_of_norm_one_and_short_ones_stay() {
        let long = clip(Tensor::from_slice(&[30.0f64, -40.0])).unwrap();
        assert_eq!(Vec::<f64>::try_from(long).unwrap(), [0.6, -0.8]);
        let short = clip(Tensor::from_slice(&[0.3f64, -0.4])).unwrap();
        assert_eq!(Vec::<f64>::try_from(short).unwrap(), [0.3, -0.4]);
        assert!(matches!(clip(Tensor::from_slice(&[f64::NAN])), Err(ModelError::NotFinite { .. })));
    }
}
