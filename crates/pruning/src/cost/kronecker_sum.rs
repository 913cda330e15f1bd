//! Costs under a Kronecker sum, each as if its structure went alone, in the basis of `crate::kronecker_sum`.
//!
//! ```text
//! element (r,c)   ½ w² / [F⁻¹]_rc,rc         [F⁻¹]_rc,rc = ((U_G∘U_G) (1/d) (U_A∘U_A)ᵀ)_rc
//! column c        ½ Σ_i y_ic² / h_ic         y = V_Gᵀ W,  h = (1/d) (U_A∘U_A)ᵀ      (the block of F⁻¹ is U_G diag(h_c) U_Gᵀ)
//! row r           ½ Σ_j z_rj² / h_rj         z = W V_A,   h = (U_G∘U_G) (1/d)
//! columns Q       ½ Σ_i y_iQ (U_Q diag(1/d_i) U_Qᵀ)⁻¹ y_iQᵀ,   U_Q = U_A[Q,:]
//! ```
//!
//! Without an update the blocks of F stand in for the inverted blocks of F⁻¹. Exact marginals along a path would take one
//! C × C inverse for each i, so there is no sequential scoring here.

use super::elements::finished;
use crate::kronecker_sum::{Clamped, Diagonalised, KroneckerSumProblem, diagonalised};
use crate::problem::host;
use crate::select::Rounds;
use crate::{ElementCosts, PruningError, Units};
use curvature::{solve, try_cholesky};
use tch::{Kind, Tensor};
use types::{FactorDamping, LayerId, PathStep, RemovalPath, Unit, Update};

/// Numbers in the largest temporary tensor of a run of columns.
const CHUNK: i64 = 1 << 26;

/// Costs of a layer's rows and columns, each as if it went alone.
#[derive(Debug)]
pub struct RowColumnCosts {
    /// The layer.
    pub layer: LayerId,
    /// Of each row, nats per token.
    pub rows: Vec<f64>,
    /// Of each column but the bias.
    pub columns: Vec<f64>,
    /// The damping that the first term took.
    pub damping: FactorDamping,
}

/// Returns the cost of removing each weight: ½ w² / [F⁻¹]_rc,rc with an update, ½ w² F_rc,rc without; otherwise as
/// [`crate::element_costs`].
///
/// # Errors
/// As [`crate::element_costs`], and `Units` for a floor that is none.
pub fn kronecker_sum_element_costs(
    problem: &KroneckerSumProblem,
    update: Update,
) -> Result<Clamped<ElementCosts>, PruningError> {
    tch::no_grad(|| {
        diagonalised(problem, |sum| {
            let p = sum.p;
            let columns = p.shape().1 - p.bias_columns;
            let weights_rc = p.w_rc.f_narrow(1, 0, columns)?;
            let scale_rc = match update {
                Update::None => sum.diagonal()?,
                _ => sum.g.u.f_square()?.f_matmul(&inverse_of_rotated(sum)?)?.f_reciprocal()?,
            };
            let costs_rc = weights_rc.f_square()?.f_mul_(&scale_rc.f_narrow(1, 0, columns)?)?.f_mul_scalar(0.5)?;
            let costs_rc = finished(p, &problem.first, &costs_rc, &weights_rc.f_eq(0)?)?;
            Ok(ElementCosts { layer: p.layer.clone(), costs_rc, damping: p.damping })
        })
    })
}

/// Returns the costs of removing each row and each column alone.
///
/// # Errors
/// As [`crate::coupled_path`], and `Units` for a floor that is none.
pub fn kronecker_sum_row_column_costs(
    problem: &KroneckerSumProblem,
    update: Update,
) -> Result<Clamped<RowColumnCosts>, PruningError> {
    tch::no_grad(|| {
        diagonalised(problem, |sum| {
            let p = sum.p;
            let mut z_rc = p.w_rc.f_matmul(&sum.a.v)?;
            let scale_rc = match update {
                Update::None => sum.g.v.f_square()?.f_matmul(&sum.d_rc)?,
                _ => sum.g.u.f_square()?.f_matmul(&sum.d_rc.f_reciprocal()?)?.f_reciprocal()?,
            };
            let rows = z_rc.f_square_()?.f_mul_(&scale_rc)?;
            let rows = host(&rows.f_sum_dim_intlist([1_i64].as_slice(), false, Kind::Double)?.f_mul_scalar(0.5)?)?;
            let rows = rows.into_iter().map(|cost| p.checked("a cost", cost, 0)).collect::<Result<_, _>>()?;
            let columns = column_costs(sum, update)?;
            Ok(RowColumnCosts { layer: p.layer.clone(), rows, columns, damping: p.damping })
        })
    })
}

