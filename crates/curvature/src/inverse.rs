//! Cholesky factorisation, and solves and inverses from it. Leaves: no damping, no retry.

use crate::CurvatureError;
use tch::Tensor;

/// Returns whether every value is finite.
pub fn is_finite(x: &Tensor) -> Result<bool, CurvatureError> {
    Ok(x.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0)
}

/// Returns the lower Cholesky factor L of M = L Lᵀ, or `None` when M is not positive definite.
///
/// # Shapes
/// `m`: `[.., n, n]`; of a batch all must be positive definite.
pub fn try_cholesky(m: &Tensor) -> Result<Option<Tensor>, CurvatureError> {
    let (l, info) = m.f_linalg_cholesky_ex(false, false)?;
    let positive_definite = info.f_eq(0)?.f_all()?.f_int64_value(&[])? != 0;
    Ok(positive_definite.then_some(l))
}

/// Returns M⁻¹ from the lower Cholesky factor of M.
pub fn inverse(l: &Tensor) -> Result<Tensor, CurvatureError> {
    Ok(l.f_cholesky_inverse(false)?)
}

/// Returns M⁻¹ B from the lower Cholesky factor of M.
///
/// # Shapes
/// `l`: `[.., n, n]`, `b`: `[.., n, k]` → `[.., n, k]`
pub fn solve(l: &Tensor, b: &Tensor) -> Result<Tensor, CurvatureError> {
    Ok(b.f_cholesky_solve(l, false)?)
}

/// Returns B L⁻¹ for a lower triangular L.
///
/// # Shapes
/// `l`: `[n, n]`, `b`: `[k, n]` → `[k, n]`
pub fn solve_right(l: &Tensor, b: &Tensor) -> Result<Tensor, CurvatureError> {
    Ok(l.f_linalg_solve_triangular(b, false, false, false)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Kind, Tensor};
    use testkit::{devices, max_difference, random, random_spd};

    #[test]
    fn solves_agree_with_the_dense_inverse() {
        for device in devices() {
            let m = random_spd(6, 3).to_device(device);
            let l = try_cholesky(&m).unwrap().unwrap();
            let dense = Tensor::linalg_inv(&m);
            let b = random(&[6, 2], 4).to_device(device);
            assert!(max_difference(&inverse(&l).unwrap(), &dense) < 1e-9);
            assert!(max_difference(&solve(&l, &b).unwrap(), &dense.matmul(&b)) < 1e-9);
            let right = solve_right(&l, &b.tr()).unwrap();
            assert!(max_difference(&right.matmul(&l), &b.tr()) < 1e-9);
        }
    }

    #[test]
    fn an_indefinite_matrix_has_no_factor() {
        let m = Tensor::from_slice(&[1.0, 2.0, 2.0, 1.0]).view([2, 2]);
        assert!(try_cholesky(&m).unwrap().is_none());
        let batch = Tensor::stack(&[Tensor::eye(2, (Kind::Double, tch::Device::Cpu)), m], 0);
        assert!(try_cholesky(&batch).unwrap().is_none(), "one bad matrix spoils the batch");
        assert!(!is_finite(&Tensor::from_slice(&[1.0, f64::NAN])).unwrap());
    }
}
