//! Costs of single weights, each as if it went alone. What goes is decided by one threshold over all layers.

use super::inverse_blocks::inverse_diagonal;
use crate::problem::{Prepared, in_either_precision};
use crate::{LayerProblem, PruningError};
use curvature::{Factorised, is_finite};
use tch::Tensor;
use types::{FactorDamping, LayerId, Update};

/// Costs of a layer's weights.
#[derive(Debug)]
pub struct ElementCosts {
    /// The layer.
    pub layer: LayerId,
    /// Cost of each weight but the bias, nats per token, `[R, C − bias]`, f32 (f64 when the weights are); 0 where a weight
    /// is zero already, and nowhere else.
    pub costs_rc: Tensor,
    /// The damping that the factors took.
    pub damping: FactorDamping,
}

/// Returns the cost of removing each weight: ½ w² / (Gi_rr Ai_cc) with an update (which one does not matter: alone, all are
/// the optimum), ½ w² G_rr A_cc without.
///
/// A weight that is exactly zero counts as removed and costs 0; every other costs at least the smallest normal f32, so
/// that no rounding puts it before them. The bias column has no cost, for it never goes.
///
/// # Errors
/// `Shape` for inputs that do not fit, `Factor` and `NotFinite` for curvature or weights that cannot be used, `Unstable`
/// when a cost is above the range of the weights' kind.
pub fn element_costs(problem: &LayerProblem, update: Update) -> Result<ElementCosts, PruningError> {
    tch::no_grad(|| {
        in_either_precision(problem, |p| {
            let columns = p.shape().1 - p.bias_columns;
            let weights_rc = p.w_rc.f_narrow(1, 0, columns)?;
            let mut costs_rc = weights_rc.f_square()?.f_mul_scalar(0.5)?;
            if let Some(scale_r) = single_cost_scale(p.g.as_ref(), update)? {
                let _ = costs_rc.f_mul_(&scale_r.f_unsqueeze(1)?)?;
            }
            if let Some(scale_c) = single_cost_scale(p.a.as_ref(), update)? {
                let _ = costs_rc.f_mul_(&scale_c.f_narrow(0, 0, columns)?)?;
            }
            let costs_rc = finished(p, problem, &costs_rc, &weights_rc.f_eq(0)?)?;
            Ok(ElementCosts { layer: p.layer.clone(), costs_rc, damping: p.damping })
        })
    })
}

/// Returns what one side contributes to ½ w² · (G side) · (A side): 1 / Mi_ii with an update, M_ii without; `None` is 1.
pub(super) fn single_cost_scale(factor: Option<&Factorised>, update: Update) -> Result<Option<Tensor>, PruningError> {
    let Some(factor) = factor else { return Ok(None) };
    Ok(Some(match update {
        Update::None => factor.damped.f_diagonal(0, 0, 1)?,
        _ => inverse_diagonal(factor)?.f_reciprocal()?,
    }))
}

/// Returns costs in the kind of the weights: 0 where `free`, elsewhere at least the smallest normal f32.
pub(super) fn finished(
    p: &Prepared,
    problem: &LayerProblem,
    costs: &Tensor,
    free: &Tensor,
) -> Result<Tensor, PruningError> {
    let mut finished = costs.f_to_kind(problem.result_kind())?.f_clamp_min(f64::from(f32::MIN_POSITIVE))?;
    let _ = finished.f_masked_fill_(free, 0.0)?;
    if !is_finite(&finished)? {
        return Err(p.unstable("a cost", finished.f_max()?.f_double_value(&[])?, 0));
    }
    Ok(finished)
}
