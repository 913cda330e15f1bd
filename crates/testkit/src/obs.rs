//! The dense Optimal Brain Surgeon on vec(W): the oracle of every cost and update.

use tch::{Device, Kind, Tensor};

/// What the dense solution says about one removal.
#[derive(Debug)]
pub struct DenseRemoval {
    /// ½ δᵀ F δ.
    pub cost: f64,
    /// The weights afterwards, `[R, C]`, zero where removed.
    pub w_rc: Tensor,
}

/// Returns the positions in row-major vec(W) of everything in `rows` and everything in `columns`, rising, each once.
pub fn element_indices(shape: (i64, i64), rows: &[i64], columns: &[i64]) -> Vec<i64> {
    let (r, c) = shape;
    (0..r * c).filter(|i| rows.contains(&(i / c)) || columns.contains(&(i % c))).collect()
}

/// Returns the removal of `removed` (positions in vec(W)) with the best update of the rest under F:
/// cost ½ w_Sᵀ ((F⁻¹)_SS)⁻¹ w_S, δ = −F⁻¹[:,S] ((F⁻¹)_SS)⁻¹ w_S.
pub fn dense_obs(w_rc: &Tensor, fisher: &Tensor, removed: &[i64]) -> DenseRemoval {
    if removed.is_empty() {
        return DenseRemoval { cost: 0.0, w_rc: w_rc.copy() };
    }
    let s = Tensor::from_slice(removed);
    let w = w_rc.reshape([-1, 1]);
    let inverse = Tensor::linalg_inv(fisher);
    let inverse_s = inverse.index_select(1, &s);
    let z = Tensor::linalg_solve(&inverse_s.index_select(0, &s), &w.index_select(0, &s), true);
    let delta = inverse_s.matmul(&z) * -1.0;
    let cost = 0.5 * w.index_select(0, &s).tr().matmul(&z).sum(Kind::Double).double_value(&[]);
    let updated = (w + delta).index_fill(0, &s, 0.0).reshape(w_rc.size());
    DenseRemoval { cost, w_rc: updated }
}

/// Returns the removal of `removed` where the rest stays as it is: cost ½ w_Sᵀ F_SS w_S.
pub fn dense_zeroing(w_rc: &Tensor, fisher: &Tensor, removed: &[i64]) -> DenseRemoval {
    let s = Tensor::from_slice(removed).to_kind(Kind::Int64).to_device(Device::Cpu);
    let w = w_rc.reshape([-1, 1]);
    let w_s = w.index_select(0, &s);
    let fisher_ss = fisher.index_select(0, &s).index_select(1, &s);
    let cost = 0.5 * w_s.tr().matmul(&fisher_ss.matmul(&w_s)).sum(Kind::Double).double_value(&[]);
    DenseRemoval { cost, w_rc: w.index_fill(0, &s, 0.0).reshape(w_rc.size()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{max_difference, random, random_spd};

    #[test]
    fn the_oracle_is_stationary_on_the_weights_that_stay() {
        let (w, fisher) = (random(&[2, 3], 1), random_spd(6, 2));
        let removed = element_indices((2, 3), &[1], &[0]);
        assert_eq!(removed, [0, 3, 4, 5]);
        let found = dense_obs(&w, &fisher, &removed);
        let delta = (&found.w_rc - &w).reshape([-1, 1]);
        let gradient = fisher.matmul(&delta);
        assert!(max_difference(&gradient.narrow(0, 1, 2), &Tensor::zeros([2, 1], (Kind::Double, Device::Cpu))) < 1e-10);
        let direct = 0.5 * delta.tr().matmul(&gradient).double_value(&[0, 0]);
        assert!((found.cost - direct).abs() < 1e-10);
        assert!(found.cost < dense_zeroing(&w, &fisher, &removed).cost);
    }
}
