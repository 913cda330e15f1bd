//! The path of units that are runs of columns (kv groups, query heads): exact block downdates, one unit a step.
//!
//! Removing the columns Q, with T = (Ai_QQ)⁻¹ Ai[Q,:]:
//!
//! ```text
//! Ai ← Ai − Ai[:,Q] T        M ← M − Vᵀ T − Tᵀ V,   V = M[Q,:] − ½ M_QQ T
//! ```

use crate::problem::{Prepared, block, diagonal_blocks, host, index};
use crate::select::Rounds;
use crate::{PruningError, Units};
use curvature::{solve, try_cholesky};
use tch::{Kind, Tensor};

/// Returns units by position with their marginal costs ½ tr(M_QQ (Ai_QQ)⁻¹), as many as may go.
pub(super) fn path(
    p: &Prepared,
    mut ai_cc: Tensor,
    mut m_cc: Tensor,
    units: &Units,
    rounds: &mut Rounds,
) -> Result<Vec<(usize, f64)>, PruningError> {
    let q = i64::from(units.columns_per_unit);
    let mut alive: Vec<usize> = (0..units.kept.len()).collect();
    let mut removals = Vec::with_capacity(rounds.steps());
    while removals.len() < rounds.steps() {
        let done = removals.len();
        let Some(costs) = costs(&ai_cc, &m_cc, alive.len() as i64, q)? else {
            return Err(p.unstable("a diagonal block's smallest pivot", 0.0, done));
        };
        let Some(next) = rounds.take_cheapest(&alive, &costs) else { break };
        removals.push((alive[next], p.checked("a cost", costs[next], done)?));
        if removals.len() < rounds.steps() {
            let downdated = downdate(&ai_cc, &m_cc, next as i64 * q, q)?;
            (ai_cc, m_cc) = downdated.ok_or_else(|| p.unstable("a removed block's smallest pivot", 0.0, done))?;
        }
        alive.remove(next);
    }
    Ok(removals)
}

/// Returns ½ tr(M_QQ (Ai_QQ)⁻¹) of each of the first `count` runs of `q` columns; `None` when a block of Ai is not positive
/// definite.
pub(super) fn costs(ai_cc: &Tensor, m_cc: &Tensor, count: i64, q: i64) -> Result<Option<Vec<f64>>, PruningError> {
    let Some(l_uqq) = try_cholesky(&diagonal_blocks(ai_cc, count, q)?)? else { return Ok(None) };
    let solved_uqq = solve(&l_uqq, &diagonal_blocks(m_cc, count, q)?)?;
    traces(&solved_uqq).map(Some)
}

/// Returns half the trace of each matrix of a batch.
pub(super) fn traces(m_uqq: &Tensor) -> Result<Vec<f64>, PruningError> {
    host(&m_uqq.f_diagonal(0, 1, 2)?.f_sum_dim_intlist([1_i64].as_slice(), false, Kind::Double)?.f_mul_scalar(0.5)?)
}

/// Returns Ai and M without the `q` columns from `start`; `None` when their block of Ai is not positive definite.
fn downdate(ai_cc: &Tensor, m_cc: &Tensor, start: i64, q: i64) -> Result<Option<(Tensor, Tensor)>, PruningError> {
    let c = ai_cc.size()[0];
    let left: Vec<i64> = (0..start).chain(start + q..c).collect();
    let left = index(&left, ai_cc.device());
    let ai_qc = ai_cc.f_narrow(0, start, q)?;
    let Some(l_qq) = try_cholesky(&ai_qc.f_narrow(1, start, q)?)? else { return Ok(None) };
    let ai_ql = ai_qc.f_index_select(1, &left)?;
    let t_ql = solve(&l_qq, &ai_ql)?;
    let m_qc = m_cc.f_narrow(0, start, q)?;
    let half_qq = m_qc.f_narrow(1, start, q)?.f_mul_scalar(0.5)?;
    let v_ql = m_qc.f_index_select(1, &left)?.f_sub(&half_qq.f_matmul(&t_ql)?)?;
    let ai_ll = block(ai_cc, &left, &left)?.f_sub(&ai_ql.f_tr()?.f_matmul(&t_ql)?)?;
    let cross_ll = v_ql.f_tr()?.f_matmul(&t_ql)?;
    let m_ll = block(m_cc, &left, &left)?.f_sub(&cross_ll)?.f_sub(&cross_ll.f_tr()?)?;
    Ok(Some((ai_ll, m_ll)))
}
