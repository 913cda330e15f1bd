//! The joint optimum for any mask: conjugate gradients on the weights that stay, two dense products an iteration.
//!
//! Minimises ½ tr((X − W)ᵀ G (X − W) A) over X that is zero where removed. The gradient is G (X − W) A where weights stay; the
//! preconditioner is F's diagonal, diag(G) diag(A)ᵀ; the start is W with zeros. No inverse, no index lists, no limit on
//! what may correlate. Any other quadratic in the weights goes the same way (`Quadratic`).
//!
//! With G = I rows do not interact, with A = I columns do not: then each row (column) is a problem of its own with its own
//! step lengths, all in the same products.

use crate::PruningError;
use crate::problem::Prepared;
use tch::{Kind, Tensor};
use types::LayerId;

/// The most iterations; a layer that has not settled by then is taken as it is, which is never worse than the start.
const MOST: u32 = 200;

/// The decrease is looked at over this many iterations, because that of a single one may be small by chance.
const LAST: usize = 4;

/// ½ ⟨X − W, F (X − W)⟩ as a function of X.
pub(crate) struct Quadratic<'a> {
    /// For messages.
    pub(crate) layer: &'a LayerId,
    /// W, `[R, C]`.
    pub(crate) w_rc: &'a Tensor,
    /// F D as a matrix, from D.
    pub(crate) product: &'a dyn Fn(&Tensor) -> Result<Tensor, PruningError>,
    /// 1 / diag(F), 0 where removed, `[R, C]`.
    pub(crate) preconditioner_rc: Tensor,
    /// The dimensions along which F couples weights: both, or one, and then each line along it is a problem of its own.
    pub(crate) coupled: &'static [i64],
}

/// Returns the weights, zero where removed, and how many iterations they took.
pub(super) fn update(p: &Prepared, removed_rc: &Tensor, tolerance: f64) -> Result<(Tensor, u32), PruningError> {
    let quadratic = Quadratic {
        layer: &p.layer,
        w_rc: &p.w_rc,
        product: &|d_rc| p.fisher_product(d_rc),
        preconditioner_rc: preconditioner(p, removed_rc)?,
        coupled: match (&p.g, &p.a) {
            (Some(_), Some(_)) => &[0, 1],
            (None, _) => &[1],
            (Some(_), None) => &[0],
        },
    };
    minimise(&quadratic, removed_rc, tolerance)
}

/// Returns where the quadratic is least among weights that are zero where removed, and how many iterations it took.
///
/// With f the predicted loss so far, iterations end when the last four together took off at most `tolerance` · f; the error
/// of f is of that order. f counts as at least the rounding of its first value.
pub(crate) fn minimise(
    quadratic: &Quadratic,
    removed_rc: &Tensor,
    tolerance: f64,
) -> Result<(Tensor, u32), PruningError> {
    let Quadratic { layer, w_rc, product, coupled, ref preconditioner_rc } = *quadratic;
    let kind = w_rc.kind();
    let mut x_rc = w_rc.f_masked_fill(removed_rc, 0.0)?;
    // −F (X − W); not projected, the preconditioner does that.
    let start_rc = w_rc.f_sub(&x_rc)?;
    let mut residual_rc = product(&start_rc)?;
    let mut objective = 0.5 * start_rc.f_mul(&residual_rc)?.f_sum(Kind::Double)?.f_double_value(&[])?;
    drop(start_rc);
    let rounding = objective * if kind == Kind::Double { f64::EPSILON } else { f64::from(f32::EPSILON) };
    let mut direction_rc = residual_rc.f_mul(preconditioner_rc)?;
    let mut slope = dot(coupled, &residual_rc, &direction_rc)?;
    let mut decreases = [f64::INFINITY; LAST];
    for iteration in 0..MOST {
        let ahead_rc = product(&direction_rc)?;
        let curvature = dot(coupled, &direction_rc, &ahead_rc)?;
        let Some(step) = ratio(&slope, &curvature)? else {
            return Err(unstable(layer, "the curvature along a direction", &curvature)?);
        };
        let decrease = 0.5 * slope.f_mul(&step)?.f_sum(Kind::Double)?.f_double_value(&[])?;
        if decrease == 0.0 {
            return Ok((x_rc, iteration));
        }
        let step = step.f_to_kind(kind)?;
        let _ = x_rc.f_addcmul_(&direction_rc, &step)?;
        objective -= decrease;
        decreases[iteration as usize % LAST] = decrease;
        if decreases.iter().sum::<f64>() <= tolerance * objective.max(rounding) {
            return Ok((x_rc, iteration + 1));
        }
        let _ = residual_rc.f_sub_(&ahead_rc.f_mul(&step)?)?;
        let steepest_rc = residual_rc.f_mul(preconditioner_rc)?;
        let next_slope = dot(coupled, &residual_rc, &steepest_rc)?;
        let Some(turn) = ratio(&next_slope, &slope)? else {
            return Err(unstable(layer, "the slope of the predicted loss", &next_slope)?);
        };
        direction_rc = direction_rc.f_mul_(&turn.f_to_kind(kind)?)?.f_add_(&steepest_rc)?;
        slope = next_slope;
    }
    tracing::warn!(%layer, iterations = MOST, "the update has not settled");
    Ok((x_rc, MOST))
}

/// Returns 1 / (G_rr A_cc) where a weight stays, 0 where it goes.
fn preconditioner(p: &Prepared, removed_rc: &Tensor) -> Result<Tensor, PruningError> {
    let mut inverse_rc = p.w_rc.f_ones_like()?;
    if let Some(g) = p.g_rr() {
        let _ = inverse_rc.f_div_(&g.f_diagonal(0, 0, 1)?.f_unsqueeze(1)?)?;
    }
    if let Some(a) = p.a_cc() {
        let _ = inverse_rc.f_div_(&a.f_diagonal(0, 0, 1)?)?;
    }
    Ok(inverse_rc.f_masked_fill(removed_rc, 0.0)?)
}

/// Returns ⟨X, Y⟩ of each problem that is independent of the others, in f64: `[1, 1]`, of rows `[R, 1]`, of columns `[1, C]`.
fn dot(coupled: &[i64], x_rc: &Tensor, y_rc: &Tensor) -> Result<Tensor, PruningError> {
    Ok(x_rc.f_mul(y_rc)?.f_sum_dim_intlist(coupled, true, Kind::Double)?)
}

/// Returns the error about the least of `values`.
fn unstable(layer: &LayerId, what: &'static str, values: &Tensor) -> Result<PruningError, PruningError> {
    let value = values.f_min()?.f_double_value(&[])?;
    Ok(PruningError::Unstable { layer: layer.to_string(), what, value, removed: 0 })
}

/// Returns x / y, 0 where x is 0 (that problem is solved), or `None` when one of them is negative or not finite.
fn ratio(x: &Tensor, y: &Tensor) -> Result<Option<Tensor>, PruningError> {
    let ratio = x.f_div(y)?.f_masked_fill(&x.f_eq(0)?, 0.0)?;
    let (lowest, highest) = ratio.f_aminmax(None, false)?;
    let possible = lowest.f_double_value(&[])? >= 0.0 && highest.f_double_value(&[])?.is_finite();
    Ok(possible.then_some(ratio))
}
