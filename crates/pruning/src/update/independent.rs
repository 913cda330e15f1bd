//! The paper's independent variant: each removal's own update as if it were alone, all added up.
//!
//! ```text
//! columns Q of a unit   Δ = −W_Q (Ai_QQ)⁻¹ Ai[Q,:]        row r   Δ = −Gi[:,r] w_r / Gi_rr
//! ```
//!
//! Each Δ is taken from the weights before the removal, so what removed units share is corrected for twice; the
//! correlated update is the joint optimum. What goes comes last in rows and columns, as in `update.rs`.

use super::eliminate::half_fisher;
use crate::PruningError;
use crate::problem::{Prepared, diagonal_blocks};
use curvature::{Factorised, inverse, solve, try_cholesky};
use tch::Tensor;

/// Returns the weights of the first `k` rows and `l` columns after the summed updates, and ½ δᵀ F δ of what was done.
///
/// `unit`: columns of one removed unit.
pub(super) fn add_up(p: &Prepared, k: i64, l: i64, unit: i64) -> Result<(Tensor, f64), PruningError> {
    let by_columns = columns(p, (&p.w_rc, p.a.as_ref()), l, unit)?;
    let by_rows = columns(p, (&p.w_rc.f_tr()?, p.g.as_ref()), k, 1)?.f_tr()?;
    let updated = p.w_rc.f_add(&by_columns)?.f_add(&by_rows)?;
    let w_kl = updated.f_narrow(0, 0, k)?.f_narrow(1, 0, l)?;
    let delta = p.w_rc.f_neg()?;
    let mut kept = delta.f_narrow(0, 0, k)?.f_narrow(1, 0, l)?;
    let _ = kept.f_add_(&w_kl)?;
    Ok((w_kl, half_fisher(p, &delta)?))
}

/// Returns the sum of the updates for the columns after the first `l`, in units of `unit`, `[R, C]`.
fn columns(
    p: &Prepared,
    (w_rc, factor): (&Tensor, Option<&Factorised>),
    l: i64,
    unit: i64,
) -> Result<Tensor, PruningError> {
    let (_, c) = w_rc.size2()?;
    let q = c - l;
    let change = w_rc.f_zeros_like()?;
    let Some(factor) = factor else { return Ok(change) }; // columns do not interact under the identity
    if q == 0 {
        return Ok(change);
    }
    let ai_qc = inverse(&factor.l)?.f_narrow(0, l, q)?;
    let w_rq = w_rc.f_narrow(1, l, q)?;
    let blocks_uqq = diagonal_blocks(&ai_qc.f_narrow(1, l, q)?, q / unit, unit)?;
    let l_blocks = try_cholesky(&blocks_uqq)?;
    let l_blocks = l_blocks.ok_or_else(|| p.unstable("a diagonal block's smallest pivot", 0.0, q as usize))?;
    let z = solve(&l_blocks, &ai_qc.f_reshape([q / unit, unit, c])?)?.f_reshape([q, c])?;
    Ok(change.f_sub(&w_rq.f_matmul(&z)?)?)
}
