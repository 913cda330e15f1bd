//! Small problems and their dense Fishers.

use pruning::{LayerProblem, Units};
use tch::{Device, Kind, Tensor};
use testkit::{DenseRemoval, dense_obs, dense_zeroing, kron, random, random_spd};
use types::{DampingScale, LayerId, Unit, UnitKind, Update};

/// Which factors a problem has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Factors {
    Both,
    OnlyA,
    OnlyG,
    Neither,
}

pub(crate) const ALL_FACTORS: [Factors; 4] = [Factors::Both, Factors::OnlyA, Factors::OnlyG, Factors::Neither];

/// Returns a problem with random weights `[r, c]`, bias included in `c`, and no damping.
pub(crate) fn problem(r: i64, c: i64, bias: bool, factors: Factors, seed: u64, device: Device) -> LayerProblem {
    let a = matches!(factors, Factors::Both | Factors::OnlyA).then(|| random_spd(c, seed + 1).to_device(device));
    let g = matches!(factors, Factors::Both | Factors::OnlyG).then(|| random_spd(r, seed + 2).to_device(device));
    LayerProblem {
        layer: LayerId::new("model.layers.3.fc2").unwrap(),
        w_rc: random(&[r, c], seed).to_device(device),
        bias,
        a_cc: a,
        g_rr: g,
        tokens: 100,
        damping_scale: DampingScale::Mean,
        damping_a: 0.0,
        damping_g: 0.0,
    }
}

/// Returns what removing `positions` does by the dense matrix `f`, with the best update or without one.
pub(crate) fn dense_removal(w_rc: &Tensor, f: &Tensor, positions: &[i64], update: Update) -> DenseRemoval {
    match update {
        Update::None => dense_zeroing(w_rc, f, positions),
        _ => dense_obs(w_rc, f, positions),
    }
}

/// Returns a mask of about `share` of the weights, and its row-major positions in `[r, c]` with the bias.
pub(crate) fn mask(problem: &LayerProblem, share: f64, seed: u64) -> (Tensor, Vec<i64>) {
    let (r, c) = problem.w_rc.size2().unwrap();
    let columns = c - i64::from(problem.bias);
    let rank = random(&[r, columns], seed).view([-1]).argsort(0, false).argsort(0, false);
    let removed = rank.lt((share * (r * columns) as f64).round()).view([r, columns]);
    let flat = Vec::<bool>::try_from(removed.view([-1])).unwrap();
    let positions = (0..r * columns).filter(|i| flat[*i as usize]).map(|i| i / columns * c + i % columns).collect();
    (removed.to_device(problem.w_rc.device()), positions)
}

/// Returns G ⊗ A on the CPU.
pub(crate) fn fisher(problem: &LayerProblem) -> Tensor {
    let eye = |n: i64| Tensor::eye(n, (Kind::Double, Device::Cpu));
    let size = problem.w_rc.size();
    let dense = |m: &Option<Tensor>, n: i64| m.as_ref().map_or_else(|| eye(n), |m| m.to_device(Device::Cpu));
    kron(&dense(&problem.g_rr, size[0]), &dense(&problem.a_cc, size[1]))
}

/// Returns units that are `q` columns each.
pub(crate) fn units(kind: UnitKind, count: u32, q: u32) -> Units {
    // Original indices are not positions.
    let kept = (0..count).map(|i| 3 * i + 1).collect();
    Units { kind, kept, columns_per_unit: q, groups: 1, min_keep: 1, freed_per_unit: 10 }
}

/// Returns the columns of units, by position.
pub(crate) fn columns_of(units: &Units, removed: &[Unit]) -> Vec<i64> {
    let q = i64::from(units.columns_per_unit);
    let position = |unit: &Unit| units.kept.iter().position(|&k| k == unit.index).unwrap() as i64;
    removed.iter().flat_map(|unit| position(unit) * q..(position(unit) + 1) * q).collect()
}

/// Returns what is left of a matrix without some rows and columns.
pub(crate) fn without(w_rc: &Tensor, rows: &[i64], columns: &[i64]) -> Tensor {
    let left = |n: i64, gone: &[i64]| Tensor::from_slice(&(0..n).filter(|i| !gone.contains(i)).collect::<Vec<_>>());
    let size = w_rc.size();
    w_rc.index_select(0, &left(size[0], rows)).index_select(1, &left(size[1], columns))
}

pub(crate) fn row(index: u32) -> Unit {
    Unit { kind: UnitKind::Row, index }
}

pub(crate) fn column(index: u32) -> Unit {
    Unit { kind: UnitKind::Column, index }
}

pub(crate) fn close(x: f64, y: f64) -> bool {
    (x - y).abs() < 1e-9 * (1.0 + x.abs())
}
