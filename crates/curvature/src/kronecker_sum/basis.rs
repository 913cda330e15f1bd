//! The basis in which two symmetric matrices are both diagonal: the generalised eigenproblem.

use crate::inverse::is_finite;
use crate::{CurvatureError, Factorised};
use tch::Tensor;

/// Two matrices in their common basis: M₁ = V Vᵀ, M₂ = V diag(μ) Vᵀ.
///
/// So (M₁ + τ M₂)⁻¹ = U diag(1/(1 + τ μ)) Uᵀ with U = V⁻ᵀ.
#[derive(Debug)]
pub struct CommonBasis {
    /// V = L E, `[n, n]`.
    pub v: Tensor,
    /// U = V⁻ᵀ = L⁻ᵀ E, `[n, n]`.
    pub u: Tensor,
    /// μ, rising, `[n]`.
    pub mu: Tensor,
}

/// Returns the common basis of a positive definite matrix M₁ = L Lᵀ and a symmetric one: L⁻¹ M₂ L⁻ᵀ = E diag(μ) Eᵀ.
///
/// `name` is for the error.
///
/// # Shapes
/// `first`, `second`: `[n, n]` → `[n, n]`, `[n]`, in the kind of the first
///
/// # Errors
/// `Shape` when the sizes differ, `NotFinite`.
pub fn common_basis(name: &str, first: &Factorised, second: &Tensor) -> Result<CommonBasis, CurvatureError> {
    tch::no_grad(|| {
        let (expected, actual) = (first.l.size(), second.size());
        if expected != actual {
            return Err(CurvatureError::Shape { name: name.to_owned(), expected, actual });
        }
        if !is_finite(second)? {
            return Err(CurvatureError::NotFinite { name: name.to_owned() });
        }
        let l = &first.l;
        let half = l.f_linalg_solve_triangular(&second.f_to_kind(l.kind())?, false, true, false)?; // L⁻¹ M₂
        let both = l.f_linalg_solve_triangular(&half.f_tr()?, false, true, false)?;
        let (mu, e) = both.f_add(&both.f_tr()?)?.f_mul_scalar(0.5)?.f_linalg_eigh("L")?;
        let (v, u) = (l.f_matmul(&e)?, l.f_tr()?.f_linalg_solve_triangular(&e, true, true, false)?);
        Ok(CommonBasis { v, u, mu })
    })
}
