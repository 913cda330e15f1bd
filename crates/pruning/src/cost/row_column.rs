//! The path of rows and columns together: two sides of one elimination, each removal felt by both.

use super::input_energy;
use super::side::{Pivot, Side};
use crate::PruningError;
use crate::problem::{Prepared, host};
use crate::select::{first_is_cheaper, rising};
use curvature::{Factorised, inverse};
use tch::Tensor;

/// A row or a column, by position in the live block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    Row(usize),
    Column(usize),
}

/// One removal.
#[derive(Debug, Clone, Copy)]
pub(super) struct LineRemoval {
    pub(super) line: Line,
    pub(super) cost: f64,
    pub(super) freed: u64,
}

/// How many rows and columns are left, and when to stop.
#[derive(Debug)]
struct Live {
    rows: u64,
    columns: u64,
    /// At most this many weights may be left at the end.
    enough: u64,
}

impl Live {
    fn new(rows: u64, columns: u64) -> Self {
        Self { rows, columns, enough: rows * columns / 50 }
    }

    fn is_done(&self) -> bool {
        (self.rows <= 1 && self.columns <= 1) || self.rows * self.columns <= self.enough
    }

    /// Returns the weights that go with the line, and counts it out.
    fn free(&mut self, line: Line) -> u64 {
        match line {
            Line::Row(_) => {
                self.rows -= 1;
                self.columns
            }
            Line::Column(_) => {
                self.columns -= 1;
                self.rows
            }
        }
    }

    /// Returns whether the line may go: the last row and the last column stay.
    fn admits(&self, line: Line) -> bool {
        match line {
            Line::Row(_) => self.rows > 1,
            Line::Column(_) => self.columns > 1,
        }
    }
}

/// Returns rows and columns by rising cost, as if each were removed alone.
pub(super) fn independent_path(rows: &[f64], columns: &[f64]) -> Vec<LineRemoval> {
    let mut live = Live::new(rows.len() as u64, columns.len() as u64);
    let costs: Vec<f64> = rows.iter().chain(columns).copied().collect();
    let mut removals = Vec::new();
    for i in rising(&costs) {
        let line = if i < rows.len() { Line::Row(i) } else { Line::Column(i - rows.len()) };
        if live.is_done() {
            break;
        }
        if live.admits(line) {
            removals.push(LineRemoval { line, cost: costs[i], freed: live.free(line) });
        }
    }
    removals
}

/// The elimination of both sides, between two settlements.
struct Elimination {
    w_rc: Tensor,
    rows: Side,
    columns: Side,
    /// Removed since the last settlement, as indices into the sides.
    gone_rows: Vec<i64>,
    gone_columns: Vec<i64>,
    /// −pivot of each of them.
    pivots: Vec<Tensor>,
}

/// Returns rows and columns in the order of cost per freed weight, with exact marginal costs.
pub(super) fn path(p: &Prepared, block: usize) -> Result<Vec<LineRemoval>, PruningError> {
    let (r, c) = p.shape();
    let inverse_or_identity = |factor: &Option<Factorised>, n: i64| -> Result<Tensor, PruningError> {
        Ok(match factor {
            Some(f) => inverse(&f.l)?,
            None => Tensor::f_eye(n, (p.w_rc.kind(), p.w_rc.device()))?,
        })
    };
    let output_energy_rr = p.w_a()?.f_matmul(&p.w_rc.f_tr()?)?;
    let mut state = Elimination {
        w_rc: p.w_rc.shallow_clone(),
        rows: Side::new(inverse_or_identity(&p.g, r)?, output_energy_rr, 0, block)?,
        columns: Side::new(inverse_or_identity(&p.a, c)?, input_energy(p)?, p.bias_columns, block)?,
        gone_rows: Vec::new(),
        gone_columns: Vec::new(),
        pivots: Vec::new(),
    };
    let mut live = Live::new(r as u64, (c - p.bias_columns) as u64);
    let mut removals = Vec::new();
    while !live.is_done() {
        let removal = state.step(p, &mut live, removals.len())?;
        removals.push(removal);
        if state.pivots.len() == block || live.is_done() {
            state.settle(p, removals.len())?;
        }
    }
    Ok(removals)
}

