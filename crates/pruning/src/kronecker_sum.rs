//! A layer whose curvature is a sum of two Kronecker products, and the basis in which that sum is diagonal.
//!
//! The first term is damped and factorised as ever, A₁ = L Lᵀ. With L⁻¹ A₂ L⁻ᵀ = E diag(μ) Eᵀ, V_A = L E and U_A = L⁻ᵀ E,
//! and the same for G with λ in the place of μ:
//!
//! ```text
//! F = (V_G ⊗ V_A) diag(d) (V_G ⊗ V_A)ᵀ        F⁻¹ = (U_G ⊗ U_A) diag(1/d) (U_G ⊗ U_A)ᵀ        d_ij = 1 + λ_i μ_j
//! ```
//!
//! d is F's curvature in units of the first term's. The second term is indefinite, so d may come out small or negative
//! where the Fisher itself cannot. Rule: d_ij counts as at least the floor. Costs, updates and what they predict are all
//! under this floored F, which costs as many products as the sum itself (four a product F δ). Scaling the whole second term
//! down until d is positive would let the worst direction undo it everywhere.
//!
//! Which curvature is used, and how terms are found, is not decided here.

use crate::problem::{Prepared, in_either_precision};
use crate::{LayerProblem, PruningError};
use curvature::{CommonBasis, CurvatureError, Factorised, KroneckerTerm, common_basis};
use tch::{Kind, Tensor};

/// A layer's weights and its curvature F = G₁ ⊗ A₁ + G₂ ⊗ A₂.
#[derive(Debug)]
pub struct KroneckerSumProblem {
    /// The weights, and the first term with its damping; it has both factors.
    pub first: LayerProblem,
    /// The second term; not damped.
    pub second: KroneckerTerm,
    /// The least curvature in any direction, as a fraction of the first term's: above 0, at most 1.
    pub floor: f64,
}

impl KroneckerSumProblem {
    /// The usual floor.
    pub const FLOOR: f64 = 0.1;
}

/// What it took to make a Kronecker sum positive definite.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clamping {
    /// Directions in all, R · C.
    pub directions: u64,
    /// Those whose curvature counts as the floor.
    pub clamped: u64,
    /// The smallest curvature as it came, as a fraction of the first term's in that direction.
    pub smallest: f64,
}

/// A result under a floored Kronecker sum.
#[derive(Debug)]
pub struct Clamped<T> {
    /// The result.
    pub value: T,
    /// How F was changed for it.
    pub clamping: Clamping,
}

/// A prepared layer with the basis that makes its Kronecker sum diagonal.
#[derive(Debug)]
pub(crate) struct Diagonalised<'a> {
    /// The weights, and the first term.
    pub(crate) p: &'a Prepared,
    pub(crate) g: CommonBasis,
    pub(crate) a: CommonBasis,
    /// d, floored, `[R, C]`.
    pub(crate) d_rc: Tensor,
    pub(crate) clamping: Clamping,
}

impl<'a> Diagonalised<'a> {
    fn new(p: &'a Prepared, problem: &KroneckerSumProblem) -> Result<Self, PruningError> {
        let floor = problem.floor;
        if !(floor > 0.0 && floor <= 1.0) {
            return Err(problem.first.units_error(format!("the floor must be above 0 and at most 1, not {floor}")));
        }
        let basis = |symbol: &str, first: &Option<Factorised>, second: &Tensor| {
            let name = format!("second {symbol} of {}", p.layer);
            let first =
                first.as_ref().ok_or_else(|| CurvatureError::Unknown { name: format!("{symbol} of {}", p.layer) })?;
            common_basis(&name, first, second)
        };
        let g = basis("G", &p.g, &problem.second.g_rr)?;
        let a = basis("A", &p.a, &problem.second.a_cc)?;
        let d_rc = g.mu.f_outer(&a.mu)?.f_add_scalar_(1.0)?;
        let clamping = Clamping {
            directions: d_rc.numel() as u64,
            clamped: d_rc.f_lt(floor)?.f_sum(Kind::Int64)?.f_int64_value(&[])? as u64,
            smallest: d_rc.f_min()?.f_double_value(&[])?,
        };
        Ok(Self { p, g, a, d_rc: d_rc.f_clamp_min(floor)?, clamping })
    }

    /// Returns V_Gᵀ X, `[R, C]`: rows in the basis of G.
    pub(crate) fn rotated_rows(&self, x_rc: &Tensor) -> Result<Tensor, PruningError> {
        Ok(self.g.v.f_tr()?.f_matmul(x_rc)?)
    }

    /// Returns F X as a matrix for X whose rows are in the basis of G: (d ∘ (X V_A)) V_Aᵀ.
    pub(crate) fn product_of_rotated(&self, x_rc: &Tensor) -> Result<Tensor, PruningError> {
        Ok(x_rc.f_matmul(&self.a.v)?.f_mul_(&self.d_rc)?.f_matmul(&self.a.v.f_tr()?)?)
    }

    /// Returns F D as a matrix, `[R, C]`.
    pub(crate) fn fisher_product(&self, d_rc: &Tensor) -> Result<Tensor, PruningError> {
        Ok(self.g.v.f_matmul(&self.product_of_rotated(&self.rotated_rows(d_rc)?)?)?)
    }

    /// Returns the diagonal of F, `[R, C]`: (V_G∘V_G) d (V_A∘V_A)ᵀ.
    pub(crate) fn diagonal(&self) -> Result<Tensor, PruningError> {
        Ok(self.g.v.f_square()?.f_matmul(&self.diagonal_of_rotated()?)?)
    }

    /// Returns the diagonal of F for rows in the basis of G, `[R, C]`: d (V_A∘V_A)ᵀ.
    pub(crate) fn diagonal_of_rotated(&self) -> Result<Tensor, PruningError> {
        Ok(self.d_rc.f_matmul(&self.a.v.f_square()?.f_tr()?)?)
    }

    /// Returns ½ δᵀ F δ for δ whose rows are in the basis of G, summed in f64; never negative.
    pub(crate) fn half_product_of_rotated(&self, x_rc: &Tensor) -> Result<f64, PruningError> {
        let squares = x_rc.f_matmul(&self.a.v)?.f_square_()?.f_mul_(&self.d_rc)?;
        Ok(0.5 * squares.f_sum(Kind::Double)?.f_double_value(&[])?)
    }
}

/// Runs a kernel in the kind of the input, and once more in f64 when the first result is impossible.
pub(crate) fn diagonalised<T>(
    problem: &KroneckerSumProblem,
    kernel: impl Fn(&Diagonalised) -> Result<T, PruningError>,
) -> Result<Clamped<T>, PruningError> {
    in_either_precision(&problem.first, |p| {
        let sum = Diagonalised::new(p, problem)?;
        Ok(Clamped { value: kernel(&sum)?, clamping: sum.clamping })
    })
}
