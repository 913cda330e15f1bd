//! All choices of what goes from a window, at once for many rows: a quadratic form is the square of a product.
//!
//! With A_SS = L Lᵀ (or Ai_SS): w A_SS wᵀ = ‖w L‖² and w (Ai_SS)⁻¹ wᵀ = ‖w L⁻ᵀ‖². The roots of all S side by side, with zero rows
//! for what stays, make one matrix a window; it is the same for all rows, and no cost comes out negative.

use super::{Cheapest, Update};
use crate::PruningError;
use crate::problem::{Prepared, index};
use curvature::try_cholesky;
use tch::{Kind, Tensor};

/// The choices of some windows.
#[derive(Debug)]
pub(super) struct Choices {
    /// Roots side by side, `[K, m, S · s]`: S choices of s weights each.
    root_kmx: Tensor,
    /// Which weights each choice removes, `[S, m]`.
    removed_sm: Tensor,
    /// The size s of a choice.
    removals: i64,
}

impl Choices {
    /// Prepares `choices` (of equal size) for the windows of `block_kmm`.
    pub(super) fn new(
        p: &Prepared,
        block_kmm: &Tensor,
        choices: &[Vec<i64>],
        update: Update,
    ) -> Result<Self, PruningError> {
        let (k, m, _) = block_kmm.size3()?;
        let (count, removals) = (choices.len() as i64, choices[0].len() as i64);
        let (options, device) = ((block_kmm.kind(), block_kmm.device()), block_kmm.device());
        let pairs: Vec<i64> =
            choices.iter().flat_map(|s| s.iter().flat_map(|i| s.iter().map(move |j| i * m + j))).collect();
        let sub = block_kmm.f_reshape([k, m * m])?.f_index_select(1, &index(&pairs, device))?;
        let l = try_cholesky(&sub.f_view([k, count, removals, removals])?)?
            .ok_or_else(|| p.unstable("a window's smallest pivot", 0.0, 0))?;
        let root = if update == Update::None {
            l
        } else {
            let identity = Tensor::f_eye(removals, options)?.f_expand([k, count, removals, removals], false)?;
            l.f_linalg_solve_triangular(&identity, false, true, false)?.f_transpose(2, 3)?
        };
        // Where row i of choice number s's root goes: row S_i, columns s · removals and on.
        let width = count * removals;
        let places: Vec<i64> = choices
            .iter()
            .zip(0_i64..)
            .flat_map(|(choice, s)| choice.iter().map(move |i| i * width + s * removals))
            .flat_map(|start| start..start + removals)
            .collect();
        let root_kmx = Tensor::f_zeros([k, m * width], options)?
            .f_index_copy(1, &index(&places, device), &root.f_reshape([k, -1])?)?
            .f_view([k, m, width])?;
        let members: Vec<i64> =
            choices.iter().zip(0_i64..).flat_map(|(c, s)| c.iter().map(move |i| s * m + i)).collect();
        let removed_sm = Tensor::f_zeros([count * m], (Kind::Bool, device))?
            .f_index_fill(0, &index(&members, device), 1)?
            .f_view([count, m])?;
        Ok(Self { root_kmx, removed_sm, removals })
    }

    /// Returns the cheapest choice of each window and row among those with all that is zero already; for a window with more
    /// zeros than a choice has places, some choice at infinite cost.
    ///
    /// # Shapes
    /// `w_krm`: `[K, R, m]`
    pub(super) fn cheapest(&self, w_krm: &Tensor) -> Result<Cheapest, PruningError> {
        let (k, r, m) = w_krm.size3()?;
        let mut products = w_krm.f_matmul(&self.root_kmx)?;
        let squares = products.f_square_()?.f_view([k, r, -1, self.removals])?;
        let mut costs_krs = squares.f_sum_dim_intlist([3_i64].as_slice(), false, w_krm.kind())?;
        let zero_krm = w_krm.f_eq(0)?;
        if zero_krm.f_any()?.f_int64_value(&[])? != 0 {
            let kept_ms = self.removed_sm.f_logical_not()?.f_to_kind(w_krm.kind())?.f_tr()?;
            let revived_krs = zero_krm.f_to_kind(w_krm.kind())?.f_matmul(&kept_ms)?.f_gt(0.5)?;
            let _ = costs_krs.f_masked_fill_(&revived_krs, f64::INFINITY)?;
        }
        let (costs_kr, choice_kr) = costs_krs.f_min_dim(2, false)?;
        let removed_krm = self.removed_sm.f_index_select(0, &choice_kr.f_view([-1])?)?.f_view([k, r, m])?;
        Ok(Cheapest { costs_kr, removed_krm })
    }
}
