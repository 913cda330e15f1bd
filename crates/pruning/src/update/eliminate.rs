//! The one kernel of all structured updates: removes columns Q of W under a factor on the columns' side and one on the rows'.
//!
//! With what stays (L) first, A = [[A_LL, A_LQ], [A_QL, A_QQ]] = [[L₁, 0], [L₂, L₃]] [[L₁, 0], [L₂, L₃]]ᵀ. Then
//!
//! ```text
//! W_new[:,L] = W A[:,L] (A_LL)⁻¹ = W_L + W_Q L₂ L₁⁻¹        ((A⁻¹)_QQ)⁻¹ = L₃ L₃ᵀ
//! ½ δᵀ F δ = ½ tr(W_Qᵀ G W_Q ((A⁻¹)_QQ)⁻¹) = ½ ⟨G Y, Y⟩,   Y = W_Q L₃
//! ```
//!
//! so one Cholesky factorisation and one triangular solve give everything, and the cost cannot come out negative by
//! cancellation. Rows are the columns of Wᵀ with G in the place of A.

use crate::PruningError;
use crate::problem::Prepared;
use curvature::{Factorised, solve_right};
use tch::{Kind, Tensor};

/// Returns W_new on the first `l` columns, all others removed, and the predicted rise of the loss.
///
/// # Shapes
/// `w_rc`: `[R, C]`, `factor`: `[C, C]`, `other_rr` damped; identity when `None` → `[R, l]`
pub(super) fn eliminate(
    w_rc: &Tensor,
    factor: Option<&Factorised>,
    other_rr: Option<&Tensor>,
    l: i64,
) -> Result<(Tensor, f64), PruningError> {
    let (r, c) = w_rc.size2()?;
    let (q, w_rl) = (c - l, w_rc.f_narrow(1, 0, l)?);
    if q == 0 {
        return Ok((w_rl, 0.0));
    }
    let w_rq = w_rc.f_narrow(1, l, q)?;
    let Some(factor) = factor else {
        let predicted = half_product(other_rr, &w_rq, &w_rq)?;
        return Ok((w_rl, predicted));
    };
    let below = factor.l.f_narrow(0, l, q)?;
    let y_rq = w_rq.f_matmul(&below.f_narrow(1, l, q)?)?;
    let predicted = half_product(other_rr, &y_rq, &y_rq)?;
    if l == 0 {
        return Ok((w_rl, predicted));
    }
    let (l1, l2) = (factor.l.f_narrow(0, 0, l)?.f_narrow(1, 0, l)?, below.f_narrow(1, 0, l)?);
    // The solve costs l² a row: for the fewer of Q and R.
    let change_rl =
        if q < r { w_rq.f_matmul(&solve_right(&l1, &l2)?)? } else { solve_right(&l1, &w_rq.f_matmul(&l2)?)? };
    Ok((w_rl.f_add(&change_rl)?, predicted))
}

/// Returns ½ δᵀ F δ = ½ ⟨G D, D A⟩, summed in f64.
pub(super) fn half_fisher(p: &Prepared, d_rc: &Tensor) -> Result<f64, PruningError> {
    let d_a = p.a_cc().map(|a| d_rc.f_matmul(a)).transpose()?;
    half_product(p.g_rr(), d_rc, d_a.as_ref().unwrap_or(d_rc))
}

/// Returns ½ ⟨G X, Y⟩, summed in f64.
fn half_product(g_rr: Option<&Tensor>, x_rq: &Tensor, y_rq: &Tensor) -> Result<f64, PruningError> {
    let product = match g_rr {
        Some(g) => g.f_matmul(x_rq)?.f_mul(y_rq)?,
        None => x_rq.f_mul(y_rq)?,
    };
    Ok(0.5 * product.f_sum(Kind::Double)?.f_double_value(&[])?)
}
