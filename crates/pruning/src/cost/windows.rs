//! Costs of n:m windows: for each row and each m consecutive columns the cheapest removal that leaves at most n of them.
//!
//! The weights of a window go together, so their correlation counts: with S what goes and i the row,
//!
//! ```text
//! with an update   ½ w_S (Ai_SS)⁻¹ w_Sᵀ / Gi_ii          without   ½ w_S A_SS w_Sᵀ G_ii
//! ```
//!
//! Windows of other places or rows do not count. Windows start at the first column; the columns after the last whole one
//! (fewer than m, not counting the bias) are the tail and stay as they are. Up to 4096 choices of S all are tried
//! (`windows/exhaustive.rs`); beyond, weights go one by one, always the one that adds least (`windows/greedy.rs`).

mod exhaustive;
mod greedy;

use super::elements::{finished, single_cost_scale};
use super::inverse_blocks::inverse_blocks;
use crate::problem::{Prepared, diagonal_blocks, in_either_precision};
use crate::{LayerProblem, PruningError};
use tch::{Kind, Tensor};
use types::{FactorDamping, LayerId, Pattern, Update};

/// Choices of a window up to which all are tried.
const CHOICES: usize = 4096;

/// Numbers that one step may hold at a time: 64 MiB in f32.
const CHUNK: i64 = 1 << 24;

/// Costs of a layer's windows, and what the cheapest removal in each is.
#[derive(Debug)]
pub struct WindowCosts {
    /// The layer.
    pub layer: LayerId,
    /// Cost of each window, nats per token, `[R, K]`, K = ⌊(C − bias) / m⌋, f32 (f64 when the weights are); 0 where at most n
    /// weights are left, and nowhere else.
    pub costs_rk: Tensor,
    /// What goes, `[R, K, m]`, bool: with what is zero already, at least m − n weights of every window.
    pub removed_rkm: Tensor,
    /// Columns after the last window, without the bias.
    pub tail: i64,
    /// The damping that the factors took.
    pub damping: FactorDamping,
}

impl WindowCosts {
    /// Returns which weights go when the windows in `selected_rk` (`[R, K]`, bool) are cut, `[R, C − bias]`, bool; the tail
    /// never goes.
    pub fn removed(&self, selected_rk: &Tensor) -> Result<Tensor, PruningError> {
        tch::no_grad(|| {
            let (r, k) = self.costs_rk.size2()?;
            if selected_rk.size() != [r, k] {
                let (layer, actual) = (self.layer.to_string(), selected_rk.size());
                return Err(PruningError::Shape { layer, what: "selected windows", expected: vec![r, k], actual });
            }
            let removed = self.removed_rkm.f_logical_and(&selected_rk.f_unsqueeze(2)?)?.f_view([r, -1])?;
            let tail = Tensor::f_zeros([r, self.tail], (Kind::Bool, removed.device()))?;
            Ok(Tensor::f_cat(&[removed, tail], 1)?)
        })
    }
}

/// Returns the cheapest valid removal of each window and its cost.
///
/// Weights that are zero already are among those that go. A window with m − n of them or more needs nothing, costs 0 and
/// removes just them; every other costs at least the smallest normal f32. Among equals the removal of the earlier columns
/// wins.
///
/// # Errors
/// As [`crate::element_costs`]; `Unstable` as well when a block of the inverse is not positive definite in f64.
pub fn window_costs(problem: &LayerProblem, pattern: Pattern, update: Update) -> Result<WindowCosts, PruningError> {
    tch::no_grad(|| {
        in_either_precision(problem, |p| {
            let (r, c) = p.shape();
            let m = i64::from(pattern.m);
            let k = (c - p.bias_columns) / m;
            let w_krm = p.w_rc.f_narrow(1, 0, k * m)?.f_reshape([r, k, m])?.f_transpose(0, 1)?.f_contiguous()?;
            let cheapest = Windows::new(p, pattern, update, k)?.cheapest(p, &w_krm)?;
            let zero_krm = w_krm.f_eq(0)?;
            let valid_kr = zero_krm
                .f_sum_dim_intlist([2_i64].as_slice(), false, Kind::Int64)?
                .f_ge(i64::from(pattern.m - pattern.n))?;
            let removed_krm = zero_krm.f_where_self(&valid_kr.f_unsqueeze(2)?, &cheapest.removed_krm)?;
            let mut costs_rk = cheapest.costs_kr.f_tr()?.f_mul_scalar(0.5)?;
            if let Some(scale_r) = single_cost_scale(p.g.as_ref(), update)? {
                let _ = costs_rk.f_mul_(&scale_r.f_unsqueeze(1)?)?;
            }
            Ok(WindowCosts {
                layer: p.layer.clone(),
                costs_rk: finished(p, problem, &costs_rk, &valid_kr.f_tr()?)?,
                removed_rkm: removed_krm.f_transpose(0, 1)?.f_contiguous()?,
                tail: c - p.bias_columns - k * m,
                damping: p.damping,
            })
        })
    })
}

