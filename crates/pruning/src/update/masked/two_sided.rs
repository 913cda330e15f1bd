//! SparseGPT's sweep on both sides: weights go in row-major order, each with the best update of those that come after it.
//!
//! With Gi = Ugᵀ Ug and Ai = Uaᵀ Ua (upper triangular), Gi ⊗ Ai has the root Ug ⊗ Ua. For a removed c in row r,
//! q = w_rc / Ua_cc and w_r[c:] −= q Ua[c,c:]; what that changes in row r is then passed on,
//! W_k += (Ug_rk / Ug_rr) δ_r for k > r. A change of (r, c) reaches rows from r and columns from c on, so any order that
//! goes down and right gives the same: here by tiles, the tiles of a panel of columns from top to bottom. Within a tile the
//! sweep is on the host, in f64; between tiles it is products.
//!
//! One pass, about the work of one product for each side; but a weight that was passed is not updated again.

use crate::PruningError;
use crate::problem::{Prepared, host};
use curvature::{Factorised, try_cholesky};
use tch::{Device, Kind, Tensor};

/// Rows and columns of a tile.
const TILE: i64 = 64;

/// Returns the weights, up to rounding zero where removed.
pub(super) fn update(p: &Prepared, removed_rc: &Tensor) -> Result<Tensor, PruningError> {
    let (r, c) = p.shape();
    let ua_cc = p.a.as_ref().map(|a| upper_root(p, a)).transpose()?;
    let ug_rr = p.g.as_ref().map(|g| upper_root(p, g)).transpose()?;
    // With a unit diagonal it passes on changes as they are.
    let ug_rr = ug_rr.map(|ug| ug.f_div(&ug.f_diagonal(0, 0, 1)?.f_unsqueeze(1)?)).transpose()?;
    let w_rc = p.w_rc.f_detach_copy()?;
    for first in (0..c).step_by(TILE as usize) {
        let columns = TILE.min(c - first);
        let removed_rb = removed_rc.f_narrow(1, first, columns)?;
        let ua_bb = ua_cc.as_ref().map(|ua| ua.f_narrow(0, first, columns)?.f_narrow(1, first, columns)).transpose()?;
        let panel = Panel { removed_rb, ug_rr: ug_rr.as_ref(), ua_bb: matrix(ua_bb.as_ref(), columns)? };
        let q_rb = panel.sweep(&w_rc.f_narrow(1, first, columns)?, r)?;
        let passed_rb = match &ug_rr {
            Some(ug) => ug.f_tr()?.f_matmul(&q_rb)?,
            None => q_rb,
        };
        let _ = match &ua_cc {
            Some(ua) => {
                let ua_bl = ua.f_narrow(0, first, columns)?.f_narrow(1, first, c - first)?;
                w_rc.f_narrow(1, first, c - first)?.f_sub_(&passed_rb.f_matmul(&ua_bl)?)?
            }
            None => w_rc.f_narrow(1, first, columns)?.f_sub_(&passed_rb)?,
        };
    }
    Ok(w_rc)
}

/// Returns U, upper triangular, with M⁻¹ = Uᵀ U, without forming M⁻¹: M = V Vᵀ from the last row up, U = V⁻¹.
fn upper_root(p: &Prepared, factor: &Factorised) -> Result<Tensor, PruningError> {
    let n = factor.damped.size()[0];
    let Some(l) = try_cholesky(&factor.damped.f_flip([0, 1])?)? else {
        return Err(p.unstable("a factor's smallest pivot from its end", 0.0, 0));
    };
    let identity = Tensor::f_eye(n, (l.kind(), l.device()))?;
    Ok(l.f_linalg_solve_triangular(&identity, false, true, false)?.f_flip([0, 1])?)
}

/// A panel of columns.
struct Panel<'a> {
    removed_rb: Tensor,
    /// Ug with a unit diagonal.
    ug_rr: Option<&'a Tensor>,
    /// Ua of these columns.
    ua_bb: Matrix,
}

