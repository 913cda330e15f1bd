//! One side (rows or columns) of an elimination, by blocked symmetric downdates.
//!
//! Holds the inverse factor I = A⁻¹ and the energy E = Wᵀ G W of the columns, or G⁻¹ and W A Wᵀ of the rows. Removing
//! index i, with x = I[:,i] / I_ii:
//!
//! ```text
//! I ← I − I[:,i] xᵀ        E ← E − t xᵀ − x tᵀ,   t = E[:,i] − ½ E_ii x
//! ```
//!
//! and a removal of y with pivot γ on the *other* side takes y yᵀ / γ from E. Within a block of removals only one row, the
//! two diagonals and the low-rank terms are computed, O(n k) a removal; `settle` applies the terms by matrix products and
//! drops what was removed, so that the work shrinks.

use crate::PruningError;
use crate::problem::{block, index};
use tch::{Kind, Tensor};

/// The state of one side.
#[derive(Debug)]
pub(super) struct Side {
    /// Original positions of the indices that are left.
    pub(super) positions: Vec<usize>,
    /// Trailing indices that are never removed (the bias column).
    fixed: i64,
    inverse_nn: Tensor,
    energy_nn: Tensor,
    /// Low-rank terms since the last `settle`, `[k, 2, n]`: −x and t for a removal here, y and −y/(2γ) for one on the
    /// other side. The energy has changed by Σ (first secondᵀ + second firstᵀ) and W by Σ first_rows first_columnsᵀ.
    terms_k2n: Tensor,
    /// I[:,i] of the removals here, zero for those on the other side: the inverse has changed by Σ first rawᵀ.
    raw_kn: Tensor,
    filled: i64,
    inverse_diagonal_n: Tensor,
    half_energy_n: Tensor,
    /// True where an index is removed or fixed.
    barred_n: Tensor,
}

/// The pivot of a removal, still on the device.
pub(super) struct Pivot {
    /// −I_ii, `[1]`.
    pub(super) negative: Tensor,
}

impl Side {
    pub(super) fn new(inverse_nn: Tensor, energy_nn: Tensor, fixed: i64, block: usize) -> Result<Self, PruningError> {
        let n = inverse_nn.size()[0];
        let options = (inverse_nn.kind(), inverse_nn.device());
        let k = block as i64;
        let barred_n = Tensor::f_zeros([n], (Kind::Bool, options.1))?;
        let _ = barred_n.f_narrow(0, n - fixed, fixed)?.f_fill_(1)?;
        Ok(Self {
            positions: (0..n as usize).collect(),
            fixed,
            inverse_diagonal_n: inverse_nn.f_diagonal(0, 0, 1)?.f_contiguous()?.f_detach_copy()?,
            half_energy_n: energy_nn.f_diagonal(0, 0, 1)?.f_mul_scalar(0.5)?,
            terms_k2n: Tensor::f_zeros([k, 2, n], options)?,
            raw_kn: Tensor::f_zeros([k, n], options)?,
            inverse_nn,
            energy_nn,
            filled: 0,
            barred_n,
        })
    }

    /// Returns cost ½ E_ii / I_ii and index of the cheapest removal, each `[1]`; the lowest index on a tie.
    pub(super) fn cheapest(&self) -> Result<(Tensor, Tensor), PruningError> {
        let mut costs_n = self.half_energy_n.f_div(&self.inverse_diagonal_n)?;
        let _ = costs_n.f_masked_fill_(&self.barred_n, f64::INFINITY)?;
        Ok(costs_n.f_min_dim(0, true)?)
    }

    /// Returns −x_i and t_i of the terms so far, `[t, 2, 1]`; `None` at the start of a block.
    fn coefficients(&self, i: &Tensor) -> Result<Option<Tensor>, PruningError> {
        if self.filled == 0 {
            return Ok(None);
        }
        Ok(Some(self.terms_k2n.f_narrow(0, 0, self.filled)?.f_index_select(2, i)?))
    }

    /// Removes index `i` (`[1]`) from this side.
    pub(super) fn remove(&mut self, i: &Tensor) -> Result<Pivot, PruningError> {
        let mut raw = self.inverse_nn.f_index_select(0, i)?.f_view([-1])?;
        let mut energy = self.energy_nn.f_index_select(0, i)?.f_view([-1])?;
        if let Some(coefficients) = self.coefficients(i)? {
            let (t, n) = (self.filled, raw.size()[0]);
            let first = coefficients.f_select(1, 0)?.f_view([t])?;
            let _ = raw.f_addmv_(&self.raw_kn.f_narrow(0, 0, t)?.f_tr()?, &first)?;
            // first_i second + second_i first, as one product.
            let swapped = coefficients.f_flip([1])?.f_view([2 * t])?;
            let terms = self.terms_k2n.f_narrow(0, 0, t)?.f_view([2 * t, n])?;
            let _ = energy.f_addmv_(&terms.f_tr()?, &swapped)?;
        }
        let negative = raw.f_index_select(0, i)?.f_neg()?;
        let half = energy.f_index_select(0, i)?.f_mul_scalar(0.5)?;
        let (first, second) = self.slot()?;
        let _ = raw.f_div_out(&first, &negative)?;
        let _ = energy.f_addcmul_out(&second, &first, &half)?;
        self.raw_kn.f_select(0, self.filled)?.f_copy_(&raw)?;
        let _ = self.inverse_diagonal_n.f_addcmul_(&raw, &first)?;
        let _ = self.half_energy_n.f_addcmul_(&second, &first)?;
        let _ = self.barred_n.f_index_fill_(0, i, 1)?;
        self.filled += 1;
        Ok(Pivot { negative })
    }

