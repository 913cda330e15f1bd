//! One weight of a window after the other, always the one that adds least to the cost given those before it.
//!
//! With an update, w and Ai are the window's own and follow each removal j:
//! w ← w − (w_j / Ai_jj) Ai[j,:], Ai ← Ai − Ai[:,j] Ai[j,:] / Ai_jj, and the next costs w_j² / Ai_jj. Without, the next costs
//! A_jj w_j² + 2 w_j v_j, where v = Σ A[j,:] w_j over what went. What is zero already goes first. The marginal costs add
//! up to the cost of the whole choice, though another choice may cost less.

use super::{Cheapest, Update};
use crate::PruningError;
use crate::problem::Prepared;
use tch::{Kind, Tensor};

/// Returns `removals` weights of each window and row, and what they cost together.
///
/// # Shapes
/// `block_kmm`: `[K, m, m]`, `w_krm`: `[K, R, m]`
pub(super) fn cheapest(
    p: &Prepared,
    block_kmm: &Tensor,
    w_krm: &Tensor,
    removals: usize,
    update: Update,
) -> Result<Cheapest, PruningError> {
    let (k, r, _) = w_krm.size3()?;
    let mut state = State::new(block_kmm, w_krm, update)?;
    let zero_krm = w_krm.f_eq(0)?;
    let mut costs_kr = Tensor::f_zeros([k, r], (w_krm.kind(), w_krm.device()))?;
    let mut removed_krm = zero_krm.f_zeros_like()?;
    for step in 0..removals {
        let mut marginal_krm = state.marginals()?;
        let _ = marginal_krm.f_masked_fill_(&zero_krm, f64::NEG_INFINITY)?;
        let _ = marginal_krm.f_masked_fill_(&removed_krm, f64::INFINITY)?;
        let (marginal_kr1, next_kr1) = marginal_krm.f_min_dim(2, true)?;
        let lowest_pivot = state.remove(&next_kr1)?;
        if lowest_pivot.is_nan() || lowest_pivot <= 0.0 {
            return Err(p.unstable("a window's smallest pivot", lowest_pivot, step));
        }
        let _ = removed_krm.f_scatter_value_(2, &next_kr1, 1)?;
        // What was zero already goes first, and for nothing.
        let free_kr1 = marginal_kr1.f_eq(f64::NEG_INFINITY)?;
        let _ = costs_kr.f_add_(&marginal_kr1.f_masked_fill(&free_kr1, 0.0)?.f_view([k, r])?)?;
    }
    Ok(Cheapest { costs_kr, removed_krm })
}

/// What the next removals depend on.
enum State {
    /// With an update: Ai and w of each window and row.
    Updated { inverse_krmm: Tensor, w_krm: Tensor },
    /// Without: A, w, and v.
    Fixed { a_krmm: Tensor, w_krm: Tensor, v_krm: Tensor },
}

impl State {
    fn new(block_kmm: &Tensor, w_krm: &Tensor, update: Update) -> Result<Self, PruningError> {
        let (k, r, m) = w_krm.size3()?;
        let block_krmm = block_kmm.f_unsqueeze(1)?.f_expand([k, r, m, m], false)?;
        Ok(match update {
            Update::None => {
                Self::Fixed { a_krmm: block_krmm, w_krm: w_krm.shallow_clone(), v_krm: w_krm.f_zeros_like()? }
            }
            _ => Self::Updated {
                inverse_krmm: block_krmm.f_detach_copy()?.f_contiguous()?,
                w_krm: w_krm.f_detach_copy()?,
            },
        })
    }

    /// Returns what each weight's removal would add, `[K, R, m]`; undefined for what went before.
    fn marginals(&self) -> Result<Tensor, PruningError> {
        Ok(match self {
            Self::Updated { inverse_krmm, w_krm } => w_krm.f_square()?.f_div(&inverse_krmm.f_diagonal(0, 2, 3)?)?,
            Self::Fixed { a_krmm, w_krm, v_krm } => {
                let own = a_krmm.f_diagonal(0, 2, 3)?.f_mul(w_krm)?;
                own.f_add(&v_krm.f_mul_scalar(2.0)?)?.f_mul(w_krm)?
            }
        })
    }

    /// Removes one weight of each window and row, and returns the lowest pivot.
    fn remove(&mut self, next_kr1: &Tensor) -> Result<f64, PruningError> {
        let line = |matrix_krmm: &Tensor| -> Result<Tensor, PruningError> {
            let (k, r, m) = (matrix_krmm.size()[0], matrix_krmm.size()[1], matrix_krmm.size()[2]);
            let at = next_kr1.f_unsqueeze(3)?.f_expand([k, r, 1, m], false)?;
            Ok(matrix_krmm.f_gather(2, &at, false)?.f_view([k, r, m])?)
        };
        let pivot_kr1 = match self {
            Self::Updated { inverse_krmm, w_krm } => {
                let line_krm = line(inverse_krmm)?;
                let pivot_kr1 = line_krm.f_gather(2, next_kr1, false)?;
                let scaled_krm = line_krm.f_div(&pivot_kr1)?;
                let w_kr1 = w_krm.f_gather(2, next_kr1, false)?;
                let _ = w_krm.f_sub_(&scaled_krm.f_mul(&w_kr1)?)?;
                let _ = inverse_krmm.f_sub_(&line_krm.f_unsqueeze(3)?.f_mul(&scaled_krm.f_unsqueeze(2)?)?)?;
                pivot_kr1
            }
            Self::Fixed { a_krmm, w_krm, v_krm } => {
                let line_krm = line(a_krmm)?;
                let _ = v_krm.f_addcmul_(&line_krm, &w_krm.f_gather(2, next_kr1, false)?)?;
                line_krm.f_gather(2, next_kr1, false)?
            }
        };
        Ok(pivot_kr1.f_to_kind(Kind::Double)?.f_min()?.f_double_value(&[])?)
    }
}
