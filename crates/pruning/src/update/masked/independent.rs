//! The sum of each removed weight's own update, −w Gi[:,r] Ai[c,:] / (Gi_rr Ai_cc): no weight knows of the others.
//!
//! Together Δ = −Gi Z Ai with Z = w / (Gi_rr Ai_cc) where removed: two solves for the whole layer. What removed weights share
//! is made up for more than once, so this can cost more than no update at all.

use crate::PruningError;
use crate::cost::inverse_diagonal;
use crate::problem::Prepared;
use curvature::solve;
use tch::Tensor;

/// Returns the weights, not yet zero again where removed.
pub(super) fn update(p: &Prepared, removed_rc: &Tensor) -> Result<Tensor, PruningError> {
    let mut z_rc = p.w_rc.f_masked_fill(&removed_rc.f_logical_not()?, 0.0)?;
    if let Some(g) = &p.g {
        z_rc = solve(&g.l, &z_rc.f_div_(&inverse_diagonal(g)?.f_unsqueeze(1)?)?)?;
    }
    if let Some(a) = &p.a {
        z_rc = solve(&a.l, &z_rc.f_div(&inverse_diagonal(a)?)?.f_tr()?)?.f_tr()?;
    }
    Ok(p.w_rc.f_sub(&z_rc)?)
}