/// Returns a consumer layer's units by rising cost, each as if it went alone, down to `min_keep`; query heads in rounds.
///
/// # Errors
/// As [`crate::coupled_path`], and `Units` for a floor that is none.
pub fn kronecker_sum_path(
    problem: &KroneckerSumProblem,
    units: &Units,
    update: Update,
) -> Result<Clamped<RemovalPath>, PruningError> {
    tch::no_grad(|| {
        units.check(&problem.first)?;
        diagonalised(problem, |sum| {
            let costs = match units.columns_per_unit {
                1 => column_costs(sum, update)?,
                q => run_costs(sum, units.kept.len() as i64, q.into(), update)?,
            };
            let step = |position: usize| PathStep {
                unit: Unit { kind: units.kind, index: units.kept[position] },
                cost: costs[position],
                freed: units.freed_per_unit,
            };
            let steps = Rounds::new(units).order(&costs).into_iter().map(step).collect();
            Ok(RemovalPath { layer: sum.p.layer.clone(), steps, damping: sum.p.damping })
        })
    })
}

/// Returns (1/d) (U_A∘U_A)ᵀ, `[R, C]`: the diagonal of F⁻¹ for rows in the basis of G.
fn inverse_of_rotated(sum: &Diagonalised) -> Result<Tensor, PruningError> {
    Ok(sum.d_rc.f_reciprocal()?.f_matmul(&sum.a.u.f_square()?.f_tr()?)?)
}

/// Returns the cost of each column but the bias.
fn column_costs(sum: &Diagonalised, update: Update) -> Result<Vec<f64>, PruningError> {
    let scale_rc = match update {
        Update::None => sum.diagonal_of_rotated()?,
        _ => inverse_of_rotated(sum)?.f_reciprocal()?,
    };
    let y_rc = sum.rotated_rows(&sum.p.w_rc)?.f_square_()?.f_mul_(&scale_rc)?;
    let mut costs = host(&y_rc.f_sum_dim_intlist([0_i64].as_slice(), false, Kind::Double)?.f_mul_scalar(0.5)?)?;
    costs.truncate((sum.p.shape().1 - sum.p.bias_columns) as usize);
    costs.into_iter().map(|cost| sum.p.checked("a cost", cost, 0)).collect()
}

/// Returns the cost of each of the first `count` runs of `q` columns.
fn run_costs(sum: &Diagonalised, count: i64, q: i64, update: Update) -> Result<Vec<f64>, PruningError> {
    let y_rc = sum.rotated_rows(&sum.p.w_rc)?;
    let inverse_rc = sum.d_rc.f_reciprocal()?;
    let cost = |unit: i64| {
        let y_rq = y_rc.f_narrow(1, unit * q, q)?;
        let cost = match update {
            Update::None => {
                let mut y_rc = y_rq.f_matmul(&sum.a.v.f_narrow(0, unit * q, q)?)?;
                y_rc.f_square_()?.f_mul_(&sum.d_rc)?.f_sum(Kind::Double)?.f_double_value(&[])?
            }
            _ => inverse_form(sum, &y_rq, &inverse_rc, &sum.a.u.f_narrow(0, unit * q, q)?)?,
        };
        sum.p.checked("a cost", 0.5 * cost, 0)
    };
    (0..count).map(cost).collect()
}

/// Returns Σ_i y_i (U diag(1/d_i) Uᵀ)⁻¹ y_iᵀ over the rows of y.
///
/// # Shapes
/// `y_rq`: `[R, q]`, `inverse_rc`: 1/d, `[R, C]`, `u_qc`: `[q, C]`
fn inverse_form(sum: &Diagonalised, y_rq: &Tensor, inverse_rc: &Tensor, u_qc: &Tensor) -> Result<f64, PruningError> {
    let r = y_rq.size()[0];
    let rows = (CHUNK / u_qc.numel() as i64).max(1);
    let mut total = 0.0;
    for start in (0..r).step_by(rows as usize) {
        let n = rows.min(r - start);
        let scaled_nqc = inverse_rc.f_narrow(0, start, n)?.f_unsqueeze(1)?.f_mul(u_qc)?;
        let blocks_nqq = scaled_nqc.f_matmul(&u_qc.f_tr()?)?;
        let Some(l_nqq) = try_cholesky(&blocks_nqq)? else {
            return Err(sum.p.unstable("a diagonal block's smallest pivot", 0.0, 0));
        };
        let y_nq = y_rq.f_narrow(0, start, n)?.f_unsqueeze(2)?;
        total += solve(&l_nqq, &y_nq)?.f_mul_(&y_nq)?.f_sum(Kind::Double)?.f_double_value(&[])?;
    }
    Ok(total)
}
