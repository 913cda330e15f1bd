//! Removal paths: in which order a layer's units go, and what each costs given those before it.
//!
//! `cost/side.rs` is one side of an elimination by blocked downdates, `columns.rs` and `row_column.rs` drive it;
//! `blocks.rs` removes whole runs of columns; `independent.rs` scores each unit as if it went alone; `zeroing.rs` is for
//! removal without an update. Single weights and n:m windows have no path but one cost each (`elements.rs`, `windows.rs`).
//! Independent costs under a Kronecker sum: `kronecker_sum.rs`.
//! The threshold over layers is not decided here.

mod blocks;
mod columns;
mod elements;
mod independent;
mod inverse_blocks;
mod kronecker_sum;
mod row_column;
mod side;
mod windows;
mod zeroing;

pub use elements::{ElementCosts, element_costs};
pub(crate) use inverse_blocks::inverse_diagonal;
pub use kronecker_sum::{
    RowColumnCosts, kronecker_sum_element_costs, kronecker_sum_path, kronecker_sum_row_column_costs,
};
pub use windows::{WindowCosts, window_costs};

use crate::problem::{Prepared, in_either_precision};
use crate::select::Rounds;
use crate::{LayerProblem, PruningError, Units};
use curvature::inverse;
use tch::Tensor;
use types::{PathStep, RemovalPath, Scoring, Unit, UnitKind, Update};

/// Removals between two settlements of the low-rank terms. Measured at C = 1536: 16 takes a third longer, 32 to 96 the same;
/// up to 32 the matrix-vector products of a step stay below the size at which MKL spreads them over threads, which
/// costs far more than it gains when other threads compute.
const BLOCK: usize = 32;

/// Returns the order in which a consumer layer's units go, down to `min_keep`, with marginal costs.
///
/// With an update the next unit is the one with the least ½ tr(M_QQ (Ai_QQ)⁻¹), M = Wᵀ G W, Ai = A⁻¹ of what is left;
/// without, ½ Σ M_QQ ∘ A_QQ, and sequential marginals (which may be negative) count what the removals before share with it.
/// Independent scoring takes these costs from the initial state. Query heads come in rounds of one from each kv group.
///
/// # Errors
/// `Shape` and `Units` for inputs that do not fit, `Factor` and `NotFinite` for curvature or weights that cannot be used,
/// `Unstable` when rounding defeats f64 as well.
pub fn coupled_path(
    problem: &LayerProblem,
    units: &Units,
    scoring: Scoring,
    update: Update,
) -> Result<RemovalPath, PruningError> {
    tch::no_grad(|| {
        units.check(problem)?;
        in_either_precision(problem, |p| {
            let removals = coupled_removals(p, units, scoring, update)?;
            let unit = |position: usize| Unit { kind: units.kind, index: units.kept[position] };
            let step = |(position, cost)| PathStep { unit: unit(position), cost, freed: units.freed_per_unit };
            let steps = removals.into_iter().map(step).collect();
            Ok(RemovalPath { layer: problem.layer.clone(), steps, damping: p.damping })
        })
    })
}

fn coupled_removals(
    p: &Prepared,
    units: &Units,
    scoring: Scoring,
    update: Update,
) -> Result<Vec<(usize, f64)>, PruningError> {
    let mut rounds = Rounds::new(units);
    let m_cc = input_energy(p)?;
    match (update, scoring, &p.a) {
        (Update::None, Scoring::Sequential, _) => zeroing::path(p, &m_cc, units, &mut rounds),
        (_, Scoring::Sequential, Some(a)) => {
            let ai_cc = inverse(&a.l)?;
            if units.columns_per_unit == 1 && rounds.is_free() {
                return columns::path(p, ai_cc, m_cc, rounds.steps(), BLOCK);
            }
            blocks::path(p, ai_cc, m_cc, units, &mut rounds)
        }
        // With A = I columns do not interact: the marginals are the independent costs.
        (_, Scoring::Independent, _) | (_, Scoring::Sequential, None) => {
            let costs = independent::unit_costs(p, &m_cc, units, update)?;
            Ok(rounds.order(&costs).into_iter().map(|position| (position, costs[position])).collect())
        }
    }
}

/// Returns the order in which a layer's rows and columns go, with marginal costs, until 98 % of the live weights are freed
/// or one row and one column are left.
///
/// `problem` is of full size; only the block of `live_rows` and `live_columns` (and the bias column) is looked at. A row
/// frees a weight in each column that is left, a column one in each row. Sequential: the next is the one with the least
/// cost per freed weight, among rows ½ w_r A w_rᵀ / Gi_rr and columns ½ w_cᵀ G w_c / Ai_cc of what is left, both sides
/// updated. Independent: by rising cost in the initial state. Without an update costs are ½ w_r A w_rᵀ G_rr and
/// ½ w_cᵀ G w_c A_cc, and the order is the independent one whatever `scoring` says: marginals without update need both
/// products W A and G W at every step.
///
/// # Errors
/// As [`coupled_path`].
pub fn row_column_path(
    problem: &LayerProblem,
    live_rows: &[u32],
    live_columns: &[u32],
    scoring: Scoring,
    update: Update,
) -> Result<RemovalPath, PruningError> {
    tch::no_grad(|| {
        let (rows, columns) = live_positions(problem, live_rows, live_columns)?;
        let live = problem.restricted(&rows, &columns)?;
        in_either_precision(&live, |p| {
            let removals = match (scoring, update) {
                (Scoring::Independent, _) | (_, Update::None) => {
                    let (rows, columns) = independent::row_and_column_costs(p, update)?;
                    row_column::independent_path(&rows, &columns)
                }
                (Scoring::Sequential, _) => row_column::path(p, BLOCK)?,
            };
            let unit = |line: row_column::Line| match line {
                row_column::Line::Row(r) => Unit { kind: UnitKind::Row, index: live_rows[r] },
                row_column::Line::Column(c) => Unit { kind: UnitKind::Column, index: live_columns[c] },
            };
            let steps =
                removals.into_iter().map(|r| PathStep { unit: unit(r.line), cost: r.cost, freed: r.freed }).collect();
            Ok(RemovalPath { layer: problem.layer.clone(), steps, damping: p.damping })
        })
    })
}

/// Returns the positions of live rows and of live columns with the bias column, once they are known to be legal.
pub(crate) fn live_positions(
    problem: &LayerProblem,
    live_rows: &[u32],
    live_columns: &[u32],
) -> Result<(Vec<i64>, Vec<i64>), PruningError> {
    problem.check()?;
    let (r, c) = problem.shape()?;
    for (name, live, limit) in [("rows", live_rows, r), ("columns", live_columns, c - problem.bias_columns())] {
        let in_range = live.last().is_some_and(|&last| i64::from(last) < limit);
        if !in_range || !live.is_sorted_by(|x, y| x < y) {
            let reason = format!("live {name} must be some of the {limit} there are, each once, in rising order");
            return Err(problem.units_error(reason));
        }
    }
    let rows = live_rows.iter().map(|&row| i64::from(row)).collect();
    let columns = live_columns.iter().map(|&column| i64::from(column)).chain(problem.bias.then_some(c - 1)).collect();
    Ok((rows, columns))
}

/// Returns M = Wᵀ G W, `[C, C]`.
fn input_energy(p: &Prepared) -> Result<Tensor, PruningError> {
    Ok(p.w_rc.f_tr()?.f_matmul(&p.g_w()?)?)
}
