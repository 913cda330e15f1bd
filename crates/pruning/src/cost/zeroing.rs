//! The sequential path without an update: what is removed only becomes zero.
//!
//! Zeroing the units S costs ½ Σ_{u,v ∈ S} K_uv with K_uv = Σ M_uv ∘ A_uv, so the marginal cost of u is
//! ½ K_uu + Σ_{v gone} K_uv. It may be negative: two removals can cancel each other.

use crate::problem::{Prepared, host};
use crate::select::Rounds;
use crate::{PruningError, Units};
use tch::Tensor;

/// Returns units by position with their exact marginal costs, as many as may go.
pub(super) fn path(
    p: &Prepared,
    m_cc: &Tensor,
    units: &Units,
    rounds: &mut Rounds,
) -> Result<Vec<(usize, f64)>, PruningError> {
    let interactions_uu = interactions(p, m_cc, units)?;
    let mut marginals: Vec<f64> = host(&interactions_uu.f_diagonal(0, 0, 1)?)?.iter().map(|k| 0.5 * k).collect();
    let mut alive: Vec<usize> = (0..units.kept.len()).collect();
    let mut removals = Vec::with_capacity(rounds.steps());
    while removals.len() < rounds.steps() {
        let costs: Vec<f64> = alive.iter().map(|&unit| marginals[unit]).collect();
        let Some(next) = rounds.take_cheapest(&alive, &costs) else { break };
        if !costs[next].is_finite() {
            return Err(p.unstable("a cost", costs[next], removals.len()));
        }
        let unit = alive.remove(next);
        removals.push((unit, costs[next]));
        let shared = host(&interactions_uu.f_select(0, unit as i64)?)?;
        for (marginal, shared) in marginals.iter_mut().zip(shared) {
            *marginal += shared;
        }
    }
    Ok(removals)
}

/// Returns K, `[U, U]`.
fn interactions(p: &Prepared, m_cc: &Tensor, units: &Units) -> Result<Tensor, PruningError> {
    let (count, q) = (units.kept.len() as i64, i64::from(units.columns_per_unit));
    let products_cc = match p.a_cc() {
        Some(a_cc) => m_cc.f_mul(a_cc)?,
        None => m_cc.f_diagonal(0, 0, 1)?.f_diag_embed(0, 0, 1)?,
    };
    let square = products_cc.f_narrow(0, 0, count * q)?.f_narrow(1, 0, count * q)?;
    Ok(square.f_view([count, q, count, q])?.f_sum_dim_intlist([1_i64, 3].as_slice(), false, p.w_rc.kind())?)
}
