//! Curvature as a Kronecker sum F ≈ Σₖ Gₖ ⊗ Aₖ: the nearest Kronecker product of the Fisher, then that of what is left.
//!
//! The empirical Fisher F = (1/N) Σ (gₙ gₙᵀ) ⊗ (xₙ xₙᵀ), rearranged to ℛ = (1/N) Σ vec(gₙ gₙᵀ) vec(xₙ xₙᵀ)ᵀ, `[R², C²]`, has
//! the terms of the nearest Kronecker sum as its singular pairs. Power iteration finds them from weighted second moments:
//!
//! ```text
//! G ← (1/N) Σ (xₙᵀ A xₙ) gₙ gₙᵀ / ‖A‖²        A ← (1/N) Σ (gₙᵀ G gₙ) xₙ xₙᵀ / ‖G‖²
//! ```
//!
//! and for a term after others, less Σⱼ ⟨Aⱼ, A⟩ Gⱼ / ‖A‖² (the other half alike): deflation. With independent inputs and
//! gradients the first half-step from the plain mean A gives the plain mean G: the scale is that of `BlockFactors`.
//!
//! Each half-step is one pass over all tokens, for as many layers as fit. [`PowerIteration`] is one layer's state and holds no
//! token; [`HalfStep`] is what a pass sums up, mergeable by addition; `basis.rs` makes two terms diagonal at once. How the
//! tokens come about is not known here.
//!
//! The halves alternate: each gives the best G (or A) for its twin, so the error falls from pass to pass. With both in one
//! pass, each from the other's last value, there are two interleaved sequences of the same rate per pass, for
//! both products' price; and the scale between them would take one more pass.
//!
//! A warning: tokens weigh with ‖g‖⁴ ‖x‖⁴. On few tokens of a model with massive activations the nearest terms fit those few
//! tokens, and describe other text worse than the plain means do.

mod basis;
mod half_step;
mod power;

pub use basis::{CommonBasis, common_basis};
pub use half_step::HalfStep;
pub use power::{PowerIteration, PowerOptions};

use crate::{CurvatureError, Side};
use tch::{Kind, Tensor};

/// One term G ⊗ A. The first of a sum is positive semidefinite on both sides, the others need not be.
#[derive(Debug)]
pub struct KroneckerTerm {
    /// The gradients' side, `[R, R]`, symmetric.
    pub g_rr: Tensor,
    /// The inputs' side, `[C, C]`, symmetric.
    pub a_cc: Tensor,
}

impl KroneckerTerm {
    /// Returns one side.
    pub fn side(&self, side: Side) -> &Tensor {
        match side {
            Side::Input => &self.a_cc,
            Side::Gradient => &self.g_rr,
        }
    }

    /// Returns ‖G ⊗ A‖ = ‖G‖ ‖A‖ (Frobenius): of a settled term the singular value.
    pub fn norm(&self) -> Result<f64, CurvatureError> {
        Ok(norm(&self.g_rr)? * norm(&self.a_cc)?)
    }
}

/// The terms that were found, by falling norm, and what they took.
#[derive(Debug)]
pub struct KroneckerSum {
    /// As many as were asked for; fewer where the Fisher has no more.
    pub terms: Vec<KroneckerTerm>,
    /// Half-steps of each.
    pub half_steps: Vec<u32>,
    /// By how much of it each term's norm rose in its last half-step.
    pub last_rise: Vec<f64>,
}

/// Returns ‖M‖ (Frobenius), in f64.
fn norm(m: &Tensor) -> Result<f64, CurvatureError> {
    Ok(m.f_norm_scalaropt_dtype(2.0, Kind::Double)?.f_double_value(&[])?)
}

/// Returns ⟨M, N⟩, summed in f64.
fn dot(m: &Tensor, n: &Tensor) -> Result<f64, CurvatureError> {
    Ok(m.f_mul(n)?.f_sum(Kind::Double)?.f_double_value(&[])?)
}

#[cfg(test)]
mod tests;