/// What the windows of a layer have in common over its rows.
#[derive(Debug)]
struct Windows {
    /// Each window's block of Ai with an update, of A without, `[K, m, m]`.
    block_kmm: Tensor,
    update: Update,
    /// How many weights of a window go.
    removals: usize,
}

/// The cheapest removals, windows first: wᵀ (…) w without ½ and without G's part, and what goes.
#[derive(Debug)]
struct Cheapest {
    costs_kr: Tensor,
    removed_krm: Tensor,
}

impl Windows {
    fn new(p: &Prepared, pattern: Pattern, update: Update, k: i64) -> Result<Self, PruningError> {
        let m = i64::from(pattern.m);
        let block_kmm = match (&p.a, update) {
            (None, _) => Tensor::f_eye(m, (p.w_rc.kind(), p.w_rc.device()))?.f_expand([k, m, m], false)?,
            (Some(a), Update::None) => diagonal_blocks(&a.damped, k, m)?,
            (Some(a), _) => inverse_blocks(&a.l, k, m)?,
        };
        Ok(Self { block_kmm, update, removals: (pattern.m - pattern.n) as usize })
    }

    /// Returns the cheapest removals, window by window and row by row in chunks of bounded size.
    fn cheapest(&self, p: &Prepared, w_krm: &Tensor) -> Result<Cheapest, PruningError> {
        let (k, r, m) = w_krm.size3()?;
        let choices = subsets(m as usize, self.removals, CHOICES);
        // Numbers that a window needs by itself, and for each of its rows.
        let (window, row) = match &choices {
            Some(choices) => {
                let kept = choices.len() as i64 * self.removals as i64;
                (kept * m, kept + m)
            }
            None => (m * m, m * m),
        };
        let windows = (CHUNK / window).clamp(1, k.max(1));
        let rows = (CHUNK / (row * windows)).clamp(1, r.max(1));
        let costs_kr = Tensor::f_zeros([k, r], (w_krm.kind(), w_krm.device()))?;
        let removed_krm = Tensor::f_zeros([k, r, m], (Kind::Bool, w_krm.device()))?;
        for first in (0..k).step_by(windows as usize) {
            let windows = windows.min(k - first);
            let block = self.block_kmm.f_narrow(0, first, windows)?;
            let tried = choices
                .as_ref()
                .map(|choices| exhaustive::Choices::new(p, &block, choices, self.update))
                .transpose()?;
            for row in (0..r).step_by(rows as usize) {
                let part = |t: &Tensor| t.f_narrow(0, first, windows)?.f_narrow(1, row, rows.min(r - row));
                let w = part(w_krm)?;
                let found = match &tried {
                    Some(tried) => tried.cheapest(&w)?,
                    None => greedy::cheapest(p, &block, &w, self.removals, self.update)?,
                };
                part(&costs_kr)?.f_copy_(&found.costs_kr)?;
                part(&removed_krm)?.f_copy_(&found.removed_krm)?;
            }
        }
        Ok(Cheapest { costs_kr, removed_krm })
    }
}

/// Returns all sets of `size` positions out of `m`, the lowest positions first, or `None` when they are more than `limit`.
fn subsets(m: usize, size: usize, limit: usize) -> Option<Vec<Vec<i64>>> {
    let mut all: Vec<Vec<i64>> = vec![Vec::new()];
    for taken in 0..size {
        // The rest of a set must still fit behind its last position.
        let last = m - (size - taken);
        let longer = all.iter().flat_map(|set| {
            let start = set.last().map_or(0, |last| *last as usize + 1);
            (start..=last).map(move |next| [set.as_slice(), &[next as i64]].concat())
        });
        all = longer.take(limit + 1).collect();
        if all.len() > limit {
            return None;
        }
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::subsets;

    #[test]
    fn subsets_come_in_the_order_of_their_positions_up_to_a_limit() {
        assert_eq!(subsets(3, 2, 3), Some(vec![vec![0, 1], vec![0, 2], vec![1, 2]]));
        assert_eq!(subsets(3, 2, 2), None);
        assert_eq!(subsets(8, 4, 4096).map(|s| s.len()), Some(70));
        assert_eq!(subsets(16, 12, 4096).map(|s| s.len()), Some(1820));
        assert_eq!(subsets(16, 8, 4096), None);
        assert_eq!(subsets(64, 63, 4096).map(|s| s.len()), Some(64));
    }
}
