//! Costs of units as if each were removed alone, from the initial state.

use super::blocks;
use crate::problem::{Prepared, diagonal_blocks, host};
use crate::{PruningError, Units};
use curvature::inverse;
use tch::{Kind, Tensor};
use types::Update;

/// Returns the cost of each unit: ½ tr(M_QQ (Ai_QQ)⁻¹) with an update, ½ Σ M_QQ ∘ A_QQ without.
pub(super) fn unit_costs(p: &Prepared, m_cc: &Tensor, units: &Units, update: Update) -> Result<Vec<f64>, PruningError> {
    let (count, q) = (units.kept.len() as i64, i64::from(units.columns_per_unit));
    let costs = match (update, &p.a) {
        (_, None) => blocks::traces(&diagonal_blocks(m_cc, count, q)?)?,
        (Update::None, Some(a)) => {
            let products = diagonal_blocks(&a.damped.f_mul(m_cc)?, count, q)?;
            host(&products.f_sum_dim_intlist([1_i64, 2].as_slice(), false, Kind::Double)?.f_mul_scalar(0.5)?)?
        }
        (_, Some(a)) => blocks::costs(&inverse(&a.l)?, m_cc, count, q)?
            .ok_or_else(|| p.unstable("a diagonal block's smallest pivot", 0.0, 0))?,
    };
    costs.into_iter().map(|cost| p.checked("a cost", cost, 0)).collect()
}

/// Returns the costs of all rows and of all columns but the bias.
///
/// With an update ½ w_r A w_rᵀ / Gi_rr and ½ w_cᵀ G w_c / Ai_cc; without, times G_rr and A_cc instead.
pub(super) fn row_and_column_costs(p: &Prepared, update: Update) -> Result<(Vec<f64>, Vec<f64>), PruningError> {
    let weight = |factor: &Option<curvature::Factorised>, n: i64| -> Result<Tensor, PruningError> {
        let options = (p.w_rc.kind(), p.w_rc.device());
        Ok(match (factor, update) {
            (None, _) => Tensor::f_ones([n], options)?,
            (Some(f), Update::None) => f.damped.f_diagonal(0, 0, 1)?,
            (Some(f), _) => inverse(&f.l)?.f_diagonal(0, 0, 1)?.f_reciprocal()?,
        })
    };
    let (r, c) = p.shape();
    let energy_r = p.w_a()?.f_mul(&p.w_rc)?.f_sum_dim_intlist([1_i64].as_slice(), false, p.w_rc.kind())?;
    let energy_c = p.g_w()?.f_mul(&p.w_rc)?.f_sum_dim_intlist([0_i64].as_slice(), false, p.w_rc.kind())?;
    let rows = host(&energy_r.f_mul(&weight(&p.g, r)?)?.f_mul_scalar(0.5)?)?;
    let mut columns = host(&energy_c.f_mul(&weight(&p.a, c)?)?.f_mul_scalar(0.5)?)?;
    columns.truncate((c - p.bias_columns) as usize);
    let checked =
        |costs: Vec<f64>| costs.into_iter().map(|cost| p.checked("a cost", cost, 0)).collect::<Result<_, _>>();
    Ok((checked(rows)?, checked(columns)?))
}
