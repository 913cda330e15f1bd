//! Joint updates under a Kronecker sum, by conjugate gradients in the basis of `crate::kronecker_sum`.
//!
//! For any mask: on the weights themselves, four products an iteration. For whole columns: rows are first brought into the
//! basis of G, where F couples columns only; every row is a problem of its own with its own step lengths, two products an
//! iteration. What is removed is not decided here.

use super::masked::conjugate_gradient::{Quadratic, minimise};
use super::masked::with_zeros;
use super::{MaskedUpdate, MaskedUpdated, Updated, left};
use crate::kronecker_sum::{Clamped, Diagonalised, KroneckerSumProblem, diagonalised};
use crate::problem::index;
use crate::select::removed_units;
use crate::{PruningError, Units};
use curvature::is_finite;
use tch::{Kind, Tensor};
use types::Unit;

/// Returns the layer's weights without those in `removed`, the rest (and the bias) updated; as [`crate::masked_update`].
///
/// # Shapes
/// `removed`: `[R, C − bias]`, true where a weight goes; weights that are zero already are added to it.
///
/// # Errors
/// As [`crate::masked_update`], and `Units` for a floor that is none and for ways other than the joint optimum and none.
pub fn kronecker_sum_masked_update(
    problem: &KroneckerSumProblem,
    removed: &Tensor,
    how: MaskedUpdate,
) -> Result<Clamped<MaskedUpdated>, PruningError> {
    tch::no_grad(|| {
        let tolerance = tolerance(problem, how)?;
        let removed_rc = with_zeros(&problem.first, removed)?;
        let count = removed_rc.f_sum(Kind::Int64)?.f_int64_value(&[])? as u64;
        diagonalised(problem, |sum| {
            let w_rc = &sum.p.w_rc;
            let (updated_rc, iterations) = match tolerance {
                None => (w_rc.f_masked_fill(&removed_rc, 0.0)?, 0),
                Some(tolerance) => optimum(sum, &removed_rc, tolerance)?,
            };
            let kind = problem.first.result_kind();
            let updated_rc = updated_rc.f_masked_fill(&removed_rc, 0.0)?.f_to_kind(kind)?.f_contiguous()?;
            let delta_rc = updated_rc.f_to_kind(w_rc.kind())?.f_sub(w_rc)?;
            let predicted = checked(sum, &updated_rc, &sum.rotated_rows(&delta_rc)?, count as usize)?;
            Ok(MaskedUpdated { w_rc: updated_rc, removed: count, predicted, iterations })
        })
    })
}

/// Returns the consumer's weights without the removed units, compact, the rest updated; as [`crate::coupled_update`].
///
/// # Errors
/// As [`crate::coupled_update`], and `Units` for a floor that is none and for ways other than the joint optimum and none.
pub fn kronecker_sum_coupled_update(
    problem: &KroneckerSumProblem,
    units: &Units,
    removed: &[Unit],
    how: MaskedUpdate,
) -> Result<Clamped<Updated>, PruningError> {
    tch::no_grad(|| {
        let tolerance = tolerance(problem, how)?;
        units.check(&problem.first)?;
        let gone = removed_units(&problem.first, units, removed)?;
        let (_, c) = problem.first.shape()?;
        let is_gone = |column: i64| gone.get((column / i64::from(units.columns_per_unit)) as usize) == Some(&true);
        let (gone_q, kept_l): (Vec<i64>, Vec<i64>) = (0..c).partition(|&column| is_gone(column));
        let device = problem.first.w_rc.device();
        let (gone_q, kept_l) = (index(&gone_q, device), index(&kept_l, device));
        diagonalised(problem, |sum| {
            let w_rc = &sum.p.w_rc;
            let y_rc = sum.rotated_rows(w_rc)?;
            // In place of Y: its change.
            let change_rc = match tolerance {
                None => y_rc.f_zeros_like()?.f_index_copy(1, &gone_q, &y_rc.f_index_select(1, &gone_q)?.f_neg()?)?,
                Some(tolerance) => columns_optimum(sum, &y_rc, &gone_q, tolerance)?.f_sub_(&y_rc)?,
            };
            let mut change_rl = sum.g.u.f_matmul(&change_rc.f_index_select(1, &kept_l)?)?;
            let updated_rl = change_rl.f_add_(&w_rc.f_index_select(1, &kept_l)?)?;
            let updated_rl = updated_rl.f_to_kind(problem.first.result_kind())?.f_contiguous()?;
            let predicted = checked(sum, &updated_rl, &change_rc, gone_q.numel())?;
            Ok(Updated { w_rc: updated_rl, kept: left(&units.kept, &gone), kept_rows: Vec::new(), predicted })
        })
    })
}

/// Returns the tolerance of conjugate gradients, or `None` without an update.
fn tolerance(problem: &KroneckerSumProblem, how: MaskedUpdate) -> Result<Option<f64>, PruningError> {
    match how {
        MaskedUpdate::ConjugateGradient { tolerance } => Ok(Some(tolerance)),
        MaskedUpdate::None => Ok(None),
        MaskedUpdate::Grouped { .. } | MaskedUpdate::TwoSided | MaskedUpdate::Independent => {
            Err(problem.first.units_error(format!("{how:?} is no update under a Kronecker sum")))
        }
    }
}

/// Returns the best weights that are zero where removed, and the iterations they took.
fn optimum(sum: &Diagonalised, removed_rc: &Tensor, tolerance: f64) -> Result<(Tensor, u32), PruningError> {
    let quadratic = Quadratic {
        layer: &sum.p.layer,
        w_rc: &sum.p.w_rc,
        product: &|d_rc| sum.fisher_product(d_rc),
        preconditioner_rc: sum.diagonal()?.f_reciprocal()?.f_masked_fill(removed_rc, 0.0)?,
        coupled: &[0, 1],
    };
    minimise(&quadratic, removed_rc, tolerance)
}

/// Returns the best weights without the columns `gone_q`, from and in rows in the basis of G.
fn columns_optimum(sum: &Diagonalised, y_rc: &Tensor, gone_q: &Tensor, tolerance: f64) -> Result<Tensor, PruningError> {
    let removed_rc = y_rc.f_zeros_like()?.f_to_kind(Kind::Bool)?.f_index_fill_(1, gone_q, 1)?;
    let quadratic = Quadratic {
        layer: &sum.p.layer,
        w_rc: y_rc,
        product: &|d_rc| sum.product_of_rotated(d_rc),
        preconditioner_rc: sum.diagonal_of_rotated()?.f_reciprocal()?.f_masked_fill(&removed_rc, 0.0)?,
        coupled: &[1],
    };
    Ok(minimise(&quadratic, &removed_rc, tolerance)?.0)
}

/// Returns ½ δᵀ F δ of new weights, from δ with its rows in the basis of G; it must be a possible loss.
fn checked(sum: &Diagonalised, w: &Tensor, change_rc: &Tensor, removed: usize) -> Result<f64, PruningError> {
    let value = sum.half_product_of_rotated(change_rc)?;
    if !is_finite(w)? || !value.is_finite() {
        return Err(sum.p.unstable("the predicted cost", value, removed));
    }
    Ok(value)
}
