//! The joint closed-form update of what stays, and its predicted cost.
//!
//! Takes what was selected as given. Puts what stays first and what goes last, so that one factorisation of the reordered
//! factor gives update and cost (`update/eliminate.rs`). Single weights, for which there is no such order: `update/masked.rs`.
//! Under a Kronecker sum: `update/kronecker_sum.rs`.

mod eliminate;
mod independent;
mod kronecker_sum;
mod masked;

pub use kronecker_sum::{kronecker_sum_coupled_update, kronecker_sum_masked_update};
pub use masked::{MaskedUpdate, MaskedUpdated, masked_update};

use crate::cost::live_positions;
use crate::problem::{Prepared, in_either_precision, index};
use crate::select::{mark, removed_units};
use crate::{LayerProblem, PruningError, Units};
use curvature::is_finite;
use eliminate::{eliminate, half_fisher};
use tch::Tensor;
use types::{Unit, UnitKind, Update};

/// A layer after a removal.
#[derive(Debug)]
pub struct Updated {
    /// New weights, bias last where there is one, f32 (f64 when the weights are). Coupled: compact, `[R, columns left]`;
    /// row-column: of full size, exactly zero where removed.
    pub w_rc: Tensor,
    /// Units left (row-column: columns), original indices, rising.
    pub kept: Vec<u32>,
    /// Rows left (row-column only, otherwise empty).
    pub kept_rows: Vec<u32>,
    /// ½ δᵀ F δ of the joint removal under the damped factors, nats per token.
    pub predicted: f64,
}

/// Returns the consumer's weights without the removed units: W_new[:,L] = W A[:,L] (A_LL)⁻¹, or W[:,L] without an update,
/// or with the sum of each unit's own update.
///
/// # Errors
/// As [`crate::coupled_path`], and `Units` when a unit is not there, too few would stay, or groups would become unequal.
pub fn coupled_update(
    problem: &LayerProblem,
    units: &Units,
    removed: &[Unit],
    update: Update,
) -> Result<Updated, PruningError> {
    tch::no_grad(|| {
        units.check(problem)?;
        let gone = removed_units(problem, units, removed)?;
        let (r, c) = problem.shape()?;
        let (rows, columns): (Vec<i64>, Vec<i64>) = ((0..r).collect(), (0..c).collect());
        let gone_columns: Vec<bool> =
            gone.iter().flat_map(|&gone| vec![gone; units.columns_per_unit as usize]).collect();
        let columns = Split { unit: units.columns_per_unit.into(), ..Split::new(&columns, &gone_columns) };
        let (w_rl, predicted) = remove(problem, &Split::new(&rows, &[]), &columns, update)?;
        Ok(Updated { w_rc: w_rl, kept: left(&units.kept, &gone), kept_rows: Vec::new(), predicted })
    })
}

/// Returns the layer's weights of full size without the removed rows and columns: rows first, then columns on the
/// updated weights, which is the joint optimum.
///
/// # Errors
/// As [`crate::row_column_path`], and `Units` when a row or column is not live, or none would stay.
pub fn row_column_update(
    problem: &LayerProblem,
    live_rows: &[u32],
    live_columns: &[u32],
    removed: &[Unit],
    update: Update,
) -> Result<Updated, PruningError> {
    tch::no_grad(|| {
        let (rows, columns) = live_positions(problem, live_rows, live_columns)?;
        let (mut gone_rows, mut gone_columns) = (vec![false; live_rows.len()], vec![false; live_columns.len()]);
        for unit in removed {
            match unit.kind {
                UnitKind::Row => mark(problem, &mut gone_rows, live_rows, *unit)?,
                UnitKind::Column => mark(problem, &mut gone_columns, live_columns, *unit)?,
                other => return Err(problem.units_error(format!("a {other} is neither row nor column"))),
            }
        }
        let (kept, kept_rows) = (left(live_columns, &gone_columns), left(live_rows, &gone_rows));
        if kept.is_empty() || kept_rows.is_empty() {
            return Err(problem.units_error("a row and a column must stay".to_owned()));
        }
        let (rows, columns) = (Split::new(&rows, &gone_rows), Split::new(&columns, &gone_columns));
        let (w_kl, predicted) = remove(problem, &rows, &columns, update)?;
        let w_rc = spread(&w_kl, rows.kept(), columns.kept(), problem.shape()?)?;
        Ok(Updated { w_rc, kept, kept_rows, predicted })
    })
}

