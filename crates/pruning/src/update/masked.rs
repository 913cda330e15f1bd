//! The update for any set of removed weights (element, n:m), and what it costs under F = G ⊗ A.
//!
//! Five ways to the same zeros: `conjugate_gradient.rs` finds the joint optimum for the whole layer, the others are there to be
//! compared with it. What they predict is computed alike for all, ½ δᵀ F δ of the weights that are returned. Which weights
//! go is not decided here.

pub(super) mod conjugate_gradient;
mod grouped;
mod independent;
mod two_sided;

use super::eliminate::half_fisher;
use crate::problem::{Prepared, in_either_precision};
use crate::{LayerProblem, PruningError};
use curvature::is_finite;
use tch::{Kind, Tensor};
use types::Update;

/// How the weights that stay make up for those that go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MaskedUpdate {
    /// The joint optimum, by conjugate gradients on the whole layer.
    ConjugateGradient {
        /// Iterations end when the last four took off less than this share of the predicted loss that is left.
        tolerance: f64,
    },
    /// The paper's: groups of at most `max_correlate` removed weights, each with its best update, one after the other.
    Grouped {
        /// Most removed weights of a group.
        max_correlate: u32,
    },
    /// SparseGPT's sweep on both sides: one pass over rows and columns, what is passed stays.
    TwoSided,
    /// The sum of the updates of each removed weight as if it went alone.
    Independent,
    /// Remaining weights stay as they are.
    None,
}

impl MaskedUpdate {
    /// The usual tolerance of conjugate gradients: some 0.5 % above the least predicted loss where factors are hard, less
    /// elsewhere; 1e-4 takes half as many iterations again for a tenth of that.
    pub const TOLERANCE: f64 = 1e-3;

    /// Returns the way that a run's settings ask for.
    pub fn new(update: Update, max_correlate: u32) -> Self {
        match update {
            Update::Correlated => Self::ConjugateGradient { tolerance: Self::TOLERANCE },
            Update::Grouped => Self::Grouped { max_correlate },
            Update::TwoSided => Self::TwoSided,
            Update::Independent => Self::Independent,
            Update::None => Self::None,
        }
    }
}

/// A layer after the removal of single weights.
#[derive(Debug)]
pub struct MaskedUpdated {
    /// New weights of full size, bias last where there is one, exactly zero where removed, f32 (f64 when the weights are).
    pub w_rc: Tensor,
    /// Weights that are removed now: those of the mask and those that were zero before, without the bias.
    pub removed: u64,
    /// ½ δᵀ F δ under the damped factors, nats per token; δ is the change of all weights.
    pub predicted: f64,
    /// Iterations of conjugate gradients; groups; otherwise 0.
    pub iterations: u32,
}

/// Returns the layer's weights without those in `removed`, the rest (and the bias) updated.
///
/// # Shapes
/// `removed`: `[R, C − bias]`, true where a weight goes; weights that are zero already are added to it.
///
/// # Errors
/// `Shape` for inputs that do not fit, `Units` for groups of no weights, `Factor` and `NotFinite` for curvature or weights
/// that cannot be used, `Unstable` when rounding defeats f64 as well.
pub fn masked_update(
    problem: &LayerProblem,
    removed: &Tensor,
    how: MaskedUpdate,
) -> Result<MaskedUpdated, PruningError> {
    tch::no_grad(|| {
        let removed_rc = with_zeros(problem, removed)?;
        let count = removed_rc.f_sum(Kind::Int64)?.f_int64_value(&[])? as u64;
        if how == (MaskedUpdate::Grouped { max_correlate: 0 }) {
            return Err(problem.units_error("a group must have room for a weight".to_owned()));
        }
        in_either_precision(problem, |p| {
            let (w_rc, iterations) = match how {
                MaskedUpdate::ConjugateGradient { tolerance } => conjugate_gradient::update(p, &removed_rc, tolerance)?,
                MaskedUpdate::Grouped { max_correlate } => grouped::update(p, &removed_rc, max_correlate)?,
                MaskedUpdate::TwoSided => (two_sided::update(p, &removed_rc)?, 0),
                MaskedUpdate::Independent => (independent::update(p, &removed_rc)?, 0),
                MaskedUpdate::None => (p.w_rc.shallow_clone(), 0),
            };
            let w_rc = w_rc.f_masked_fill(&removed_rc, 0.0)?.f_to_kind(problem.result_kind())?.f_contiguous()?;
            let predicted = predicted(p, &w_rc, count as usize)?;
            Ok(MaskedUpdated { w_rc, removed: count, predicted, iterations })
        })
    })
}

/// Returns the mask with what is zero already, `[R, C]`, the bias never removed.
pub(super) fn with_zeros(problem: &LayerProblem, removed: &Tensor) -> Result<Tensor, PruningError> {
    problem.check()?;
    let (r, c) = problem.shape()?;
    let columns = c - problem.bias_columns();
    if removed.size() != [r, columns] {
        return Err(problem.shape_error("removal mask", vec![r, columns], removed.size()));
    }
    let removed_rc = problem.w_rc.f_eq(0)?;
    let mut weights = removed_rc.f_narrow(1, 0, columns)?;
    let _ = weights.f_logical_or_(&removed.f_to_device(problem.w_rc.device())?.f_to_kind(Kind::Bool)?)?;
    let _ = removed_rc.f_narrow(1, columns, c - columns)?.f_fill_(0)?;
    Ok(removed_rc)
}

/// Returns ½ δᵀ F δ of the new weights, which must be a possible loss.
fn predicted(p: &Prepared, w_rc: &Tensor, removed: usize) -> Result<f64, PruningError> {
    let delta_rc = w_rc.f_to_kind(p.w_rc.kind())?.f_sub(&p.w_rc)?;
    let value = half_fisher(p, &delta_rc)?;
    if !is_finite(w_rc)? {
        return Err(p.unstable("the predicted cost", value, removed));
    }
    p.checked("the predicted cost", value, removed)
}