impl Panel<'_> {
    /// Returns q, `[R, B]`, zero where a weight stays, for a panel of weights on which all columns before it have worked.
    fn sweep(&self, w_rb: &Tensor, r: i64) -> Result<Tensor, PruningError> {
        let columns = w_rb.size()[1];
        let q_rb = w_rb.f_zeros_like()?;
        // What each row's removals changed in it, to be passed on to later rows.
        let change_rb = w_rb.f_zeros_like()?;
        for first in (0..r).step_by(TILE as usize) {
            let rows = TILE.min(r - first);
            let removed: Vec<bool> = Vec::try_from(
                self.removed_rb.f_narrow(0, first, rows)?.f_to_device(Device::Cpu)?.f_contiguous()?.f_view([-1])?,
            )?;
            if !removed.contains(&true) {
                continue;
            }
            let mut w_pb = w_rb.f_narrow(0, first, rows)?;
            let ug_pp = self.ug_rr.map(|ug| ug.f_narrow(0, first, rows)?.f_narrow(1, first, rows)).transpose()?;
            if let Some(ug) = self.ug_rr {
                let above = ug.f_narrow(0, 0, first)?.f_narrow(1, first, rows)?;
                w_pb = w_pb.f_add(&above.f_tr()?.f_matmul(&change_rb.f_narrow(0, 0, first)?)?)?;
            }
            let mut tile = Tile { w: matrix(Some(&w_pb), 0)?, q: vec![0.0; removed.len()], removed };
            let change = tile.sweep(&matrix(ug_pp.as_ref(), rows)?, &self.ua_bb);
            let back = |values: &[f64]| -> Result<Tensor, PruningError> {
                Ok(Tensor::from_slice(values)
                    .f_view([rows, columns])?
                    .f_to_device(w_rb.device())?
                    .f_to_kind(w_rb.kind())?)
            };
            q_rb.f_narrow(0, first, rows)?.f_copy_(&back(&tile.q)?)?;
            change_rb.f_narrow(0, first, rows)?.f_copy_(&back(&change)?)?;
        }
        Ok(q_rb)
    }
}

/// A matrix on the host, by rows.
struct Matrix {
    values: Vec<f64>,
    columns: usize,
}

impl Matrix {
    fn row(&self, i: usize) -> &[f64] {
        &self.values[i * self.columns..][..self.columns]
    }
}

/// Returns a tensor's values, or the identity of size `n` where there is none.
fn matrix(m: Option<&Tensor>, n: i64) -> Result<Matrix, PruningError> {
    let identity = || Tensor::f_eye(n, (Kind::Double, Device::Cpu));
    let m = m.map_or_else(identity, |m| Ok(m.shallow_clone()))?;
    Ok(Matrix { columns: m.size()[1] as usize, values: host(&m.f_reshape([-1])?)? })
}

/// Some rows of a panel on the host.
struct Tile {
    w: Matrix,
    q: Vec<f64>,
    removed: Vec<bool>,
}

impl Tile {
    /// Removes the tile's weights and returns what that changed in each row before it was passed on.
    fn sweep(&mut self, ug: &Matrix, ua: &Matrix) -> Vec<f64> {
        let columns = self.w.columns;
        let mut changes = Vec::with_capacity(self.q.len());
        for r in 0..self.q.len() / columns {
            let (row, below) = self.w.values[r * columns..].split_at_mut(columns);
            let mut change = vec![0.0; columns];
            for c in (0..columns).filter(|c| self.removed[r * columns + c]) {
                let q = (row[c] + change[c]) / ua.row(c)[c];
                self.q[r * columns + c] = q;
                change[c..].iter_mut().zip(&ua.row(c)[c..]).for_each(|(change, u)| *change -= q * u);
            }
            for (later, u) in below.chunks_exact_mut(columns).zip(&ug.row(r)[r + 1..]) {
                later.iter_mut().zip(&change).for_each(|(w, change)| *w += u * change);
            }
            changes.append(&mut change);
        }
        changes
    }
}