/// Lines of one side, those that stay first, those that go in the order of their units.
#[derive(Debug)]
struct Split {
    order: Vec<i64>,
    /// How many stay.
    left: usize,
    /// Lines of one unit.
    unit: i64,
}

impl Split {
    /// Orders `positions`; those beyond the end of `gone` (the bias) stay.
    fn new(positions: &[i64], gone: &[bool]) -> Self {
        let is_gone = |i: usize| gone.get(i).copied().unwrap_or(false);
        let of = |wanted: bool| (0..positions.len()).filter(move |&i| is_gone(i) == wanted).map(|i| positions[i]);
        let mut order: Vec<i64> = of(false).collect();
        let left = order.len();
        order.extend(of(true));
        Self { order, left, unit: 1 }
    }

    fn kept(&self) -> &[i64] {
        &self.order[..self.left]
    }
}

/// Returns the weights of the kept rows and columns, and the predicted rise of the loss.
fn remove(
    problem: &LayerProblem,
    rows: &Split,
    columns: &Split,
    update: Update,
) -> Result<(Tensor, f64), PruningError> {
    let ordered = problem.restricted(&rows.order, &columns.order)?;
    let (k, l) = (rows.left as i64, columns.left as i64);
    in_either_precision(&ordered, |p| {
        let (w_kl, predicted) = match update {
            Update::Correlated => eliminate_both(p, k, l)?,
            Update::Independent => independent::add_up(p, k, l, columns.unit)?,
            Update::None => (p.w_rc.f_narrow(0, 0, k)?.f_narrow(1, 0, l)?, zeroing_cost(p, k, l)?),
            Update::Grouped | Update::TwoSided => {
                return Err(problem.units_error(format!("the {update} update is for single weights")));
            }
        };
        if !predicted.is_finite() || !is_finite(&w_kl)? {
            let removed = rows.order.len() + columns.order.len() - (k + l) as usize;
            return Err(p.unstable("the predicted cost", predicted, removed));
        }
        Ok((w_kl.f_to_kind(problem.result_kind())?.f_contiguous()?, predicted))
    })
}

/// Removes all rows but the first `k`, then all columns but the first `l` from what the rows left.
fn eliminate_both(p: &Prepared, k: i64, l: i64) -> Result<(Tensor, f64), PruningError> {
    let (w_ck, by_rows) = eliminate(&p.w_rc.f_tr()?, p.g.as_ref(), p.a_cc(), k)?;
    let g_kk = p.g_rr().map(|g| g.f_narrow(0, 0, k)?.f_narrow(1, 0, k)).transpose()?;
    let (w_kl, by_columns) = eliminate(&w_ck.f_tr()?, p.a.as_ref(), g_kk.as_ref(), l)?;
    Ok((w_kl, by_rows + by_columns))
}

/// Returns ½ δᵀ F δ when all but the first `k` rows and `l` columns become zero and the rest stays.
fn zeroing_cost(p: &Prepared, k: i64, l: i64) -> Result<f64, PruningError> {
    let removed_rc = p.w_rc.f_detach_copy()?;
    let _ = removed_rc.f_narrow(0, 0, k)?.f_narrow(1, 0, l)?.f_zero_()?;
    half_fisher(p, &removed_rc)
}

/// Returns zeros of `shape` with `w_kl` at the given rows and columns.
fn spread(w_kl: &Tensor, rows: &[i64], columns: &[i64], shape: (i64, i64)) -> Result<Tensor, PruningError> {
    let (options, device) = ((w_kl.kind(), w_kl.device()), w_kl.device());
    let wide = Tensor::f_zeros([w_kl.size()[0], shape.1], options)?.f_index_copy(1, &index(columns, device), w_kl)?;
    Ok(Tensor::f_zeros([shape.0, shape.1], options)?.f_index_copy(0, &index(rows, device), &wide)?)
}

/// Returns those of `live` that are not gone.
fn left(live: &[u32], gone: &[bool]) -> Vec<u32> {
    live.iter().zip(gone).filter(|(_, gone)| !**gone).map(|(&index, _)| index).collect()
}
