//! Diagonal blocks of an inverse factor, without the rest of the inverse.
//!
//! A⁻¹ = L⁻ᵀ L⁻¹, so the block of the columns Q is Xᵀ X with X = L⁻¹[:,Q], which is zero above Q. Panels of L⁻¹ come from
//! triangular solves with what lies below them: n³/6 multiplications (the inverse takes twice that) and n numbers a
//! column of the panel. A diagonal of such squares is positive whatever the rounding.

use crate::PruningError;
use curvature::Factorised;
use tch::Tensor;

/// Columns of L⁻¹ that one solve gives.
const PANEL: i64 = 256;

/// Returns the first `count` diagonal blocks of width `q` of M⁻¹ from the lower Cholesky factor of M.
///
/// # Shapes
/// `l`: `[n, n]`, n ≥ count · q → `[count, q, q]`
pub(crate) fn inverse_blocks(l: &Tensor, count: i64, q: i64) -> Result<Tensor, PruningError> {
    let n = l.size()[0];
    let per_panel = (PANEL / q).max(1);
    let mut panels = vec![Tensor::f_zeros([0, q, q], (l.kind(), l.device()))?];
    for first in (0..count).step_by(per_panel as usize) {
        let (blocks, start) = (per_panel.min(count - first), first * q);
        let (below, width) = (n - start, blocks * q);
        let identity = Tensor::f_eye_m(below, width, (l.kind(), l.device()))?;
        let lower = l.f_narrow(0, start, below)?.f_narrow(1, start, below)?;
        let x = lower.f_linalg_solve_triangular(&identity, false, true, false)?;
        panels.push(if q == 1 {
            x.f_square()?.f_sum_dim_intlist([0_i64].as_slice(), false, l.kind())?.f_view([blocks, 1, 1])?
        } else {
            let x_ubq = x.f_reshape([below, blocks, q])?.f_transpose(0, 1)?;
            x_ubq.f_transpose(1, 2)?.f_matmul(&x_ubq)?
        });
    }
    Ok(Tensor::f_cat(&panels, 0)?)
}

/// Returns the diagonal of the inverse, `[n]`.
pub(crate) fn inverse_diagonal(factor: &Factorised) -> Result<Tensor, PruningError> {
    Ok(inverse_blocks(&factor.l, factor.l.size()[0], 1)?.f_view([-1])?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::{devices, max_difference, random_spd};

    #[test]
    fn blocks_are_those_of_the_inverse() {
        for device in devices() {
            for (n, count, q) in
                [(6, 6, 1), (6, 3, 2), (5, 2, 2), (6, 2, 3), (600, 600, 1), (601, 150, 4), (600, 2, 300)]
            {
                let m = random_spd(n, 3).to_device(device);
                let l = curvature::try_cholesky(&m).unwrap().unwrap();
                let inverse = Tensor::linalg_inv(&m);
                let found = inverse_blocks(&l, count, q).unwrap();
                assert_eq!(found.size(), [count, q, q]);
                for i in 0..count {
                    let block = inverse.narrow(0, i * q, q).narrow(1, i * q, q);
                    assert!(max_difference(&found.get(i), &block) < 1e-9, "{n} {count} {q}: block {i}");
                }
            }
        }
    }
}