impl Elimination {
    /// Removes the line that costs least per freed weight.
    fn step(&mut self, p: &Prepared, live: &mut Live, done: usize) -> Result<LineRemoval, PruningError> {
        let (row_cost, row) = self.rows.cheapest()?;
        let (column_cost, column) = self.columns.cheapest()?;
        let (row_cost, column_cost) = (row_cost.f_double_value(&[0])?, column_cost.f_double_value(&[0])?);
        if row_cost.is_nan() || column_cost.is_nan() {
            return Err(p.unstable("a cost", f64::NAN, done));
        }
        let per_weight =
            |cost: f64, admitted: bool, freed: u64| if admitted { cost / freed as f64 } else { f64::INFINITY };
        let by_row = per_weight(row_cost, live.rows > 1, live.columns);
        let by_column = per_weight(column_cost, live.columns > 1, live.rows);
        let (line, cost) = if first_is_cheaper(by_row, by_column) {
            (Line::Row(self.remove_row(&row)?), row_cost)
        } else {
            (Line::Column(self.remove_column(&column)?), column_cost)
        };
        Ok(LineRemoval { line, cost: p.checked("a cost", cost, done)?, freed: live.free(line) })
    }

    /// Removes a row by index and returns its position in the live block.
    fn remove_row(&mut self, i: &Tensor) -> Result<usize, PruningError> {
        let y = self.rows.weights(&self.w_rc, i, &self.columns)?;
        let pivot = self.rows.remove(i)?;
        self.columns.absorb(&y, &pivot)?;
        note(i, pivot, &self.rows, &mut self.gone_rows, &mut self.pivots)
    }

    /// Removes a column by index and returns its position in the live block.
    fn remove_column(&mut self, i: &Tensor) -> Result<usize, PruningError> {
        let y = self.columns.weights(&self.w_rc.f_tr()?, i, &self.rows)?;
        let pivot = self.columns.remove(i)?;
        self.rows.absorb(&y, &pivot)?;
        note(i, pivot, &self.columns, &mut self.gone_columns, &mut self.pivots)
    }

    /// Brings everything up to date and drops what has gone.
    fn settle(&mut self, p: &Prepared, done: usize) -> Result<(), PruningError> {
        let pivots = host(&Tensor::f_cat(&std::mem::take(&mut self.pivots), 0)?)?;
        if let Some(&bad) = pivots.iter().find(|negative| negative.is_nan() || **negative >= 0.0) {
            return Err(p.unstable("a pivot", -bad, done));
        }
        let rows = self.rows.left(&std::mem::take(&mut self.gone_rows));
        let columns = self.columns.left(&std::mem::take(&mut self.gone_columns));
        self.w_rc = self.rows.settled_weights(&self.w_rc, &rows, &self.columns, &columns)?;
        self.rows.settle(&rows)?;
        self.columns.settle(&columns)
    }
}

/// Books a removal and returns its position in the live block.
fn note(
    i: &Tensor,
    pivot: Pivot,
    side: &Side,
    gone: &mut Vec<i64>,
    pivots: &mut Vec<Tensor>,
) -> Result<usize, PruningError> {
    let i = i.f_int64_value(&[0])?;
    gone.push(i);
    pivots.push(pivot.negative);
    Ok(side.positions[i as usize])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::{LayerProblem, in_either_precision};
    use testkit::{devices, random, random_spd};
    use types::LayerId;

    #[test]
    fn the_blocked_path_equals_the_unblocked_one() {
        for device in devices() {
            let problem = LayerProblem {
                layer: LayerId::new("q_proj").unwrap(),
                w_rc: random(&[50, 81], 1).to_device(device),
                bias: true,
                a_cc: Some(random_spd(81, 2).to_device(device)),
                g_rr: Some(random_spd(50, 3).to_device(device)),
                tokens: 1,
                damping_scale: types::DampingScale::Mean,
                damping_a: 0.01,
                damping_g: 0.01,
            };
            let run = |block: usize| in_either_precision(&problem, |p| path(p, block)).unwrap();
            let single = run(1);
            let left: u64 = 50 * 80 - single.iter().map(|r| r.freed).sum::<u64>();
            assert!(left <= 50 * 80 / 50, "{left}");
            for block in [9, 64, 200] {
                let blocked = run(block);
                assert_eq!(blocked.len(), single.len());
                for (x, y) in single.iter().zip(&blocked) {
                    assert_eq!((x.line, x.freed), (y.line, y.freed), "block {block}");
                    assert!((x.cost - y.cost).abs() < 1e-9 * (1.0 + x.cost), "{} {}", x.cost, y.cost);
                }
            }
        }
    }
}