    /// Takes in a removal on the other side: the row `y` (`[n]`) of W that went, and its pivot.
    pub(super) fn absorb(&mut self, y: &Tensor, pivot: &Pivot) -> Result<(), PruningError> {
        let (mut first, second) = self.slot()?;
        first.f_copy_(y)?;
        let _ = y.f_div_out(&second, &pivot.negative.f_mul_scalar(2.0)?)?;
        let _ = self.raw_kn.f_select(0, self.filled)?.f_zero_()?;
        let _ = self.half_energy_n.f_addcmul_(&second, &first)?;
        self.filled += 1;
        Ok(())
    }

    /// Returns where the next first and second term go, `[n]` each.
    fn slot(&self) -> Result<(Tensor, Tensor), PruningError> {
        let slot = self.terms_k2n.f_select(0, self.filled)?;
        Ok((slot.f_select(0, 0)?, slot.f_select(0, 1)?))
    }

    /// Returns the current row `i` of W (`[other]`), where `w` has this side as its first dimension and is as of the last
    /// `settle`.
    pub(super) fn weights(&self, w: &Tensor, i: &Tensor, other: &Self) -> Result<Tensor, PruningError> {
        let mut y = w.f_index_select(0, i)?.f_reshape([-1])?;
        if let Some(coefficients) = self.coefficients(i)? {
            let first = coefficients.f_select(1, 0)?.f_view([self.filled])?;
            let _ = y.f_addmv_(&other.first_terms()?.f_tr()?, &first)?;
        }
        Ok(y)
    }

    /// Returns the first terms of the block, `[t, n]`.
    fn first_terms(&self) -> Result<Tensor, PruningError> {
        Ok(self.terms_k2n.f_narrow(0, 0, self.filled)?.f_select(1, 0)?)
    }

    /// Returns the indices that are left when `removed` have gone, as a tensor.
    pub(super) fn left(&self, removed: &[i64]) -> Tensor {
        let mut gone = vec![false; self.positions.len()];
        for &i in removed {
            gone[i as usize] = true;
        }
        let left: Vec<i64> = (0..gone.len() as i64).filter(|&i| !gone[i as usize]).collect();
        index(&left, self.inverse_nn.device())
    }

    /// Returns W on what is left of both sides, brought up to date.
    pub(super) fn settled_weights(
        &self,
        w: &Tensor,
        left: &Tensor,
        other: &Self,
        other_left: &Tensor,
    ) -> Result<Tensor, PruningError> {
        let first = self.first_terms()?.f_index_select(1, left)?;
        let other_first = other.first_terms()?.f_index_select(1, other_left)?;
        let mut settled = block(w, left, other_left)?;
        let _ = settled.f_addmm_(&first.f_tr()?, &other_first)?;
        Ok(settled)
    }

    /// Applies the terms of the block and keeps only the indices in `left`.
    pub(super) fn settle(&mut self, left: &Tensor) -> Result<(), PruningError> {
        let (t, n) = (self.filled, left.size()[0]);
        let terms = self.terms_k2n.f_narrow(0, 0, t)?.f_index_select(2, left)?;
        let first = terms.f_select(1, 0)?;
        let raw = self.raw_kn.f_narrow(0, 0, t)?.f_index_select(1, left)?;
        let mut inverse_nn = block(&self.inverse_nn, left, left)?;
        let _ = inverse_nn.f_addmm_(&first.f_tr()?, &raw)?;
        let mut energy_nn = block(&self.energy_nn, left, left)?;
        let swapped = terms.f_flip([1])?.f_view([2 * t, n])?;
        let _ = energy_nn.f_addmm_(&terms.f_view([2 * t, n])?.f_tr()?, &swapped)?;
        let kept = Vec::<i64>::try_from(left.f_to_device(tch::Device::Cpu)?)?;
        let positions = kept.iter().map(|&i| self.positions[i as usize]).collect();
        let capacity = self.raw_kn.size()[0] as usize;
        *self = Self { positions, ..Self::new(inverse_nn, energy_nn, self.fixed, capacity)? };
        Ok(())
    }
}
